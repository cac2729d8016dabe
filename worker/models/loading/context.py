"""CUDA's context, made while Python still imports libraries: a tenth of each start."""

import contextlib
import ctypes
import os
import threading


def begin(device: str) -> threading.Thread:
    """Make the context of ``device`` ("cuda:N", or a UUID, which is the only visible card) beside
    whatever comes next.

    It is the primary one, which torch uses afterwards:
    https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__PRIMARY__CTX.html
    What fails here fails again in torch, which can say why.
    """
    # Read once, by the first who calls the driver; before CUDA 12.2 it loaded all at once.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    _, _, index = device.partition("cuda:")
    thread = threading.Thread(target=_retain, args=[int(index or 0)], name="context", daemon=True)
    thread.start()
    return thread


def _retain(index: int) -> None:
    with contextlib.suppress(OSError):  # no driver here
        driver = ctypes.CDLL("libcuda.so.1")  # which runs without the interpreter's lock
        card, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(card), index) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), card)
