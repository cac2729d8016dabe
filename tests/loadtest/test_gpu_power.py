import pynvml
import pytest

from loadtest.gpu import power


@pytest.mark.parametrize("card", ["1", "GPU-3def97da"])
def test_watts_are_the_joules_of_the_time_that_passed(
    monkeypatch: pytest.MonkeyPatch, card: str
) -> None:
    millijoules, seconds = iter((5_000_000, 5_000_000 + 2_100_000)), iter((10.0, 13.0))
    told = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": {1: "found"}.get,
        "nvmlDeviceGetHandleByUUID": {"GPU-3def97da": "found"}.get,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: next(millijoules),
        "nvmlDeviceGetTemperature": lambda handle, _: {"found": 64}[handle],
    }
    for name, function in told.items():
        monkeypatch.setattr(pynvml, name, function)
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    with power.watched(card) as drawn:
        assert drawn == {}
    assert drawn == {"joules": 2100.0, "watts": 700, "celsius": 64}


def test_without_a_card_nothing_is_told() -> None:
    with power.watched(None) as drawn:
        pass
    assert drawn == {}
