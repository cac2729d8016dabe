import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.loading.local_hub import COMMIT, MODEL, LocalHub, local_hub
from worker.models.loading import hub as hubs
from worker.models.loading import pulled
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.hub import HubModel
from worker.models.loading.pulled import File, Record
from worker.models.loading.sources import TINY

HERE = HubModel(MODEL)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
_START = """
import json, sys
from worker.models.loading import sources
from worker.settings import Settings
try:
    told = {"found": sources.load(Settings(model=sys.argv[1])).info.id}
except sources.ModelLoadError as error:
    told = {"error": str(error)}
print("told " + json.dumps(told))
"""


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub(TINY) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """With the model in it, whole, as a download leaves it."""
    home = HERE.home({"HF_HOME": str(tmp_path)})
    folder = shutil.copytree(TINY, home / "snapshots" / COMMIT)
    names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    files = {name: File(size=(folder / name).stat().st_size) for name in names}
    place = f"snapshots/{COMMIT}"
    record = Record(
        source=MODEL, hub="http://hub", revision=COMMIT, pulled_at=0.0, folder=place, files=files
    )
    pulled.write(home, record)
    return tmp_path


def found(cache: Path) -> Path:
    return hubs.found(HERE, {"HF_HOME": str(cache)})


def started(cache: Path, url: str, model: str = MODEL) -> Any:
    """What a worker's start comes to: ``found`` or ``error``."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    child = subprocess.run(
        [sys.executable, "-c", _START, model],
        env={**own, "HF_HOME": str(cache), "HF_ENDPOINT": url},
        capture_output=True,
        encoding="utf-8",
        timeout=200,
    )
    lines = [line for line in child.stdout.splitlines() if line.startswith("told ")]
    assert lines, child.stderr
    return json.loads(lines[-1].removeprefix("told "))


def test_a_model_in_the_cache_loads_though_the_hub_is_silent(hub: LocalHub, cache: Path) -> None:
    hub.silent = True
    assert started(cache, hub.url) == {"found": MODEL}
    assert hub.asked == []


def test_a_start_downloads_nothing_and_says_what_does(hub: LocalHub, tmp_path: Path) -> None:
    error = started(tmp_path, hub.url)["error"]
    assert f"{MODEL} is not here, in {tmp_path}/hub/models--ours--tiny" in error
    assert f"zimage models pull {MODEL} downloads it; a start never does" in error
    assert hub.asked == []


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer/chat_template.jinja", "vae/config.json"])
def test_a_file_that_is_missing_or_cut_is_told_with_the_command(cache: Path, name: str) -> None:
    path = found(cache) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelLoadError, match=f"{name}.*: zimage models pull {MODEL} "):
        found(cache)
    path.unlink()
    with pytest.raises(ModelLoadError, match=f"(is missing|no weights).*models pull {MODEL} "):
        found(cache)


def test_a_half_pulled_revision_does_not_hide_the_whole_one(cache: Path) -> None:
    home = HERE.home({"HF_HOME": str(cache)})
    (home / "refs").mkdir()
    (home / "refs/main").write_text("d" * 40, "utf-8")
    (home / "snapshots" / ("d" * 40)).mkdir()
    assert found(cache).name == COMMIT


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", HubModel("owner/name")),
        ("modelscope:owner/na.me", HubModel("owner/na.me", "modelscope")),
        ("tiny", None),
        ("./owner/name", None),
        ("/owner/name", None),
        ("random:z-image-turbo", None),
    ],
)
def test_sources_of_hubs_are_told_from_others(source: str, expected: HubModel | None) -> None:
    assert hubs.hub_model(source) == expected
    if expected:
        assert expected.source == source


@pytest.mark.parametrize("source", ["modelscope:", "modelscope:name", "modelscope:a/b/c"])
def test_a_name_that_modelscope_cannot_have_is_refused(source: str) -> None:
    with pytest.raises(ModelLoadError, match="write it as modelscope:owner/name"):
        hubs.hub_model(source)


def test_a_mirror_is_asked_in_place_of_the_hub(hub: LocalHub) -> None:
    assert hubs.ask(HERE, {"HF_ENDPOINT": hub.url + "/"}).has_it
    modelscope = HubModel(MODEL, "modelscope")
    assert hubs.ask(modelscope, {"MODELSCOPE_ENDPOINT": hub.url}).has_it
    assert hub.asked == [f"/api/models/{MODEL}", f"/api/v1/models/{MODEL}"]
