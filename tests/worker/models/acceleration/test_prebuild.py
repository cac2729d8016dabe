"""The processes themselves are for cards; what they draw with is drawn with here."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.models.conftest import CPU, DEFAULTS, SMALL, draw, spec
from worker.models.acceleration import prebuild
from worker.models.loading.load import adapted
from worker.models.loading.random_zimage import TURBO, random_zimage
from worker.settings import Settings


class Asked:
    """Which parts processes were started for."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.all = threading.Semaphore(0)

    def __call__(self, command: list[str], **how: Any) -> None:
        part, settings, folder = command[-3:]
        assert Settings.model_validate_json(settings).fp8 == "transformer"
        assert (folder, how["timeout"]) == ("", 120)
        self.parts.append(part)
        self.all.release()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(subprocess, "run", asked)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    return asked


@pytest.fixture(autouse=True)
def _next_process() -> Iterator[None]:
    """What this one has claimed is free again."""
    yield
    while prebuild._claims:
        prebuild._claims.pop().close()


def settings(tmp_path: Path, **changes: Any) -> Settings:
    given = {"device": "cuda:0", "var_dir": tmp_path, "fp8": "transformer", **changes}
    return Settings(**given)


def test_what_was_not_built_here_is_built_beside_the_first_start_only(
    tmp_path: Path, asked: Asked
) -> None:
    first = settings(tmp_path)
    prebuild.begin(first, None)
    for _ in prebuild.PARTS:
        assert asked.all.acquire(timeout=10)
    assert sorted(asked.parts) == sorted(prebuild.PARTS)
    prebuild.done(first)
    prebuild.begin(first, None)
    assert not asked.all.acquire(blocking=False)
    prebuild.begin(settings(tmp_path, products="native"), None)  # needs other kernels
    assert asked.all.acquire(timeout=10)


def test_of_workers_that_start_together_one_has_it_built(tmp_path: Path, asked: Asked) -> None:
    first = settings(tmp_path)
    for _ in range(2):  # a second open file is as good as a second process to this lock
        prebuild.begin(first, None)
    for _ in prebuild.PARTS:
        assert asked.all.acquire(timeout=10)
    assert not asked.all.acquire(timeout=0.2)
    while prebuild._claims:  # it died before it was done
        prebuild._claims.pop().close()
    prebuild.begin(first, None)
    assert asked.all.acquire(timeout=10)


def test_other_versions_are_built_anew(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = settings(tmp_path)
    prebuild.done(first)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "99")
    prebuild.begin(first, None)
    assert asked.all.acquire(timeout=10)


@pytest.mark.parametrize(("changes", "cores"), [({"kernels": "off"}, 16), ({}, 2)])
def test_where_it_would_not_pay_nothing_is_started(
    tmp_path: Path,
    asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    cores: int,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    prebuild.begin(settings(tmp_path, **changes), None)
    assert not asked.parts


def test_a_miniature_has_the_widths_of_its_model_and_draws(zimage_folder: Path) -> None:
    sizes = prebuild.miniature(zimage_folder)
    assert sizes.transformer["dim"] == SMALL.transformer["dim"]
    pipeline = random_zimage(sizes, CPU, torch.float32)
    assert (len(pipeline.transformer.layers), len(pipeline.text_encoder.layers)) == (1, 2)
    (picture,) = draw(adapted(pipeline, DEFAULTS, 1 << 20), spec(steps=1))
    assert picture.shape == (64, 64, 3)


def test_without_a_folder_it_has_those_of_the_random_model() -> None:
    sizes = prebuild.miniature(None)
    assert sizes.vae == TURBO.vae
    assert (sizes.transformer["n_layers"], sizes.text_encoder["num_hidden_layers"]) == (1, 2)
    assert sizes.text_encoder["hidden_size"] == TURBO.text_encoder["hidden_size"]
