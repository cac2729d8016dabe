"""What makes a loaded Z-Image faster on its device, and why each lever is on or off.

``loadtest/gpu/levers`` measures them; ``docs/performance.md`` has the figures. On a CPU there is
nothing to launch: all are off.
"""

import importlib.util
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from worker.pipelines.fp8 import multiplies
from worker.pipelines.graphs import Graphs
from worker.pipelines.rotary import RealRotaryProcessor
from worker.settings import Settings

log = logging.getLogger(__name__)

_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Levers:
    """Which are on; ``why`` has a few words on each, for logs and ``/livez``.

    ``kernels``: those of ``fused``, for blocks, decoder and text encoder.
    """

    kernels: bool = False
    attention: str = "native"
    graphs: bool = False
    fp8: str = "off"
    why: tuple[tuple[str, str], ...] = ()

    @property
    def backend(self) -> SDPBackend | None:
        """Of attention; None: torch chooses."""
        return _BACKENDS.get(self.attention)


NONE = Levers()


def choose(settings: Settings, device: torch.device) -> Levers:
    """What the settings ask for; where that is "auto", what was measured to pay on ``device``."""
    cuda = device.type == "cuda"
    kernels, kernels_why = _choose_kernels(settings.kernels, cuda)
    graphs = cuda and settings.graphs == "auto"
    attention = "native" if settings.attention == "auto" else settings.attention
    why = {
        "kernels": kernels_why,
        "graphs": "on" if graphs else "off: no GPU" if not cuda else "off: by the setting",
        "attention": f"{attention}: by the setting" if settings.attention != "auto" else attention,
        "fp8": "off" if settings.fp8 == "off" else _fp8_why(settings.fp8, device),
    }
    return Levers(
        kernels=kernels,
        attention=attention,
        graphs=graphs,
        fp8=settings.fp8,
        why=tuple(why.items()),
    )


def prepare(levers: Levers) -> None:
    """Import Triton while the weights are being read."""
    if levers.kernels:
        module = "worker.pipelines.fused"
        threading.Thread(target=importlib.import_module, args=[module], daemon=True).start()


def proved(levers: Levers, device: torch.device) -> Levers:
    """Without our kernels where the first one cannot be built: then it draws, but slower."""
    if not levers.kernels:
        return levers
    try:
        from worker.pipelines import fused  # Triton is on machines with a GPU only

        fused.prove(device)
    except Exception as error:  # Triton and its C compiler raise whatever they like
        log.warning("our kernels cannot be built; going on without", exc_info=error)
        why = {
            **dict(levers.why),
            "kernels": f"off: {type(error).__name__}: {error}".split("\n")[0],
        }
        return replace(levers, kernels=False, why=tuple(why.items()))
    return levers


def apply(levers: Levers, pipeline: Any) -> Graphs | None:
    """Change the loaded ``ZImagePipeline``; the graphs to call it through, where they are on.

    What an earlier call has laid out in another way is put back first.
    """
    _restore(pipeline.vae.decoder)
    _restore(pipeline.text_encoder)
    for block in _blocks(pipeline.transformer):
        block.attention.set_processor(RealRotaryProcessor())
    if levers.kernels:
        from worker.pipelines import fused  # Triton is on machines with a GPU only

        fused.install(pipeline.vae.decoder)
        fused.install_text(pipeline.text_encoder)
    return Graphs() if levers.graphs else None


def blocks_use_kernels(levers: Levers, transformer: Any) -> bool:
    """Whether to call ``fused.block``, which norms every head of queries and keys."""
    return bool(levers.kernels and transformer.config.qk_norm)


def _choose_kernels(wish: str, cuda: bool) -> tuple[bool, str]:
    if wish == "off" or not cuda:
        return False, "off: by the setting" if wish == "off" else "off: no GPU"
    missing = _missing()
    return missing is None, "on" if missing is None else f"off: no {missing}"


def _fp8_why(parts: str, device: torch.device) -> str:
    how = "multiplied in fp8" if multiplies(device) else "widened for each call: no fp8 units"
    return f"{parts}: by the setting; {how}"


def _missing() -> str | None:
    """What Triton needs and this machine lacks."""
    if importlib.util.find_spec("triton") is None:
        return "triton"
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    found = any(name and shutil.which(name) for name in compilers)
    return None if found else "C compiler (install gcc)"


def _blocks(transformer: Any) -> Iterator[Any]:
    return itertools.chain(
        transformer.noise_refiner, transformer.context_refiner, transformer.layers
    )


def _restore(model: Any) -> None:
    """As it was loaded."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, getattr(child, "replaced", child))
    model.to(memory_format=torch.contiguous_format)
