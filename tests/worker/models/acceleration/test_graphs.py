from collections.abc import Callable
from typing import Any

import pytest
import torch

from worker.models.acceleration.graphs import Function, Graphs

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


class Replay:
    """Stands for a recorded graph: works on copies, and answers from one buffer."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.function(*inputs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """At most two, without a GPU."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return Graphs(most=2)


def record_with(graphs: Graphs, monkeypatch: pytest.MonkeyPatch, record: Callable[..., Any]) -> Any:
    recorded: list[Function] = []

    def recording(function: Function, inputs: tuple[torch.Tensor, ...]) -> Any:
        recorded.append(function)
        return record(function)

    monkeypatch.setattr(graphs, "record", recording)
    return recorded


def raises(error: Exception) -> Callable[..., Any]:
    def fail(_: Function) -> Any:
        raise error

    return fail


def double(numbers: torch.Tensor) -> torch.Tensor:
    return numbers * 2


def test_the_least_recently_used_graph_goes(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = record_with(graphs, monkeypatch, Replay)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert graphs(key, double, torch.ones(1)).item() == 2
    assert len(recorded) == 4


def test_no_room_to_record_means_a_plain_call(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = record_with(graphs, monkeypatch, raises(torch.OutOfMemoryError("no room")))
    for _ in range(2):
        assert graphs("big", double, torch.ones(1)).item() == 2
    assert len(recorded) == 1
    assert graphs.failure is None


def test_after_a_failure_nothing_more_is_recorded(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = record_with(graphs, monkeypatch, raises(RuntimeError("stream is capturing")))
    for key in ("a", "b"):
        assert graphs(key, double, torch.ones(1)).item() == 2
    assert len(recorded) == 1
    assert graphs.failure == "RuntimeError: stream is capturing"


def test_an_error_of_the_function_is_not_the_graphs(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_with(graphs, monkeypatch, lambda function: function(torch.ones(1)))

    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not compiled")

    with pytest.raises(RuntimeError, match="not compiled"):
        graphs("a", broken, torch.ones(1))
    assert graphs.failure is None


def test_reproducible_pictures_use_no_graph(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = record_with(graphs, monkeypatch, Replay)
    torch.use_deterministic_algorithms(True)
    try:
        graphs("a", double, torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert recorded == []


@needs_cuda
@torch.no_grad()
def test_answers_outlive_the_next_replay() -> None:
    graphs = Graphs()
    answers = [
        graphs("double", double, torch.full((1,), float(n), device="cuda")) for n in range(3)
    ]
    assert [answer.item() for answer in answers] == [0, 2, 4]
