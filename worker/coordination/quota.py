"""What one key may use at a time and in a day, over all workers of a host and their deaths.
``shared_quota`` does the same for hosts that share a database.

``<run_dir>/slots/<key>.<k>``: whoever draws for a key holds the lock of one of its files; the
kernel frees it with the process. ``<var_dir>/quota/<key>``: how many pictures of the present day
(UTC) are drawn or under way, and for which requests lately, so that a replay counts once.
"""

import asyncio
import errno
import functools
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker import log
from worker.errors import LimitReached, UnknownLora
from worker.file_lock import try_lock
from worker.storage.keys import Key
from worker.types import Parameters

_DAY_S = 86_400
_HEAD = struct.Struct("<III")  # day since the epoch, pictures, next place in the ring
_ENTRY = struct.Struct("<16sH")  # digest of the request's id, its pictures
_REMEMBERED = 2048
_SIZE = _HEAD.size + _REMEMBERED * _ENTRY.size

_LOCK_TIMEOUT_S = 1.0
_POLL_S = 0.01
REPLAY_AGE_S = 0.1
"""Nothing that comes for the first time is so old."""
DYING_S = 1.0
"""A replay may come so long before the process that held its slot is quite gone."""
_SLOT_RETRY_S = 2.0
_NEVER_RETRY_S = 120.0  # clients heed no longer time; only an operator lifts such a limit


class Hold:
    """What one request holds of its key: a slot until ``release``, and its part of the day, of
    which ``drawn`` pictures stay counted."""

    def __init__(self, quotas: "Quotas", key: Key | None, request_id: str, images: int) -> None:
        self.drawn = 0
        self.images = images
        self.key = key
        self.request_id = request_id
        self.slot: int | None = None
        self._quotas = quotas

    def give_back(self) -> "asyncio.Future[None] | None":
        """Free the slot now, and uncount what was not drawn soon: in the future returned."""
        if self.slot is not None:
            os.close(self.slot)
            self.slot = None
        key, self.key = self.key, None
        if key is None or key.images_per_day is None or self.drawn == self.images:
            return None
        settle = functools.partial(self._quotas.settle, key, self.request_id, self.drawn)
        return asyncio.get_running_loop().run_in_executor(None, settle)

    async def release(self) -> None:
        """``give_back``, and wait for it: before the answer to a request that failed, which may be
        on another worker a moment later."""
        settled = self.give_back()
        if settled is not None:
            await asyncio.shield(settled)


class Quotas:
    """Its files are touched in threads: a lock that a stopped process holds is waited for, and a
    disk that fails lets requests pass uncounted, for drawing goes on."""

    def __init__(self, run_dir: Path, var_dir: Path) -> None:
        self._slots = run_dir / "slots"
        self._days = var_dir / "quota"

    async def hold(self, key: Key | None, request_id: str, arrived_at: float, images: int) -> Hold:
        """Take a slot of ``key`` and count ``images``; raises ``LimitReached``."""
        hold = Hold(self, key, request_id, images)
        if key is None:
            return hold
        if key.concurrency is not None:
            hold.slot = await self._slot(key, key.concurrency, arrived_at)
        try:
            if key.images_per_day is not None:
                await self._reserved(key, key.images_per_day, request_id, images)
        except BaseException:
            hold.key = None  # nothing was counted
            await hold.release()
            raise
        return hold

    async def today(self, key: Key) -> int | None:
        """Pictures of ``key`` today, those under way included; None where nothing is counted."""
        return await asyncio.to_thread(self._read_today, key)

    def _read_today(self, key: Key) -> int | None:
        # A file that was made a moment ago is empty.
        with suppress(OSError, struct.error), (self._days / key.id).open("rb") as file:
            day, count, _ = _HEAD.unpack(file.read(_HEAD.size))
            return count if day == _today() else 0
        return None

    # At a time

    async def _slot(self, key: Key, slots: int, arrived_at: float) -> int | None:
        """The descriptor of a slot's lock; None where the disk fails."""
        patience_s = DYING_S if time.time() - arrived_at > REPLAY_AGE_S else 0.0
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self._free_slot(key.id, slots)
            except _AllTaken:
                if time.monotonic() >= deadline:
                    raise all_taken(key, slots) from None
            except OSError as error:
                log.failure("slots cannot be locked", error)
                return None
            await asyncio.sleep(_POLL_S)

    def _free_slot(self, id: str, slots: int) -> int:
        self._slots.mkdir(mode=0o700, exist_ok=True)
        for k in range(slots):
            fd = os.open(self._slots / f"{id}.{k}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if try_lock(fd):
                return fd
            os.close(fd)
        raise _AllTaken

    # In a day

    async def _reserved(self, key: Key, most: int, request_id: str, images: int) -> None:
        loop = asyncio.get_running_loop()
        counted = loop.run_in_executor(None, self._reserve, key, most, request_id, images)
        try:
            await asyncio.shield(counted)
        except asyncio.CancelledError:
            # The client left, and the thread counts all the same: nobody else would give it back.
            counted.add_done_callback(functools.partial(self._abandoned, key, request_id))
            raise

    def _abandoned(self, key: Key, request_id: str, counted: "asyncio.Future[None]") -> None:
        if not counted.cancelled() and counted.exception() is None:
            counted.get_loop().run_in_executor(None, self.settle, key, request_id, 0)

    def _reserve(self, key: Key, most: int, request_id: str, images: int) -> None:
        try:
            with self._count(key.id) as count:
                if count.holds(request_id):
                    return
                used = count.images
                if used + images <= most:
                    count.add(request_id, images)
                    return
        except OSError as error:
            log.failure("pictures of the day cannot be counted", error)
            return
        raise day_is_used(key, most, used, images)

    def settle(self, key: Key, request_id: str, drawn: int) -> None:
        """Leave ``drawn`` of what was counted for a request. Blocks."""
        try:
            with self._count(key.id) as count:
                count.settle(request_id, drawn)
        except OSError as error:
            log.failure("pictures of the day cannot be counted", error)

    @contextmanager
    def _count(self, id: str) -> Iterator["_Count"]:
        self._days.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self._days / id, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd)
            os.posix_fallocate(fd, 0, _SIZE)
            count = _Count(bytearray(os.pread(fd, _SIZE, 0)))
            yield count
            if count.changed:
                os.pwrite(fd, count.data, 0)
        finally:
            os.close(fd)


