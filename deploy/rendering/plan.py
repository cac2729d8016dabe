"""Which workers run where, and why: configuration and machine in, a list out. Pure."""

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median_low

from deploy import links
from deploy.config import ClusterConfig, ConfigError, WorkerGroup
from deploy.host.machine import Gpu, Machine
from deploy.layout import under_root
from deploy.rendering import placement
from worker.models.parallel.links import Link, weakest

CPU_WORKERS = 3
"""Enough to lose one, restart one and still draw; small models share a core without harm."""

SPARE_LINKS = 8
"""So many hosts join a front before it must be rendered anew, which takes a reload of nginx."""

CPU_PIXELS = 1024 * 1024
GPU_PIXELS = 1792 * 1024
"""The largest size of OpenAI's dall-e and first gpt-image models; too slow on a CPU."""


@dataclass(frozen=True)
class WorkerPlan:
    """``device`` is ``cpu`` or a UUID, or several with commas between them; ``reason`` is for
    people. ``max_pixels``: of a picture. ``model``: its name, where the cell has several."""

    name: str
    device: str
    device_name: str
    threads: int
    vram_limit_gib: float | None
    max_pixels: int
    reason: str
    model: str = ""

    @property
    def devices(self) -> tuple[str, ...]:
        """Each of ``device``."""
        return tuple(self.device.split(","))


@dataclass(frozen=True)
class LinkPlan:
    """A place for a host in a front's pool. ``weight``: how many workers it has. ``spare``: no host
    had it when this was planned."""

    name: str
    weight: int
    spare: bool = False

    @property
    def reading(self) -> str:
        """Its other gate, which stays open while the host is full."""
        return links.reading(self.name)


@dataclass(frozen=True)
class Plan:
    workers: tuple[WorkerPlan, ...]
    links: tuple[LinkPlan, ...] = ()
    """Of a front, to hosts; spare ones included."""
    serves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The models of each link's host, by nginx's names of their pools; empty where all have the
    same."""

    @property
    def host_pools(self) -> dict[str, list[LinkPlan]]:
        """Links by the models that their hosts have, where these differ."""
        models = sorted({pool for pools in self.serves.values() for pool in pools})
        return {
            pool: [link for link in self.links if pool in self.serves.get(link.name, ())]
            for pool in models
        }

    @property
    def gates(self) -> frozenset[str]:
        """All that nginx's upstreams name."""
        of_links = [name for link in self.links for name in (link.name, link.reading)]
        return frozenset((*self.names, *of_links, *([links.SOONEST] if self.links else [])))

    @property
    def programs(self) -> str:
        """What supervisord starts, for people."""
        count = len(self.workers)
        workers = f"{count} worker{'s' if count != 1 else ''}, " if count else ""
        return f"{workers}guard and nginx"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(worker.name for worker in self.workers)


def plan(
    config: ClusterConfig,
    machine: Machine,
    used: Mapping[str, int] | None = None,
    waiting: int = 0,
    out: Collection[str] = (),
    serves: Mapping[str, tuple[str, ...]] | None = None,
) -> Plan:
    """``ConfigError`` where the file asks for what the machine does not have. ``used``: the links
    that a front has in use, with the number of the host's workers; ``out``: those of hosts that are
    out for long; ``waiting``: hosts without; ``serves``: see ``Plan``."""
    front = _links(used or {}, waiting, out) if config.cluster.fronts else ()
    workers = _workers(config, machine) if config.cluster.draws else ()
    return Plan(workers, front, dict(serves or {}))


def _links(used: Mapping[str, int], waiting: int, out: Collection[str]) -> tuple[LinkPlan, ...]:
    """Those that have a host, one for each host that waits, and the spare ones."""
    names = (f"h{number}" for number in itertools.count(1))
    free = (name for name in names if name not in used and name not in out)
    return link_plans([*used, *out, *itertools.islice(free, SPARE_LINKS + waiting)], used)


