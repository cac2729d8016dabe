from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.worker.pipelines.conftest import CPU, DEFAULTS, SMALL, close, draw, spec
from worker.pipelines import levers
from worker.pipelines.loading import adapted
from worker.pipelines.random_zimage import random_zimage
from worker.pipelines.rotary import RealRotaryProcessor
from worker.settings import Settings

CUDA = torch.device("cuda")
COMPILED = levers.Levers(compile_blocks=True)


def settings(**changes: Any) -> Settings:
    return Settings(**changes)


@pytest.fixture
def _gcc_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "_missing", lambda cuda: None)


def test_a_cpu_pulls_no_lever() -> None:
    plan = levers.choose(settings(), CPU)
    assert (plan.compile_blocks, plan.graphs) == (False, False)
    assert dict(plan.why)["compile"] == "off: no GPU"


@pytest.mark.usefixtures("_gcc_and_triton")
def test_a_gpu_pulls_all_but_fp8() -> None:
    plan = levers.choose(settings(), CUDA)
    assert (plan.kernels, plan.compile_blocks, plan.graphs, plan.fp8) == (True, True, True, "off")


@pytest.mark.usefixtures("_gcc_and_triton")
def test_settings_turn_levers_off() -> None:
    plan = levers.choose(settings(compile="off", graphs="off", kernels="off"), CUDA)
    assert (plan.compile_blocks, plan.graphs, plan.kernels) == (False, False, False)
    assert dict(plan.why)["graphs"] == "off: by the setting"


def test_without_a_c_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    plan = levers.choose(settings(compile="blocks"), CPU)
    assert not plan.compile_blocks
    assert "install gcc" in dict(plan.why)["compile"]


def test_attention_kernels_are_those_of_the_setting(small_zimage: Any) -> None:
    pipeline = random_zimage(SMALL, CPU, torch.float32)
    levers.apply(levers.Levers(attention="cudnn"), pipeline)
    processor = pipeline.transformer.layers[0].attention.processor
    assert isinstance(processor, RealRotaryProcessor)
    assert processor._attention_backend == "_native_cudnn"


@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        (levers.Levers(kernels=True), True),
        (levers.Levers(kernels=True, compile_blocks=True), False),
        (levers.Levers(kernels=True, attention="cudnn"), False),
        (levers.NONE, False),
    ],
)
def test_blocks_use_our_kernels_where_they_can(
    small_zimage: Any, plan: levers.Levers, wanted: bool
) -> None:
    assert levers.blocks_use_kernels(plan, small_zimage.transformer) == wanted


@pytest.fixture
def _quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces as Inductor would, which spends two minutes in the C++ compiler here."""
    compiled = torch.nn.Module.compile
    quick = {"backend": "eager", "fullgraph": True}
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **how: compiled(m, **quick, **how))


@pytest.mark.usefixtures("_quick_compiler")
def test_compiled_modules_draw_the_same_pictures() -> None:
    specs = [spec(steps=2), spec("blue", steps=2)]
    plain, fast = (
        adapted(random_zimage(SMALL, CPU, torch.float32), DEFAULTS, 1 << 20, plan)
        for plan in (levers.NONE, COMPILED)
    )
    pictures = zip(draw(plain, *specs), draw(fast, *specs), strict=True)
    assert all(close(one, other) for one, other in pictures)


@pytest.mark.usefixtures("_quick_compiler")
def test_further_sizes_compile_nothing_more() -> None:
    plan = COMPILED
    pipeline = adapted(random_zimage(SMALL, CPU, torch.float32), DEFAULTS, 1 << 20, plan)
    draw(pipeline, spec(steps=1))
    draw(pipeline, spec(steps=1), spec("blue", steps=1))
    compiled = dict(counters["stats"])["unique_graphs"]
    draw(pipeline, spec(width=128, steps=1))
    draw(pipeline, *(spec(text, height=96, steps=1) for text in ("a", "b", "c")))
    assert compiled > 0
    assert counters["stats"]["unique_graphs"] == compiled


def test_what_cannot_be_compiled_is_drawn_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no backend today")

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **how: compiled(m, backend=broken))
    pipeline = random_zimage(SMALL, CPU, torch.float32)
    (picture,) = draw(adapted(pipeline, DEFAULTS, 1 << 20, COMPILED), spec(steps=1))
    (plain,) = draw(adapted(pipeline, DEFAULTS, 1 << 20), spec(steps=1))
    assert close(picture, plain)
