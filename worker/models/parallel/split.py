"""A transformer whose steps several processes compute: the lead's side, and a helper's."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from worker import log
from worker.models.acceleration import optimisations
from worker.models.acceleration.determinism import fixed_kernels
from worker.models.acceleration.graphs import MOST_GRAPHS, MOST_PIXELS, Graphs, Recorded
from worker.models.base import DevicePoisoned, OutOfMemory
from worker.models.faults import fault_of
from worker.models.loading.folder import ModelLoadError
from worker.models.parallel import links
from worker.models.parallel.team import Command, HelperLost, Reply, Start, Team, Verb
from worker.models.parallel.ulysses import LEAD, Exchange, GlooExchange, Shape, Share, Sizes
from worker.models.zimage.rotary import Attend, attended
from worker.settings import Settings

_PIXELS_PER_CELL = 64
_TRIALS = 5


class Member:
    """What lead and helpers have in common. All make theirs after ``join``."""

    def __init__(
        self,
        transformer: Any,
        plan: optimisations.Optimisations,
        rank: int,
        settings: Settings,
        graphs: Graphs | None,
    ) -> None:
        self.sizes = Sizes.of(transformer, rank, len(settings.devices))
        self.exchange_bytes = 0
        self._holds: Callable[[Shape], bool] = lambda shape: True
        ways = optimisations.ways(plan)
        pixels = max(settings.max_pixels, settings.max_batch * MOST_PIXELS)
        self.share = Share(
            transformer,
            self.sizes,
            self._context(transformer, ways.get("attend", attended), pixels),
            kernels=optimisations.blocks_use_kernels(plan, transformer),
            ways=ways,
            backend=plan.backend,
        )
        self._graphs = graphs
        self._recorded: dict[Shape, Recorded] = {}

    def _context(self, transformer: Any, attend: Attend, pixels: int) -> Exchange:
        sizes, device, dtype = self.sizes, transformer.device, transformer.dtype
        if device.type == "cpu":
            return GlooExchange(sizes, dtype, attend)
        from worker.models.parallel import push  # Triton is on machines with a GPU only

        room = push.Room(sizes, push.tokens_of(pixels))
        self._holds = room.holds
        self.exchange_bytes = room.values * dtype.itemsize
        return push.connected(sizes, room, dtype, device, attend)

    def holds(self, shape: Shape) -> bool:
        """Whether one forward may have so many rows."""
        return self._holds(shape)

    @torch.no_grad()
    def obey(self, command: Command, *given: torch.Tensor) -> torch.Tensor | None:
        """Do one's part; None where it gives nothing. The lead's is ``given`` inputs."""
        verb, shape, _ = command
        if verb == "forget":
            self._recorded.clear() if shape is None else self._recorded.pop(shape, None)
            return None
        if verb == "record":
            assert self._graphs is not None
            self._recorded[shape] = self._graphs.record(self.share.forward(shape), given)
            return None
        if verb == "replay":
            return self._recorded[shape].replay(given)
        return self.share.forward(shape)(*given)


class HelpersShare:
    """A helper's side: does what it is told, and says what became of it."""

    def __init__(self, member: Member) -> None:
        self._member = member

    @classmethod
    def joined(
        cls, transformer: Any, plan: optimisations.Optimisations, start: Start
    ) -> "HelpersShare":
        """After it has met the others."""
        settings = start.settings
        join(start.store, start.rank, len(settings.devices), settings.load_allowance_s)
        graphs = Graphs() if plan.graphs else None
        return cls(Member(transformer, plan, start.rank, settings, graphs))

    @property
    def exchange_bytes(self) -> int:
        """As ``Lead.exchange_bytes``."""
        return self._member.exchange_bytes

    def obey(self, command: Command) -> Reply:
        """What to answer. A fault that no later call survives is the lead's to end for."""
        try:
            with fixed_kernels(command.fixed):
                self._member.obey(command)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            if not isinstance(fault_of(error), OutOfMemory):
                log.failure(f"{command.verb} failed", error)
                return Reply(why)
        else:
            return Reply()
        # Not before: the error's frames hold what filled the memory.
        log.event(f"no memory to {command.verb}", why=why)
        torch.cuda.empty_cache()
        return Reply(why, memory=True)


