"""What docs/engine.md names as its proof is there, and docs/architecture.md names every module."""

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


def test_every_module_stands_in_the_map() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w/]+/)` \| [^|]+ \| ([^|]*) \|$", text, re.M))
    for top in ("worker", "deploy", "loadtest"):
        for path in (ROOT / top).rglob("*.py"):
            room = str(path.parent.relative_to(ROOT)) + "/"
            if path.name != "__init__.py" and "migrations" not in room and "faulty" not in room:
                assert f"`{path.stem}`" in rows.get(room, ""), path
    named = {
        f"{room}{name}.py" for room, row in rows.items() for name in re.findall(r"`(\w+)`", row)
    }
    assert all((ROOT / path).is_file() for path in named)