def all_taken(key: Key, slots: int) -> LimitReached:
    """The error where ``key`` has all of its ``slots``."""
    return LimitReached(
        f"{_named(key)} may have {slots} requests drawn at a time, and has as many now: wait for "
        "one of them.",
        retry_after_s=_SLOT_RETRY_S,
        retry=True,
    )


def day_is_used(key: Key, most: int, used: int, images: int) -> LimitReached:
    """The error where ``key`` has ``used`` so many of a day that ``images`` more are too many."""
    left_s = _DAY_S - time.time() % _DAY_S
    return LimitReached(
        f"{_named(key)} may draw {most} pictures a day (UTC) and has drawn {used}; this "
        f"would be {images} more.",
        retry_after_s=left_s,
        details={
            "reason": "images_per_day",
            "drawn": used,
            "most": most,
            "asked": images,
            "resets_at": round(time.time() + left_s),
        },
    )


def require_size(key: Key | None, how: Parameters) -> None:
    """Raise ``LimitReached`` where one picture is more than ``key`` may draw."""
    if key is None:
        return
    if key.max_pixels is not None and how.pixels > key.max_pixels:
        message = f"{how.size_text} is {how.pixels} pixels; {_named(key)} may draw "
        raise LimitReached(
            f"size: {message}{key.max_pixels} a picture: ask for less.",
            retry_after_s=_NEVER_RETRY_S,
            param="size",
        )
    if key.max_steps is not None and how.steps > key.max_steps:
        most = key.max_steps
        raise LimitReached(
            f"steps: {how.steps} steps; {_named(key)} may use {most} a picture: ask for less.",
            retry_after_s=_NEVER_RETRY_S,
            param="steps",
        )


def require_loras(key: Key | None, how: Parameters) -> None:
    """Raise ``UnknownLora`` for an adapter that ``key`` may not use."""
    for lora in how.lora.each if key is not None and key.loras is not None else ():
        if not allows(key, lora.name):
            raise UnknownLora(lora.name)


def allows(key: Key | None, lora: str) -> bool:
    """Whether ``key`` may use an adapter of that name."""
    return key is None or key.loras is None or lora in key.loras.split(",")


class _AllTaken(Exception):
    pass


class _Count:
    """The content of a file of one key's day."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.changed = False
        day, self.images, self._next = _HEAD.unpack_from(data)
        if day != _today():
            self.data[:] = bytes(_SIZE)
            self.images = self._next = 0

    def holds(self, request_id: str) -> bool:
        return self._find(request_id) is not None

    def add(self, request_id: str, images: int) -> None:
        _ENTRY.pack_into(self.data, _place(self._next), _digest(request_id), images)
        self._next = (self._next + 1) % _REMEMBERED
        self._write(self.images + images)

    def settle(self, request_id: str, drawn: int) -> None:
        place = self._find(request_id)
        if place is None:
            return  # a day has begun since
        digest, images = _ENTRY.unpack_from(self.data, place)
        # A request that drew nothing is forgotten: should it be sent again, it counts again.
        kept = digest if drawn else bytes(16)
        _ENTRY.pack_into(self.data, place, kept, drawn)
        self._write(self.images - images + drawn)

    def _find(self, request_id: str) -> int | None:
        digest, at = _digest(request_id), _HEAD.size
        while (at := self.data.find(digest, at)) >= 0:
            if (at - _HEAD.size) % _ENTRY.size == 0:
                return at
            at += 1
        return None

    def _write(self, images: int) -> None:
        self.images = images
        _HEAD.pack_into(self.data, 0, _today(), images, self._next)
        self.changed = True


def _lock(fd: int) -> None:
    """Wait for the file's lock, but not for ever: its holder may be stopped."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while not try_lock(fd):
        if time.monotonic() > deadline:
            raise BlockingIOError(errno.EAGAIN, "locked by another")
        time.sleep(_POLL_S)


def _place(k: int) -> int:
    return _HEAD.size + k * _ENTRY.size


def _digest(request_id: str) -> bytes:
    return hashlib.blake2b(request_id.encode(), digest_size=16).digest()


def _today() -> int:
    return int(time.time() // _DAY_S)


def _named(key: Key) -> str:
    return f"Key {key.name!r}"
