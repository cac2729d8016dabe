"""What the engine asks of a model: start, step, finish.

The engine calls these from one thread and knows nothing of diffusers or torch.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from worker.errors import InvalidRequest
from worker.models.loras.shelf import LoraShelf
from worker.models.prompt_limit import PromptLimit
from worker.types import DrawSpec, Pixels

OnInnerStep = Callable[[int], bool]
"""Called with the number of finished steps; returns False to ask the pipeline to stop early."""


@dataclass(frozen=True)
class ModelInfo:
    """What a client and the engine must know of a loaded model."""

    id: str
    default_steps: int
    default_guidance_scale: float
    default_size: tuple[int, int]  # width, height
    side_multiple: int
    min_side: int
    stepwise: bool  # False: one ``step`` call runs a whole drawing
    device: str = "cpu"
    dtype: str = "float32"
    optimisations: tuple[tuple[str, str], ...] = ()  # what makes it faster, and why it is on or off
    compiles: bool = False  # the first call of a shape may take seconds
    prompt_limit: PromptLimit | None = field(default=None, compare=False)  # None: not known
    architecture: str = ""  # digest of what its layers are; "": unknown
    exchange_bytes: int = 0  # of the device's memory, through which several devices draw together
    edits: bool = False  # draws from pictures, too
    loras: LoraShelf | None = field(default=None, compare=False)  # None: it takes no adapters
    masks: bool = False  # draws parts of pictures anew


@dataclass(eq=False)
class Sample:
    """One picture being drawn. Pipelines subclass it for their tensors.

    Only samples of equal ``group`` may share a ``step``. ``step_index`` counts finished steps;
    a pipeline changes it, and nothing else in a sample, only when the whole step has succeeded.
    ``steps`` are those that are done: with a picture to go on from, the last of the schedule.
    """

    spec: DrawSpec
    group: Hashable
    steps: int
    rows: int = 1  # a guided picture is two rows of the batch
    step_index: int = field(default=0)

    @property
    def drawn(self) -> bool:
        """All steps are done; only ``finish`` is left."""
        return self.step_index >= self.steps


def check_prompts(spec: DrawSpec, info: ModelInfo) -> None:
    """Raise ``InvalidRequest`` where the model would not read a text of ``spec`` to its end."""
    if info.prompt_limit is not None:
        info.prompt_limit.check("prompt", spec.prompt)
        for name, text in spec.parameters.texts.items():
            info.prompt_limit.check(name, text)


def check_source(spec: DrawSpec, info: ModelInfo) -> None:
    """Raise ``InvalidRequest`` where the model cannot draw from the picture of ``spec`` so."""
    how = spec.parameters
    if spec.source is None:
        if how.strength != 1.0:
            message = "strength: it says how far to leave a picture: send one, or leave it out."
            raise InvalidRequest(message, param="strength")
        return
    if not info.edits:
        message = "image: this model draws from text alone; ask for a drawing without a picture."
        raise InvalidRequest(message, param="image")
    if how.drawn_steps < 1:
        message = f"strength: {how.strength:g} leaves the picture as it is: use more, up to 1."
        raise InvalidRequest(message, param="strength")


def check_loras(spec: DrawSpec, info: ModelInfo) -> None:
    """Raise ``InvalidRequest`` where an adapter of ``spec`` is not here as it was asked for."""
    if not (loras := spec.parameters.lora):
        return
    if info.loras is None:
        message = "lora: this model takes no adapters: leave the field out."
        raise InvalidRequest(message, param="lora")
    info.loras.require(loras.each)


class Pipeline(Protocol):
    """A loaded model. All calls come from one thread and may raise any exception.

    ``OutOfMemory`` and ``DevicePoisoned`` (below) are what the engine treats in a way of their own;
    every other exception fails the samples of that call.
    """

    info: ModelInfo

    def check(self, spec: DrawSpec) -> None:
        """Raise ``InvalidRequest`` for a spec that this model can never draw.

        Called on the event loop: must not block nor touch the device.
        """

    def encode_image(self, spec: DrawSpec) -> None:
        """Encode the picture that ``spec`` goes on from, once for all that do: before ``start``."""

    def start(self, specs: Sequence[DrawSpec]) -> list[Sample]:
        """Encode prompts and draw noise; one sample for each spec, in order."""

    def step(self, samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
        """Advance samples of one group by one denoising step (a stepwise pipeline) or to the end.

        A whole-call pipeline calls ``on_inner_step(k)`` after each of its own steps and stops
        early, leaving its samples as they were, when that returns False. Stepwise ones ignore it.
        """

    def finish(self, samples: Sequence[Sample]) -> list[Pixels]:
        """Decode drawn samples of one group; one picture for each, in order."""

    def preview(self, sample: Sample) -> Pixels | None:
        """A cheap look at an unfinished picture, smaller than the result, or None."""

    def caption_lookups(self) -> tuple[int, int] | None:
        """Hits and misses of the cache of text embeddings; None without one. From any thread."""

    def close(self) -> None:
        """Let go of the device."""


class OutOfMemory(Exception):
    """The device had no room for this call. Nothing in its samples has changed."""


class DevicePoisoned(Exception):
    """No later call on this device can succeed in this process."""
