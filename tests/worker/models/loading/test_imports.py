import gc
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from worker.models.loading import imports


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
