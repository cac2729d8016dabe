"""What docs/engine.md names as its proof is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROOF = re.compile(r"`((?:tests|loadtest)/[\w./-]+|test_\w+)`")


@pytest.fixture(scope="module")
def tests() -> set[str]:
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    return {name for text in texts for name in re.findall(r"def (test_\w+)\(", text)}


@pytest.mark.parametrize("name", sorted(set(PROOF.findall((ROOT / "docs/engine.md").read_text()))))
def test_every_proof_is_there(name: str, tests: set[str]) -> None:
    assert name in tests or (ROOT / name).exists()
