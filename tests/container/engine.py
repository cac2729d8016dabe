"""podman as root and as an ordinary user, with images that no registry is needed for."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from deploy.config import ROOT

CONTAINERFILE = "deploy/container/Containerfile"
BASE = "localhost/zimage-base"
MIRROR = "http://deb.debian.org/debian"
_REQUIREMENTS = ROOT / "deploy" / "requirements"
_LISTS = ("torch-cpu", "kit", "alarms", "otel", "postgres", "s3")
_TORCH_INDEX = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
_CGROUP2 = (
    "mount --make-rprivate / && umount -Rl /sys/fs/cgroup && "
    'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
)
"""podman wants cgroups of version 2, which this machine may not have: then in a mount namespace."""


class EngineError(Exception):
    """What a command said that failed."""


class Engine:
    """Images and containers of ``user`` ("": who we are) below ``folder``, which stays from one run
    to the next: layers that have not changed are not built again."""

    def __init__(self, folder: Path, user: str = "") -> None:
        self.folder, self.user = folder, user
        folder.mkdir(mode=0o755, exist_ok=True)
        if user:
            owner = pwd.getpwnam(user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)

    def podman(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """What podman prints on standard output; ``EngineError``."""
        return run(self.command(*arguments), timeout_s)

    def command(self, *arguments: str) -> list[str]:
        """As ``podman`` runs it."""
        options = ("--cgroup-manager=cgroupfs", "--events-backend=file")
        podman = ["podman", *self._storage, *options, *arguments]
        return [*_with_cgroup2(), *self._as_user, *podman]

    def buildah(self, *arguments: str, timeout_s: float = 600.0) -> str:
        return run([*self._as_user, "buildah", *self._storage, *arguments], timeout_s)

    def start(self, name: str, image: str, *options: str, command: Iterable[str] = ()) -> None:
        """Run a container in the background: all of it read-only but the volume, 1 MiB of shared
        memory."""
        self.podman(
            "run", "-d", "--name", name, *LOCKED, "-v", f"{name}:/var/lib/zimage", *options,
            image, *command, timeout_s=540.0,
        )  # fmt: skip

    def logs(self, name: str) -> str:
        return self.podman("logs", name)

    def wait_for_log(self, name: str, text: str, timeout_s: float) -> str:
        """Its log, once ``text`` is in it; ``EngineError`` where it ends before."""
        end = time.monotonic() + timeout_s
        while text not in (log := self.logs(name)):
            state = self.podman("inspect", "-f", "{{.State.Status}}", name).strip()
            if state == "exited" or time.monotonic() > end:
                raise EngineError(f'{name} is {state} and did not say "{text}":\n{log}')
            time.sleep(1.0)
        return log

    def remove(self, name: str) -> None:
        """The container and its volume, whether or not they are there."""
        for words in (("rm", "-f", "-t", "0", name), ("volume", "rm", "-f", name)):
            try:
                self.podman(*words)
            except EngineError as error:
                print(error, file=sys.stderr)

    @property
    def _as_user(self) -> list[str]:
        if not self.user:
            return []
        environment = [f"HOME={self.folder}", f"XDG_RUNTIME_DIR={self.folder}/run"]
        return ["runuser", "-u", self.user, "--", "env", "-C", str(self.folder), *environment]

    @cached_property
    def _storage(self) -> list[str]:
        places = ["--root", f"{self.folder}/store", "--runroot", f"{self.folder}/run/c"]
        return [*places, "--storage-driver", "overlay"]

    # images

    def build(self, target: str) -> str:
        """The image of ``target``, on a base that Debian's packages make."""
        self._make_base()
        image = f"localhost/zimage-{target}"
        self.buildah(
            "bud", "--isolation", "chroot", "--format", "docker", "--layers", "--pull-never",
            "--build-arg", f"BASE={BASE}", "--build-arg", "PIP_NO_INDEX=1",
            "--build-context", f"wheels={self._wheels()}",
            "-f", str(ROOT / CONTAINERFILE), "--target", target, "-t", image, str(ROOT),
            timeout_s=1800.0,
        )  # fmt: skip
        return image

    def give(self, image: str, other: "Engine") -> None:
        """Copy an image to another user's."""
        archive = self.folder / "image.tar"
        archive.unlink(missing_ok=True)
        self.buildah("push", "-q", image, f"docker-archive:{archive}:{image}:latest")
        archive.chmod(0o644)
        other.podman("load", "-q", "-i", str(archive), timeout_s=900.0)
        archive.unlink()

    def _make_base(self) -> None:
        if BASE in self.buildah("images", "--format", "{{.Name}}").split():
            return
        with tempfile.TemporaryDirectory() as name:
            tar = f"{name}/base.tar"
            run(["mmdebstrap", "--variant=minbase", "bookworm", tar, MIRROR], 600.0)
            container = self.buildah("from", "scratch").strip()
            self.buildah("add", "-q", container, tar, "/")
            self.buildah("commit", "-q", "--rm", container, BASE)

    def _wheels(self) -> Path:
        """A folder with all packages, as this machine's pip finds them."""
        folder = self.folder / "wheels"
        lists = [word for name in _LISTS for word in ("-r", str(_REQUIREMENTS / f"{name}.txt"))]
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
        if sys.version_info[:2] != (3, 11):
            options += ["--python-version", "3.11"]  # of the base
        pip = [sys.executable, "-m", "pip", "--quiet", "download", *options, *lists]
        # What is there already; as this machine's pip is set up; from the authors of torch.
        for more in (["--no-index", "--find-links", str(folder)], [], _TORCH_INDEX):
            try:
                run([*pip, *more, "-d", str(folder)], 900.0)
                break
            except EngineError:
                if more is _TORCH_INDEX:
                    raise
        return folder


LOCKED = (
    "--read-only", "--read-only-tmpfs=false", "--shm-size", "1m",
    "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--network", "host", "--cgroups", "disabled",
    "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=16384:16384",
)  # fmt: skip
"""How images are run here: without any capability, and nothing but the volume can be written to."""


def run(command: list[str], timeout_s: float) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise EngineError(f"{' '.join(command)}: exit code {done.returncode}\n{said}")
    return done.stdout


def missing() -> str:
    """Of the programs that this needs."""
    wanted = ("buildah", "podman", "mmdebstrap", "crun", "unshare")
    return ", ".join(name for name in wanted if shutil.which(name) is None)


def _with_cgroup2() -> list[str]:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists() or os.getuid() != 0:
        return []
    return ["unshare", "-m", "sh", "-c", _CGROUP2, "sh"]
