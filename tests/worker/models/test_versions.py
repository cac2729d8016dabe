import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.models.versions import FOLDER, SHARED, UNCOUNTED, code, counted

ZIMAGE, WHOLE = "worker.models.zimage.pipeline", "worker.models.whole"
PIPELINES = {"worker.models.synthetic": "synthetic.py", WHOLE: "whole.py", ZIMAGE: "zimage"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A copy of the code of models."""
    copy = tmp_path / "models"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_a_new_pipeline_changes_no_other(models: Path) -> None:
    before = [code(name, models) for name in PIPELINES]
    (models / "flux.py").write_text("class Flux: ...")
    (models / "loading" / "sources.py").write_text("# knows flux, too")
    assert [code(name, models) for name in PIPELINES] == before
    assert models / "flux.py" in counted("worker.models.flux", models)


def test_what_a_pipeline_draws_with_counts(models: Path) -> None:
    before = {name: code(name, models) for name in PIPELINES}
    with (models / "zimage" / "decoder.py").open("a") as file:
        file.write("# changed\n")
    changed = {name for name in PIPELINES if code(name, models) != before[name]}
    assert changed == {ZIMAGE}
    with (models / "acceleration" / "hopper_fp8.py").open("a") as file:
        file.write("# changed\n")
    assert all(code(name, models) != before[name] for name in PIPELINES)


def test_each_part_of_the_code_counts_for_all_or_for_one_pipeline_or_for_none() -> None:
    """A new one is put where it belongs: ``SHARED``, ``UNCOUNTED``, or a pipeline of its own."""
    found = {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"}
    assert found == {*SHARED, *UNCOUNTED, *PIPELINES.values()}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_all_that_a_pipeline_imports_counts(pipeline: str) -> None:
    known = {_module(path) for path in counted(pipeline)}
    loading = {name for name in _imported(pipeline) - known if "loading" not in name}
    assert not loading


def _module(path: Path) -> str:
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(["worker.models", *(part for part in parts if part != "__init__")])


def _imported(module: str) -> set[str]:
    """Modules of models that ``module`` imports, and what these do."""
    seen, todo = set[str](), [module]
    while todo:
        name = todo.pop()
        if name not in seen and (path := _file(name)):
            seen.add(name)
            if "loading" not in name:
                todo += _imports(path)
    return seen


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    if not module.startswith("worker.models."):
        return None
    path = FOLDER.joinpath(*module.split(".")[2:])
    places = (path.with_suffix(".py"), path / "__init__.py")
    return next((place for place in places if place.is_file()), None)
