"Files that are whole or not there: what the chapter's examples leave out."
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from datacentric_w2s.files import contents, explained, held, removed, sha256, written


def names(folder): return sorted(p.name for p in folder.iterdir())


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "there/rows.csv")
    with written(tmp_path / "link.csv") as temp: temp.write_text("a")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "there/rows.csv").read_text() == "a"


@pytest.mark.parametrize("name", ["x" * 251 + ".csv", "ü" * 125 + ".csv", "[a]*?.csv", ".hidden", "with space.csv"])
def test_any_name_that_the_disk_takes(tmp_path, name):
    for text in "ab":
        with written(tmp_path / name) as temp: temp.write_text(text)
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == "b"


def test_the_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with written(tmp_path / "whole") as temp: temp.write_text("")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_another_file_of_a_living_or_unknown_writer_stays(tmp_path):
    "A left-over is removed only where its owner is known to be dead."
    with written(tmp_path / "rows.csv") as temp: temp.write_text("a")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    made = {k: temp.with_name(temp.name.replace(f"-{os.getpid()}-", f"-{v}-")) for k, v in dict(dead=dead.pid, living=os.getppid(), odd="x", huge=10**30).items()}
    made["elsewhere"] = temp.with_name(temp.name.replace(temp.name.split(".")[-2].split("-")[0] + "-", "0" * 6 + "-"))
    made["of another file"] = temp.with_name(temp.name.replace(temp.name.split(".")[-3], "0" * 8))
    for p in made.values(): p.write_text("")
    with written(tmp_path / "rows.csv") as temp: temp.write_text("b")
    assert [k for k, p in made.items() if not p.exists()] == ["dead"]


@pytest.mark.parametrize("where, said", [("no/rows.csv", "No such file"), ("file/rows.csv", "a part of its path is a file; choose another folder"), ("y" * 300, "choose a shorter name")])
def test_errors_name_the_file_and_the_way_out(tmp_path, where, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=said), written(tmp_path / where) as temp: temp.write_text("a")
    assert names(tmp_path) == ["file"]


def test_an_error_of_something_else_passes_as_it_is(tmp_path):
    with pytest.raises(PermissionError) as e, written(tmp_path / "rows.csv") as temp:
        temp.write_text("a")
        raise PermissionError(13, "Permission denied", "/some/model")
    assert e.value.filename == "/some/model" and "rows.csv" not in str(e.value) and names(tmp_path) == []


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_disk_that_takes_no_renaming_of_a_folder_is_no_error(tmp_path, monkeypatch, call):
    "The file has its name already: an error would say that it was not written."
    real = getattr(os, call)

    def refuses(what, *more):
        if call == "open" and os.path.isdir(what) or call == "fsync" and os.path.isdir(f"/proc/self/fd/{what}"): raise OSError(22, "Invalid argument")
        return real(what, *more)
    monkeypatch.setattr(os, call, refuses)
    with written(tmp_path / "rows.csv") as temp: temp.write_text("a")
    assert (tmp_path / "rows.csv").read_text() == "a" and names(tmp_path) == ["rows.csv"]


def test_a_left_over_that_stays_stops_nobody(tmp_path, monkeypatch):
    "In a shared folder it may be another user's."
    monkeypatch.setattr("datacentric_w2s.files._left", lambda path: [Path("/proc/version")])
    with written(tmp_path / "rows.csv") as temp: temp.write_text("a")
    assert (tmp_path / "rows.csv").read_text() == "a"


def test_the_mode_of_a_file_stays(tmp_path):
    (tmp_path / "rows.csv").touch()
    (tmp_path / "rows.csv").chmod(0o640)
    with written(tmp_path / "rows.csv") as temp: temp.write_text("a")
    assert (tmp_path / "rows.csv").stat().st_mode & 0o777 == 0o640


def test_a_lock_makes_no_folder(tmp_path):
    "A path with a slip of the pen is told, and not made."
    with pytest.raises(FileNotFoundError, match="its folder is not there; make it first"), held(tmp_path / "mising/run", "x"): pass
    assert names(tmp_path) == []


