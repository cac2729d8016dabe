"""Fixed kernels for reproducible samples."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from worker.errors import Refused


@contextmanager
def fixed_kernels(wanted: bool = True) -> Iterator[None]:
    """Let torch run only kernels that repeat their bytes; ``Refused`` where there is none.

    What it gives, for work of one shape that runs alone: the same bytes on every device of one
    kind, with the same versions of torch and driver, and on the CPU with the same number of
    threads. On CUDA, cuBLAS asks for ``CUBLAS_WORKSPACE_CONFIG`` (see ``loading``). Not thread
    safe: the switches are torch's own and global.
    https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise Refused("This model cannot draw reproducibly.", param="reproducible") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        _, cudnn.deterministic, cudnn.benchmark = before
