import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.loading.local_hub import COMMIT, MODEL, LocalHub, local_hub
from worker.models.loading.sources import TINY

_CHILD = """
import json, sys
from worker.models.loading import folder, hub, sources
from worker.settings import Settings
hub.TIMEOUT_S = 1.0
try:
    if sys.argv[2] == "load":
        found = sources.load(Settings(model=sys.argv[1])).info.id
    else:
        found = str(hub.fetch(sys.argv[1]))
except folder.ModelLoadError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({"found": found}))
"""


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub(TINY) as server:
        yield server


@pytest.fixture(scope="module")
def _downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("downloaded") / "cache"
    with local_hub(TINY) as server:
        assert Path(start(cache, server.url)["found"]).name == COMMIT
    return cache


@pytest.fixture
def cache(_downloaded: Path, tmp_path: Path) -> Path:
    """With the model in it, whole."""
    return shutil.copytree(_downloaded, tmp_path / "cache", symlinks=True)


def start(cache: Path, url: str, what: str = "fetch") -> dict[str, Any]:
    """What a worker's start with that hub comes to: ``found`` or ``error``."""
    timeouts = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, MODEL, what],
        env={**environment, **timeouts, "HF_HOME": str(cache), "HF_ENDPOINT": url},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def blob(cache: Path, name: str) -> Path:
    """The file itself: what lies in a snapshot are links."""
    (link,) = cache.rglob(f"snapshots/{COMMIT}/{name}")
    return link.resolve()


def test_a_model_in_the_cache_loads_though_the_hub_is_silent(hub: LocalHub, cache: Path) -> None:
    hub.silent = True
    assert start(cache, hub.url, "load") == {"found": MODEL}
    assert hub.asked == []


def test_a_model_in_the_cache_loads_though_nobody_listens(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "found" in start(cache, f"http://127.0.0.1:{port}")


def test_a_model_in_the_cache_loads_though_the_hubs_name_is_unknown(cache: Path) -> None:
    assert "found" in start(cache, "http://hub.invalid")


def test_a_silent_hub_is_given_up_and_named(hub: LocalHub, tmp_path: Path) -> None:
    hub.silent = True
    error = start(tmp_path, hub.url)["error"]
    assert f"{MODEL} cannot be downloaded from {hub.url} (ReadTimeout" in error
    assert "check its name, the network, HF_ENDPOINT and HF_TOKEN" in error


def test_an_unknown_hub_is_named(tmp_path: Path) -> None:
    error = start(tmp_path, "http://hub.invalid")["error"]
    assert f"{MODEL} cannot be downloaded from http://hub.invalid (ConnectError" in error


def test_a_hub_that_cuts_its_files_is_given_up_and_gone_on_with(
    hub: LocalHub, tmp_path: Path
) -> None:
    hub.cut_after = 100_000
    assert "cannot be downloaded" in start(tmp_path, hub.url)["error"]
    hub.cut_after = None
    hub.asked.clear()
    assert Path(start(tmp_path, hub.url)["found"]).name == COMMIT
    assert not any(path.endswith("/vae/config.json") for path in hub.asked)  # came whole before


def test_a_file_that_is_missing_in_the_cache_is_downloaded(hub: LocalHub, cache: Path) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    for path in (blob(cache, name), *cache.rglob(name)):
        path.unlink()
    assert "found" in start(cache, hub.url)
    assert f"/{MODEL}/resolve/{COMMIT}/{name}" in hub.asked


def test_a_small_file_that_is_missing_in_the_cache_is_downloaded(
    hub: LocalHub, cache: Path
) -> None:
    (link,) = cache.rglob("tokenizer/chat_template.jinja")
    link.unlink()
    assert "found" in start(cache, hub.url)
    assert link.is_file()


def test_a_cache_that_nobody_can_complete_says_what_is_missing(cache: Path) -> None:
    blob(cache, "vae/config.json").unlink()
    assert "vae/config.json is missing" in start(cache, "http://hub.invalid")["error"]


def test_a_damaged_file_in_the_cache_is_named_with_what_to_delete(
    hub: LocalHub, cache: Path
) -> None:
    weights = blob(cache, "transformer/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    error = start(cache, hub.url)["error"]
    assert "transformer/diffusion_pytorch_model.safetensors is cut or damaged" in error
    assert f"delete {cache / 'hub' / 'models--ours--tiny'}" in error
