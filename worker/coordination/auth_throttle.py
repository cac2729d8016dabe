"""How often each address came with a wrong key in this minute, counted for all workers together.

A small mapped file that they share: one slot an address, by hash. Two processes that count in the
same instant may count one; two addresses on one slot (one chance in 4096) share its limit, and both
only where their keys are wrong.
"""

import hashlib
import mmap
import os
import struct
import time
from pathlib import Path

from worker.coordination.addresses import network_of

_SLOTS = 4096
_SLOT = struct.Struct("<II")  # minute since the epoch, count
_MINUTE_S = 60


class AuthThrottle:
    """``limit`` wrong keys of one address and minute get an answer of their own."""

    def __init__(self, path: Path, limit: int) -> None:
        self._limit = limit
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Not a hole: writing to one on a full disk would end the process.
            os.posix_fallocate(fd, 0, _SLOTS * _SLOT.size)
            self._map = mmap.mmap(fd, _SLOTS * _SLOT.size)
        finally:
            os.close(fd)

    def add(self, address: str) -> float:
        """Count one of ``address`` or its IPv6 network. Seconds to wait where it was over the
        limit, else 0."""
        now = time.time()
        minute = int(now // _MINUTE_S)
        offset = _offset(network_of(address))
        then, count = _SLOT.unpack_from(self._map, offset)
        count = count if then == minute else 0
        if count >= self._limit:
            return (minute + 1) * _MINUTE_S - now
        _SLOT.pack_into(self._map, offset, minute, count + 1)
        return 0.0


def _offset(address: str) -> int:
    digest = hashlib.blake2b(address.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % _SLOTS * _SLOT.size