def test_explained_knows_whose_error_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for filename, own in (("n.txt", True), (str(tmp_path / "n.txt"), True), (None, True), (str(tmp_path.parent), True), (f"{tmp_path}b/n.txt", False), ("/other", False)):
        with pytest.raises(OSError) as e, explained("n.txt", "read"): raise OSError(28, "No space left on device", filename)
        assert ("n.txt was not read; make room" in str(e.value)) == own, filename


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    "Else a power cut leaves a renamed and empty file."
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("replace") or replace(a, b))
    with written(tmp_path / "rows.csv") as temp: temp.write_text("a")
    assert order == ["fsync", "replace", "fsync"]


def test_one_holds_and_the_other_waits(tmp_path, capfd):
    order = []

    def second():
        with held(tmp_path / "x", "the rows"): order.append("second")

    with held(tmp_path / "x", "the rows"):
        t = threading.Thread(target=second)
        t.start()
        time.sleep(.5)
        order.append("first")
    t.join()
    assert order == ["first", "second"] and capfd.readouterr().err == "another process is at work on the rows; waiting for it\n"


def test_a_lock_falls_with_its_owner_even_when_a_child_lives_on(tmp_path):
    code = ("import subprocess, sys, time\nfrom datacentric_w2s.files import held\nwith held(sys.argv[1], 'x'):\n"
            "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n    print(child.pid, flush=True)\n    time.sleep(60)")
    owner = subprocess.Popen([sys.executable, "-c", code, tmp_path / "x"], stdout=subprocess.PIPE, text=True)
    child = int(owner.stdout.readline())
    owner.kill(), owner.wait(), owner.stdout.close()
    start = time.monotonic()
    with held(tmp_path / "x", "x"): took = time.monotonic() - start
    os.kill(child, signal.SIGKILL)
    assert took < 20


def test_threads_of_one_process_do_not_disturb_each_other(tmp_path):
    def write(k):
        for _ in range(30):
            with written(tmp_path / "rows.csv") as temp: temp.write_text(str(k) * 5000)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    text = (tmp_path / "rows.csv").read_text()
    assert names(tmp_path) == ["rows.csv"] and text == text[0] * 5000


def test_a_hash_is_remembered_only_where_a_change_would_show(tmp_path):
    p = tmp_path / "a"
    p.write_text("1")
    for text in ("2", "3", "4"):  # within one tick of the clock, of the same size
        before = sha256(p)
        p.write_text(text)
        assert sha256(p) != before
    os.utime(p, (time.time() + 9e6,) * 2)  # as after a clock that jumped back
    before = sha256(p)
    stamp = p.stat()
    p.write_text("5")
    os.utime(p, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert sha256(p) != before


def test_a_file_that_grows_or_lies_about_its_size_is_refused(tmp_path):
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 2**40)  # a terabyte that is not there: refused before it is read
    with pytest.raises(ValueError, match="sparse: has 1,099,511,627,776 bytes or more, wanted at most 10; is it the right file"): contents(tmp_path / "sparse", 10)
    with pytest.raises(ValueError, match="zero: is a device, wanted a file"): contents("/dev/zero", 10)


def test_what_lies_at_a_path_is_removed_whatever_it_is(tmp_path):
    (tmp_path / "folder/in").mkdir(parents=True), (tmp_path / "file").write_text("x"), (tmp_path / "link").symlink_to(tmp_path / "kept"), (tmp_path / "kept").mkdir()
    for name in ("folder", "file", "link", "nothing"): removed(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_what_cant_be_removed_is_said(tmp_path, monkeypatch):
    def no(self, missing_ok=False): raise OSError(errno.EROFS, "Read-only file system", str(self))
    monkeypatch.setattr(Path, "unlink", no)
    with pytest.raises(OSError, match="note.txt was not removed; the place can only be read; choose another folder"): removed(tmp_path / "note.txt")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_that_has_ended_is_not_at_work_even_where_nobody_asked_how(tmp_path):
    half = f"import os, signal; from pathlib import Path; from datacentric_w2s.files import written\nwith written(Path({str(tmp_path / 'rows.csv')!r})) as temp: temp.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)"
    child = subprocess.Popen([sys.executable, "-c", half])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert len(names(tmp_path)) == 1
    with written(tmp_path / "rows.csv") as temp: temp.write_text("whole")
    assert names(tmp_path) == ["rows.csv"]
    child.wait()
