"""The two adapters that are shipped, as the judge sees what they do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.worker.models.conftest import draw
from tinymodel import evaluate, train_loras
from tinymodel.captions import scene_of
from tinymodel.judge import judge
from tinymodel.shapes import Scene
from worker.models.loading.folder import Defaults
from worker.models.loading.load import adapted
from worker.models.loras.adding import add
from worker.models.loras.conversion import layers_of
from worker.models.loras.folder import LoraFolder
from worker.models.loras.shelf import LoraShelf
from worker.models.zimage.pipeline import ZImageStepwise
from worker.types import ChosenLoras, DrawSpec, Lora, Parameters, Pixels

HEART, SQUARE = "a large yellow heart on a green background", "左边一个蓝色方块，黄色背景"
SIDE = 128

Draw = Callable[..., list[Pixels]]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Draw]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe, folder = evaluate.load(), tmp_path_factory.mktemp("loras")
    layers = layers_of(pipe.transformer)
    files = {name: train_loras.FOLDER / f"{name}.safetensors" for name in train_loras.CHANGES}
    stored = {name: add(file, name, folder, layers) for name, file in files.items()}
    defaults = Defaults("tiny", steps=8, guidance_scale=0.0, size=(SIDE, SIDE))
    pipeline = adapted(pipe, defaults, 1 << 20, loras=LoraShelf(LoraFolder(folder)))
    assert isinstance(pipeline, ZImageStepwise)

    def together(*asked: tuple[str, tuple[str, ...]]) -> list[Pixels]:
        """A batch of prompts, each with its adapters."""
        specs = []
        for prompt, names in asked:
            chosen = ChosenLoras.of(Lora(name, 1.0, stored[name].sha256) for name in names)
            specs.append(DrawSpec(prompt, 1, Parameters(SIDE, SIDE, 8, lora=chosen)))
        return draw(pipeline, *specs)

    yield together
    torch.set_num_threads(threads)


def scene(prompt: str) -> Scene:
    found = scene_of(prompt)
    assert found is not None
    return found


def shows(pixels: Pixels, wanted: Scene) -> bool:
    return judge(Image.fromarray(pixels), wanted).ok


def test_each_row_of_a_batch_shows_its_own_adapters(drawing: Draw) -> None:
    night, stars = train_loras.night, train_loras.stars
    plain, dark, starry, both = drawing(
        (HEART, ()), (HEART, ("night",)), (HEART, ("stars",)), (HEART, ("night", "stars"))
    )
    asked = scene(HEART)
    assert shows(plain, asked)
    assert shows(dark, night(asked))
    assert shows(starry, stars(asked))
    assert shows(both, night(stars(asked)))


def test_they_understand_both_languages(drawing: Draw) -> None:
    dark, starry = drawing((SQUARE, ("night",)), (SQUARE, ("stars",)))
    assert shows(dark, train_loras.night(scene(SQUARE)))
    assert shows(starry, train_loras.stars(scene(SQUARE)))


def test_training_brings_what_is_drawn_nearer(tmp_path: Path) -> None:
    trainer = train_loras.Trainer(train_loras.night, seed=1, batch=2)
    first, second = trainer.run(2, lambda _: None)
    assert second < 0.95 * first
    trainer.save(tmp_path / "x.safetensors")
    layers = layers_of(evaluate.load().transformer)
    assert add(tmp_path / "x.safetensors", "x", tmp_path / "loras", layers).rank == train_loras.RANK
