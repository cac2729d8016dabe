"""A bare machine in a folder, as an installer leaves it: mmdebstrap makes it, namespaces run it."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_AROUND = """
set -eu
root=$1 network=$2 script=$3
shift 3
[ "$network" = yes ] || ip link set lo up
mount -t proc proc "$root/proc"
mount -t devpts devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for folder; do
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
done
exec chroot "$root" bash -c "$script"
"""
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}


@dataclass(frozen=True)
class BareMachine:
    root: Path

    def run(
        self,
        script: str,
        *,
        network: bool = False,
        environment: Mapping[str, str] | None = None,
        borrowed: tuple[str, ...] = (),
        timeout_s: float = 600,
    ) -> str:
        """What ``script`` says there, as root; all that it started ends with it.

        Without ``network`` there is loopback alone, and with it this machine's. ``borrowed`` are
        folders of this machine, which lie there at the same paths meanwhile.
        """
        away = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        away += [] if network else ["--net"]
        words = [str(self.root), "yes" if network else "no", script, *borrowed]
        done = subprocess.run(
            [*away, "bash", "-c", _AROUND, "bash", *words],
            env={**_ENVIRONMENT, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
        print(done.stdout)
        assert done.returncode == 0, done.stdout
        return done.stdout


@contextmanager
def bare_machine(
    folder: Path, suite: str, *options: str, mirror: str = ""
) -> Iterator[BareMachine]:
    """One of ``suite`` with nothing but apt, and what ``options`` of mmdebstrap include; it goes
    away with all that was installed there."""
    root = folder / "root"
    words = ["--variant=minbase", "--skip=cleanup/apt/lists", *options, suite, str(root)]
    try:
        subprocess.run(["mmdebstrap", *words, *filter(None, [mirror])], check=True, timeout=900)
        yield BareMachine(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