class Lead:
    """In the place of a ``DenseTransformer``: each call is a step of all processes."""

    def __init__(
        self, transformer: Any, plan: optimisations.Optimisations, team: Team, graphs: Graphs | None
    ) -> None:
        self._team = team
        self._graphs = graphs
        require_heads(transformer, team.world)
        team.await_replies()
        join(team.store, LEAD, team.world, team.settings.load_allowance_s)
        self._member = Member(transformer, plan, LEAD, team.settings, graphs)
        team.await_replies()
        team.loaded()
        team.store.unlink(missing_ok=True)
        self._recorded: OrderedDict[Shape, None] = OrderedDict()
        self._plain: set[Shape] = set()  # not to be recorded
        self._seen: set[Command] = set()
        if transformer.device.type == "cuda" and _link(team.world) != "NVLink":
            self.require_gain()

    @property
    def share(self) -> Share:
        """What computes captions."""
        return self._member.share

    @property
    def exchange_bytes(self) -> int:
        """Of the card's memory, beside what torch allocates."""
        return self._member.exchange_bytes

    def __call__(
        self, latents: torch.Tensor, times: torch.Tensor, captions: torch.Tensor
    ) -> torch.Tensor:
        """As ``DenseTransformer.__call__``."""
        inputs = latents, times, captions
        rows = self._rows_together(Shape.of(latents, captions))
        parts = zip(*(torch.split(each, rows) for each in inputs), strict=True)
        outputs = [self._forward(*part) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @torch.no_grad()
    def require_gain(self, cells: int = 128) -> None:
        """``ModelLoadError`` where one device alone is quicker at a square of ``cells``."""
        model = self.share.model
        latents = torch.randn(1, model.in_channels, cells, cells)
        inputs = (
            latents.to(model.device, model.dtype),
            torch.tensor([0.5], device=model.device),
            torch.randn(1, 64, model.config.dim).to(model.device, model.dtype),
        )
        alone_s, together_s = (_quickest_s(call, inputs) for call in (self.share, self))
        log.event("devices compared", alone_s=round(alone_s, 4), together_s=round(together_s, 4))
        if together_s >= alone_s:
            raise ModelLoadError(
                f"a step takes {together_s * 1000:.0f} ms on {self._team.world} devices and "
                f"{alone_s * 1000:.0f} ms on one",
                "what links them is too slow: give each a worker of its own",
            )

    def close(self) -> None:
        """Let the helpers end."""
        self._team.close()
        dist.destroy_process_group()

    def _rows_together(self, shape: Shape) -> int:
        for rows in range(shape.rows, 0, -1):
            if self._member.holds(replace(shape, rows=rows)):
                return rows
        raise torch.OutOfMemoryError("larger than what the cards exchange in one step")

    def _forward(self, *given: torch.Tensor) -> torch.Tensor:
        shape = Shape.of(given[0], given[2])
        fixed = torch.are_deterministic_algorithms_enabled()
        verb: Verb = "replay" if not fixed and self._has_graph(shape, given) else "forward"
        output = self._together(Command(verb, shape, fixed), *given)
        assert output is not None
        return output

    def _has_graph(self, shape: Shape, given: Sequence[torch.Tensor]) -> bool:
        pixels = shape.rows * shape.height * shape.width * _PIXELS_PER_CELL
        most = MOST_PIXELS * self._team.world  # each holds a share of what they work on
        if self._graphs is None or pixels > most or shape in self._plain:
            return False
        if shape not in self._recorded:
            self._record(shape, given)
        if shape in self._recorded:
            self._recorded.move_to_end(shape)
        return shape in self._recorded

    def _record(self, shape: Shape, given: Sequence[torch.Tensor]) -> None:
        if len(self._recorded) >= MOST_GRAPHS:
            oldest, _ = self._recorded.popitem(last=False)
            self._together(Command("forget", oldest))
        try:
            self._together(Command("record", shape), *given)
            self._recorded[shape] = None
        except DevicePoisoned:
            raise
        except torch.OutOfMemoryError:
            self._plain.add(shape)
            self._recorded.clear()
            self._together(Command("forget"))
        except Exception as error:  # raised again by the call where recording was not at fault
            log.failure("a CUDA graph cannot be recorded", error)
            self._plain.add(shape)
            self._together(Command("forget", shape))

    def _together(self, command: Command, *given: torch.Tensor) -> torch.Tensor | None:
        """All do it. An error of anybody's is raised when all are done."""
        try:
            with self._patience(command):
                return self._done_together(command, *given)
        except HelperLost as lost:
            raise DevicePoisoned(str(lost)) from None

    def _patience(self, command: Command) -> AbstractContextManager[None]:
        # What is new may have to be compiled.
        new = command not in self._seen
        self._seen.add(command)
        return self._team.patient(self._team.settings.compile_allowance_s if new else 0.0)

    def _done_together(self, command: Command, *given: torch.Tensor) -> torch.Tensor | None:
        self._team.send(command)
        try:
            output = self._member.obey(command, *given)
        except Exception as error:
            fault = fault_of(error)
            if isinstance(fault, DevicePoisoned):
                raise fault from None  # the others wait for this card in vain
            self._team.receive()
            raise
        reply = self._team.receive()
        if reply.memory:
            raise torch.OutOfMemoryError(f"on another card: {reply.error}")
        if reply.error:
            fault = fault_of(RuntimeError(reply.error))
            raise fault if isinstance(fault, DevicePoisoned) else RuntimeError(reply.error)
        return output


def _link(world: int) -> links.Link:
    """The slowest between the cards of this process."""
    cards = [torch.cuda.get_device_properties(number) for number in range(world)]
    uuids = [f"GPU-{card.uuid}" for card in cards]
    return links.weakest(links.between(uuids), uuids)


def _quickest_s(call: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> float:
    """Of a few calls: others may be at work on these devices."""
    taken = []
    for _ in range(_TRIALS):
        began = time.perf_counter()
        call(*inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken)


def require_heads(transformer: Any, world: int) -> None:
    """``ModelLoadError`` unless each process has one at least."""
    heads = transformer.config.n_heads
    if world > heads:
        raise ModelLoadError(f"{world} devices for a model of {heads} heads", "name fewer devices")


def join(store: Path, rank: int, world: int, timeout_s: float) -> None:
    """Meet the other processes of this worker; returns when all have come."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else shall connect
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(store), world),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_s),
    )
