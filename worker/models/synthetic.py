"""A pipeline without a model, for load tests and benchmarks: known cost, provable output.

Source ``synthetic:`` with options, for example ``synthetic:step_ms=50,row_ms=10,noise=1``. Each
picture is one colour taken from a digest of prompt, seed and steps, and its first row spells
``prompt|seed|steps done`` in UTF-8, one byte a channel, ended by a zero: a reader can prove that
this request drew this picture. Adapters stand behind it. A step takes ``step_ms``, ``row_ms`` for
each row and ``megapixel_ms`` for each megapixel of all rows; text and decode take ``encode_ms`` and
``decode_ms`` a picture. ``noise=1`` fills the rest with noise of the seed, so that a PNG
has the size of a photograph's. ``max_tokens=20`` refuses longer prompts; a token is a word.
Samples are independent: batches equal solo runs bit by bit. A picture to go on from takes
``image_ms`` to encode, and shows through: the colour is laid over it as thickly as ``strength``.

Prompts that begin with ``fault:`` misbehave on purpose, in their second step: ``fault:exit`` ends
the process, ``fault:hang`` never returns, ``fault:error`` raises, ``fault:memory`` is out of
memory, ``fault:poisoned`` reports a dead device, ``fault:gil`` blocks every thread for 30 s.
"""

import ctypes
import functools
import hashlib
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from worker.models.base import (
    DevicePoisoned,
    ModelInfo,
    OnInnerStep,
    OutOfMemory,
    Sample,
    check_loras,
    check_prompts,
    check_source,
)
from worker.models.loras.folder import LoraFolder
from worker.models.loras.shelf import LoraShelf
from worker.models.prompt_limit import PromptLimit
from worker.types import DrawSpec, Pixels

_DEFAULTS = {
    "step_ms": 20.0,
    "row_ms": 0.0,
    "megapixel_ms": 0.0,
    "encode_ms": 0.0,
    "image_ms": 0.0,
    "decode_ms": 0.0,
    "load_ms": 0.0,
    "noise": 0.0,
    "max_rows": 64.0,
    "max_tokens": 0.0,
}


_NOISES = 65_521  # so many pictures of noise differ


def parse_source(source: str) -> dict[str, float]:
    """Options of ``synthetic:key=value,…`` over their defaults; ValueError names a bad one."""
    options = dict(_DEFAULTS)
    for part in filter(None, source.removeprefix("synthetic").removeprefix(":").split(",")):
        key, _, value = part.partition("=")
        if key not in options:
            raise ValueError(f"synthetic: unknown option {key!r}; known: {', '.join(_DEFAULTS)}")
        options[key] = float(value)
    return options


