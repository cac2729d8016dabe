"""Z-Image, one denoising step at a time.

``ZImagePipeline.__call__`` runs one batch from noise to picture. Here its parts are used so that
samples at different steps, of different lengths and prompts, share one forward, and each sample
still becomes the picture that ``__call__`` draws from ``torch.Generator("cpu")`` with its seed.
"""

import gc
import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from worker.models.acceleration import optimisations
from worker.models.acceleration.determinism import fixed_kernels
from worker.models.acceleration.graphs import Graphs
from worker.models.base import (
    ModelInfo,
    OnInnerStep,
    Sample,
    check_loras,
    check_prompts,
    check_source,
)
from worker.models.faults import translate
from worker.models.loras.conversion import layers_of
from worker.models.loras.device import DeviceLoras, LoraFile
from worker.models.memory import room_of
from worker.models.parallel.split import Lead
from worker.models.parallel.team import Team
from worker.models.sizes import check_sides
from worker.models.zimage.decoder import PictureDecoder
from worker.models.zimage.dense import DenseTransformer
from worker.models.zimage.image_latents import Encoded, ImageEncoder, Kept, cells_drawn, noised
from worker.models.zimage.latent_preview import LatentPreview
from worker.models.zimage.low_rank import Row, Scaled, of_captions
from worker.models.zimage.prompt_embeddings import PromptEncoder, bucket
from worker.models.zimage.schedule import Schedule, schedule_of
from worker.types import DrawSpec, Pixels

Transformer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

Files = tuple[tuple[LoraFile, float], ...]
"""Adapters of a sample, each with its scale."""

MIN_SIDE = 64


@dataclass(eq=False, kw_only=True)
class ZImageSample(Sample):
    """``latents`` and ``velocity`` (the last step's): channels × height / 8 × width / 8, fp32.

    ``captions``, from a ``PromptEncoder``: the prompt's and, of a guided sample, the negative
    prompt's. ``kept``: what a mask keeps of the picture that it goes on from. ``loras``: its
    adapters, each with its scale.
    """

    schedule: Schedule
    captions: tuple[torch.Tensor, ...]
    latents: torch.Tensor
    velocity: torch.Tensor | None = None
    kept: Kept | None = None
    loras: Files = ()


