"""What everybody speaks of: what is to be drawn, and what comes out."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt
import orjson

Pixels = npt.NDArray[np.uint8]
"""One picture: height × width × 3, RGB."""

Mask = npt.NDArray[np.uint8]
"""Of a picture, height × width: 0 where it stays, 255 where it is drawn anew; between, both."""

Value = int | float | str | bool


class Lora(NamedTuple):
    """An adapter that a drawing asks for. ``sha256``: of its file, in hex."""

    name: str
    scale: float
    sha256: str


class ChosenLoras(str):
    """The adapters of a drawing as tables, logs and files of pictures keep them:
    ``name*scale@sha256``, with ``;`` between. Empty: none."""

    __slots__ = ()

    @classmethod
    def of(cls, loras: Iterable[Lora]) -> "ChosenLoras":
        """``loras``, in one order whatever theirs is."""
        return cls(";".join(f"{name}*{scale:g}@{digest}" for name, scale, digest in sorted(loras)))

    @property
    def each(self) -> tuple[Lora, ...]:
        """What the text says, in its order."""
        return _loras_of(str(self))


NO_LORAS = ChosenLoras()


@lru_cache(maxsize=256)
def _loras_of(text: str) -> tuple[Lora, ...]:
    found = []
    for part in filter(None, text.split(";")):
        asked, _, digest = part.partition("@")
        name, _, scale = asked.partition("*")
        found.append(Lora(name, float(scale), digest))
    return tuple(found)


@dataclass(frozen=True)
class Declared:
    """What is to be known of a field of ``Parameters`` beside its name, type and default.

    ``low`` and ``high`` bound a number in requests; ``high`` may be the setting that does. Texts
    are bounded by ``max_prompt_chars`` and by what the model reads. ``jobs``: jobs take it, and
    tables keep it. ``edits``: it has a meaning only where a picture is given. ``since``: the
    migration that adds its columns, 0: it was always there. ``label``: its name in a picture's
    file; the sides are ``Size``.
    """

    low: float | None = None
    high: float | str | None = None
    jobs: bool = True
    edits: bool = False
    since: int = 0
    label: str = ""


@dataclass(frozen=True)
class Parameters:
    """How a picture is drawn, beside its prompt and its seed: the same for all pictures of a
    request and for all items of a job. Sides in pixels.

    A field is declared here, once: requests, jobs, tables, gallery, audit log, files of pictures
    and the OpenAPI document have it from here. docs/architecture.md says what else it takes.
    """

    width: Annotated[int, Declared()]
    height: Annotated[int, Declared()]
    steps: Annotated[int, Declared(low=1, high="max_steps", label="Steps")]
    guidance_scale: Annotated[float, Declared(low=0, high=30, label="CFG scale")] = 0.0
    negative_prompt: Annotated[str, Declared(label="Negative prompt")] = ""
    reproducible: Annotated[bool, Declared(jobs=False)] = False
    strength: Annotated[
        float, Declared(low=0, high=1, edits=True, since=11, label="Denoising strength")
    ] = 1.0
    lora: Annotated[ChosenLoras, Declared(since=14, label="Lora")] = NO_LORAS

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def first_step(self) -> int:
        """A picture that is given is made as noisy as it is before this step: 0, to nothing but
        noise. Counted as diffusers counts it."""
        if self.strength == 1.0:  # nearly always, and asked for at each step
            return 0
        return int(max(self.steps - min(self.steps * self.strength, self.steps), 0))

    @property
    def drawn_steps(self) -> int:
        """Steps that are really done: as much of them as ``strength`` says, rounded up."""
        return self.steps - self.first_step

    @property
    def size_text(self) -> str:
        """As requests say it: ``512x768``."""
        return f"{self.width}x{self.height}"

    @property
    def _kind(self) -> Any:
        return type(self)  # mypy takes the hash of its instances for its own

    @property
    def texts(self) -> dict[str, str]:
        """What people wrote, by field."""
        said = vars(self)
        return {name: said[name] for name in _text_names(self._kind)}

    @property
    def later(self) -> dict[str, Value]:
        """Fields that were not always there, where they are not at their defaults."""
        said = vars(self)
        defaults = _later_defaults(self._kind)
        return {name: said[name] for name, default in defaults.items() if said[name] != default}

    @property
    def needs(self) -> int:
        """The migration that a worker must know to draw so; 0: any worker does."""
        known = fields_of(type(self))
        return max((known[name].about.since for name in self.later), default=0)

    def normalised(self) -> dict[str, Value]:
        """What fingerprints and signatures are made of. A later field at its default is left out,
        so that a version that knows it says the same of a picture as one that does not."""
        said = dict(vars(self))
        for name, default in _later_defaults(self._kind).items():
            if said[name] == default:
                del said[name]
        return said


@dataclass(frozen=True)
class Field:
    """One field of ``Parameters``. ``default`` None: a request's own, or the model's."""

    name: str
    kind: type[Value]
    default: Value | None
    about: Declared


def fields_of(kind: type[Parameters]) -> Mapping[str, Field]:
    """What ``kind`` declares, by name."""
    known: Any = kind  # mypy takes the hash of its instances for its own
    return _declared(known)


@cache
def _declared(kind: type[Any]) -> Mapping[str, Field]:
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for declared in dataclasses.fields(kind):
        name, default = declared.name, declared.default
        default = None if default is dataclasses.MISSING else default
        found[name] = Field(name, hints[name].__origin__, default, hints[name].__metadata__[0])
    return found


@cache
def _later_defaults(kind: Any) -> Mapping[str, Value | None]:
    return {name: field.default for name, field in fields_of(kind).items() if field.about.since}


@cache
def _text_names(kind: Any) -> tuple[str, ...]:
    return tuple(name for name, field in fields_of(kind).items() if field.kind is str)


FIELDS = fields_of(Parameters)
PICTURES_SINCE = 13
"""The migration since which rows name pictures to go on from."""
MODELS_SINCE = 15
"""The migration since which jobs name one of several models."""
KNOWN = max(PICTURES_SINCE, MODELS_SINCE, *(field.about.since for field in FIELDS.values()))
"""The newest migration that this version draws by: see ``Parameters.needs``."""


@dataclass(eq=False)
class SourceImage:
    """A picture to go on from, the same for all pictures of one request, which alone has it.

    ``sha256`` and ``mask_sha256`` (empty: none) are those of the files that were sent, in hex.
    ``placement``: how the file became ``pixels``, which have the drawing's size. They are there
    until they are encoded, and with a mask until what it keeps is pasted.
    """

    sha256: str
    pixels: Pixels | None = field(repr=False)
    mask: Mask | None = field(default=None, repr=False)
    mask_sha256: str = ""
    placement: str = ""
    drawn_from: Mapping[str, str] = field(default_factory=dict)
    """Where the image was named by its id: that (``image``), the mask's where that was, too, and
    ``fit`` and ``position`` as requests say them, or ``fit`` upscale. Empty where it was sent."""
    encoded: object = field(default=None, repr=False)
    """What the model made of the pixels. Of the thread that draws alone."""

    def take(self, encoded: object) -> None:
        """Go on with what the model made of it."""
        self.encoded = encoded
        if self.mask is None:
            self.pixels = None

    def release(self) -> None:
        """Nothing will be drawn from it any more."""
        self.encoded = None

    @property
    def digests(self) -> dict[str, str]:
        """Of the files that are there, by the names that logs give them."""
        found = {"image_sha256": self.sha256, "mask_sha256": self.mask_sha256}
        return {name: digest for name, digest in found.items() if digest}

    @property
    def identity(self) -> tuple[str, str, str]:
        """What decides a drawing from it."""
        return self.sha256, self.mask_sha256, self.placement

    def pasted(self, drawn: Pixels) -> Pixels:
        """``drawn``, and outside of the mask the picture itself: value for value where it is 0."""
        if self.mask is None or self.pixels is None:
            return drawn
        share = self.mask[..., None].astype(np.uint16)
        mixed = drawn * share + self.pixels * (255 - share) + 127
        return (mixed // 255).astype(np.uint8)


@dataclass(frozen=True)
class DrawSpec:
    """One picture to draw, from nothing or from ``source``. ``seed`` 0 … 2³²−1."""

    prompt: str
    seed: int
    parameters: Parameters
    source: SourceImage | None = None

    def normalised(self) -> bytes:
        """Stands for this very picture, in every version: see ``Parameters.normalised``."""
        parts: list[Any] = [self.prompt, self.seed, self.parameters.normalised()]
        if self.source is not None:
            parts.append(self.source.identity)
        return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)

    def without_source(self) -> "DrawSpec":
        """As large and as long, from nothing."""
        how = self.parameters
        if self.source is None:
            return self
        steps = max(1, how.drawn_steps)
        return DrawSpec(self.prompt, self.seed, dataclasses.replace(how, steps=steps, strength=1.0))
