import gc
import weakref

import pytest
import torch

from worker.models.base import DevicePoisoned, OutOfMemory
from worker.models.faults import fault_of, translate


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
        MemoryError(),
    ],
    ids=str,
)
def test_a_full_device_is_out_of_memory(error: Exception) -> None:
    assert isinstance(fault_of(error), OutOfMemory)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("CUDA error: the launch timed out and was terminated"),
        RuntimeError("CUDA error: unknown error"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA driver error: device is lost"),
        RuntimeError("cudaErrorLaunchFailure"),
        torch.AcceleratorError("no longer there"),
    ],
    ids=str,
)
def test_a_dead_context_is_poison(error: Exception) -> None:
    assert isinstance(fault_of(error), DevicePoisoned)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
        RuntimeError("CUDA error: invalid configuration argument"),
        torch.AcceleratorError("CUDA error: no kernel image is available for execution"),
        ValueError("unknown word in prompt 'CUDA error: device-side assert triggered'"),
    ],
    ids=str,
)
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    @translate
    def fails() -> None:
        raise error

    assert fault_of(error) is None
    with pytest.raises(type(error)) as raised:
        fails()
    assert raised.value is error


def test_a_fault_does_not_hold_the_memory() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    @translate
    def fails() -> None:
        tensor = torch.zeros(8)
        kept.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(OutOfMemory) as raised:
        fails()
    gc.collect()
    assert kept[0]() is None
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)


def test_a_result_passes_through() -> None:
    assert translate(lambda number: number + 1)(1) == 2
