"""With a driver that counts its cards; the real one is seen by ``loadtest/gpu/suite``."""

import ctypes
import os
import threading
from typing import Any

import pytest

from worker.models.loading import context, sources
from worker.settings import Settings


class Driver:
    """What of ``libcuda`` is called, with ``cards`` cards; ``made`` are those with a context."""

    def __init__(self, cards: int) -> None:
        self._cards, self._begun = cards, False
        self.made: list[int] = []

    def cuInit(self, flags: int) -> int:
        self._begun = flags == 0
        self.loading = os.environ.get("CUDA_MODULE_LOADING")
        return 0 if self._cards else 100  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGet(self, card: Any, index: int) -> int:
        if not self._begun or index >= self._cards:
            return 101  # CUDA_ERROR_INVALID_DEVICE
        card._obj.value = 1000 + index
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, card: ctypes.c_int) -> int:
        self.made.append(card.value)
        return 0


@pytest.mark.parametrize(
    ("device", "cards", "made"),
    [
        ("cuda:0", 1, [1000]),
        ("cuda:2", 4, [1002]),
        ("GPU-0c3f42e7-6ad2-4f5d-9f5e-7f0f1a1b2c3d", 4, [1000]),
        ("cuda:2", 1, []),
        ("cuda:0", 0, []),
    ],
)
def test_the_card_of_the_settings_gets_its_context(
    monkeypatch: pytest.MonkeyPatch, device: str, cards: int, made: list[int]
) -> None:
    driver = Driver(cards)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": driver}.__getitem__)
    context.begin(device).join(5)
    assert driver.made == made
    assert driver.loading == "LAZY"


def test_without_a_driver_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setattr(ctypes, "CDLL", _missing)
    context.begin("cuda:0").join(5)
    assert not raised


def _missing(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(("device", "begun"), [("cpu", []), ("cuda:99", ["cuda:99"])])
def test_it_begins_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, device: str, begun: list[str]
) -> None:
    found: list[str] = []
    monkeypatch.setattr(context, "begin", found.append)
    monkeypatch.setattr("worker.models.loading.load.load", lambda *_, **__: found.append("loaded"))
    sources.load(Settings(device=device, model="tiny"))
    assert found == [*begun, "loaded"]
