"""What makes a loaded Z-Image faster on its device, and why each lever is on or off.

``loadtest/gpu/levers`` measures them; ``docs/performance.md`` has the figures. On a CPU compiling
takes longer than it saves, and there is nothing to launch: all are off.
"""

import importlib.util
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
from diffusers.models.attention_dispatch import AttentionBackendName
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental import _config as shapes_config

from worker.pipelines.fp8 import multiplies
from worker.pipelines.graphs import Graphs
from worker.pipelines.rotary import RealRotaryProcessor
from worker.settings import Settings

log = logging.getLogger(__name__)

CompileError = TorchDynamoException
"""What a compiled module raises when it cannot be compiled."""

_RECOMPILE_LIMIT = 64  # over it a compiled block fails; dynamic shapes need a handful
_BACKENDS = {
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
    "flash": AttentionBackendName._NATIVE_FLASH,
    "efficient": AttentionBackendName._NATIVE_EFFICIENT,
}


@dataclass(frozen=True)
class Levers:
    """Which are on; ``why`` has a few words on each, for logs and ``/livez``.

    ``kernels``: those of ``fused``, for the decoder and for blocks that are not compiled.
    """

    kernels: bool = False
    compile_blocks: bool = False
    attention: str = "native"
    graphs: bool = False
    fp8: str = "off"
    why: tuple[tuple[str, str], ...] = ()


NONE = Levers()


def choose(settings: Settings, device: torch.device) -> Levers:
    """What the settings ask for; where that is "auto", what was measured to pay on ``device``."""
    cuda = device.type == "cuda"
    kernels, kernels_why = _choose_kernels(settings.kernels, cuda)
    compiles, compile_why = _choose_compile(settings.compile, cuda)
    graphs = cuda and settings.graphs == "auto"
    attention = "native" if settings.attention == "auto" else settings.attention
    why = {
        "kernels": kernels_why,
        "compile": compile_why,
        "graphs": "on" if graphs else "off: no GPU" if not cuda else "off: by the setting",
        "attention": f"{attention}: by the setting" if settings.attention != "auto" else attention,
        "fp8": "off" if settings.fp8 == "off" else _fp8_why(settings.fp8, device),
    }
    return Levers(
        kernels=kernels,
        compile_blocks=compiles,
        attention=attention,
        graphs=graphs,
        fp8=settings.fp8,
        why=tuple(why.items()),
    )


def prepare(levers: Levers) -> None:
    """Import the compilers, which takes seconds, while the weights are being read."""
    modules = {
        "worker.pipelines.fused": levers.kernels,
        "torch._inductor.compile_fx": levers.compile_blocks,
    }
    for module in (name for name, wanted in modules.items() if wanted):
        threading.Thread(target=importlib.import_module, args=[module], daemon=True).start()


def apply(levers: Levers, pipeline: Any) -> Graphs | None:
    """Change the loaded ``ZImagePipeline``; the graphs to call it through, where they are on.

    What an earlier call has compiled, or laid out in another way, is put back first.
    """
    _forget_compiled(pipeline)
    _restore(pipeline.vae.decoder)
    _restore(pipeline.text_encoder)
    for block in _blocks(pipeline.transformer):
        block.attention.set_processor(RealRotaryProcessor(_BACKENDS.get(levers.attention)))
    if levers.compile_blocks:
        for block in _stepping_blocks(pipeline.transformer):
            block.compile(dynamic=True)
    if levers.kernels:
        from worker.pipelines import fused  # Triton is on machines with a GPU only

        fused.install(pipeline.vae.decoder)
        fused.install_text(pipeline.text_encoder)
    return Graphs() if levers.graphs else None


def blocks_use_kernels(levers: Levers, transformer: Any) -> bool:
    """Whether to call ``fused.block``: it knows only torch's own attention and norms of heads."""
    fit = levers.attention == "native" and transformer.config.qk_norm
    return bool(levers.kernels and not levers.compile_blocks and fit)


def allow_any_shape() -> None:
    """Let compiled modules of this thread serve all sizes.

    Torch's switches belong to a thread. Without duck shapes a picture whose sides are equal is
    nothing special, and compiles nothing that an oblong one could not use.
    """
    if dynamo_config.recompile_limit != _RECOMPILE_LIMIT:
        dynamo_config.recompile_limit = _RECOMPILE_LIMIT
        shapes_config.use_duck_shape = False


def stop_compiling(pipeline: Any, error: Exception) -> None:
    """Go on with what is not compiled: slower, but it draws."""
    log.warning("cannot compile; going on without", exc_info=error)
    _forget_compiled(pipeline)


def _choose_kernels(wish: str, cuda: bool) -> tuple[bool, str]:
    if wish == "off" or not cuda:
        return False, "off: by the setting" if wish == "off" else "off: no GPU"
    missing = _missing(cuda)
    return missing is None, "on" if missing is None else f"off: no {missing}"


def _choose_compile(wish: str, cuda: bool) -> tuple[bool, str]:
    if wish == "off" or (wish == "auto" and not cuda):
        return False, "off: by the setting" if wish == "off" else "off: no GPU"
    if missing := _missing(cuda):
        return False, f"off: no {missing}"
    return True, "blocks" if wish == "auto" else "blocks: by the setting"


def _fp8_why(parts: str, device: torch.device) -> str:
    how = "multiplied in fp8" if multiplies(device) else "widened for each call: no fp8 units"
    return f"{parts}: by the setting; {how}"


def _missing(cuda: bool) -> str | None:
    """What Inductor needs and this machine lacks."""
    if cuda and importlib.util.find_spec("triton") is None:
        return "triton"
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    found = any(name and shutil.which(name) for name in compilers)
    return None if found else "C compiler (install gcc)"


def _blocks(transformer: Any) -> Iterator[Any]:
    return itertools.chain(
        transformer.noise_refiner, transformer.context_refiner, transformer.layers
    )


def _stepping_blocks(transformer: Any) -> Iterator[Any]:
    # Not the refiner of captions, which runs once a prompt.
    return itertools.chain(transformer.noise_refiner, transformer.layers)


def _forget_compiled(pipeline: Any) -> None:
    for block in _stepping_blocks(pipeline.transformer):
        block._compiled_call_impl = None


def _restore(model: Any) -> None:
    """As it was loaded."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, getattr(child, "replaced", child))
    model.to(memory_format=torch.contiguous_format)
