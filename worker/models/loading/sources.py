"""From the ``model`` setting to a loaded pipeline.

======================  ======================================================================
``tiny``                the model shipped with the kit
``./folder``, ``/…``    a local folder in diffusers' layout
``owner/name``          a model of the Hugging Face hub, or a folder of that name if there is one
``modelscope:…``        a model of ModelScope, ``modelscope:owner/name``
``….safetensors``       one file with the transformer of the model that ``base`` names
``random:z-image-turbo``  Z-Image-Turbo's sizes with random weights
``synthetic:…``         no model at all; see ``worker.models.synthetic``
======================  ======================================================================

Code that comes with a model is never run. Torch and diffusers are imported only where a source
needs them.
"""

import inspect
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker import log
from worker.coordination.gpu_lock import torch_device
from worker.models.acceleration import prebuild
from worker.models.base import Pipeline
from worker.models.loading import context, digest, hub, single_file
from worker.models.loading.files import require_loadable
from worker.models.loading.folder import (
    Defaults,
    ModelLoadError,
    class_of,
    defaults_of_folder,
    scheduler_shift,
)
from worker.models.loading.imports import quick_imports
from worker.models.loras.folder import LoraFolder
from worker.models.parallel.team import Start, Team
from worker.models.synthetic import SyntheticPipeline, parse_source
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.models.loading.read_ahead import ReadAhead
    from worker.models.parallel.split import HelpersShare

__all__ = ["TINY", "Defaults", "ModelLoadError", "defaults_of", "load", "local_folder"]

TINY = Path(__file__).parents[3] / "tinymodel" / "weights"
RANDOM = "random:z-image-turbo"
TURBO_SHIFT = 3.0
"""By its schedule a Turbo is told from other Z-Images, which want more steps and guidance."""

_VERSION = re.compile(r"[0-9a-f]{12,64}|v?[0-9][0-9._T:Z-]*|snapshots|latest|current")
_TURBO = Defaults("Z-Image-Turbo", steps=8, guidance_scale=0.0, size=(1024, 1024))
_KNOWN = {
    "tiny": Defaults("zimage-tiny", steps=8, guidance_scale=0.0, size=(256, 256)),
    "Tongyi-MAI/Z-Image-Turbo": replace(_TURBO, id="Tongyi-MAI/Z-Image-Turbo"),
    RANDOM: replace(_TURBO, id="random-z-image-turbo"),
}


def load(settings: Settings) -> Pipeline:
    """The pipeline that ``settings.model`` names, on its device.

    Takes seconds to minutes and may download; sets torch's threads and memory limit for the whole
    process. Raises ``ModelLoadError``.
    """
    if _is_synthetic(settings.model):
        _check_synthetic(settings.model)
        if len(settings.devices) > 1:
            raise ModelLoadError(f"{settings.model} draws on no device", "name one, such as cpu")
        return SyntheticPipeline(settings.model, LoraFolder(settings.lora_dir))
    with quick_imports():
        return _load(settings, _folder(settings))


def load_share(start: Start, on_loaded: Callable[[], None]) -> "HelpersShare":
    """A helper's part of the pipeline that the lead loads; see ``worker.models.parallel.team``.
    ``on_loaded`` is called before it waits for the others."""
    settings = start.settings
    folder = _folder(settings)
    with quick_imports():
        loading, ahead = _libraries(settings, folder, start.rank)
        if folder is not None:
            require_loadable(folder)
        share: HelpersShare = loading.load_share(folder, start, on_loaded, ahead)
    return share


def _load(settings: Settings, folder: Path | None) -> Pipeline:
    # Beside this process's own imports and weights.
    team = Team.start(settings) if len(settings.devices) > 1 else None
    if settings.devices[0] != "cpu":
        prebuild.begin(settings, folder)
    loading, ahead = _libraries(settings, folder)
    return _loaded(settings, folder, partial(loading.load, team=team, ahead=ahead))


def _libraries(
    settings: Settings, folder: Path | None, rank: int = 0
) -> tuple[Any, "ReadAhead | None"]:
    """The module that imports them; before it, what must come earlier. And what is read of
    ``folder`` meanwhile."""
    device = torch_device(settings.devices[rank], rank)
    if device != "cpu":
        context.begin(device)
    began = time.monotonic()
    from worker.models.loading import read_ahead  # imports torch

    is_folder = not single_file.is_single_file(settings.model)
    ahead = read_ahead.begin(folder if is_folder else None, settings, rank)
    from worker.models.loading import load as loading

    log.event("libraries imported", seconds=round(time.monotonic() - began, 2))
    return loading, ahead


def _folder(settings: Settings) -> Path | None:
    """Where the model lies; None: nowhere, for its weights are random."""
    source = settings.model
    if single_file.is_single_file(source):
        for flaw in single_file.flaws_of_file(Path(source).expanduser()):
            raise ModelLoadError(flaw.what, flaw.remedy)
        source = settings.base
        if not source:
            remedy = "name in base the model that it was made from"
            raise ModelLoadError(f"{settings.model} holds the transformer alone", remedy)
    model = hub.hub_model(source)
    if model is None:
        return local_folder(source)
    folder = hub.found(model, os.environ)
    log.event("model found in the cache", model=source, folder=str(folder))
    return folder


