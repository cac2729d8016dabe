import torch

from tinymodel.muon import Muon, orthogonal


def test_orthogonal_brings_singular_values_close_to_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 64, 24), (3, 24, 64)):
        found = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert found.min() > 0.5
        assert found.max() < 1.5


def test_muon_does_what_the_librarys_does() -> None:
    torch.manual_seed(0)
    ours = [torch.randn(24, 64, requires_grad=True), torch.randn(64, 24, requires_grad=True)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    one = Muon(ours, lr=torch.tensor(0.01))
    # The library's update has an RMS of 0.2, ours of 0.6.
    two = torch.optim.Muon(theirs, lr=0.03, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        one.step()
        two.step()  # type: ignore[no-untyped-call]
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() / b.norm() < 1e-3


def test_matrix_without_gradient_stays() -> None:
    idle = torch.randn(4, 4, requires_grad=True)
    before = idle.detach().clone()
    Muon([idle], lr=0.1).step()
    assert torch.equal(idle, before)
