"""What makes a loaded Z-Image faster on its device, and why each lever is on or off.

``loadtest/gpu/levers`` measures them; ``docs/performance.md`` has the figures. On a CPU compiling
takes longer than it saves, and there is nothing to launch: all are off.
"""

import importlib.util
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
from diffusers.models.attention_dispatch import AttentionBackendName
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental import _config as shapes_config

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

    ``compile_decoder`` and ``channels_last`` (of the decoder) are there to be measured; on an H100
    with torch 2.11 the first had not compiled after 75 s, and the second is slower.
    """

    compile_blocks: bool = False
    compile_decoder: bool = False
    attention: str = "native"
    graphs: bool = False
    channels_last: bool = False
    why: tuple[tuple[str, str], ...] = ()


NONE = Levers()


def choose(settings: Settings, device: torch.device) -> Levers:
    """What the settings ask for; where that is "auto", what was measured to pay on ``device``."""
    cuda = device.type == "cuda"
    compiles, compile_why = _choose_compile(settings.compile, cuda)
    graphs = cuda and settings.graphs == "auto"
    attention = "native" if settings.attention == "auto" else settings.attention
    why = {
        "compile": compile_why,
        "graphs": "on" if graphs else "off: no GPU" if not cuda else "off: by the setting",
        "attention": f"{attention}: by the setting" if settings.attention != "auto" else attention,
    }
    return Levers(
        compile_blocks=compiles,
        attention=attention,
        graphs=graphs,
        why=tuple(why.items()),
    )


def apply(levers: Levers, pipeline: Any) -> Graphs | None:
    """Change the loaded ``ZImagePipeline``; the graphs to call it through, where they are on.

    What an earlier call has compiled, or laid out in another way, is put back first.
    """
    decoder = pipeline.vae.decoder
    for block in _blocks(pipeline.transformer):
        block.attention.set_processor(RealRotaryProcessor(_BACKENDS.get(levers.attention)))
    layout = torch.channels_last if levers.channels_last else torch.contiguous_format
    decoder.to(memory_format=layout)
    _forget_compiled(pipeline)
    if levers.compile_blocks:
        for block in _stepping_blocks(pipeline.transformer):
            block.compile(dynamic=True)
    if levers.compile_decoder:
        decoder.compile(dynamic=True)
    return Graphs() if levers.graphs else None


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


def _choose_compile(wish: str, cuda: bool) -> tuple[bool, str]:
    if wish == "off" or (wish == "auto" and not cuda):
        return False, "off: by the setting" if wish == "off" else "off: no GPU"
    if missing := _missing(cuda):
        return False, f"off: no {missing}"
    return True, "blocks" if wish == "auto" else "blocks: by the setting"


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
    for module in [*_stepping_blocks(pipeline.transformer), pipeline.vae.decoder]:
        module._compiled_call_impl = None
