"Fetching with a real pip, without any network: tiny wheels in a folder, found with PIP_NO_INDEX and PIP_FIND_LINKS."
import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from multiprocessing import get_context

import pytest

from datacentric_w2s import artifacts as art

META = "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder, text="ice is cold", extra=()):
    "A wheel that pip accepts; its path"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        for name, content in [("toy_data/rows/a.txt", text), ("toy_data/rows/b.txt", "fire is hot"), ("toy_data/big.py", "x = 1"), *extra,
                              ("toy_data-1.0.dist-info/METADATA", META), ("toy_data-1.0.dist-info/WHEEL", WHEEL), ("toy_data-1.0.dist-info/RECORD", "")]:
            z.writestr(name, content)
    return path


def toy(wheel, **changes):
    return replace(art.Artifact("toy", "toy-data", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), ("toy_data/rows/",), 1000, "CC0-1.0"), **changes)


@pytest.fixture
def index(tmp_path, monkeypatch):
    "An empty cache, and pip that knows only the folder `index`; the wheel in it"
    wheel = make_wheel(tmp_path / "index")
    monkeypatch.setenv("DATACENTRIC_W2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return wheel


@pytest.fixture
def no_process(monkeypatch):
    "Any subprocess is an error from the moment that this is called"
    def forbid(): monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    return forbid


def test_pip_fetches_only_what_is_needed_and_a_warm_cache_starts_no_process(index, no_process):
    a = toy(index)
    path = art.artifact(a)
    assert sorted(p.name for p in path.iterdir()) == ["a.txt", "b.txt"]
    assert not list(art.cache_dir().rglob("big.py")) and not list(art.cache_dir().rglob("*.whl"))
    no_process()
    assert art.artifact(a) == path


def test_user_constraints_and_settings_do_no_harm(index, tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("numpy<3\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    monkeypatch.setenv("PIP_QUIET", "3")
    assert (art.artifact(toy(index)) / "a.txt").exists()


def test_a_wrong_hash_is_refused(index):
    a = toy(index, sha256="f" * 64)
    with pytest.raises(art.ArtifactError, match="another sha256 than the pinned one") as e: art.artifact(a)
    for part in ("toy-data==1.0", "f" * 64, "pip download --no-deps", str(art.cache_dir() / "wheels")): assert part in str(e.value)
    assert not list(art.cache_dir().rglob("a.txt"))


def test_no_index_and_no_pip_give_the_same_clear_error(index, monkeypatch):
    a = toy(index)
    index.unlink()
    with pytest.raises(art.ArtifactError, match="pip could not fetch it.*No matching distribution"): art.artifact(a)
    monkeypatch.setattr(art, "_pip", lambda a, *options: [sys.executable, "-S", "-I", "-m", "pip", "download", *options])  # -S hides site-packages
    with pytest.raises(art.ArtifactError, match="this Python has no pip"): art.artifact(a)


@pytest.mark.parametrize("content", ["ice is bold", "ice", None])
def test_a_damaged_file_is_reported_and_rebuilt(index, content):
    a = toy(index)
    file = art.artifact(a) / "a.txt"
    file.unlink() if content is None else file.write_text(content)
    with pytest.warns(UserWarning, match="toy: rebuilt from its wheel, because toy_data/rows/a.txt"): art.artifact(a)
    assert file.read_text() == "ice is cold"


def test_a_strange_file_alone_costs_no_fetching(index, no_process):
    "Such as what a file manager or `datasets` leaves in a folder"
    a = toy(index)
    folder = art.artifact(a)
    (folder / "desktop.ini").write_text("x")
    index.unlink()
    no_process()
    with pytest.warns(UserWarning, match="toy: put into the folder aside, because toy_data/rows/desktop.ini is none of its files"): assert art.artifact(a) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "b.txt"] and len(list(art.cache_dir().rglob("*desktop.ini"))) == 1


def test_damage_is_never_handed_out_when_it_can_not_be_rebuilt(index):
    a = toy(index)
    (art.artifact(a) / "a.txt").write_text("ice is bold")
    index.unlink()
    with pytest.warns(UserWarning), pytest.raises(art.ArtifactError): art.artifact(a)


def test_a_damaged_manifest_is_rebuilt(index):
    a = toy(index)
    art.artifact(a)
    next(art.cache_dir().rglob("manifest.json")).write_text("[]")
    with pytest.warns(UserWarning, match="manifest.json is damaged"): art.artifact(a)


def test_a_wheel_put_there_by_hand_is_checked_and_used(index, no_process):
    a = toy(index)
    (art.cache_dir() / "wheels").mkdir(parents=True)
    index.rename(art.cache_dir() / "wheels" / index.name)
    no_process()
    assert (art.artifact(a) / "a.txt").read_text() == "ice is cold"


def test_a_foreign_wheel_put_there_by_hand_is_not_used(index):
    make_wheel(art.cache_dir() / "wheels", "ice is bold")
    with pytest.warns(UserWarning, match="it is not used"): path = art.artifact(toy(index))
    assert (path / "a.txt").read_text() == "ice is cold"


def test_no_member_leads_out_of_the_cache(index, tmp_path):
    make_wheel(index.parent, extra=[("toy_data/rows/../../../../../evil.txt", "out")])
    with pytest.raises(art.ArtifactError, match="would lie outside the cache folder"): art.artifact(toy(index))
    assert not list(tmp_path.rglob("evil.txt"))


def test_two_artifacts_of_one_wheel_are_fetched_together(index, no_process, monkeypatch):
    one, two = toy(index), toy(index, name="two", members=("toy_data/big.py",))
    monkeypatch.setattr(art, "ARTIFACTS", dict(toy=one, two=two))
    art.artifact("toy")
    no_process()
    assert art.artifact("two").read_text() == "x = 1"


def _count_and_fetch(a, log, start):
    "In a process of its own: fetch, and note each download"
    download = art._download

    def noted(*args):
        with open(log, "a") as f: f.write("download\n")
        return download(*args)
    art._download = noted
    start.wait()
    assert (art.artifact(a) / "a.txt").read_text() == "ice is cold"


def test_three_processes_at_once_fetch_once(index, tmp_path):
    ctx = get_context("spawn")
    start, log = ctx.Barrier(3), tmp_path / "log"
    runs = [ctx.Process(target=_count_and_fetch, args=(toy(index), log, start)) for _ in range(3)]
    for r in runs: r.start()
    for r in runs: r.join(120)
    assert [r.exitcode for r in runs] == [0, 0, 0]
    assert log.read_text() == "download\n"


def test_a_killed_owner_leaves_no_lock_and_its_rubbish_is_removed(index):
    a = toy(index)
    folder = art._folder(a)
    folder.parent.mkdir(parents=True)
    code = "import os, sys; from filelock import FileLock; FileLock(sys.argv[1]).acquire(); os.mkdir(sys.argv[2]); os.kill(os.getpid(), 9)"
    rubbish = folder.parent / f".{folder.name}-abc"
    subprocess.run([sys.executable, "-c", code, f"{folder}.lock", str(rubbish)])
    assert rubbish.exists()
    assert art.artifact(a).exists() and not rubbish.exists()


def test_the_listing_names_all_pins():
    df = art.artifacts()
    assert set(df.columns) == {"name", "wheel", "version", "MB", "licence", "cached", "sha256"} and df.sha256.str.len().eq(64).all()
