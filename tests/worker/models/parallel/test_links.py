import pynvml
import pytest

from worker.models.parallel import links

CAN = {("GPU-a", "GPU-b"): pynvml.NVML_P2P_CAPS_INDEX_NVLINK}
CAN |= {("GPU-a", "GPU-c"): pynvml.NVML_P2P_CAPS_INDEX_WRITE}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cards: b joined to a by NVLink, c over PCIe, b and c not at all."""

    def status(first: str, second: str, capability: int) -> int:
        able = CAN.get((first, second)) == capability
        return int(pynvml.NVML_P2P_STATUS_OK if able else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetP2PStatus", status)


@pytest.mark.usefixtures("driver")
def test_the_weakest_of_all_links_counts() -> None:
    found = links.between(["GPU-a", "GPU-b", "GPU-c"])
    assert links.weakest(found, ["GPU-a", "GPU-b"]) == "NVLink"
    assert links.weakest(found, ["GPU-a", "GPU-c"]) == "PCIe"
    assert links.weakest(found, ["GPU-a", "GPU-b", "GPU-c"]) == "none"


def test_without_a_driver_nothing_is_joined() -> None:
    assert links.weakest(links.between(["GPU-x", "GPU-y"]), ["GPU-x", "GPU-y"]) == "none"


def test_one_card_needs_no_link() -> None:
    assert links.weakest({}, ["GPU-a"]) == "NVLink"
