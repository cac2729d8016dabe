"""How the cards of one worker reach each other's memory, from NVIDIA's management library."""

import itertools
from collections.abc import Iterable
from typing import Literal

import pynvml

Link = Literal["NVLink", "PCIe", "none"]
"""``none``: neither can write to the other."""
Links = dict[frozenset[str], Link]
"""By the UUIDs of two cards."""

_SLOWEST_FIRST: tuple[Link, ...] = ("none", "PCIe", "NVLink")


def between(devices: Iterable[str]) -> Links:
    """Of each two of ``devices``, which are UUIDs (``GPU-…``); none where the driver is away."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        return {frozenset(pair): _of_two(*pair) for pair in itertools.combinations(devices, 2)}
    finally:
        pynvml.nvmlShutdown()


def weakest(links: Links, devices: Iterable[str]) -> Link:
    """The slowest link that ``devices`` need to draw together. What is not known is none."""
    pairs = itertools.combinations(devices, 2)
    found: list[Link] = [links.get(frozenset(pair), "none") for pair in pairs]
    return min(found, key=_SLOWEST_FIRST.index, default="NVLink")


def _of_two(first: str, second: str) -> Link:
    try:
        cards = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in (first, second)]
        if _can(cards, pynvml.NVML_P2P_CAPS_INDEX_NVLINK):
            return "NVLink"
        return "PCIe" if _can(cards, pynvml.NVML_P2P_CAPS_INDEX_WRITE) else "none"
    except pynvml.NVMLError:
        return "none"


def _can(cards: list[object], capability: int) -> bool:
    status = pynvml.nvmlDeviceGetP2PStatus(*cards, capability)
    return bool(status == pynvml.NVML_P2P_STATUS_OK)
