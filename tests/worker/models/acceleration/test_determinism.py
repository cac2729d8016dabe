import pytest
import torch

from worker.errors import Refused
from worker.models.acceleration.determinism import fixed_kernels


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


def test_what_has_no_fixed_kernel_is_refused() -> None:
    numbers = torch.zeros(2)
    with pytest.raises(Refused) as refused, fixed_kernels():
        numbers.put_(torch.tensor([0]), torch.ones(1))
    assert refused.value.param == "reproducible"


def test_unwanted_they_change_nothing() -> None:
    with fixed_kernels(wanted=False):
        assert not torch.are_deterministic_algorithms_enabled()
