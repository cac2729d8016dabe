from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.cell import Cell, CellError
from deploy.config import ROOT
from deploy.rollout import converge, model_pull
from tests.deploy.rollout.test_checks import cell
from tests.worker.models.loading.local_hub import MODEL, LocalHub, local_hub
from worker.models.loading.hub import HubModel, found


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub(ROOT / "tinymodel" / "weights") as server:
        yield server


def hub_cell(tmp_path: Path, mirror: str) -> Cell:
    return cell(tmp_path, model={"source": MODEL, "mirror": mirror})


def test_a_download_from_which_nothing_comes_is_ended_and_told(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.silent = True
    monkeypatch.setattr(model_pull, "STALL_S", 0.5)
    with pytest.raises(CellError, match=r"nothing came for .* it goes on"):
        model_pull.pull(hub_cell(tmp_path, hub.url), HubModel(MODEL))
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not any("loading.pull" in command for command in commands)


def test_up_downloads_what_is_missing_and_nothing_that_is_here(
    tmp_path: Path, hub: LocalHub
) -> None:
    ours = hub_cell(tmp_path, hub.url)
    converge._download_model(ours)
    environment = model_pull.environment(ours.config, ours.layout, HubModel(MODEL))
    assert found(HubModel(MODEL), environment).is_dir()
    hub.asked.clear()
    converge._download_model(ours)
    assert hub.asked == []


def test_up_that_cannot_download_says_that_nothing_was_touched(
    tmp_path: Path, hub: LocalHub
) -> None:
    ours = cell(tmp_path, model={"source": "ours/other", "mirror": hub.url})
    with pytest.raises(CellError, match=r"ours/other cannot be downloaded"):
        converge._download_model(ours)


def test_a_cell_whose_model_is_of_no_hub_downloads_nothing(tmp_path: Path) -> None:
    converge._download_model(cell(tmp_path))


def test_a_persons_own_caches_do_not_lead_a_download_astray(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    ours = hub_cell(tmp_path, hub.url)
    folder = model_pull.pull(ours, HubModel(MODEL))
    assert folder.is_relative_to(ours.layout.cache_dir)