def link_plans(names: Iterable[str], used: Mapping[str, int]) -> tuple[LinkPlan, ...]:
    """Of ``names``, by number. A host like most others takes one of those that are not ``used``."""
    usual = median_low(used.values()) if used else 1
    return tuple(
        LinkPlan(name, max(1, used.get(name, usual)), name not in used)
        for name in sorted(names, key=lambda name: int(name[1:]))
    )


def _workers(config: ClusterConfig, machine: Machine) -> tuple[WorkerPlan, ...]:
    groups, reason = _groups(config, machine)
    places = [(group, _gpus(group, machine)) for group in groups for _ in range(group.count)]
    _check(config, machine, places)
    share = max(1, machine.cores // len(places))
    pixels = _max_pixels(config, places)
    return tuple(
        _worker(
            number,
            group,
            gpus,
            share,
            pixels,
            reason or _chosen(group, machine, share),
            config.model_of(group.model).name if config.several else "",
        )
        for number, (group, gpus) in enumerate(places, start=1)
    )


def _groups(config: ClusterConfig, machine: Machine) -> tuple[tuple[WorkerGroup, ...], str]:
    if config.workers != "auto":
        return config.workers, ""
    if config.several:
        return _groups_of_several(config, machine)
    if machine.gpus:
        one_each = tuple(WorkerGroup(device=gpu.uuid) for gpu in machine.gpus)
        return one_each, "auto: one worker a GPU, with all of its memory"
    share = max(1, machine.cores // CPU_WORKERS)
    reason = (
        f"auto: no GPU, so {CPU_WORKERS} workers on the CPU; "
        f"{machine.cores} cores make {_threads(share)} each"
    )
    return (WorkerGroup(device="cpu", count=CPU_WORKERS),), reason


def _groups_of_several(
    config: ClusterConfig, machine: Machine
) -> tuple[tuple[WorkerGroup, ...], str]:
    if not machine.gpus:
        groups = placement.on_cpu(config, CPU_WORKERS)
        count = sum(group.count for group in groups)
        return groups, f"auto: no GPU, so {count} workers on the CPU, divided among the models"
    try:
        groups = placement.on_gpus(config, machine.gpus)
    except ValueError as error:
        raise ConfigError(under_root("cluster.toml"), [f"models: {error}"]) from None
    sliced = any(group.vram_limit_gib != "auto" for group in groups)
    how = "a slice of a GPU by what it needs" if sliced else "GPUs of its own"
    return groups, f"auto: each model has {how}"


def _max_pixels(config: ClusterConfig, places: list[tuple[WorkerGroup, tuple[Gpu, ...]]]) -> int:
    """Of every worker the same: any may be asked."""
    asked = config.limits.request.max_pixels
    if asked != "auto":
        return asked
    return GPU_PIXELS if all(gpus for _, gpus in places) else CPU_PIXELS


def _worker(
    number: int,
    group: WorkerGroup,
    gpus: tuple[Gpu, ...],
    share: int,
    max_pixels: int,
    reason: str,
    model: str,
) -> WorkerPlan:
    return WorkerPlan(
        name=f"w{number}",
        device=",".join(gpu.uuid for gpu in gpus) or ",".join(group.places),
        device_name=" + ".join(f"{gpu.name} ({gpu.index})" for gpu in gpus) or "CPU",
        threads=share if group.threads == "auto" else group.threads,
        vram_limit_gib=None if group.vram_limit_gib == "auto" else group.vram_limit_gib,
        max_pixels=max_pixels,
        reason=reason,
        model=model,
    )


def _chosen(group: WorkerGroup, machine: Machine, share: int) -> str:
    limit = "" if group.vram_limit_gib == "auto" else f", {group.vram_limit_gib:g} GiB each"
    threads = (
        f"{machine.cores} cores make {_threads(share)} each"
        if group.threads == "auto"
        else f"{_threads(group.threads)} each"
    )
    if len(group.places) == 1:
        return f"cluster.toml: {group.count} on {group.device}{limit}; {threads}"
    return f"cluster.toml: each picture on {_joined(group, machine)}{limit}; {threads}"


def _joined(group: WorkerGroup, machine: Machine) -> str:
    count = len(group.places)
    if group.places[0] == "cpu":
        return f"{count} processes of the CPU, which is slower than one"
    cost = "the shortest wait, for 10 to 15 % fewer pictures a second than from a worker each"
    if _link(group, machine) != "NVLink":
        cost = "over PCIe; its start measures that, and fails where one GPU is quicker"
    return f"{count} GPUs ({', '.join(group.places)}): {cost}"


def _link(group: WorkerGroup, machine: Machine) -> Link:
    return weakest(machine.links, [gpu.uuid for gpu in _gpus(group, machine)])


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _gpus(group: WorkerGroup, machine: Machine) -> tuple[Gpu, ...]:
    """Those that there are, in the order of the file."""
    found = (_gpu(device, machine) for device in group.places)
    return tuple(gpu for gpu in found if gpu is not None)


def _gpu(device: str, machine: Machine) -> Gpu | None:
    return next((g for g in machine.gpus if device in (g.index, g.uuid)), None)


def _check(
    config: ClusterConfig, machine: Machine, places: list[tuple[WorkerGroup, tuple[Gpu, ...]]]
) -> None:
    groups = () if config.workers == "auto" else config.workers
    problems = [
        f"workers[{i}].{key}: this machine has no GPU {device}; {_have(machine)}"
        for i, group in enumerate(groups)
        for key in ["devices" if group.devices else "device"]
        for device in group.places
        if device != "cpu" and _gpu(device, machine) is None
    ]
    for i, group in enumerate(groups):
        if not problems and len(group.places) > 1:
            problems += _joining_problems(f"workers[{i}].devices", group, machine)
    for gpu in machine.gpus:
        problems += _sharing_problems(gpu, [group for group, gpus in places if gpu in gpus])
    if problems:
        raise ConfigError(under_root("cluster.toml"), problems)


def _joining_problems(key: str, group: WorkerGroup, machine: Machine) -> list[str]:
    gpus, each = _gpus(group, machine), "or give each a worker of its own"
    if group.places[0] == "cpu":
        return []
    if len(set(gpus)) < len(gpus):  # once by number, once by UUID
        return [f"{key}: a GPU is named twice; name each once"]
    if any(gpu.uuid.startswith("MIG-") for gpu in gpus):
        return [f"{key}: slices of GPUs cannot be joined; name whole GPUs, {each}"]
    if _link(group, machine) == "none":
        names = ", ".join(gpu.index for gpu in gpus)
        return [f"{key}: GPUs {names} cannot write to each other's memory; name others, {each}"]
    return []


def _sharing_problems(gpu: Gpu, groups: list[WorkerGroup]) -> list[str]:
    if sum(bool(group.devices) for group in groups) > 1:
        return [
            f"workers: GPU {gpu.index} belongs to two workers of several GPUs; "
            "they would wait for each other: name it in one of them"
        ]
    limits = [g.vram_limit_gib for g in groups]
    total = sum(limit for limit in limits if limit != "auto")
    if len(limits) > 1 and "auto" in limits:
        # The same card named once by number and once by UUID.
        return [
            f"workers: GPU {gpu.index} ({gpu.uuid}) is shared without limits; "
            "set vram_limit_gib for each of its workers"
        ]
    if gpu.memory_gib and total > gpu.memory_gib:
        return [
            f"workers: {total:g} GiB are planned on GPU {gpu.index}, which has "
            f"{gpu.memory_gib:g} GiB; lower vram_limit_gib or count"
        ]
    return []


def _have(machine: Machine) -> str:
    if not machine.gpus:
        return 'nvidia-smi lists none here: write device = "cpu", or mend the driver'
    return "it has " + ", ".join(f'"{g.index}" {g.name}' for g in machine.gpus)
