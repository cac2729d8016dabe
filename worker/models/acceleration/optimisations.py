"""What makes a loaded Z-Image faster on its device, and why each is on or off.

``loadtest/gpu/optimisations`` measures them; ``docs/performance.md`` has the figures. On a CPU
there is nothing to launch: all are off.
"""

import functools
import importlib.metadata
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

from worker.models.acceleration.fp8 import multiplies
from worker.models.acceleration.graphs import Graphs
from worker.models.zimage.rotary import RealRotaryProcessor
from worker.settings import Settings

log = logging.getLogger(__name__)

_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_OF_HOPPER = {"attention": "flash4", "products": "quack"}
_HOPPER = 9  # compute capability


@dataclass(frozen=True)
class Optimisations:
    """Which are on; ``why`` has a few words on each, for logs and ``/livez``.

    ``kernels``: those of ``fused``, for blocks, decoder and text encoder. ``attention`` "flash4"
    and ``products`` "quack": those of ``hopper`` and, where ``fp8`` is on, of ``hopper_fp8``,
    inside ours.
    """

    kernels: bool = False
    attention: str = "native"
    products: str = "native"
    graphs: bool = False
    fp8: str = "off"
    why: tuple[tuple[str, str], ...] = ()

    @property
    def backend(self) -> SDPBackend | None:
        """Of attention; None: torch chooses."""
        return _BACKENDS.get(self.attention)


NONE = Optimisations()


def choose(settings: Settings, device: torch.device) -> Optimisations:
    """What the settings ask for; where that is "auto", what was measured to pay on ``device``."""
    cuda = device.type == "cuda"
    kernels, kernels_why = _choose_kernels(settings.kernels, cuda)
    graphs = cuda and settings.graphs == "auto"
    hopper = functools.partial(_hopper, settings, device, kernels)
    attention, attention_why = hopper(settings.attention, "flash4", "flash-attn-4")
    products, products_why = hopper(settings.products, "quack", "quack-kernels")
    why = {
        "kernels": kernels_why,
        "graphs": "on" if graphs else "off: no GPU" if not cuda else "off: by the setting",
        "attention": attention_why,
        "products": products_why,
        "fp8": "off" if settings.fp8 == "off" else _fp8_why(settings.fp8, device),
    }
    return Optimisations(
        kernels=kernels,
        attention=attention,
        products=products,
        graphs=graphs,
        fp8=settings.fp8,
        why=tuple(why.items()),
    )


def prepare(optimisations: Optimisations) -> None:
    """Import Triton and what else takes seconds while the weights are being read."""
    if optimisations.kernels:
        module = "hopper" if _of_hopper(optimisations) else "fused"  # hopper imports fused
        args = [f"worker.models.acceleration.{module}"]
        threading.Thread(target=importlib.import_module, args=args, daemon=True).start()


def proved(optimisations: Optimisations, device: torch.device) -> Optimisations:
    """Without the kernels of which the first one cannot be built: then it draws, but slower."""
    if optimisations.kernels and (error := _failure(optimisations, "kernels", device)):
        optimisations = _changed(optimisations, "kernels", False, f"off: {error}")
        for lever in _of_hopper(optimisations):
            optimisations = _changed(optimisations, lever, "native", "native: no kernels")
    for lever in _of_hopper(optimisations):
        if error := _failure(optimisations, lever, device):
            optimisations = _changed(optimisations, lever, "native", f"native: {error}")
    return optimisations


def prove_one(optimisations: Optimisations, lever: str, device: torch.device) -> None:
    """Build kernels for ``lever``, where it has any; raises what their compilers do."""
    if lever == "kernels":
        importlib.import_module("worker.models.acceleration.fused").prove(device)
    elif lever in _of_hopper(optimisations):
        module = _module_of_products(optimisations) if lever == "products" else "hopper"
        getattr(importlib.import_module(f"worker.models.acceleration.{module}"), f"prove_{lever}")(
            device
        )