class SyntheticPipeline:
    """See the module. ``max_rows`` is where ``OutOfMemory`` begins."""

    def __init__(self, source: str = "synthetic:", loras: LoraFolder | None = None) -> None:
        self.options = parse_source(source)
        self.info = ModelInfo(
            id="synthetic",
            default_steps=8,
            default_guidance_scale=0.0,
            default_size=(256, 256),
            side_multiple=16,
            min_side=64,
            stepwise=True,
            edits=True,
            loras=None if loras is None else LoraShelf(loras),
            masks=True,
            prompt_limit=_words_limit(int(self.options["max_tokens"])),
        )
        time.sleep(self.options["load_ms"] / 1000)

    def check(self, spec: DrawSpec) -> None:
        check_prompts(spec, self.info)
        check_source(spec, self.info)
        check_loras(spec, self.info)

    def encode_image(self, spec: DrawSpec) -> None:
        assert spec.source is not None, "nothing to encode"
        _sleep_ms(self.options["image_ms"])
        spec.source.take(spec.source.pixels)

    def start(self, specs: Sequence[DrawSpec]) -> list[Sample]:
        _sleep_ms(self.options["encode_ms"] * len(specs))
        return [
            Sample(spec, how.size[::-1], how.drawn_steps, rows=2 if how.guidance_scale > 1 else 1)
            for spec, how in ((spec, spec.parameters) for spec in specs)
        ]

    def step(self, samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
        rows = sum(sample.rows for sample in samples)
        if rows > self.options["max_rows"]:
            raise OutOfMemory(f"{rows} rows")
        for sample in samples:
            if sample.step_index == 1:
                _misbehave(sample.spec.prompt)
        megapixels = sum(s.rows * s.spec.parameters.pixels for s in samples) / 1e6
        rows_ms = self.options["row_ms"] * rows + self.options["megapixel_ms"] * megapixels
        _sleep_ms(self.options["step_ms"] + rows_ms)
        for sample in samples:
            sample.step_index += 1

    def finish(self, samples: Sequence[Sample]) -> list[Pixels]:
        _sleep_ms(self.options["decode_ms"] * len(samples))
        return [self._picture(sample) for sample in samples]

    def preview(self, sample: Sample) -> Pixels | None:
        return self._picture(sample)[::4, ::4]

    def caption_lookups(self) -> tuple[int, int] | None:
        return None

    def close(self) -> None:
        pass

    def _picture(self, sample: Sample) -> Pixels:
        spec, how = sample.spec, sample.spec.parameters
        adapters = f"|{how.lora}" if how.lora else ""
        text = f"{spec.prompt}|{spec.seed}|{sample.step_index}{adapters}".encode()
        shape = (how.height, how.width, 3)
        if self.options["noise"]:
            pixels = _noise(spec.seed, how.pixels * 3).reshape(shape)
        else:
            pixels = np.empty(shape, np.uint8)
            pixels[:] = np.frombuffer(hashlib.sha256(text).digest()[:3], np.uint8)
        if spec.source is not None:
            under = np.asarray(spec.source.encoded, np.uint16)
            over = round(how.strength * 255)
            pixels = ((pixels.astype(np.uint16) * over + under * (255 - over)) // 255).astype("u1")
        row = np.zeros(how.width * 3, np.uint8)
        spelled = np.frombuffer(text, np.uint8)[: row.size - 1]
        row[: spelled.size] = spelled
        pixels[0] = row.reshape(-1, 3)
        return pixels


def _words_limit(most: int) -> PromptLimit | None:
    return PromptLimit(most, lambda texts: [len(t.split()) for t in texts]) if most else None


def _noise(seed: int, size: int) -> npt.NDArray[np.uint8]:
    """Noise that differs from seed to seed and costs no more than its copy."""
    at = seed % _NOISES
    # Not by numpy, which lets go of the GIL for it: getting it back takes longer than the copy.
    return np.frombuffer(bytearray(_all_noise(size + _NOISES)[at : at + size]), np.uint8)


@functools.lru_cache(4)
def _all_noise(size: int) -> bytes:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()


def _sleep_ms(milliseconds: float) -> None:
    if milliseconds:
        time.sleep(milliseconds / 1000)


def text_of(pixels: Pixels) -> str:
    """What the first row of a synthetic picture spells: ``prompt|seed|steps done``."""
    spelled: bytes = pixels[0].tobytes().split(b"\0", 1)[0]
    return spelled.decode(errors="replace")


def _error() -> None:
    raise RuntimeError("fault:error")


def _memory() -> None:
    raise OutOfMemory("fault:memory")


def _poisoned() -> None:
    raise DevicePoisoned("fault:poisoned")


_FAULTS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(139),
    "hang": lambda: time.sleep(3600),
    "error": _error,
    "memory": _memory,
    "poisoned": _poisoned,
    # PyDLL keeps the GIL for the whole call: no thread of the process runs.
    "gil": lambda: ctypes.PyDLL(None).usleep(30_000_000),
}


def _misbehave(prompt: str) -> None:
    if prompt.startswith("fault:"):
        _FAULTS[prompt.removeprefix("fault:").split()[0]]()
