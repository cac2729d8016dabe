import pytest
import torch

from worker.pipelines.kernels import fixed_kernels


def test_fixed_kernels_end_with_their_block() -> None:
    with fixed_kernels():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_fixed_kernels_end_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), fixed_kernels():
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()


def test_unwanted_they_change_nothing() -> None:
    with fixed_kernels(wanted=False):
        assert not torch.are_deterministic_algorithms_enabled()
