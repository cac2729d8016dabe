"""Which workers run where, and why: configuration and machine in, a list out. Pure."""

from dataclasses import dataclass

from deploy.config import ClusterConfig, ConfigError, WorkerGroup
from deploy.layout import under_root
from deploy.machine import Gpu, Machine

CPU_WORKERS = 3
"""Enough to lose one, restart one and still draw; small models share a core without harm."""


@dataclass(frozen=True)
class WorkerPlan:
    """``device`` is ``cpu`` or a UUID; ``reason`` is for people."""

    name: str
    device: str
    device_name: str
    threads: int
    vram_limit_gib: float | None
    reason: str


@dataclass(frozen=True)
class Plan:
    workers: tuple[WorkerPlan, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(worker.name for worker in self.workers)


def plan(config: ClusterConfig, machine: Machine) -> Plan:
    """``ConfigError`` where the file asks for what the machine does not have."""
    groups, reason = _groups(config, machine)
    places = [(group, _gpu(group, machine)) for group in groups for _ in range(group.count)]
    _check(config, machine, places)
    share = max(1, machine.cores // len(places))
    return Plan(
        tuple(
            _worker(number, group, gpu, share, reason or _chosen(group, machine, share))
            for number, (group, gpu) in enumerate(places, start=1)
        )
    )


def model_source(config: ClusterConfig) -> str:
    """What a worker is given: folders absolute, everything else as written."""
    source = config.model.source
    return str(under_root(source)) if source.startswith(("/", "./", "../", "~")) else source


def _groups(config: ClusterConfig, machine: Machine) -> tuple[tuple[WorkerGroup, ...], str]:
    if config.workers != "auto":
        return config.workers, ""
    if machine.gpus:
        one_each = tuple(WorkerGroup(device=gpu.uuid) for gpu in machine.gpus)
        return one_each, "auto: one worker a GPU, with all of its memory"
    share = max(1, machine.cores // CPU_WORKERS)
    reason = (
        f"auto: no GPU, so {CPU_WORKERS} workers on the CPU; "
        f"{machine.cores} cores make {_threads(share)} each"
    )
    return (WorkerGroup(device="cpu", count=CPU_WORKERS),), reason


def _worker(
    number: int, group: WorkerGroup, gpu: Gpu | None, share: int, reason: str
) -> WorkerPlan:
    return WorkerPlan(
        name=f"w{number}",
        device=gpu.uuid if gpu else group.device,
        device_name=f"{gpu.name} ({gpu.index})" if gpu else "CPU",
        threads=share if group.threads == "auto" else group.threads,
        vram_limit_gib=None if group.vram_limit_gib == "auto" else group.vram_limit_gib,
        reason=reason,
    )


def _chosen(group: WorkerGroup, machine: Machine, share: int) -> str:
    limit = "" if group.vram_limit_gib == "auto" else f", {group.vram_limit_gib:g} GiB each"
    threads = (
        f"{machine.cores} cores make {_threads(share)} each"
        if group.threads == "auto"
        else f"{_threads(group.threads)} each"
    )
    return f"cluster.toml: {group.count} on {group.device}{limit}; {threads}"


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _gpu(group: WorkerGroup, machine: Machine) -> Gpu | None:
    return next((g for g in machine.gpus if group.device in (g.index, g.uuid)), None)


def _check(
    config: ClusterConfig, machine: Machine, places: list[tuple[WorkerGroup, Gpu | None]]
) -> None:
    groups = () if config.workers == "auto" else config.workers
    problems = [
        f"workers[{i}].device: this machine has no GPU {group.device}; {_have(machine)}"
        for i, group in enumerate(groups)
        if group.device != "cpu" and _gpu(group, machine) is None
    ]
    for gpu in machine.gpus:
        problems += _sharing_problems(gpu, [group for group, g in places if g == gpu])
    if problems:
        raise ConfigError(under_root("cluster.toml"), problems)


def _sharing_problems(gpu: Gpu, groups: list[WorkerGroup]) -> list[str]:
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
