"""Which way of writing a picture costs least, and which stays out of the way of the thread that
draws? Prints the two tables of docs/performance.md.

Photo-like pictures: noise whose spectrum falls like a photograph's, with correlated channels and
a little sensor noise. Every file is read back and compared. Libraries that are not installed are
left out; the worker needs none of them.
"""

import functools
import importlib
import io
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image

from worker.generation.imaging import DEFAULT_QUALITY, encode
from worker.types import Pixels

Encoder = Callable[[Pixels], bytes]
ROUNDS = 9
SIDES = (256, 1024)
KINDS = ("jpeg", "png", "webp")
LAUNCHES, PICTURES = 300, 2


def photo_like(side: int, seed: int = 0) -> Pixels:
    """A picture whose neighbouring pixels are about as alike as a photograph's."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1.0

    def cloud() -> np.ndarray:
        waves = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        field = np.fft.irfft2(waves / frequency**1.2, s=(side, side))
        return np.asarray(field / field.std())

    shared = cloud()
    channels = [128 + 40 * shared + 20 * cloud() + rng.normal(0, 1.5, shared.shape) for _ in "rgb"]
    picture: Pixels = np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)
    return picture


def encoders() -> Iterator[tuple[str, Encoder]]:
    for level in (0, 1, 6):
        yield (
            f"Pillow, level {level}",
            _pillow("png", compress_level=level, compress_type=zlib.Z_DEFAULT_STRATEGY),
        )
    yield "Pillow, level 1, RLE", _pillow("png", compress_level=1, compress_type=zlib.Z_RLE)
    if cv2 := _installed("cv2"):
        cv2.setNumThreads(1)
        options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
        yield "OpenCV, RLE", lambda p: cv2.imencode(".png", p[:, :, ::-1], options)[1].tobytes()
    if imagecodecs := _installed("imagecodecs"):
        yield (
            "imagecodecs, RLE",
            lambda p: bytes(imagecodecs.png_encode(p, level=1, strategy=zlib.Z_RLE)),
        )
    if fpng := _installed("fpng_py"):
        yield (
            "fpng",
            lambda p: bytes(fpng.fpng_encode_image_to_memory(p.tobytes(), p.shape[1], p.shape[0])),
        )
    yield "ours: numpy Up, ISA-L level 1", functools.partial(_as_worker, "png")


def _pillow(kind: str, **options: int) -> Encoder:
    def run(pixels: Pixels) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    return run


def _as_worker(kind: str, pixels: Pixels) -> bytes:
    return encode(pixels, kind, None, "")


def _installed(name: str):  # type: ignore[no-untyped-def]
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def cpu_ms(encoder: Encoder, pixels: Pixels) -> float:
    """Median CPU time of one call, which other processes disturb little."""
    times = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        encoder(pixels)
        times.append((time.thread_time() - began) * 1000)
    return statistics.median(times)


def pause_ms(encoder: Encoder, pixels: Pixels) -> float:
    """How long a call keeps another thread, such as the event loop, from running."""
    return min(_longest_gap_ms(encoder, pixels) for _ in range(ROUNDS))


def _longest_gap_ms(encoder: Encoder, pixels: Pixels) -> float:
    done = threading.Event()

    def work() -> None:
        encoder(pixels)
        done.set()

    thread = threading.Thread(target=work)
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while not done.is_set():
        time.sleep(0.0002)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    return longest * 1000


BESIDE: dict[str, Encoder] = {
    "nothing": lambda _: b"",
    "JPEG, Pillow into BytesIO": _pillow("jpeg", quality=DEFAULT_QUALITY["jpeg"]),
    **{f"{kind.upper()}, as the worker": functools.partial(_as_worker, kind) for kind in KINDS},
}


def launching_ms(encoder: Encoder, pixels: Pixels) -> list[float]:
    """How long ``LAUNCHES`` short calls into torch take a thread while ``PICTURES`` others encode a
    picture each: as at the end of a batch, when the GPU waits for the next one's first step. Median
    and worst."""
    numbers, times = torch.zeros(64), []
    for _ in range(4 * ROUNDS):
        others = [threading.Thread(target=encoder, args=(pixels,)) for _ in range(PICTURES)]
        for thread in others:
            thread.start()
        began = time.perf_counter()
        for _ in range(LAUNCHES):
            numbers = numbers + 1
        times.append((time.perf_counter() - began) * 1000)
        for thread in others:
            thread.join()
    return [statistics.median(times), max(times)]


def require_equal(data: bytes, pixels: Pixels) -> None:
    with Image.open(io.BytesIO(data)) as image:
        if not np.array_equal(np.asarray(image.convert("RGB")), pixels):
            raise SystemExit("an encoder changed the picture")


def main() -> None:
    pictures = {side: photo_like(side) for side in SIDES}
    write = sys.stdout.write
    write("| encoder | " + " | ".join(f"{s}²: CPU ms | KiB | pause ms" for s in SIDES) + " |\n")
    write("|---" * (1 + 3 * len(SIDES)) + "|\n")
    for name, encoder in encoders():
        cells = []
        for pixels in pictures.values():
            data = encoder(pixels)
            require_equal(data, pixels)
            cpu, pause = cpu_ms(encoder, pixels), pause_ms(encoder, pixels)
            cells.append(f"{cpu:.1f} | {len(data) / 1024:.0f} | {pause:.1f}")
        write(f"| {name} | " + " | ".join(cells) + " |\n")
    write(
        f"\n| beside {PICTURES} pictures of {SIDES[-1]}² | {LAUNCHES} short calls: ms | worst |\n"
    )
    write("|---|---|---|\n")
    for name, encoder in BESIDE.items():
        median, worst = launching_ms(encoder, pictures[SIDES[-1]])
        write(f"| {name} | {median:.1f} | {worst:.1f} |\n")


if __name__ == "__main__":
    main()
