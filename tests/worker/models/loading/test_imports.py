import gc
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from worker.models.loading import imports, sources
from worker.settings import Settings


def test_what_is_not_used_cannot_be_imported_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "costly.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "_UNUSED", ("costly", "pathlib"))
    with imports.quick_imports():
        assert importlib.util.find_spec("costly") is None
        with pytest.raises(ImportError):
            import costly  # type: ignore[import-not-found]
        import pathlib  # was there before: it stays

        assert pathlib.Path is Path
        assert not gc.isenabled()
    assert gc.isenabled()
    assert "costly" not in sys.modules
    import costly

    assert costly.value == 1


def test_the_collector_does_not_visit_what_was_imported() -> None:
    """Which takes a second after the libraries, of a start that takes fifteen."""
    visited: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        visited.append(phase)

    before = gc.get_freeze_count()
    with imports.quick_imports():
        imported = [[number] for number in range(100_000)]
        gc.callbacks.append(note)
    later = [[number] for number in range(10)]
    gc.callbacks.remove(note)
    assert not visited
    assert gc.get_freeze_count() - before >= len(imported) > len(later)
    gc.unfreeze()


def test_nothing_is_compiled_for_those_who_do_not_ask() -> None:
    compile_function = torch.compile
    with imports.uncompiled():
        assert torch.compile(len, dynamic=True) is len
        assert torch.compile(fullgraph=True)(len) is len
    assert torch.compile is compile_function


def test_the_tracer_is_imported_by_those_only_who_ask_it_for_more() -> None:
    """In a process of its own: a model is loaded and draws without it; then it is there."""
    program = """
import sys
import torch
from worker.models.loading import imports, sources
from worker.settings import Settings
from worker.types import DrawSpec, Parameters

pipeline = sources.load(Settings(model="tiny"))
samples = pipeline.start([DrawSpec("a red circle", 0, Parameters(64, 64, 1))])
pipeline.step(samples, lambda _: True)
assert pipeline.finish(samples)[0].shape == (64, 64, 3)
assert "torch._dynamo" not in sys.modules, "somebody asked"

with imports.untraced():
    assert torch._dynamo.disable(len, True, reason="none") is len
    assert torch._dynamo.allow_in_graph()(len) is len
    assert torch._dynamo.config.verbose in (True, False)
    assert "torch._dynamo.utils" not in sys.modules
    assert torch._dynamo.utils.counters is not None
assert torch.compile(lambda value: value + 1, backend="eager")(torch.ones(1)).item() == 2
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_libraries_that_cannot_do_without_the_tracer_are_imported_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[str] = []

    @contextmanager
    def failing() -> Iterator[None]:
        entered.append("without")
        yield
        raise RuntimeError("Failed to import diffusers.models")

    monkeypatch.setattr(sources, "untraced", failing)
    assert sources.load(Settings(model="tiny")).info.id == "zimage-tiny"
    assert entered == ["without"]
