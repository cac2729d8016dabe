"""One picture by several processes, here on the CPU."""

import os
import queue
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tests.worker.conftest import settings_in
from tests.worker.models.conftest import CPU, DEFAULTS, SMALL, close, draw, go_on, spec
from worker import exits
from worker.calibration.__main__ import Options
from worker.models.base import DevicePoisoned, OutOfMemory
from worker.models.loading import load as loading
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.random_zimage import random_zimage
from worker.models.parallel.team import PROGRAM, Team, plain
from worker.models.parallel.ulysses import Shape, share_of, shares
from worker.models.zimage.pipeline import ZImageStepwise
from worker.settings import Settings

FAULTY = ("-m", "tests.worker.models.parallel.faulty_helper")
LONG = "a small yellow star above a large blue heart on a white background, at night"
Split = Callable[..., Any]


@pytest.fixture
def split(zimage_folder: Path, home: Path) -> Split:
    """A pipeline on so many processes, and its team."""
    return partial(started, home, zimage_folder)


@pytest.fixture(scope="class")
def pair(zimage_folder: Path) -> Iterator[Any]:
    """A pipeline on two processes, for tests that leave them as they are."""
    with (
        TemporaryDirectory(prefix="zw-", dir="/tmp") as home,
        started(Path(home), zimage_folder, 2) as (pipeline, _),
    ):
        yield pipeline


@contextmanager
def started(
    home: Path, folder: Path, world: int, program: Any = PROGRAM, **options: Any
) -> Iterator[Any]:
    device = ",".join(["cpu"] * world)
    settings = settings_in(home, model=str(folder), device=device, dtype="float32")
    team = Team.start(settings, program=program, **options)
    try:
        pipeline = loading.load(folder, DEFAULTS, settings, team)
    except BaseException:
        team.close()
        raise
    try:
        yield pipeline, team
    finally:
        pipeline.close()


class TestOfTwoProcesses:
    def test_two_processes_draw_what_one_draws(self, pair: Any, stepwise: ZImageStepwise) -> None:
        assert_drawn_alike(pair, stepwise)

    @pytest.mark.parametrize("block", [0, 3])
    def test_no_room_in_the_lead_fails_that_step_alone(
        self, pair: Any, stepwise: ZImageStepwise, block: int
    ) -> None:
        model = pair._pipeline.transformer
        layer = [*model.noise_refiner, *model.layers][block]

        def fail(*_: Any) -> None:
            hook.remove()
            raise torch.OutOfMemoryError("no room on this card")

        hook = layer.feed_forward.register_forward_pre_hook(fail)
        with pytest.raises(OutOfMemory):
            pair.step(pair.start([spec()]), go_on)
        assert close(draw(pair, spec())[0], draw(stepwise, spec())[0])

    def test_devices_that_are_slower_together_are_refused(
        self, pair: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken = {"Share": 0.01, "Lead": 0.02}
        monkeypatch.setattr(
            "worker.models.parallel.split._quickest_s", lambda call, _: taken[type(call).__name__]
        )
        with pytest.raises(ModelLoadError, match="20 ms on 2 devices and 10 ms on one"):
            pair._lead.require_gain(8)
        taken["Lead"] = 0.009
        pair._lead.require_gain(8)


def test_three_processes_draw_what_one_draws(split: Split, stepwise: ZImageStepwise) -> None:
    with split(3) as (pipeline, _):
        assert_drawn_alike(pipeline, stepwise)


def assert_drawn_alike(pipeline: Any, stepwise: ZImageStepwise) -> None:
    """Heads and tokens that cannot be divided evenly, among them."""
    specs = [
        spec(),
        spec(LONG, width=80, height=208, seed=3),
        spec(guidance_scale=3.0),
        spec(guidance_scale=2.0, negative_prompt=LONG),
        spec(reproducible=True),
    ]
    for wanted in specs:
        assert close(draw(pipeline, wanted)[0], draw(stepwise, wanted)[0]), wanted
    together = draw(pipeline, spec(), spec("blue", seed=1))
    assert close(together[1], draw(stepwise, spec("blue", seed=1))[0])


def test_no_room_in_a_helper_fails_that_step_alone(
    split: Split, stepwise: ZImageStepwise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the first block, and when the step is tried again in its third.
    monkeypatch.setenv("ZIMAGE_FAULTY_CALLS", "0 3")
    with split(2, program=FAULTY) as (pipeline, _):
        (sample,) = pipeline.start([spec()])
        before = sample.latents.clone()
        for _ in range(2):
            with pytest.raises(OutOfMemory, match="on another card"):
                pipeline.step([sample], go_on)
            assert sample.step_index == 0
            assert torch.equal(sample.latents, before)
        assert close(draw(pipeline, spec())[0], draw(stepwise, spec())[0])


def test_a_killed_helper_ends_its_lead_that_has_a_thousand_files(split: Split) -> None:
    lost: queue.Queue[int] = queue.Queue()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    with ExitStack() as files:
        while files.enter_context(Path(os.devnull).open("rb")).fileno() < 1024:
            pass
        with split(2, on_lost=lost.put) as (pipeline, team):
            team.helpers[0].process.kill()
            assert lost.get(timeout=30) == exits.HELPER_LOST
            with pytest.raises(DevicePoisoned):
                draw(pipeline, spec())


def test_a_hanging_helper_ends_its_lead_though_nobody_draws(split: Split) -> None:
    lost: queue.Queue[int] = queue.Queue()
    with split(2, on_lost=lost.put, silence_s=1.0) as (_, team):
        helper = team.helpers[0].process
        helper.send_signal(signal.SIGSTOP)
        assert lost.get(timeout=30) == exits.HELPER_LOST
        assert helper.wait(timeout=30) == -signal.SIGKILL


def test_more_devices_than_heads_are_refused(home: Path, tmp_path: Path) -> None:
    one_head = SMALL.transformer | {"dim": 24, "n_heads": 1, "n_kv_heads": 1}
    random_zimage(replace(SMALL, transformer=one_head), CPU, torch.float32).save_pretrained(
        tmp_path
    )
    refused = pytest.raises(ModelLoadError, match="2 devices for a model of 1 heads")
    with refused, started(home, tmp_path, 2, on_lost=lambda code: None):
        pass


def test_a_helper_can_read_the_settings_of_any_program(home: Path) -> None:
    """``python -m worker.calibration`` has a class of its own, which no other process knows."""
    options = Options(**settings_in(home, max_batch=3).model_dump(), repeats=2)
    assert type(plain(options)) is Settings
    assert plain(options) == settings_in(home, max_batch=3)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_shares_are_everything_once_and_nearly_equal(world: int) -> None:
    found = [range(30)[share_of(30, world, rank)] for rank in range(world)]
    assert [each for part in found for each in part] == list(range(30))
    assert max(shares(30, world)) - min(shares(30, world)) <= 1


def test_four_cards_share_the_heads_of_z_image_turbo() -> None:
    assert shares(30, 4) == (8, 8, 7, 7)


def test_padding_is_nobodys_picture() -> None:
    shape = Shape(rows=1, channels=16, height=8, width=8, text=32)
    assert (shape.patches, shape.tokens) == (16, 64)
    assert shape.pictures(2) == (16, 16)
    assert shape.drawn(2) == (16, 0)
    assert shape.all(3) == (22, 22, 20)
