"What can happen to a file that is stored: a list of damages, and a judge of what a call makes of each."
import faulthandler
import os
import signal
import socket
import warnings
from contextlib import contextmanager

import numpy as np

from datacentric_w2s.results import _Caught


def broken(good, effort=1, cuts=40, flips=160, seed=0):
    "Pairs of a name and a content: what disks, copies and crashes make of `good`; at a high effort every byte is cut at, and every bit flipped"
    rng, n = np.random.default_rng(seed), len(good)
    some = lambda of, count: sorted(rng.choice(of, min(of, int(count * effort)), replace=False).tolist())
    for at in sorted({0, 1, n - 1, *some(n, cuts)}): yield f"cut at byte {at}", good[:at]
    for at in some(8 * n, flips): yield f"bit {at % 8} of byte {at // 8} flipped", _with(good, at // 8, bytes([good[at // 8] ^ 1 << at % 8]))
    yield "zeros of the same size", bytes(n)
    yield "ones of the same size", b"\xff" * n
    yield "garbage of the same size", rng.bytes(n)
    yield "open brackets of the same size", b"[" * n
    for byte in (b"\0", b"\n", b"x"): yield f"{byte!r} appended", good + byte
    for at in some(n, cuts / 4):
        yield f"a byte inserted at {at}", good[:at] + b"x" + good[at:]
        yield f"byte {at} lost", good[:at] + good[at + 1:]
    yield "twice", good + good
    for size in (16, 512, 4096): yield from _blocks(good, size, rng, int(4 * effort))


def _with(good, at, new): return good[:at] + new + good[at + len(new):]


def _blocks(good, size, rng, count):
    "Blocks that a disk zeroes, swaps, repeats or loses"
    blocks = [good[i:i + size] for i in range(0, len(good), size)]
    join = lambda change: b"".join(change([*blocks]))
    for i in sorted(rng.choice(len(blocks), min(count, len(blocks)), replace=False).tolist()):
        yield f"block {i} of {size} bytes zeroed", join(lambda b: [*b[:i], bytes(len(b[i])), *b[i + 1:]])
        yield f"block {i} of {size} bytes lost", join(lambda b: b[:i] + b[i + 1:])
        yield f"block {i} of {size} bytes repeated", join(lambda b: [*b[:i], b[i], *b[i:]])
        if i: yield f"blocks 0 and {i} of {size} bytes swapped", join(lambda b: [b[i], *b[1:i], b[0], *b[i + 1:]])


def odd_things(path):
    "Pairs of a name and a function that puts something in a file's place that is no file, or leads to none; reading some of them never ends"
    def empty_folder(): path.mkdir()
    def full_folder(): path.mkdir(), (path / "x").write_text("x")
    def pipe(): os.mkfifo(path)
    def a_socket():
        with socket.socket(socket.AF_UNIX) as s:
            here = os.open(path.parent, os.O_RDONLY)
            try: s.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's path has at most 107 bytes
            finally: os.close(here)
    def endless(): path.symlink_to("/dev/zero")
    def nowhere(): path.symlink_to(path.parent / "there is none")
    def itself(): path.symlink_to(path)
    def linked_folder(): path.symlink_to(path.parent)
    for put in (empty_folder, full_folder, pipe, a_socket, endless, nowhere, itself, linked_folder): yield put.__name__.replace("_", " ").strip(), put


class Hangs(BaseException): "Raised in a call that takes too long; nothing that the package catches"


@contextmanager
def bounded(seconds=60):
    "Raise Hangs after so many seconds; where no signal gets through, end the process with its traceback"
    def ring(*_): raise Hangs
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def verdict(act, right, names, errors=()):
    "What a call makes of a damage: noticed (a warning names the file, the result is right), refused (a documented error names it), harmless (right, and nothing said); or what broke the promise"
    said, caught, got = [], _Caught(), None
    try:
        with caught, bounded(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            got = right(act())
    except Hangs: return "BROKEN: it hangs"
    named = lambda text: any(n in text for n in names)
    if caught.error is not None:
        if not isinstance(caught.error, errors): return f"BROKEN: {type(caught.error).__name__}: {caught.error}"
        return "refused" if named(str(caught.error)) else f"BROKEN: unnamed: {caught.error}"
    if not got: return f"BROKEN: another result {'after ' + repr(str(said[0].message)) if said else 'and nothing is said'}"
    if not said: return "harmless"
    return "noticed" if any(named(str(w.message)) for w in said) else f"BROKEN: unnamed warning {said[0].message}"


class Record:
    "Counts what came of each damage"
    def __init__(self): self.seen = {}

    def add(self, what, how, must=False):
        "Enter a verdict; `must`: it has to be noticed or refused, even where the result is right"
        if must and how == "harmless": how = "BROKEN: it was not noticed"
        self.seen[what] = how

    @property
    def failed(self): return [(k, v) for k, v in self.seen.items() if v.startswith("BROKEN")]

    def count(self, how): return sum(v == how for v in self.seen.values())


def put(path, content): path.write_bytes(content)


def clear(path):
    "Remove whatever lies at a path"
    if path.is_dir() and not path.is_symlink():
        for p in path.iterdir(): clear(p)
        path.rmdir()
    else: path.unlink(missing_ok=True)


def contents_of(folder):
    "All files below a folder but locks and what was set aside"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith((".lock", ".unusable")) and ".aside" not in str(p.relative_to(folder))}


def restored(folder, files):
    "Put a folder back as it was"
    if folder.is_symlink() or not folder.is_dir(): clear(folder)
    for p in folder.iterdir() if folder.exists() else (): clear(p)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        put(folder / name, content)
