import time

import pynvml
import pytest

from deploy.guard import gpus
from deploy.guard.gpus import Gpu, Gpus
from tests.deploy.processes import wait_until

CARD = Gpu(10, 100, 0.5, 60)


def test_nothing_is_asked_on_a_cpu() -> None:
    cards = Gpus(["cpu", "cpu"])
    cards.start()
    assert cards.devices == ()
    assert cards.get("cpu") is None


def test_a_gpu_that_is_lost_grows_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Gpus(["GPU-a", "GPU-b", "GPU-a"])
    monkeypatch.setattr(gpus, "read_gpu", lambda device: CARD)
    cards._ask_all()
    assert (cards.devices, cards.get("GPU-a")) == (("GPU-a", "GPU-b"), CARD)

    def lost(device: str) -> Gpu:
        if device == "GPU-a":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return CARD

    monkeypatch.setattr(gpus, "read_gpu", lost)
    monkeypatch.setattr(gpus, "_STALE_S", 0.0)
    cards._ask_all()
    assert cards.get("GPU-a") is None
    monkeypatch.setattr(gpus, "_STALE_S", 30.0)
    assert cards.get("GPU-b") == CARD


def test_of_several_gpus_of_a_worker_all_memory_and_the_busiest_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = {"GPU-a": Gpu(10, 100, 0.5, 60), "GPU-b": Gpu(30, 100, None, 70)}
    cards = Gpus(["GPU-a,GPU-b", "GPU-b"])
    monkeypatch.setattr(gpus, "read_gpu", read.__getitem__)
    cards._ask_all()
    assert cards.devices == ("GPU-a", "GPU-b")
    assert cards.get("GPU-a,GPU-b") == Gpu(40, 200, 0.5, 70)
    assert cards.get("GPU-a,GPU-c") is None


def test_a_driver_that_does_not_answer_is_complained_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No driver on a machine without a GPU, no such GPU on one that has some."""
    monkeypatch.setattr(gpus, "_INTERVAL_S", 0.01)
    cards = Gpus(["GPU-none"])
    cards.start()
    wait_until(lambda: "cannot ask" in caplog.text, "complained")
    time.sleep(0.1)
    monkeypatch.setattr(gpus, "_INTERVAL_S", 3600.0)
    assert caplog.text.count("cannot ask") == 1
    assert cards.get("GPU-none") is None
