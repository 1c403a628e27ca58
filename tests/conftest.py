import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported: the tests run in several processes (.pytest.ini), each with one thread, as do the kernels they start

import matplotlib  # noqa: E402

matplotlib.use("agg")  # no window, also where a display is; the kernels of the papermill tests keep their own inline figures
