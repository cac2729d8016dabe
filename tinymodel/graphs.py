"""Training steps as CUDA graphs: such small kernels are launched slower than they run."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch


class Graphs:
    """Runs a step by its key: eagerly at first, then captured; elsewhere than on CUDA as it is.

    A step must read and write tensors that stay where they are. All graphs share their memory, so
    what a step leaves behind must lie in tensors from before it. Use it inside `stream`.
    """

    def __init__(self, device: torch.device) -> None:
        self._enabled = device.type == "cuda"
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._warm: set[Hashable] = set()
        self._memory = torch.cuda.graph_pool_handle() if self._enabled else None

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Does a step once; the same key must always mean the same shapes."""
        if key in self._graphs:
            self._graphs[key].replay()
        elif not self._enabled or key not in self._warm:
            self._warm.add(key)
            step()
        else:
            self._capture(key, step)

    def _capture(self, key: Hashable, step: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, pool=self._memory, stream=stream):
            step()
        self._graphs[key] = graph
        graph.replay()


@contextmanager
def stream(device: torch.device) -> Iterator[None]:
    """A stream of its own, as capturing needs, for everything that takes part in training."""
    if device.type != "cuda":
        yield
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        yield
    torch.cuda.synchronize(device)
