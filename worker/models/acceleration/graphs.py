"""CUDA graphs: a call of known shapes is recorded once and then costs one launch.

Below about 512² the GPU is done with a kernel before Python has launched the next one; and a
busy thread elsewhere in the process, such as one that writes a PNG, slows launching down.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

log = logging.getLogger(__name__)

MOST_GRAPHS = 48
"""Each holds some ten MiB of launch parameters; the least recently used one goes."""
MOST_PIXELS = 1024 * 1024
"""Rows × width × height of one call. More keeps the GPU busy by itself, and what a graph works
on stays allocated: so all graphs together hold no more than one picture of this size needs."""

Function = Callable[..., torch.Tensor]


@dataclass(eq=False)
class Recorded:
    """A graph, and where it reads and writes."""

    function: Function  # holds the constants that the graph reads
    graph: Any
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor

    def replay(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """What ``function(*inputs)`` gives."""
        for static, fresh in zip(self.inputs, inputs, strict=True):
            static.copy_(fresh)
        self.graph.replay()
        return self.output.clone()  # the graphs share their memory: the next one writes over it


class Graphs:
    """Calls functions through graphs, of which the ``most`` last used are kept.

    Tensors that a function reads besides its inputs must live as long as the function.

    What cannot be recorded is called as it is: after an error other than a lack of memory, always.
    All calls come from one thread, under ``torch.no_grad``.
    """

    def __init__(self, most: int = MOST_GRAPHS) -> None:
        self._most = most
        self._recorded: OrderedDict[Hashable, Recorded] = OrderedDict()
        self._too_big: set[Hashable] = set()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self.failure: str | None = None

    def __call__(self, key: Hashable, function: Function, *inputs: torch.Tensor) -> torch.Tensor:
        """``function(*inputs)``. ``key`` names the function, its constants and all shapes."""
        if self._unusable(key):
            return function(*inputs)
        if key not in self._recorded:
            try:
                self._make_room()
                self._recorded[key] = self.record(function, inputs)
            except torch.OutOfMemoryError:
                self._recorded.clear()
                self._too_big.add(key)
                return function(*inputs)
            except Exception as error:
                output = function(*inputs)  # raises again where recording was not at fault
                self._give_up(error)
                return output
        self._recorded.move_to_end(key)
        return self._recorded[key].replay(inputs)

    def _give_up(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("a CUDA graph cannot be recorded; no more are tried", exc_info=error)
        self._recorded.clear()

    def _unusable(self, key: Hashable) -> bool:
        # A recorded call would run the kernels that were chosen without the switch.
        fixed = torch.are_deterministic_algorithms_enabled()
        return self.failure is not None or key in self._too_big or fixed

    def _make_room(self) -> None:
        while len(self._recorded) >= self._most:
            self._recorded.popitem(last=False)

    def record(self, function: Function, inputs: Sequence[torch.Tensor]) -> Recorded:
        """``function`` as a graph, which is kept by whoever asked. Calls it once before."""
        statics = tuple(tensor.clone() for tensor in inputs)
        present = torch.cuda.current_stream()
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            function(*statics)  # compiles, chooses kernels and fills caches
        present.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = function(*statics)
        return Recorded(function, graph, statics, output)
