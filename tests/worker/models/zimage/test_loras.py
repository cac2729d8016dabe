"""Adapters of rows: as diffusers draws with each alone, whoever shares the step."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.worker.models.conftest import CPU, DEFAULTS, close, draw, finish, go_on, spec
from tests.worker.models.loras import made
from worker.errors import DrawingFailed
from worker.models.acceleration.fp8 import shrink
from worker.models.loading.load import adapted
from worker.models.loras.adding import add
from worker.models.loras.conversion import Pair, layers_of
from worker.models.loras.device import OnDevice
from worker.models.loras.folder import LoraFolder, StoredLora
from worker.models.loras.shelf import LoraShelf
from worker.models.zimage.dense import DenseTransformer
from worker.models.zimage.low_rank import Scaled, added
from worker.models.zimage.pipeline import ZImageStepwise
from worker.types import ChosenLoras, DrawSpec, Lora, Pixels

BLOCKS = (
    "layers.0.attention.to_q",
    "layers.1.attention.to_out.0",
    "layers.2.feed_forward.w1",
    "layers.2.feed_forward.w2",
    "noise_refiner.0.attention.to_v",
)
EVERYWHERE = (
    *BLOCKS,
    "layers.0.adaLN_modulation.0",
    "context_refiner.0.feed_forward.w3",
    "cap_embedder.1",
    "t_embedder.mlp.0",
    "all_x_embedder.2-1",
    "all_final_layer.2-1.linear",
)


class Shelf:
    """A folder with two adapters of different ranks for the small Z-Image."""

    def __init__(self, pipeline: Any, home: Path) -> None:
        layers = layers_of(pipeline.transformer)
        self.folder = LoraFolder(home / "loras")
        wide = made.tensors(layers, EVERYWHERE, rank=4, seed=1, strength=0.1)
        narrow = made.tensors(layers, BLOCKS[:3], rank=2, seed=2, strength=0.15)
        self.files = {
            "wide": made.write(home / "wide.safetensors", wide, made.kohya, alpha=2.0),
            "narrow": made.write(home / "narrow.safetensors", narrow, alpha=3.0),
        }
        self.stored = {
            name: add(file, name, self.folder.path, layers) for name, file in self.files.items()
        }

    def chosen(self, **scales: float) -> ChosenLoras:
        return ChosenLoras.of(Lora(n, s, self.stored[n].sha256) for n, s in scales.items())

    def bytes_of(self, lora: StoredLora) -> int:
        return 4 * lora.elements


@pytest.fixture
def shelf(small_zimage: Any, tmp_path: Path) -> Shelf:
    return Shelf(small_zimage, tmp_path)


def stepwise_of(pipeline: Any, shelf: Shelf, room_bytes: int = 1 << 30) -> ZImageStepwise:
    loras = LoraShelf(shelf.folder, room_bytes=room_bytes)
    found = adapted(pipeline, DEFAULTS, max_pixels=1 << 20, loras=loras)
    assert isinstance(found, ZImageStepwise)
    return found


@pytest.fixture
def loras(small_zimage: Any, shelf: Shelf) -> ZImageStepwise:
    return stepwise_of(small_zimage, shelf)


@pytest.fixture
def diffusers(small_zimage: Any, shelf: Shelf) -> Any:
    """diffusers' own way: the adapters are loaded into a copy of the transformer."""
    pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[test]'")
    pipeline = copy.copy(small_zimage)
    pipeline.transformer = copy.deepcopy(small_zimage.transformer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it tells that there are several
        for name, file in shelf.files.items():
            pipeline.load_lora_weights(str(file), adapter_name=name)
    return pipeline


def whole(pipeline: Any, asked: DrawSpec, **scales: float) -> Pixels:
    pipeline.set_adapters(list(scales), list(scales.values()))
    how = asked.parameters
    image = pipeline(
        prompt=asked.prompt,
        negative_prompt=how.negative_prompt or None,
        width=how.width,
        height=how.height,
        num_inference_steps=how.steps,
        guidance_scale=how.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(asked.seed),
    ).images[0]
    return np.asarray(image)


@pytest.mark.parametrize("scales", [{"wide": 1.0}, {"narrow": 0.7}, {"wide": -0.5, "narrow": 1.5}])
def test_each_picture_is_the_one_that_diffusers_draws_with_its_adapters(
    shelf: Shelf, loras: ZImageStepwise, diffusers: Any, scales: dict[str, float]
) -> None:
    for guidance_scale in (0.0, 3.0):
        asked = spec(guidance_scale=guidance_scale, lora=shelf.chosen(**scales))
        (ours,) = draw(loras, asked)
        assert close(ours, whole(diffusers, asked, **scales))
        (plain,) = draw(loras, spec(guidance_scale=guidance_scale))
        assert np.abs(ours.astype(int) - plain).mean() > 1


def test_rows_with_different_adapters_share_steps_and_none_sees_anothers(
    shelf: Shelf, loras: ZImageStepwise
) -> None:
    specs = [
        spec(seed=1),
        spec(seed=2, lora=shelf.chosen(wide=1.0)),
        spec(seed=3, lora=shelf.chosen(narrow=0.7)),
        spec(seed=4, lora=shelf.chosen(wide=0.5, narrow=-1.0)),
        spec(seed=5, lora=shelf.chosen(wide=1.0)),
    ]
    alone = [draw(loras, each)[0] for each in specs]
    assert len({sample.group for sample in loras.start(specs)}) == 1
    together = draw(loras, *specs)
    assert all(map(close, together, alone))
    first, *rest = loras.start(specs)  # who joins later is as well off
    loras.step([first], go_on)
    finish(loras, [first, *rest])
    assert all(map(close, loras.finish([first, *rest]), alone))


def test_what_is_drawn_without_adapters_is_untouched_by_those_before(
    shelf: Shelf, loras: ZImageStepwise, stepwise: ZImageStepwise
) -> None:
    (before,) = draw(stepwise, spec())
    draw(loras, spec(lora=shelf.chosen(wide=2.0)))
    (after,) = draw(loras, spec())
    assert np.array_equal(before, after)


def test_adapters_never_take_more_than_their_room(small_zimage: Any, shelf: Shelf) -> None:
    most = max(map(shelf.bytes_of, shelf.stored.values()))
    tight, roomy = stepwise_of(small_zimage, shelf, most), stepwise_of(small_zimage, shelf)
    specs = [
        spec(seed=1),
        spec(seed=2, lora=shelf.chosen(wide=1.0)),
        spec(seed=3, lora=shelf.chosen(narrow=0.7)),
        spec(seed=4, lora=shelf.chosen(wide=0.5)),
    ]
    kept = tight._loras
    assert kept is not None
    samples = tight.start(specs)
    while not samples[0].drawn:
        tight.step(samples, go_on)
        assert 0 < kept.used_bytes <= most
    assert all(map(close, tight.finish(samples), draw(roomy, *specs)))
    with pytest.raises(Exception, match="lora: together they take"):
        tight.check(spec(lora=shelf.chosen(wide=1.0, narrow=1.0)))


def test_an_adapter_that_is_deleted_is_there_for_who_has_begun(
    small_zimage: Any, shelf: Shelf
) -> None:
    most = max(map(shelf.bytes_of, shelf.stored.values()))
    pipeline = stepwise_of(small_zimage, shelf, most)
    asked = spec(lora=shelf.chosen(wide=1.0))
    (before,) = draw(pipeline, asked)
    samples = pipeline.start([asked])
    draw(pipeline, spec(lora=shelf.chosen(narrow=1.0)))  # which takes its room
    shelf.stored["wide"].path.unlink()
    finish(pipeline, samples)
    assert close(pipeline.finish(samples)[0], before)
    with pytest.raises(Exception, match="there is no adapter 'wide' for you"):
        pipeline.check(asked)


def test_a_spoilt_adapter_fails_its_drawing(shelf: Shelf, loras: ZImageStepwise) -> None:
    path = shelf.stored["narrow"].path
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DrawingFailed, match="its values are not those that were added"):
        loras.start([spec(lora=shelf.chosen(narrow=1.0))])