class ZImageStepwise:
    """Built from a loaded ``ZImagePipeline``, which it changes as ``plan`` says; see
    ``worker.models.base.Pipeline``.

    Each ``step`` waits for the device, so that errors and times belong to their step.
    """

    def __init__(
        self,
        pipeline: Any,
        info: ModelInfo,
        plan: optimisations.Optimisations = optimisations.NONE,
        team: Team | None = None,
    ) -> None:
        plan = optimisations.proved(plan, pipeline.transformer.device)
        graphs = optimisations.apply(plan, pipeline)
        self._pipeline = pipeline
        self._device: torch.device = pipeline.transformer.device
        self._dtype: torch.dtype = pipeline.transformer.dtype
        self._scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        self._lead = Lead(pipeline.transformer, plan, team, graphs) if team else None
        dense = self._lead.share if self._lead else _dense(pipeline.transformer, plan, graphs)
        self._transformer: Transformer = self._lead or dense
        self._dense = dense
        self._loras = _device_loras(pipeline.transformer, info, self._lead)
        self._captions = PromptEncoder(pipeline, dense, graphs)
        room_bytes = room_of(self._device)
        self._decode = PictureDecoder(pipeline, graphs, room_bytes)
        self._encode = ImageEncoder(pipeline.vae, room_bytes)
        self._latent_preview = LatentPreview(pipeline.vae)
        multiple = pipeline.vae_scale_factor * 2
        self.info = replace(
            info,
            side_multiple=multiple,
            min_side=MIN_SIDE,
            stepwise=True,
            optimisations=plan.why,
            compiles=plan.kernels or plan.graphs,
            architecture=_architecture(pipeline),
            exchange_bytes=self._lead.exchange_bytes if self._lead else 0,
            edits=True,
            loras=None if self._loras is None else self._loras.shelf,
            masks=True,
        )
        self._max_side = min(pipeline.transformer.config.axes_lens[1:]) * multiple

    def check(self, spec: DrawSpec) -> None:
        """Sides must be multiples of 16 within the tables of the position embedding, and texts
        short enough to be read whole."""
        check_sides(spec, self.info, self._max_side)
        check_prompts(spec, self.info)
        check_source(spec, self.info)
        check_loras(spec, self.info)

    @translate
    @torch.no_grad()
    def encode_image(self, spec: DrawSpec) -> None:
        source = spec.source
        assert source is not None, "nothing to encode"
        assert source.pixels is not None, "it is encoded"
        with fixed_kernels(spec.parameters.reproducible):
            encoded = self._encode(source.pixels)
        self._synchronise()
        source.take(encoded)

    @translate
    @torch.no_grad()
    def start(self, specs: Sequence[DrawSpec]) -> list[Sample]:
        loras = [self._files(spec) for spec in specs]
        texts = [
            (text, each) for spec, each in zip(specs, loras, strict=True) for text in _texts(spec)
        ]
        captions = iter(self._encoded_texts(texts))
        # while the device encodes
        begins = [self._begin(spec) for spec in specs]
        return [
            self._started(spec, captions, begin, files)
            for spec, begin, files in zip(specs, begins, loras, strict=True)
        ]

    @translate
    @torch.no_grad()
    def step(self, samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
        advanced: list[tuple[ZImageSample, torch.Tensor, torch.Tensor]] = []
        for batch in _batches(samples, self._loras.room_bytes if self._loras else 0):
            with fixed_kernels(batch[0].spec.parameters.reproducible):
                advanced += self._advanced(batch)
        self._synchronise()
        for sample, latents, velocity in advanced:
            sample.latents, sample.velocity = latents, velocity
            sample.step_index += 1

    @translate
    @torch.no_grad()
    def finish(self, samples: Sequence[Sample]) -> list[Pixels]:
        """Decodes one at a time: the decoder's peak of memory does not grow with the batch, and
        its output does not depend on it."""
        ours = _ours(samples)
        pictures = []
        for sample in ours:
            with fixed_kernels(sample.spec.parameters.reproducible):
                pictures.append(self._decode(sample.latents))
        return self._decode.taken(pictures, [sample.latents for sample in ours])

    @translate
    @torch.no_grad()
    def preview(self, sample: Sample) -> Pixels | None:
        """The picture that the last velocity points to, one pixel for each cell of 8."""
        (ours,) = _ours([sample])
        if ours.velocity is None:
            return None
        latents = ours.latents - ours.schedule.sigmas[ours.step_index] * ours.velocity
        if ours.kept:
            latents = torch.where(ours.kept.drawn, latents, ours.kept.image)
        return self._latent_preview(latents)

    def caption_lookups(self) -> tuple[int, int] | None:
        return self._captions.hits, self._captions.misses

    def close(self) -> None:
        if self._lead:
            self._lead.close()
        del self._pipeline, self._lead, self._transformer, self._captions
        del self._decode, self._encode
        gc.collect()
        torch.cuda.empty_cache()  # without CUDA it does nothing

    def _started(
        self, spec: DrawSpec, following: Iterator[torch.Tensor], begin: "_Begin", loras: Files
    ) -> ZImageSample:
        captions = tuple(itertools.islice(following, len(_texts(spec))))
        noise, image, how = begin.noise.to(self._device), begin.image, spec.parameters
        image_tokens = (noise.shape[1] // 2) * (noise.shape[2] // 2)
        schedule = schedule_of(self._scheduler, how.steps, image_tokens).after(how.first_step)
        return ZImageSample(
            spec,
            _group(spec, captions),
            how.drawn_steps,
            rows=len(captions),
            schedule=schedule,
            captions=captions,
            latents=noise if image is None else noised(image, noise, schedule.sigmas[0]),
            kept=None if image is None else self._kept(spec, image, noise),
            loras=loras,
        )

    # Adapters

    def _files(self, spec: DrawSpec) -> Files:
        loras = spec.parameters.lora
        if not loras:
            return ()
        assert self._loras is not None, "check refuses it"
        files = self._loras.opened(loras.each)
        return tuple(zip(files, (lora.scale for lora in loras.each), strict=True))

    def _encoded_texts(self, texts: Sequence[tuple[str, Files]]) -> list[torch.Tensor]:
        if not any(files for _, files in texts):
            return self._captions([text for text, _ in texts])
        captions = []
        for text, files in texts:  # one after the other: together they may have no room
            (row,) = self._rows_of([files])
            captions += self._captions([text], [of_captions(row)])
        return captions

    def _rows_of(self, loras: Sequence[Files]) -> list[Row]:
        """On the device; those of one batch have room together: see ``_batches``."""
        if not any(loras):
            return [()] * len(loras)
        assert self._loras is not None, "they were opened"
        placed = self._loras.placed(file for files in loras for file, _ in files)
        return [tuple(Scaled(placed[file], scale) for file, scale in files) for files in loras]

    def _kept(self, spec: DrawSpec, image: torch.Tensor, noise: torch.Tensor) -> Kept | None:
        assert spec.source is not None, "the image comes from it"
        mask = spec.source.mask
        return None if mask is None else Kept(image, noise, cells_drawn(mask, self._device))

    def _begin(self, spec: DrawSpec) -> "_Begin":
        """What the seed of ``spec`` says. On the CPU, in fp32: the same for every device."""
        seed = torch.Generator("cpu").manual_seed(spec.seed)
        if spec.source is None:
            return _Begin(self._noise(spec, seed))
        encoded = spec.source.encoded
        assert isinstance(encoded, Encoded), "encode_image comes first"
        image = self._encode.latents(encoded, seed)
        return _Begin(self._noise(spec, seed), image)

    def _noise(self, spec: DrawSpec, seed: torch.Generator) -> torch.Tensor:
        noise: torch.Tensor = self._pipeline.prepare_latents(
            1,
            self._pipeline.transformer.in_channels,
            spec.parameters.height,
            spec.parameters.width,
            torch.float32,
            "cpu",
            seed,
        )
        return noise[0]

    def _advanced(
        self, samples: Sequence[ZImageSample]
    ) -> list[tuple[ZImageSample, torch.Tensor, torch.Tensor]]:
        # On the device before the forward, for which a later copy would wait.
        deltas = self._column([sample.schedule.delta(sample.step_index) for sample in samples])
        velocities = self._velocities(samples)
        latents = torch.stack([sample.latents for sample in samples]) + deltas * velocities
        kept = [_with_kept(s, each) for s, each in zip(samples, latents.unbind(), strict=True)]
        return list(zip(samples, kept, velocities.unbind(), strict=True))

    def _velocities(self, samples: Sequence[ZImageSample]) -> torch.Tensor:
        """samples × channels × height / 8 × width / 8, fp32."""
        positive, *negative = self._outputs(samples)
        for output in negative:  # at most one
            # The pipeline's formula; its normalisation and truncation are off by default.
            scales = self._column([torch.tensor(s.spec.parameters.guidance_scale) for s in samples])
            positive = positive + scales * (positive - output)
        return -positive

    def _outputs(self, samples: Sequence[ZImageSample]) -> list[torch.Tensor]:
        """What the transformer says of each sample's prompt and, if guided, negative prompt."""
        captions = list(zip(*(sample.captions for sample in samples), strict=True))
        if len({bucket(row[0]) for row in captions}) > 1:  # two lengths would need a mask
            return [self._forward(samples, row) for row in captions]
        rows = [caption for row in captions for caption in row]
        return list(self._forward([*samples] * len(captions), rows).chunk(len(captions)))

    def _forward(
        self, samples: Sequence[ZImageSample], captions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        times = torch.stack([sample.schedule.times[sample.step_index] for sample in samples])
        latents = torch.stack([sample.latents for sample in samples]).to(self._dtype)
        rows = self._rows_of([sample.loras for sample in samples])
        with self._dense.adapted(rows) if any(rows) else nullcontext():
            return self._transformer(latents, times.to(self._device), torch.stack(list(captions)))

    def _column(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(values)).to(self._device).view(-1, 1, 1, 1)

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _architecture(pipeline: Any) -> str:
    """Of the parts that nearly all of the time goes to: the same whatever the weights are."""
    parts = (pipeline.transformer, pipeline.vae)
    shapes = [sorted((n, tuple(t.shape)) for n, t in part.state_dict().items()) for part in parts]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def _dense(
    transformer: Any, plan: optimisations.Optimisations, graphs: Graphs | None
) -> DenseTransformer:
    return DenseTransformer(
        transformer,
        graphs,
        kernels=optimisations.blocks_use_kernels(plan, transformer),
        ways=optimisations.ways(plan),
        backend=plan.backend,
    )


@dataclass(frozen=True, eq=False)
class _Begin:
    """``image``: of what it goes on from."""

    noise: torch.Tensor
    image: torch.Tensor | None = None


def _with_kept(sample: ZImageSample, latents: torch.Tensor) -> torch.Tensor:
    """``latents`` after the step that ``sample`` is in, with what its mask keeps."""
    if sample.kept is None:
        return latents
    return sample.kept.blended(latents, sample.schedule.sigmas[sample.step_index + 1])


def _texts(spec: DrawSpec) -> list[str]:
    """What is encoded for it."""
    how = spec.parameters
    return [spec.prompt, how.negative_prompt][: 2 if how.guidance_scale > 0 else 1]


def _group(spec: DrawSpec, captions: Sequence[torch.Tensor]) -> Hashable:
    """Within one, every forward has rows of one length; without it, attention needs a mask."""
    return (*spec.parameters.size, *map(bucket, captions), spec.parameters.reproducible)


def _ours(samples: Sequence[Sample]) -> list[ZImageSample]:
    ours = [sample for sample in samples if isinstance(sample, ZImageSample)]
    assert len(ours) == len(samples), "samples of another pipeline"
    return ours


def _batches(samples: Sequence[Sample], lora_bytes: int) -> list[list[ZImageSample]]:
    """Reproducible samples each alone, whatever the engine put together; of others, so many in one
    that their adapters have room in ``lora_bytes``."""
    ours = _ours(samples)
    if ours[0].spec.parameters.reproducible:
        return [[sample] for sample in ours]
    if not any(sample.loras for sample in ours):
        return [ours]
    batches: list[list[ZImageSample]] = [[]]
    files: set[LoraFile] = set()
    for sample in ours:
        together = files | {file for file, _ in sample.loras}
        if batches[-1] and sum(file.bytes for file in together) > lora_bytes:
            batches.append([])
            together -= files - {file for file, _ in sample.loras}
        batches[-1].append(sample)
        files = together
    return batches


def _device_loras(transformer: Any, info: ModelInfo, lead: Lead | None) -> DeviceLoras | None:
    """None where the model is told of no folder, or draws on several devices."""
    if info.loras is None or lead is not None:
        return None
    dtype: torch.dtype = transformer.dtype
    shelf = info.loras.of_model(layers_of(transformer), dtype.itemsize)
    shelf.all()  # here, while the model is loaded: later, requests would wait for so many files
    return DeviceLoras(shelf, transformer.device, dtype)
