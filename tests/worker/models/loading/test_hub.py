import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.loading.local_hub import COMMIT, MODEL, LocalHub, local_hub
from worker.models.loading.sources import TINY

_STARTS = """
import json, os, sys
from worker.models.loading import folder, hub, imports, sources
from worker.settings import Settings

def start(model, what):
    hub.TIMEOUT_S = 1.0
    try:
        if what == "load":
            return {"found": sources.load(Settings(model=model)).info.id}
        with imports.quick_imports():
            return {"found": str(hub.fetch(model))}
    except folder.ModelLoadError as error:
        return {"error": str(error)}

# What takes longest, and knows nothing of a hub or its environment.
with imports.quick_imports():
    import torch.distributed.tensor
for line in sys.stdin:
    wanted = json.loads(line)
    if os.fork() == 0:
        os.environ.update(wanted["environment"])
        told = start(wanted["model"], wanted["what"])
        print("told " + json.dumps(told), flush=True)
        os._exit(0)
    if os.wait()[1]:
        break
"""
Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """What a worker's start with a cache, a hub and ``what`` comes to: ``found`` or ``error``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    timeouts = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", _STARTS],
        env=environment | timeouts,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as starts:
        assert starts.stdin is not None
        assert starts.stdout is not None
        wanted, lines = starts.stdin, starts.stdout

        def once(cache: Path, url: str, what: str = "fetch") -> dict[str, Any]:
            here = {"HF_HOME": str(cache), "HF_ENDPOINT": url}
            wanted.write(json.dumps({"model": MODEL, "what": what, "environment": here}) + "\n")
            wanted.flush()
            line = next(line for line in lines if line.startswith("told "))
            told: dict[str, Any] = json.loads(line.removeprefix("told "))
            return told

        yield once


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub(TINY) as server:
        yield server


@pytest.fixture(scope="module")
def _downloaded(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("downloaded") / "cache"
    with local_hub(TINY) as server:
        assert Path(start(cache, server.url)["found"]).name == COMMIT
    return cache


@pytest.fixture
def cache(_downloaded: Path, tmp_path: Path) -> Path:
    """With the model in it, whole."""
    return shutil.copytree(_downloaded, tmp_path / "cache", symlinks=True)


def blob(cache: Path, name: str) -> Path:
    """The file itself: what lies in a snapshot are links."""
    (link,) = cache.rglob(f"snapshots/{COMMIT}/{name}")
    return link.resolve()


def test_a_model_in_the_cache_loads_though_the_hub_is_silent(
    start: Start, hub: LocalHub, cache: Path
) -> None:
    hub.silent = True
    assert start(cache, hub.url, "load") == {"found": MODEL}
    assert hub.asked == []


def test_a_model_in_the_cache_loads_though_nobody_listens(start: Start, cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "found" in start(cache, f"http://127.0.0.1:{port}")


def test_a_model_in_the_cache_loads_though_the_hubs_name_is_unknown(
    start: Start, cache: Path
) -> None:
    assert "found" in start(cache, "http://hub.invalid")


def test_a_silent_hub_is_given_up_and_named(start: Start, hub: LocalHub, tmp_path: Path) -> None:
    hub.silent = True
    error = start(tmp_path, hub.url)["error"]
    assert f"{MODEL} cannot be downloaded from {hub.url} (ReadTimeout" in error
    assert "check its name, the network, HF_ENDPOINT and HF_TOKEN" in error


def test_an_unknown_hub_is_named(start: Start, tmp_path: Path) -> None:
    error = start(tmp_path, "http://hub.invalid")["error"]
    assert f"{MODEL} cannot be downloaded from http://hub.invalid (ConnectError" in error


def test_a_hub_that_cuts_its_files_is_given_up_and_gone_on_with(
    start: Start, hub: LocalHub, tmp_path: Path
) -> None:
    hub.cut_after = 100_000
    assert "cannot be downloaded" in start(tmp_path, hub.url)["error"]
    hub.cut_after = None
    hub.asked.clear()
    assert Path(start(tmp_path, hub.url)["found"]).name == COMMIT
    assert not any(path.endswith("/vae/config.json") for path in hub.asked)  # came whole before


def test_a_file_that_is_missing_in_the_cache_is_downloaded(
    start: Start, hub: LocalHub, cache: Path
) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    for path in (blob(cache, name), *cache.rglob(name)):
        path.unlink()
    assert "found" in start(cache, hub.url)
    assert f"/{MODEL}/resolve/{COMMIT}/{name}" in hub.asked


def test_a_small_file_that_is_missing_in_the_cache_is_downloaded(
    start: Start, hub: LocalHub, cache: Path
) -> None:
    (link,) = cache.rglob("tokenizer/chat_template.jinja")
    link.unlink()
    assert "found" in start(cache, hub.url)
    assert link.is_file()


def test_a_cache_that_nobody_can_complete_says_what_is_missing(start: Start, cache: Path) -> None:
    blob(cache, "vae/config.json").unlink()
    assert "vae/config.json is missing" in start(cache, "http://hub.invalid")["error"]


def test_a_damaged_file_in_the_cache_is_named_with_what_to_delete(
    start: Start, hub: LocalHub, cache: Path
) -> None:
    weights = blob(cache, "transformer/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    error = start(cache, hub.url)["error"]
    assert "transformer/diffusion_pytorch_model.safetensors is cut or damaged" in error
    assert f"delete {cache / 'hub' / 'models--ours--tiny'}" in error