@pytest.fixture
def linear() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 24).requires_grad_(requires_grad=False))


def test_what_is_added_stands_beside_weights_in_8_bits(linear: torch.nn.Sequential) -> None:
    shrink(linear, CPU)
    pair = Pair(torch.randn(2, 16), torch.randn(24, 2))
    lora = OnDevice("x", {"0": pair}, 0)
    inputs = torch.randn(3, 5, 16)
    plain = linear(inputs)
    with torch.no_grad(), added(linear, [(), (Scaled(lora, 0.5),), ()]):
        adapted_ = linear(inputs)
    torch.testing.assert_close(adapted_[1], plain[1] + 0.5 * inputs[1] @ pair.a.T @ pair.b.T)
    assert torch.equal(adapted_[::2], plain[::2])
    assert torch.equal(linear(inputs), plain)


def test_batches_with_adapters_go_through_no_graph(stepwise: ZImageStepwise) -> None:
    class NoGraphs:
        def __call__(self, *_: object) -> torch.Tensor:
            raise AssertionError("it was recorded")

    graphs: Any = NoGraphs()
    dense = DenseTransformer(stepwise._pipeline.transformer, graphs)
    latents, times = torch.randn(1, 16, 8, 8), torch.tensor([0.5])
    captions = torch.randn(1, 32, 96)
    pair = Pair(torch.randn(2, 96), torch.randn(96, 2))
    row = (Scaled(OnDevice("x", {"layers.0.attention.to_q": pair}, 0), 1.0),)
    with torch.no_grad():
        with dense.adapted([row]):
            dense(latents, times, captions)
        with pytest.raises(AssertionError, match="it was recorded"):
            dense(latents, times, captions)
