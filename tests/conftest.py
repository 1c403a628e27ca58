import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported: the tests run in several processes (.pytest.ini), each with one thread, as do the kernels they start

import matplotlib  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("gate", derandomize=True, deadline=None)  # the same examples each time, so that the same code gives the same answer
settings.register_profile("search", max_examples=2000, deadline=None)  # others each time: pytest --hypothesis-profile search
settings.load_profile("gate")
matplotlib.use("agg")  # no window, also where a display is; the kernels of the papermill tests keep their own inline figures
