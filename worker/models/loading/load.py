"""Puts a diffusers pipeline on its device. Imports torch, diffusers and transformers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
)

from worker import log
from worker.bounds import GIB
from worker.models.acceleration import optimisations
from worker.models.acceleration.fp8 import shrink_pipeline
from worker.models.base import ModelInfo, Pipeline
from worker.models.loading.device import claim_device, dtype_for, limit_memory
from worker.models.loading.files import files_of, variant_of
from worker.models.loading.folder import Defaults, ModelLoadError, class_of
from worker.models.loading.random_zimage import TURBO, random_zimage
from worker.models.loading.read_ahead import ReadAhead, transformer
from worker.models.loading.single_file import denoiser, is_single_file
from worker.models.loras.folder import LoraFolder
from worker.models.loras.shelf import LoraShelf
from worker.models.parallel.split import HelpersShare, require_heads
from worker.models.parallel.team import Start, Team
from worker.models.sizes import fitted
from worker.models.tokens import chat_limit, whole_limit
from worker.models.whole import WholeCall, side_multiple
from worker.models.zimage.pipeline import ZImageStepwise
from worker.models.zimage.prompt_embeddings import MAX_TOKENS
from worker.settings import Settings

_OF_THE_LEAD = ("text_encoder", "tokenizer", "vae")
_ONE_DEVICE = "only Z-Image can be drawn on several devices: name one"


def load(
    folder: Path | None,
    defaults: Defaults,
    settings: Settings,
    team: Team | None = None,
    ahead: ReadAhead | None = None,
) -> Pipeline:
    """The pipeline in ``folder`` (None: random weights) on ``settings.device``; ``team``: on more
    devices beside the first; ``ahead``: of the same folder."""
    torch.set_num_threads(settings.threads)
    device = claim_device(settings.devices[0], settings.vram_limit_gib)
    dtype = dtype_for(settings.dtype, device)
    plan = optimisations.choose(settings, device)
    optimisations.prepare(plan)
    began = time.monotonic()
    try:
        pipeline = (
            random_zimage(TURBO, device, dtype)
            if folder is None
            else _from_folder(folder, device, dtype, plan.fp8, ahead=ahead, source=settings.model)
        )
        if plan.fp8 != "off" and steps_singly(pipeline):
            shrink_pipeline(pipeline, device, plan.fp8)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{settings.model} does not fit into the memory of {settings.device}",
            "raise vram_limit_gib, free the card, or name a smaller model",
        ) from error
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{settings.model} cannot be loaded ({type(error).__name__}: {_first_line(error)})",
            "check that all files of the model are there, and copy or download it again",
        ) from error
    seconds = round(time.monotonic() - began, 2)
    room_bytes = int(settings.loras.device_gib * GIB)
    shelf = LoraShelf(LoraFolder(settings.lora_dir), room_bytes=room_bytes)
    adapted_pipeline = adapted(pipeline, defaults, settings.max_pixels, plan, team, shelf)
    if folder is None:  # it understands no words, and its tokenizer makes a token of each byte
        adapted_pipeline.info = replace(adapted_pipeline.info, prompt_limit=None)
    if exchange_bytes := adapted_pipeline.info.exchange_bytes:
        limit_memory(device, settings.vram_limit_gib, exchange_bytes)
    why = dict(adapted_pipeline.info.optimisations)
    log.event("model loaded", model=settings.model, seconds=seconds, **why)
    return adapted_pipeline


def load_share(
    folder: Path | None,
    start: Start,
    on_loaded: Callable[[], None],
    ahead: ReadAhead | None = None,
) -> HelpersShare:
    """As ``load``, of the transformer alone; then, after ``on_loaded``, it meets the lead."""
    settings, rank = start.settings, start.rank
    torch.set_num_threads(settings.threads)
    device = claim_device(settings.devices[rank], settings.vram_limit_gib, rank)
    dtype = dtype_for(settings.dtype, device)
    plan = optimisations.choose(settings, device)
    optimisations.prepare(plan)
    if folder is None:
        pipeline = random_zimage(TURBO, device, dtype)
        pipeline.text_encoder = pipeline.vae = None
    else:
        pipeline = _from_folder(
            folder, device, dtype, plan.fp8, _OF_THE_LEAD, ahead, settings.model
        )
    if not steps_singly(pipeline):
        raise ModelLoadError(f"{settings.model} is no Z-Image", _ONE_DEVICE)
    if plan.fp8 != "off":
        shrink_pipeline(pipeline, device, "transformer")
    plan = optimisations.proved(plan, device)
    optimisations.apply_to_transformer(plan, pipeline.transformer)
    require_heads(pipeline.transformer, len(settings.devices))
    on_loaded()
    share = HelpersShare.joined(pipeline.transformer, plan, start)
    if share.exchange_bytes:
        limit_memory(device, settings.vram_limit_gib, share.exchange_bytes)
    return share


def adapted(
    pipeline: Any,
    defaults: Defaults,
    max_pixels: int,
    plan: optimisations.Optimisations = optimisations.NONE,
    team: Team | None = None,
    loras: LoraShelf | None = None,
) -> Pipeline:
    """``ZImageStepwise`` for what it is proved for, ``WholeCall`` for everything else.

    ``plan`` changes Z-Image only: for no other model the optimisations were measured.
    """
    multiple = side_multiple(pipeline)
    info = ModelInfo(
        id=defaults.id,
        default_steps=defaults.steps,
        default_guidance_scale=defaults.guidance_scale,
        default_size=fitted(defaults.size or _own_size(pipeline), max_pixels, multiple),
        side_multiple=multiple,
        min_side=multiple,
        stepwise=False,
        device=str(pipeline.device),
        dtype=str(pipeline.dtype).removeprefix("torch."),
    )
    if steps_singly(pipeline):
        limit = chat_limit(pipeline.tokenizer, MAX_TOKENS)
        return ZImageStepwise(pipeline, replace(info, prompt_limit=limit, loras=loras), plan, team)
    if team is not None:
        raise ModelLoadError(f"{defaults.id} is no Z-Image", _ONE_DEVICE)
    return WholeCall(pipeline, replace(info, prompt_limit=whole_limit(pipeline)))


def steps_singly(pipeline: Any) -> bool:
    """A Z-Image whose scheduler is a plain Euler step without noise of its own."""
    return (
        type(pipeline) is ZImagePipeline
        and type(pipeline.scheduler) is FlowMatchEulerDiscreteScheduler
        and not pipeline.scheduler.config.stochastic_sampling
    )


def _from_folder(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    fp8: str,
    without: Sequence[str] = (),
    ahead: ReadAhead | None = None,
    source: str = "",
) -> Any:
    """``source``: where it is one file, that part of the pipeline comes from there."""
    # On a GPU the weights go there straight from the file, unless they become smaller first;
    # "cuda" is the current device.
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if variant := variant_of(files_of(folder)):
        options["variant"] = variant
    if device.type == "cuda" and (fp8 == "off" or class_of(folder) != "ZImagePipeline"):
        options["device_map"] = "cuda"
    parts: dict[str, Any] = dict.fromkeys(without)
    if is_single_file(source):
        there = torch.device("cuda" if "device_map" in options else "cpu")
        parts |= denoiser(Path(source).expanduser(), folder, there, dtype)
    if class_of(folder) == "ZImagePipeline":
        if ahead and (weights := ahead.take()) is not None:
            parts["transformer"] = transformer(weights, folder)
        return ZImagePipeline.from_pretrained(str(folder), **parts, **options)
    from diffusers import AutoPipelineForText2Image  # imports dozens of pipelines

    try:
        return AutoPipelineForText2Image.from_pretrained(str(folder), **parts, **options)
    except ValueError:  # not among the pipelines that it has a text-to-image class for
        return DiffusionPipeline.from_pretrained(str(folder), **parts, **options)


def _own_size(pipeline: Any) -> tuple[int, int]:
    model = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    cells = getattr(model.config, "sample_size", None) if model is not None else None
    side = cells * pipeline.vae_scale_factor if isinstance(cells, int) else 1024
    return side, side


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
