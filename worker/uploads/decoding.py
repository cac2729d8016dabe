"""Pixels of a picture that somebody sent, by a process that may die of it.

Its memory and time are bounded by the kernel, and what it answers is held to what was asked. A
worker has one; pictures wait for each other, which a decoder takes some milliseconds for.
"""

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import numpy as np

from worker.errors import InvalidRequest, Unavailable
from worker.types import Pixels

TIMEOUT_S = 20.0
"""For one picture: more than the seconds of processor that it may use."""
MAX_WAITING = 8
_PROGRAM = Path(__file__).with_name("decoder_process.py")


class Decoder:
    """Its process begins with the first picture, and again with the next one where one ended it.
    ``close`` ends it."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def decode(
        self, data: bytes, *, field: str, max_pixels: int, alpha: bool = False
    ) -> Pixels:
        """(height, width, 3), or with ``alpha`` 4, as people see it: turned by its EXIF, in sRGB,
        8 bits. ``InvalidRequest`` names ``field`` and what to do; ``Unavailable`` where too many
        wait."""
        if self._waiting >= MAX_WAITING:
            raise Unavailable("Too many pictures wait to be decoded.")
        self._waiting += 1
        try:
            async with self._turn:
                told, pixels = await self._asked(data, max_pixels, alpha)
        finally:
            self._waiting -= 1
        if "why" in told:
            raise InvalidRequest(_remedy(told, max_pixels), param=field)
        shape = told["height"], told["width"], told["channels"]
        return np.frombuffer(pixels, np.uint8).reshape(shape)

    @property
    def pid(self) -> int | None:
        """Of its process, where there is one."""
        return self._process.pid if self._process else None

    async def close(self) -> None:
        if self._process is not None:
            await self._end(self._process)

    async def _asked(
        self, data: bytes, max_pixels: int, alpha: bool
    ) -> tuple[dict[str, Any], bytes]:
        """Its answer; one that dies or takes too long has answered as well."""
        process = await self._running()
        asked = {"bytes": len(data), "max_pixels": max_pixels, "alpha": alpha}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await _exchange(process, asked, data)
        except (OSError, EOFError, TimeoutError, ValueError):
            await self._end(process)
            return {"why": "ended"}, b""
        except asyncio.CancelledError:
            await self._end(process)  # half an answer may be left in its pipe
            raise

    async def _running(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            command = [sys.executable, "-I", str(_PROGRAM)]
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL
            )
        return self._process

    async def _end(self, process: Process) -> None:
        self._process = None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _exchange(
    process: Process, asked: dict[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asked).encode() + b"\n" + data)
    await process.stdin.drain()
    line = await process.stdout.readline()
    if not line:
        raise EOFError
    told: dict[str, Any] = json.loads(line)
    if "why" in told:
        return told, b""
    width, height, channels = told["width"], told["height"], told["channels"]
    if width * height > asked["max_pixels"] or channels != (4 if asked["alpha"] else 3):
        raise ValueError("it answers what it was not asked for")
    return told, await process.stdout.readexactly(width * height * channels)


def _remedy(told: dict[str, Any], max_pixels: int) -> str:
    match told["why"]:
        case "format":
            return "This file is not a PNG, JPEG or WebP picture; save it as one of them."
        case "pixels":
            size = f"{told['width']}×{told['height']}"
            return f"The picture has {size} pixels, more than {max_pixels:,} in all; send less."
        case "animated":
            return "The picture is animated; send one of its frames."
        case "broken":
            return "The picture cannot be read: it is cut off or damaged; save it anew."
        case _:
            return "The picture took too much time or memory to read; save it anew, or send less."
