import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from tests.worker.models.conftest import CPU, DEFAULTS, SMALL, close, draw, spec
from worker.models.acceleration import optimisations
from worker.models.loading.load import adapted
from worker.models.loading.random_zimage import random_zimage
from worker.settings import Settings

CUDA = torch.device("cuda")


def settings(**changes: Any) -> Settings:
    return Settings(**changes)


@pytest.fixture
def _gcc_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisations, "_missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


@pytest.fixture
def _extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ``.[hopper]`` were installed."""
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1")


def test_a_cpu_pulls_no_lever() -> None:
    plan = optimisations.choose(settings(), CPU)
    assert (plan.kernels, plan.graphs) == (False, False)
    assert dict(plan.why)["kernels"] == "off: no GPU"


@pytest.mark.usefixtures("_gcc_and_triton")
def test_a_gpu_pulls_all_but_fp8() -> None:
    plan = optimisations.choose(settings(), CUDA)
    assert (plan.kernels, plan.graphs, plan.fp8) == (True, True, "off")


@pytest.mark.usefixtures("_gcc_and_triton", "_extra")
def test_a_hopper_card_has_two_more() -> None:
    plan = optimisations.choose(settings(), CUDA)
    assert (plan.attention, plan.products) == ("flash4", "quack")
    assert (dict(plan.why)["attention"], plan.backend) == ("flash4", None)
    plan = optimisations.choose(settings(attention="cudnn", products="native"), CUDA)
    assert (plan.attention, plan.products) == ("cudnn", "native")


@pytest.mark.parametrize(
    ("changes", "capability", "why"),
    [
        ({}, (8, 9), "no Hopper card"),
        ({"dtype": "float32"}, (9, 0), "32 bits"),
        ({"kernels": "off"}, (9, 0), "no kernels"),
        ({"attention": "flash4", "products": "quack"}, (10, 0), "no Hopper card"),
    ],
)
@pytest.mark.usefixtures("_gcc_and_triton", "_extra")
def test_where_they_are_of_no_use_it_says_why(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    capability: tuple[int, int],
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    plan = optimisations.choose(settings(**changes), CUDA)
    assert (plan.attention, plan.products) == ("native", "native")
    assert dict(plan.why)["attention"] == dict(plan.why)["products"] == f"native: {why}"


@pytest.mark.usefixtures("_gcc_and_triton")
def test_what_is_not_installed_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    why = dict(optimisations.choose(settings(), CUDA).why)
    assert "no flash-attn-4 (pip install" in why["attention"]
    assert "no quack-kernels (pip install" in why["products"]


@pytest.mark.usefixtures("_gcc_and_triton", "_extra")
def test_8_bit_weights_are_multiplied_by_quack_too() -> None:
    plan = optimisations.choose(settings(fp8="transformer"), CUDA)
    assert (plan.attention, plan.products, plan.fp8) == ("flash4", "quack", "transformer")
    plan = optimisations.choose(settings(fp8="transformer", products="native"), CUDA)
    assert plan.products == "native"


@pytest.mark.usefixtures("_gcc_and_triton")
def test_settings_turn_levers_off() -> None:
    plan = optimisations.choose(settings(graphs="off", kernels="off"), CUDA)
    assert (plan.graphs, plan.kernels) == (False, False)
    assert dict(plan.why)["graphs"] == "off: by the setting"


def test_without_a_c_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    plan = optimisations.choose(settings(), CUDA)
    assert not plan.kernels
    assert "install gcc" in dict(plan.why)["kernels"]


def test_what_cannot_be_built_is_drawn_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def prove(device: torch.device) -> None:
        raise OSError("Python.h: No such file\nand so on")

    monkeypatch.setitem(
        sys.modules, "worker.models.acceleration.fused", SimpleNamespace(prove=prove)
    )
    monkeypatch.setattr(
        "worker.models.acceleration.fused", SimpleNamespace(prove=prove), raising=False
    )
    plan = optimisations.Optimisations(kernels=True, why=(("kernels", "on"), ("graphs", "on")))
    pipeline = adapted(random_zimage(SMALL, CPU, torch.float32), DEFAULTS, 1 << 20, plan)
    why = {"kernels": "off: OSError: Python.h: No such file", "graphs": "on"}
    assert dict(pipeline.info.optimisations) == why
    plain = adapted(random_zimage(SMALL, CPU, torch.float32), DEFAULTS, 1 << 20)
    assert close(draw(pipeline, spec(steps=1))[0], draw(plain, spec(steps=1))[0])


def test_attention_is_what_the_setting_says() -> None:
    plan = optimisations.choose(settings(attention="cudnn"), CPU)
    assert plan.backend == SDPBackend.CUDNN_ATTENTION
    assert optimisations.choose(settings(), CPU).backend is None
    pipeline = random_zimage(SMALL, CPU, torch.float32)
    with pytest.raises(RuntimeError, match=r"No (available|viable)"):  # there is none on a CPU
        draw(adapted(pipeline, DEFAULTS, 1 << 20, plan), spec(steps=1))


@pytest.mark.parametrize("on", [True, False])
def test_blocks_use_our_kernels_where_they_can(small_zimage: Any, on: bool) -> None:
    plan = optimisations.Optimisations(kernels=on)
    assert optimisations.blocks_use_kernels(plan, small_zimage.transformer) == on