def _loaded(settings: Settings, folder: Path | None, load: Callable[..., Pipeline]) -> Pipeline:
    defaults = _defaults(settings.model, folder)
    if single_file.is_single_file(settings.model):
        defaults = replace(_defaults(settings.base, folder), id=Path(settings.model).stem)
    if folder is not None:
        require_loadable(folder)
    pipeline = load(
        folder,
        replace(
            defaults,
            steps=settings.steps or defaults.steps,
            guidance_scale=_first(settings.guidance_scale, defaults.guidance_scale),
        ),
        settings,
    )
    if settings.devices[0] != "cpu":
        prebuild.done(settings)
    return pipeline


def defaults_of(source: str) -> Defaults:
    """What requests get that do not say; reads a local folder, loads and downloads nothing.

    Raises ``ModelLoadError`` for a source that can be told to be wrong without the network.
    """
    folder = local_folder(source)
    if _is_synthetic(source):
        return Defaults("synthetic", steps=8, guidance_scale=0.0, size=(256, 256))
    return _defaults(source, folder)


def digest_of(settings: Settings) -> str:
    """Stands for the files that a worker with ``settings`` loads, wherever they lie; of a model
    without files, for what it is called. Raises ``ModelLoadError`` or ``OSError``."""
    alone = single_file.is_single_file(settings.model)
    source = settings.base if alone else settings.model
    model = hub.hub_model(source)
    folder = hub.found(model, os.environ) if model else local_folder(source)
    if folder is None:
        return digest.of({}, source)
    files = digest.files_in(folder)
    return digest.of(files | {"": Path(settings.model).expanduser()} if alone else files)


def _is_synthetic(source: str) -> bool:
    return source == "synthetic" or source.startswith("synthetic:")


def _check_synthetic(source: str) -> None:
    try:
        parse_source(source)
    except ValueError as error:
        raise ModelLoadError(f"model {source!r}", str(error)) from error


def local_folder(source: str) -> Path | None:
    """The folder that ``source`` names, if it says that it is a model; None: there is none to
    read, yet or ever. Raises ``ModelLoadError`` for what no worker knows."""
    if _is_synthetic(source):
        _check_synthetic(source)
        return None
    if source == RANDOM or hub.hub_model(source):
        return None
    folder = TINY if source == "tiny" else Path(source).expanduser()
    if folder != TINY and not folder.exists() and "/" not in source:
        raise ModelLoadError(
            f"model {source!r} is unknown",
            "give tiny, a folder (./name), a hub id (owner/name or modelscope:owner/name), "
            f"{RANDOM} or synthetic:key=value,…",
        )
    class_of(folder)
    return folder


def _defaults(source: str, folder: Path | None) -> Defaults:
    model = hub.hub_model(source)
    id = model.id if model else source
    if folder is None:
        return _KNOWN.get(id, Defaults(id, steps=28, guidance_scale=4.0, size=None))
    fallback = _KNOWN.get(id) or _unstated(_id_of(id), folder)
    return defaults_of_folder(folder, fallback)


def _id_of(source: str) -> str:
    local = Path(source).expanduser()
    if not local.exists():
        return source
    folders = local.resolve().parts[1:]
    return next((_named(each) for each in reversed(folders) if _is_name(each)), folders[-1])


def _is_name(folder: str) -> bool:
    """Whether it says which model, not which version of it."""
    return _VERSION.fullmatch(folder) is None


def _named(folder: str) -> str:
    """What ``folder`` is called; one of the hub's cache says whose repository it is."""
    hub = folder.removeprefix("models--")
    return folder if hub == folder else hub.replace("--", "/")


def _unstated(id: str, folder: Path) -> Defaults:
    """Turbo's for a copy of Turbo, else what the pipeline's own ``__call__`` would use."""
    class_name = class_of(folder)
    if class_name == "ZImagePipeline" and scheduler_shift(folder) == TURBO_SHIFT:
        return replace(_TURBO, id=id)
    parameters = inspect.signature(pipeline_class(class_name).__call__).parameters
    size = (_default(parameters, "width"), _default(parameters, "height"))
    return Defaults(
        id=id,
        steps=_default(parameters, "num_inference_steps") or 28,
        guidance_scale=float(_first(_default(parameters, "guidance_scale"), 0.0)),
        size=size if all(size) else None,
    )


def pipeline_class(name: str) -> Any:
    """diffusers' class of that name."""
    import diffusers

    try:
        return getattr(diffusers, name)
    except AttributeError as error:
        raise ModelLoadError(
            f"diffusers {diffusers.__version__} has no {name}",
            "install a newer diffusers, or name another model",
        ) from error


def _default(parameters: Any, name: str) -> Any:
    default = parameters[name].default if name in parameters else None
    return default if isinstance(default, int | float) else None


def _first(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
