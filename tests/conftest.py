import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported: the tests run in several processes (.pytest.ini), each with one thread, as do the kernels they start

import csv  # noqa: E402
import time  # noqa: E402

import matplotlib  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("gate", derandomize=True, deadline=None)  # the same examples each time, so that the same code gives the same answer
settings.register_profile("search", max_examples=2000, deadline=None)  # others each time: pytest --hypothesis-profile search
settings.load_profile("gate")
FIRST = ("browser", "built", "ray")  # groups of tests that take minutes, the longest first
matplotlib.use("agg")  # no window, also where a display is; the kernels of the papermill tests keep their own inline figures


def pytest_addoption(parser):
    parser.addoption("--effort", type=float, default=1., help="the harnesses of faults, damage and fuzzing do so many times as much as in the gate")
    parser.addoption("--tally", metavar="FILE", help="write what they counted to this CSV file")


def pytest_collection_modifyitems(config, items):
    "Where several processes share the tests, the long ones come first, so that none is still at work when the others have nothing left to do."
    if not hasattr(config, "workerinput"): return

    def rank(item):
        group = next((m.args[0] for m in item.iter_markers("xdist_group")), "")
        return FIRST.index(group) if group in FIRST else len(FIRST) + (0 if item.path.stem == "test_papermill" else 1 if "tally" in item.fixturenames else 2)
    items.sort(key=rank)


@pytest.fixture
def effort(request): return request.config.getoption("--effort")


@pytest.fixture
def tally(record_property):
    "What a harness says at its end: of how many tries of what, how many broke the promise. It is shown at the end of the run, and written to --tally's file. A try that breaks it in two ways is broken once, so at most all are."
    start = time.perf_counter()

    def say(promise, what, tried, failed):  # "crash safety", "activation writer: SIGKILL before a file operation", 120, [(where, what was wrong)]
        nonlocal start
        broken, begun, start = min(len(failed), int(tried)), start, time.perf_counter()
        record_property("tally", [promise, what, int(tried), broken, round(start - begun, 1)])
        assert tried > 0 and not failed, f"{what}: {broken} of {tried} failed:\n" + "\n".join(map(str, failed[:20]))
    return say


def pytest_terminal_summary(terminalreporter, config):
    if hasattr(config, "workerinput"): return  # a process that runs a part of the tests
    rows = [v for status in ("passed", "failed") for r in terminalreporter.stats.get(status, ()) for k, v in getattr(r, "user_properties", ()) if k == "tally"]
    if not rows: return
    terminalreporter.section("promises: tried and broken")
    for promise, what, tried, failed, seconds in sorted(rows): terminalreporter.line(f"{promise:24} {what:84} {tried:8,} tried {failed:4,} broken {seconds:7.1f} s")
    if path := config.getoption("--tally"):
        with open(path, "w", newline="") as f: csv.writer(f, lineterminator="\n").writerows([("promise", "what", "tried", "broken", "seconds"), *sorted(rows)])
