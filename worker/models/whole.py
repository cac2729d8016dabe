"""Any diffusers text-to-image pipeline, one whole call at a time, and what diffusers itself makes
of it for pictures and masks.
"""

import gc
import inspect
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from worker.errors import InvalidRequest
from worker.models.acceleration.determinism import fixed_kernels
from worker.models.base import (
    ModelInfo,
    OnInnerStep,
    Sample,
    check_loras,
    check_prompts,
    check_source,
)
from worker.models.faults import translate
from worker.models.loading.folder import ModelLoadError
from worker.models.sizes import check_sides
from worker.types import DrawSpec, Pixels

REQUIRED = {"prompt", "width", "height", "num_inference_steps", "generator"}
MIN_SIDE = 64


@dataclass(eq=False, kw_only=True)
class WholeSample(Sample):
    pixels: Pixels | None = None


class _Stopped(Exception):
    """Leaves the pipeline's loop; its own ``interrupt`` would still decode, and not all have it."""


class WholeCall:
    """Built from a loaded pipeline; see ``worker.models.base.Pipeline``.

    ``step`` runs one call for samples of one group: a list of prompts with a list of CPU
    generators. What the pipeline's ``__call__`` does not take is left out, and refused where a
    request asks for it. Drawings from one picture, which share it, are a group of their own.
    """

    def __init__(self, pipeline: Any, info: ModelInfo) -> None:
        self._pipeline = pipeline
        self._accepted = _accepted(pipeline)
        if missing := REQUIRED - self._accepted:
            raise ModelLoadError(
                f"{type(pipeline).__name__} does not take {', '.join(sorted(missing))}",
                "name a text-to-image pipeline",
            )
        pipeline.set_progress_bar_config(disable=True)
        self._from_image = _sibling("AutoPipelineForImage2Image", pipeline)
        self._masked = _sibling("AutoPipelineForInpainting", pipeline)
        self.info = replace(
            info,
            side_multiple=side_multiple(pipeline),
            min_side=MIN_SIDE,
            stepwise=False,
            edits=self._from_image is not None or self._masked is not None,
            masks=self._masked is not None,
            default_guidance_scale=info.default_guidance_scale if self._guided else 0.0,
        )

    @property
    def _guided(self) -> bool:
        return "guidance_scale" in self._accepted

    def check(self, spec: DrawSpec) -> None:
        """Sides must be multiples of what the model asks for, and the fields known to it."""
        check_sides(spec, self.info)
        check_prompts(spec, self.info)
        self._check_source(spec)
        check_loras(spec, self.info)
        if spec.parameters.negative_prompt and "negative_prompt" not in self._accepted:
            raise InvalidRequest("This model takes no negative prompt.", param="negative_prompt")
        if spec.parameters.guidance_scale and not self._guided:
            raise InvalidRequest("This model takes no guidance.", param="guidance_scale")

    def _check_source(self, spec: DrawSpec) -> None:
        check_source(spec, self.info)
        how, source = spec.parameters, spec.source
        if source is None:
            return
        if source.mask is None and self._from_image is None:
            message = "mask: this model changes parts of pictures alone: send a mask."
            raise InvalidRequest(message, param="mask")
        if source.mask is not None and self._masked is None:
            message = "mask: this model has no masks: leave it out."
            raise InvalidRequest(message, param="mask")
        if int(how.steps * how.strength) < 1:  # where not ours, they are rounded down
            raise InvalidRequest(
                f"strength: {how.strength:g} of {how.steps} steps is less than one: "
                f"use at least {1 / how.steps:.3g}, or more steps.",
                param="strength",
            )

    def encode_image(self, spec: DrawSpec) -> None:
        """The call itself encodes."""
        source = spec.source
        assert source is not None, "nothing to encode"
        assert source.pixels is not None, "it is encoded"
        source.take(Image.fromarray(source.pixels))

    def start(self, specs: Sequence[DrawSpec]) -> list[Sample]:
        return [WholeSample(spec, _group(spec), spec.parameters.drawn_steps) for spec in specs]

    @translate
    def step(self, samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
        """Reproducible samples run one after another, each in a call of its own."""
        size = 1 if samples[0].spec.parameters.reproducible else len(samples)
        batches = [samples[i : i + size] for i in range(0, len(samples), size)]
        pictures: list[Pixels] = []
        try:
            for number, batch in enumerate(batches):
                report = _share(on_inner_step, number, len(batches), samples[0].steps)
                with fixed_kernels(size == 1 and samples[0].spec.parameters.reproducible):
                    pictures += self._called([sample.spec for sample in batch], report)
        except _Stopped:
            return
        for sample, pixels in zip(samples, pictures, strict=True):
            assert isinstance(sample, WholeSample)
            sample.pixels = pixels
            sample.step_index = sample.steps

    def finish(self, samples: Sequence[Sample]) -> list[Pixels]:
        pictures = [
            s.pixels for s in samples if isinstance(s, WholeSample) and s.pixels is not None
        ]
        assert len(pictures) == len(samples), "a sample is not drawn"
        return pictures

    def preview(self, sample: Sample) -> Pixels | None:
        """None: what latents mean differs from pipeline to pipeline."""
        return None

    def caption_lookups(self) -> tuple[int, int] | None:
        return None

    def close(self) -> None:
        del self._pipeline, self._from_image, self._masked
        gc.collect()
        torch.cuda.empty_cache()  # without CUDA it does nothing

    def _called(self, specs: Sequence[DrawSpec], on_inner_step: OnInnerStep) -> list[Pixels]:
        def on_step_end(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if not on_inner_step(index + 1):
                raise _Stopped
            return tensors

        source, pipeline = specs[0].source, self._pipeline
        if source is not None:
            pipeline = self._from_image if source.mask is None else self._masked
        accepted, arguments = _accepted(pipeline), self._arguments(specs, on_step_end)
        known = {name: value for name, value in arguments.items() if name in accepted}
        images = pipeline(**known).images
        return [np.asarray(image.convert("RGB")) for image in images]

    def _arguments(
        self, specs: Sequence[DrawSpec], on_step_end: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        how = specs[0].parameters
        arguments: dict[str, Any] = {
            "prompt": [spec.prompt for spec in specs],
            "width": how.width,
            "height": how.height,
            "num_inference_steps": how.steps,
            "guidance_scale": how.guidance_scale,
            "generator": [torch.Generator("cpu").manual_seed(spec.seed) for spec in specs],
            "output_type": "pil",
            "callback_on_step_end": on_step_end,
        }
        if how.negative_prompt:
            arguments["negative_prompt"] = [spec.parameters.negative_prompt for spec in specs]
        return arguments | _of_source(specs)


def _accepted(pipeline: Any) -> set[str]:
    return set(inspect.signature(pipeline.__call__).parameters)


def _sibling(kind: str, pipeline: Any) -> Any:
    """The pipeline of the same parts that diffusers has for ``kind``; None: there is none."""
    import diffusers  # which imports all of its pipelines for it

    try:
        found = getattr(diffusers, kind).from_pipe(pipeline)
    except Exception:  # what else is missing for it, each pipeline says in its own way
        return None
    found.set_progress_bar_config(disable=True)
    return found


def _of_source(specs: Sequence[DrawSpec]) -> dict[str, Any]:
    source = specs[0].source
    if source is None:
        return {}
    found: dict[str, Any] = {
        "image": [source.encoded] * len(specs),
        "strength": specs[0].parameters.strength,
    }
    if source.mask is not None:
        found["mask_image"] = [Image.fromarray(source.mask)] * len(specs)
    return found


def side_multiple(pipeline: Any) -> int:
    """Sides that VAE, patches and image processor all accept, and at least 16."""
    vae = getattr(pipeline, "vae_scale_factor", 8)
    model = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    patch = getattr(model.config, "patch_size", None) if model is not None else None
    processor = getattr(pipeline, "image_processor", None)
    factor = processor.config.get("vae_scale_factor", 1) if processor is not None else 1
    return math.lcm(16, vae * (patch if isinstance(patch, int) else 1), factor)


def _group(spec: DrawSpec) -> Hashable:
    """All that one call has only one of."""
    how = spec.parameters
    text = how.steps, how.guidance_scale, bool(how.negative_prompt), how.reproducible
    return (*how.size, *text, None if spec.source is None else id(spec.source), how.strength)


def _share(on_inner_step: OnInnerStep, number: int, of: int, steps: int) -> OnInnerStep:
    """Progress of call ``number`` of ``of`` as progress of all of them."""
    return lambda finished: on_inner_step((number * steps + finished) // of)