def _failure(optimisations: Optimisations, lever: str, device: torch.device) -> str | None:
    """Why kernels for ``lever`` cannot be built here."""
    try:
        prove_one(optimisations, lever, device)
    except Exception as error:  # compilers raise whatever they like
        log.warning("%s: kernels cannot be built; going on without", lever, exc_info=error)
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return None


def _of_hopper(optimisations: Optimisations) -> list[str]:
    """Those of its optimisations that are on."""
    return [lever for lever, ours in _OF_HOPPER.items() if getattr(optimisations, lever) == ours]


def _module_of_products(optimisations: Optimisations) -> str:
    return "hopper" if optimisations.fp8 == "off" else "hopper_fp8"


def _changed(optimisations: Optimisations, lever: str, value: object, why: str) -> Optimisations:
    whys = {**dict(optimisations.why), lever: why}
    changes: dict[str, Any] = {lever: value, "why": tuple(whys.items())}
    return replace(optimisations, **changes)


def apply(optimisations: Optimisations, pipeline: Any) -> Graphs | None:
    """Change the loaded ``ZImagePipeline``; the graphs to call it through, where they are on.

    What an earlier call has laid out in another way is put back first.
    """
    _restore(pipeline.vae.decoder)
    _restore(pipeline.text_encoder)
    apply_to_transformer(optimisations, pipeline.transformer)
    if optimisations.kernels:
        from worker.models.acceleration import (
            fused,
            fused_decoder,  # Triton is on machines with a GPU only
        )

        fused_decoder.install(pipeline.vae.decoder)
        fused.install_text(pipeline.text_encoder)
    return Graphs() if optimisations.graphs else None


def apply_to_transformer(optimisations: Optimisations, transformer: Any) -> None:
    """The part of ``apply`` that changes the transformer."""
    for block in _blocks(transformer):
        block.attention.set_processor(RealRotaryProcessor())
    if optimisations.products == "quack":
        module = importlib.import_module(
            f"worker.models.acceleration.{_module_of_products(optimisations)}"
        )
        for block in _blocks(transformer):
            module.pack_block(block)


def blocks_use_kernels(optimisations: Optimisations, transformer: Any) -> bool:
    """Whether to call ``fused.blocks``, which norms every head of queries and keys."""
    return bool(optimisations.kernels and transformer.config.qk_norm)


def ways(optimisations: Optimisations) -> dict[str, Any]:
    """What to give ``fused.blocks`` besides; the pipeline went through ``apply``."""
    found: dict[str, Any] = {}
    if optimisations.attention == "flash4":
        from worker.models.acceleration import (
            hopper,  # flash-attn-4 and quack-kernels are on few machines
        )

        found["attend"] = hopper.attended
    if optimisations.products == "quack":
        module = importlib.import_module(
            f"worker.models.acceleration.{_module_of_products(optimisations)}"
        )
        found |= module.ways()
    return found


def _choose_kernels(wish: str, cuda: bool) -> tuple[bool, str]:
    if wish == "off" or not cuda:
        return False, "off: by the setting" if wish == "off" else "off: no GPU"
    missing = _missing()
    return missing is None, "on" if missing is None else f"off: no {missing}"


def _hopper(
    settings: Settings, device: torch.device, kernels: bool, wish: str, name: str, package: str
) -> tuple[str, str]:
    """``name`` where ``wish`` is that or "auto" and nothing is in the way; and why."""
    if wish not in ("auto", name):
        return wish, f"{wish}: by the setting"
    obstacle = _obstacle(settings, device, kernels, package)
    return (name, name) if obstacle is None else ("native", f"native: {obstacle}")


def _obstacle(settings: Settings, device: torch.device, kernels: bool, package: str) -> str | None:
    if not kernels:
        return "no GPU" if device.type != "cuda" else "no kernels"
    if torch.cuda.get_device_capability(device)[0] != _HOPPER:
        return "no Hopper card"
    if settings.dtype == "float32":
        return "32 bits"
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"no {package} (pip install -c constraints.txt '.[hopper]')"
    return None


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
