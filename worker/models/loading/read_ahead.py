"""The transformer's weights, read onto the card while Python still imports libraries.

They are two thirds of what a start reads. Threads read pieces of the files into page-locked memory,
from which the card fetches them; the libraries read a mapped file one tensor after the other, once
they are imported. Imports torch alone. Whatever goes wrong here, the libraries do it as ever.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from worker import log
from worker.models.loading.device import claim_device, dtype_for
from worker.models.loading.folder import class_of
from worker.models.memory import GIB
from worker.settings import Settings

Weights = dict[str, torch.Tensor]
_FILES = "diffusion_pytorch_model*.safetensors"
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_PIECE_BYTES = 1 << 24
_THREADS = 4  # each takes some 5 GB/s out of the page cache
_HEAD_BYTES = 8  # how long a file's header is


class ReadAhead:
    """Reads in a thread of its own from now on; use ``begin``."""

    def __init__(self, folder: Path, settings: Settings, rank: int) -> None:
        self._weights: Weights | None = None
        self._thread = threading.Thread(
            target=self._run, args=[folder, settings, rank], name="read-ahead", daemon=True
        )
        self._thread.start()

    def take(self) -> Weights | None:
        """All weights by name, once: nothing here keeps them. None: read the files."""
        self._thread.join()
        weights, self._weights = self._weights, None
        return weights

    def _run(self, folder: Path, settings: Settings, rank: int) -> None:
        try:
            device = claim_device(settings.devices[rank], settings.vram_limit_gib, rank)
            files = sorted((folder / "transformer").glob(_FILES))
            if _room(files, settings, device):
                self._weights = read(files, device, dtype_for(settings.dtype, device))
        except Exception as error:
            log.event("weights are not read ahead", why=f"{type(error).__name__}: {error}")


def begin(folder: Path | None, settings: Settings, rank: int = 0) -> ReadAhead | None:
    """Of the model in ``folder``, for the device of ``rank``; None where libraries must read it."""
    if folder is None or settings.devices[rank] == "cpu" or class_of(folder) != "ZImagePipeline":
        return None
    return ReadAhead(folder, settings, rank)


def read(files: Sequence[Path], device: torch.device, dtype: torch.dtype) -> Weights | None:
    """What is in safetensors ``files``, on ``device``; None unless all of it is ``dtype``."""
    weights: Weights = {}
    with contextlib.ExitStack() as opened:
        pieces: list[_Piece] = []
        for path in files:
            file = opened.enter_context(path.open("rb", buffering=0))
            for name, about, start in _tensors(file):
                if _DTYPES.get(about["dtype"]) is not dtype or name in weights:
                    return None
                weights[name] = torch.empty(about["shape"], dtype=dtype, device=device)
                pieces += _pieces(file.fileno(), start, weights[name])
        with ThreadPoolExecutor(_THREADS, "read-ahead") as pool:
            parts = [pieces[number::_THREADS] for number in range(_THREADS)]
            for done in [pool.submit(_copy, part, device) for part in parts]:
                done.result()
    return weights


def transformer(weights: Weights, folder: Path) -> Any:
    """diffusers' transformer of the model in ``folder``, made of ``weights`` without a copy; raises
    where any is missing, too many or of another shape."""
    from accelerate import init_empty_weights
    from diffusers import ZImageTransformer2DModel

    config = ZImageTransformer2DModel.load_config(str(folder / "transformer"))
    with init_empty_weights():
        model = ZImageTransformer2DModel.from_config(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)


class _Piece(NamedTuple):
    file: int  # descriptor
    offset: int
    goal: torch.Tensor  # bytes


def _room(files: Sequence[Path], settings: Settings, device: torch.device) -> bool:
    """Whether the weights fit; what becomes smaller there is there twice for a while."""
    size = sum(path.stat().st_size for path in files)
    free, _ = torch.cuda.mem_get_info(device)
    if settings.vram_limit_gib is not None:
        free = min(free, int(settings.vram_limit_gib * GIB))
    return 0 < size * (1 if settings.fp8 == "off" else 2) < free


def _tensors(file: Any) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name, description and first byte of each tensor: https://github.com/huggingface/safetensors"""
    size = int.from_bytes(file.read(_HEAD_BYTES), "little")
    header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for name, about in header.items():
        yield name, about, _HEAD_BYTES + size + about["data_offsets"][0]


def _pieces(file: int, start: int, tensor: torch.Tensor) -> Iterator[_Piece]:
    goals = tensor.view(-1).view(torch.uint8).split(_PIECE_BYTES)  # type: ignore[no-untyped-call]
    for number, goal in enumerate(goals):
        yield _Piece(file, start + number * _PIECE_BYTES, goal)


def _copy(pieces: Sequence[_Piece], device: torch.device) -> None:
    cuda = device.type == "cuda"
    with contextlib.ExitStack() as inside:
        if cuda:
            inside.enter_context(torch.cuda.device(device))
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            inside.enter_context(torch.cuda.stream(stream))
        buffer = torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=cuda)
        for piece in pieces:
            count = len(piece.goal)
            _fill(memoryview(buffer.numpy().data)[:count], piece)
            piece.goal.copy_(buffer[:count], non_blocking=True)
            if cuda:
                torch.cuda.current_stream(device).synchronize()  # the buffer is filled again


def _fill(view: memoryview, piece: _Piece) -> None:
    filled = 0
    while filled < len(view):
        count = os.preadv(piece.file, [view[filled:]], piece.offset + filled)
        if not count:
            raise EOFError("a file of weights is cut off")
        filled += count
