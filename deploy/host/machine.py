"""What this machine has, without torch: cores, memory, GPUs, nginx."""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from worker.bounds import GIB
from worker.models.parallel import links
from worker.models.parallel.links import Links

_QUERY = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version")
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "ceph", "cifs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"}
)
"""Those whose locks and shared memory SQLite cannot trust."""


@dataclass(frozen=True)
class Gpu:
    """One card, or one MIG slice of a card (then memory is 0: nvidia-smi does not list it)."""

    index: str
    uuid: str
    name: str
    memory_gib: float
    free_gib: float
    driver: str


@dataclass(frozen=True)
class Machine:
    cores: int
    memory_gib: float
    available_gib: float
    gpus: tuple[Gpu, ...]
    links: Links = field(default_factory=dict)
    """Between whole GPUs."""


@dataclass(frozen=True)
class NginxBinary:
    path: Path
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def read() -> Machine:
    """This machine, now. Containers' limits count: they are what the workers will meet."""
    total, available = _memory_gib()
    gpus = _gpus()
    whole = [gpu.uuid for gpu in gpus if gpu.uuid.startswith("GPU-")]
    return Machine(_cores(), total, available, gpus, links.between(whole) if len(whole) > 1 else {})


@functools.cache
def find_nginx(binary: str) -> NginxBinary | None:
    """``binary`` on PATH or in the sbin directories (not on every user's PATH)."""
    path = shutil.which(
        binary, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin"
    )
    if path is None:
        return None
    version = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", output_of(path, "-v"))
    if version is None:
        return None
    major, minor, patch = map(int, version.groups())
    return NginxBinary(Path(path), (major, minor, patch))


def file_system(path: Path) -> str:
    """Kind of the file system where ``path`` lies or would lie, such as ``ext4`` or ``nfs4``."""
    place = next(p for p in (path, *path.parents) if p.exists()).resolve()
    return mount_kind(place, _read(Path("/proc/self/mounts")))


def mount_kind(place: Path, mounts: str) -> str:
    """Kind of the last mount of ``mounts`` (as in /proc/self/mounts) above ``place``, or ""."""
    kinds: dict[Path, str] = {}
    for _, point, kind, *_ in (line.split() for line in mounts.splitlines()):
        # Blanks and the like stand there as three octal digits.
        plain = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point)
        kinds[Path(plain)] = kind
    return next((kinds[p] for p in (place, *place.parents) if p in kinds), "")


def parse_gpus(csv: str, listing: str) -> tuple[Gpu, ...]:
    """From ``nvidia-smi --query-gpu=… --format=csv,noheader,nounits`` and ``nvidia-smi -L``."""
    gpus = []
    for line in filter(str.strip, csv.splitlines()):
        index, uuid, name, total, free, driver = (cell.strip() for cell in line.split(","))
        gpus.append(Gpu(index, uuid, name, _gib(total), _gib(free), driver))
    return tuple(_with_slices(gpus, listing))


def _with_slices(gpus: list[Gpu], listing: str) -> list[Gpu]:
    # A card in MIG mode cannot be used whole: its slices take its place.
    slices: dict[str, list[Gpu]] = {}
    index = ""
    for line in listing.splitlines():
        if card := re.match(r"GPU (\d+):", line):
            index = card[1]
        elif part := re.match(r"\s+MIG (\S+)\s.*\(UUID: (MIG-[^)]+)\)", line):
            owner = next((g for g in gpus if g.index == index), None)
            driver = owner.driver if owner else ""
            slices.setdefault(index, []).append(
                Gpu(f"{index}:{len(slices.get(index, []))}", part[2], part[1], 0.0, 0.0, driver)
            )
    return [g for gpu in gpus for g in slices.get(gpu.index, [gpu])]


def _gpus() -> tuple[Gpu, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = f"--query-gpu={','.join(_QUERY)}"
    csv = output_of("nvidia-smi", query, "--format=csv,noheader,nounits")
    return parse_gpus(csv, output_of("nvidia-smi", "-L")) if "," in csv else ()


def output_of(*command: str) -> str:
    """What ``command`` printed; empty where it cannot be run or takes over 20 s."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + (done.stderr if done.returncode == 0 else "")


def _gib(mib: str) -> float:
    return round(float(mib) / 1024, 1) if mib.replace(".", "").isdigit() else 0.0


def _cores() -> int:
    allowed = len(os.sched_getaffinity(0))
    quota = _read(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdigit():
        return max(1, min(allowed, -(-int(quota[0]) // int(quota[1]))))
    return allowed


def _memory_gib() -> tuple[float, float]:
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit():
        used = _read(Path("/sys/fs/cgroup/memory.current")).strip()
        total = min(total, int(limit))
        available = min(available, int(limit) - int(used or 0))
    return total / GIB, available / GIB


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
