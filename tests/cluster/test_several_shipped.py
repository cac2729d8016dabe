"""Two models with real weights in one cell, the shipped one and one that an adapter was merged
into: each name draws what its own weights draw."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from diffusers import ZImagePipeline
from PIL import Image

from loadtest.traffic import pixels_of
from tests.cluster.conftest import RunningCell, configured, edit
from tests.cluster.test_several_models import worker
from tests.worker.models.conftest import close, draw
from tinymodel import evaluate, train_loras
from tinymodel.captions import scene_of
from tinymodel.judge import judge
from tinymodel.shapes import Scene
from worker.models.loading.folder import Defaults
from worker.models.loading.load import adapted
from worker.types import DrawSpec, Parameters, Pixels

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]

PROMPT = "a large yellow heart on a green background"
SEED, SIDE, STEPS = 1, 128, 8
TWO = """[[models]]
name = "plain"
source = "tiny"
[[models]]
name = "dark"
source = "{folder}"
"""


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shipped model with the adapter for nights in its weights."""
    pipe, folder = evaluate.load(), tmp_path_factory.mktemp("merged")
    pipe.load_lora_weights(str(train_loras.FOLDER), weight_name="night.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cell(merged: Path) -> Iterator[RunningCell]:
    # Of a folder nobody knows which size it draws best: the first picture is as large as any.
    limits = "max_pixels = 65_536"
    with configured(workers=1, model="tiny", limits=limits, step_allowance_s=20.0) as running:
        edit(running, '[model]\nsource = "tiny"', TWO.format(folder=merged))
        text = running.config_path.read_text()
        running.config_path.write_text(text + worker("dark"))
        running.up()
        yield running


def test_each_name_draws_what_its_own_weights_draw(cell: RunningCell, merged: Path) -> None:
    async def drawn(*models: str) -> list[Pixels]:
        async with httpx.AsyncClient(base_url=cell.url, timeout=120) as http:
            return await asyncio.gather(*(_drawn(http, model) for model in models))

    plain, dark, default = asyncio.run(drawn("plain", "dark", ""))
    assert close(plain, alone(evaluate.load()))
    assert close(dark, alone(evaluate.load(merged)))
    assert close(default, plain)
    asked = scene_of(PROMPT)
    assert asked is not None
    assert shows(plain, asked)
    assert shows(dark, train_loras.night(asked))


async def _drawn(http: httpx.AsyncClient, model: str) -> Pixels:
    body = {"prompt": PROMPT, "size": f"{SIDE}x{SIDE}", "seed": SEED, "steps": STEPS}
    said = {**body, **({"model": model} if model else {})}
    reply = await http.post("/v1/images/generations", json=said)
    assert reply.status_code == 200, reply.text
    return pixels_of(reply.json()["data"][0]["b64_json"])


def alone(pipe: ZImagePipeline) -> Pixels:
    defaults = Defaults("alone", steps=STEPS, guidance_scale=0.0, size=(SIDE, SIDE))
    spec = DrawSpec(PROMPT, SEED, Parameters(SIDE, SIDE, STEPS))
    return draw(adapted(pipe, defaults, 1 << 20), spec)[0]


def shows(pixels: Pixels, wanted: Scene) -> bool:
    return judge(Image.fromarray(pixels), wanted).ok
