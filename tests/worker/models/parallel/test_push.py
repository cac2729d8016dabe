"""On a GPU, or with ``TRITON_INTERPRET=1`` and Triton installed, anywhere. The processes are
threads of this one, which take turns."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.worker.models.conftest import KERNEL_DEVICE as DEVICE
from tests.worker.models.conftest import SMALL, needs_triton
from worker.models.acceleration import optimisations
from worker.models.loading.random_zimage import random_zimage
from worker.models.parallel.ulysses import Shape, Share, Sizes
from worker.models.zimage.dense import DenseTransformer
from worker.models.zimage.rotary import attended

push = pytest.importorskip("worker.models.parallel.push", exc_type=ImportError)
pytestmark = needs_triton


class Threads:
    """Runs a call for each process; only one runs at a time."""

    def __init__(self, world: int) -> None:
        self._turn = threading.Lock()
        self._all = threading.Barrier(world)
        self._world = world

    def meet(self) -> None:
        self._turn.release()
        self._all.wait(timeout=300)
        self._turn.acquire()

    def run(self, call: Any) -> list[Any]:
        def one(rank: int) -> Any:
            with self._turn, torch.no_grad():
                return call(rank)

        with ThreadPoolExecutor(self._world) as pool:
            return list(pool.map(one, range(self._world)))


@pytest.fixture(scope="module")
def transformer() -> Any:
    few = SMALL.transformer | {"n_layers": 1, "n_heads": 6, "n_kv_heads": 6, "dim": 144}
    pipeline = random_zimage(replace(SMALL, transformer=few), DEVICE, torch.float32)
    optimisations.apply(optimisations.NONE, pipeline)
    return pipeline.transformer


def shared(transformer: Any, world: int, threads: Threads, tokens: int = 400) -> list[Share]:
    sizes = [Sizes.of(transformer, rank, world) for rank in range(world)]
    room = push.Room(sizes[0], tokens)
    memories = [torch.full((room.values,), torch.nan, device=DEVICE) for _ in sizes]
    places = torch.tensor([memory.data_ptr() for memory in memories], device=DEVICE)
    return [
        Share(
            transformer,
            each,
            push.PushExchange(each, room, memory, places, threads.meet, attended),
            kernels=True,
        )
        for each, memory in zip(sizes, memories, strict=True)
    ]


def inputs(rows: int, height: int, width: int) -> list[torch.Tensor]:
    return [
        torch.randn(rows, 16, height, width, device=DEVICE),
        torch.linspace(0.1, 0.9, rows, device=DEVICE),
        torch.randn(rows, 32, 144, device=DEVICE),
    ]


@pytest.mark.parametrize(("world", "rows"), [(2, 1), (2, 2), (4, 1)])
def test_what_is_pushed_is_what_one_computes(transformer: Any, world: int, rows: int) -> None:
    """Six heads on four cards are 2, 2, 1 and 1; 15 patches are padded by 17."""
    threads = Threads(world)
    shares = shared(transformer, world, threads)
    for height, width in ((6, 10), (8, 10)):
        given = inputs(rows, height, width)
        with torch.no_grad():
            wanted = DenseTransformer(transformer)(*given)
        shape = Shape.of(given[0], given[2])
        outputs = threads.run(
            lambda rank, shape=shape, given=given: shares[rank].forward(shape)(
                *(given if rank == 0 else ())
            )
        )
        assert torch.allclose(outputs[0], wanted, atol=1e-4)


def test_who_fails_keeps_step(transformer: Any) -> None:
    threads = Threads(2)
    shares = shared(transformer, 2, threads)
    given = inputs(1, 6, 10)
    shape = Shape.of(given[0], given[2])
    attend, calls = shares[1]._context._attend, []  # type: ignore[attr-defined]

    def fails_once(*args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        result: torch.Tensor = attend(*args)
        return result

    shares[1]._context._attend = fails_once  # type: ignore[attr-defined]

    def step(rank: int) -> Any:
        try:
            return shares[rank].forward(shape)(*(given if rank == 0 else ()))
        except torch.OutOfMemoryError:
            return "failed"

    assert threads.run(step)[1] == "failed"
    with torch.no_grad():
        wanted = DenseTransformer(transformer)(*given)
    assert torch.allclose(threads.run(step)[0], wanted, atol=1e-4)


def test_room_is_for_what_it_says(transformer: Any) -> None:
    room = push.Room(Sizes.of(transformer, 0, 2), push.tokens_of(1024 * 1024))
    whole = Shape(rows=1, channels=16, height=128, width=128, text=512)
    assert room.holds(whole)
    assert room.holds(replace(whole, rows=4, height=64, width=64))
    assert not room.holds(replace(whole, rows=2))
