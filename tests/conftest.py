import matplotlib

matplotlib.use("agg")  # no window, also where a display is; the kernels of the papermill tests keep their own inline figures
