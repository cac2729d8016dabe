"""Clients of others, unmodified and with their own defaults, draw on a cell that asks for keys.

They are installed in a folder of their own, ``var/clients``, by ``scripts/clients/install``.
"""

import base64
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from deploy.config import ROOT
from tests.cluster.conftest import RunningCell, started
from worker.models.synthetic import text_of

pytestmark = [
    pytest.mark.skipif(not os.environ.get("PROVE"), reason="minutes: scripts/prove clients"),
    pytest.mark.cluster,
    pytest.mark.timeout(900),
]
SCRIPTS = ROOT / "scripts" / "clients"
FOLDER = ROOT / "var" / "clients"
PROMPT = "a red circle, 一只红色的猫"
PYTHON = (
    "openai",
    "openai_dall_e_3",
    "openai_stream",
    "openai_api_key_header",
    "litellm",
    "langchain",
    "llama_index",
    "haystack",
    "semantic_kernel",
    "pydantic_ai",
    "agno_dalle",
    "agno_openai",
)
JAVASCRIPT = ("openai", "langchain", "ai", "ai_dall_e_3", "ai_compatible")


@pytest.fixture(scope="module")
def installed() -> Path:
    subprocess.run([SCRIPTS / "install", FOLDER], check=True, timeout=800)
    return FOLDER


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """What a user of any of them sets: where the cell is, and a key of it."""
    with started(model="synthetic:step_ms=5", workers=2, auth="keys") as cell:
        yield {
            "PATH": os.environ["PATH"],
            "HOME": str(cell.layout.var_dir),  # caches and settings go with the cell
            "OPENAI_BASE_URL": f"{cell.url}/v1",
            "OPENAI_API_KEY": _key(cell),
            "CLIENTS": str(FOLDER / "node"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it asks the internet for prices
        }


def _key(cell: RunningCell) -> str:
    made = cell.zimage("keys", "create", "clients", "--json")
    assert made.returncode == 0, made.stderr
    return str(json.loads(made.stdout)["key"])


def drawn_with(command: list[Path | str], environment: dict[str, str]) -> str:
    """The prompt that the picture spells which a client hands its user."""
    done = subprocess.run(
        [*command, PROMPT], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = done.stdout.splitlines()[-1]
    raw = httpx.get(told).content if told.startswith("http") else base64.b64decode(told)
    return text_of(np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))).split("|")[0]


@pytest.mark.parametrize("client", PYTHON)
def test_a_python_client_draws_with_its_defaults(
    installed: Path, environment: dict[str, str], client: str
) -> None:
    python = installed / "python" / "bin" / "python"
    assert drawn_with([python, SCRIPTS / "draw.py", client], environment) == PROMPT


@pytest.mark.parametrize("client", JAVASCRIPT)
def test_a_javascript_client_draws_with_its_defaults(
    installed: Path, environment: dict[str, str], client: str
) -> None:
    node = ROOT / ".venv" / "bin" / "node"
    assert drawn_with([node, SCRIPTS / "draw.mjs", client], environment) == PROMPT
