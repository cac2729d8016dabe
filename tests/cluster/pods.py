"""Pods without a kubelet: their very containers as processes, each in namespaces of its own, with
the pod's network, a read-only root, its user, its environment and its volumes.

The image is this checkout, laid over this machine's files as the Containerfile lays it over a
Debian's. Images, cgroups, seccomp and everything that a scheduler does are left out.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from deploy.config import ROOT
from loadtest.cluster.network import Namespace
from loadtest.waiting import until
from tests.deploy.chart.rendering import Document

PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "tini", "nginx")
_CONTAINERFILE = ROOT / "deploy" / "container" / "Containerfile"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INIT_S = 120.0
_ENTER = """
set -eu
root=$1 checkout=$2 hostname=$3 mounts=$4
shift 4
hostname "$hostname"
mkdir -p "$root"
mount -t tmpfs tmpfs "$root"
top=$root/top merged=$root/merged
mkdir -p "$merged" "$top/opt/zimage" "$top/usr/local/bin" "$top/root"
chmod 0755 "$top" "$top/root"
cp "$checkout/deploy/container/zimage" "$top/usr/local/bin/"
while read -r how from to; do mkdir -p "$top$to"; done <"$mounts"
# Without an upper layer it cannot be written to.
mount -t overlay -o "lowerdir=$top:/" overlay "$merged"
mount -t proc proc "$merged/proc"
mount --rbind /dev "$merged/dev"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$merged/dev/shm"
mount --bind -o ro "$checkout" "$merged/opt/zimage"
while read -r how from to; do
    mount --bind "$from" "$merged$to"
    mount -o "remount,bind,$how" "$merged$to"
done <"$mounts"
exec chroot "$merged" "$@"
"""


@dataclass
class Objects:
    """What pods refer to: ConfigMaps and Secrets by name, each with its files."""

    config_maps: dict[str, dict[str, str]]
    secrets: dict[str, dict[str, bytes]]

    @classmethod
    def of(cls, documents: list[Document], secrets: dict[str, dict[str, bytes]]) -> "Objects":
        maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
        return cls(maps, secrets)


@dataclass
class Pod:
    """``spec``: as rendered. ``claims``: a folder that outlives the pod, for claimed volumes."""

    name: str
    spec: Document
    objects: Objects
    machine: Namespace
    folder: Path
    claims: Path
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self) -> None:
        """The init containers to their end, then all others beside each other."""
        self.folder.mkdir()
        for container in self.spec.get("initContainers", ()):
            code = self._popen(container).wait(_INIT_S)
            assert code == 0, f"{self.name}: {container['name']}: {self.log(container['name'])}"
        for container in self.spec["containers"]:
            self.running[container["name"]] = self._popen(container)

    def run(self) -> str:
        """All of its containers to their end, as of a job; what the first one said."""
        self.start()
        for name, process in self.running.items():
            assert process.wait(_INIT_S) == 0, self.log(name)
        return self.log(next(iter(self.running)))

    def log(self, container: str = "zimage") -> str:
        return (self.folder / f"{container}.log").read_text("utf-8", "replace")

    # Probes

    def probe(self, what: str, container: str = "zimage") -> bool:
        """Whether ``what`` ("startupProbe" and so on) succeeds now."""
        told = self.container(container)[what]
        get = told["httpGet"]
        [port] = [
            each["containerPort"]
            for each in self.container(container)["ports"]
            if each["name"] == get["port"]
        ]
        url = f"{get['scheme'].lower()}://{self.machine.address}:{port}{get['path']}"
        try:
            return httpx.get(url, timeout=told["timeoutSeconds"]).status_code < 400
        except httpx.HTTPError:
            return False

    def wait_ready(self) -> None:
        """Started within what its probe allows, and ready."""
        startup = self.container("zimage")["startupProbe"]
        limit_s = startup["periodSeconds"] * startup["failureThreshold"]
        until(lambda: self._still_runs() and self.probe("startupProbe"), limit_s, "started", 0.5)
        until(lambda: self._still_runs() and self.probe("readinessProbe"), 60.0, "ready", 0.2)

    def _still_runs(self) -> bool:
        for name, process in self.running.items():
            assert process.poll() is None, f"{self.name}: {name} has ended: {self.log(name)}"
        return True

    # Ends

    def lose_power(self) -> None:
        """As a node does."""
        self.machine.unplug()
        self.kill()

    def kill(self) -> None:
        self.machine.kill_all()
        for process in self.running.values():
            process.wait()

    def end(self) -> float:
        """As a kubelet ends it: the hook, SIGTERM, and no longer than the grace; the seconds."""
        began, grace_s = time.monotonic(), float(self.spec["terminationGracePeriodSeconds"])
        for container in self.spec["containers"]:
            hook = container.get("lifecycle", {}).get("preStop")
            if hook:
                self.exec(*hook["exec"]["command"], container=container["name"])
        for name, process in self.running.items():
            with suppress(LookupError):
                subprocess.run(["kill", "-TERM", str(_first_child(process.pid))], check=False)
            left_s = grace_s - (time.monotonic() - began)
            code = process.wait(left_s)
            assert code == 0, f"{self.name}: {name} ended with {code}: {self.log(name)}"
        return time.monotonic() - began

    def exec(self, *command: str, container: str = "zimage", may_fail: bool = False) -> str:
        """As ``kubectl exec`` runs it; what it said."""
        of = _first_child(self.running[container].pid)
        enter = ["nsenter", "-t", str(of), "-m", "-u", "-n", "-p", "-r", "-w"]
        words = [*enter, *self._as_user(self.container(container)), *command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert may_fail or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def container(self, name: str) -> Document:
        every = [*self.spec.get("initContainers", ()), *self.spec["containers"]]
        found: Document = next(each for each in every if each["name"] == name)
        return found

    # Processes

    def _popen(self, container: Document) -> "subprocess.Popen[bytes]":
        mounts = self.folder / f"{container['name']}.mounts"
        mounts.write_text("".join(self._mounts(container)), "utf-8")
        entrypoint = [*_of_image("ENTRYPOINT"), *_of_image("CMD")]
        command = [*container.get("command", entrypoint), *container.get("args", ())]
        namespaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        root = self.folder / f"{container['name']}.root"
        enter = ["bash", "-c", _ENTER, "bash", str(root), str(ROOT), self.name, str(mounts)]
        with (self.folder / f"{container['name']}.log").open("ab") as log:
            return subprocess.Popen(
                [*self.machine.prefix, *namespaces, *enter, *self._as_user(container), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _as_user(self, container: Document) -> list[str]:
        """What a command begins with that runs as the container's user, in its environment."""
        security = self.spec["securityContext"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        user, group = str(security["runAsUser"]), str(security["runAsGroup"])
        groups = str(security["fsGroup"])
        setpriv = ["setpriv", "--reuid", user, "--regid", group, "--groups", groups]
        setpriv += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        told = {"PATH": _PATH, "HOME": "/var/lib/zimage", "HOSTNAME": self.name}
        told |= {each["name"]: self._value(each) for each in container.get("env", ())}
        words = [f"{name}={value}" for name, value in told.items()]
        return [*setpriv, "env", "-i", "-C", "/opt/zimage", *words]

    def _value(self, variable: Document) -> str:
        if "value" in variable:
            return str(variable["value"])
        fields = {"metadata.name": self.name, "status.podIP": self.machine.address}
        return fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]

    # Volumes

    def _mounts(self, container: Document) -> Iterator[str]:
        for mount in container["volumeMounts"]:
            how = "ro" if mount.get("readOnly") else "rw"
            yield f"{how} {self._volumes[mount['name']]} {mount['mountPath']}\n"

    @cached_property
    def _volumes(self) -> dict[str, Path]:
        """A folder of each, as a kubelet makes it."""
        told = {volume["name"]: volume for volume in self.spec["volumes"]}
        made = {name: self._volume(name, volume) for name, volume in told.items()}
        if "state" not in made:
            self.claims.mkdir(parents=True, exist_ok=True)
            self._shared(self.claims, 0o2775)
            made["state"] = self.claims
        return made

    def _volume(self, name: str, volume: dict[str, Any]) -> Path:
        folder = self.folder / "volumes" / name
        folder.mkdir(parents=True)
        if "emptyDir" in volume:
            self._shared(folder, 0o2777)
        elif "configMap" in volume:
            files = self.objects.config_maps[volume["configMap"]["name"]]
            self._write(folder, {key: text.encode() for key, text in files.items()}, 0o644)
        elif "secret" in volume:
            told = volume["secret"]
            self._write(folder, self.objects.secrets[told["secretName"]], told["defaultMode"])
        else:
            self._write(folder, self._projected(volume), volume["projected"]["defaultMode"])
        return folder

    def _projected(self, volume: dict[str, Any]) -> dict[str, bytes]:
        sources = [source["secret"] for source in volume["projected"]["sources"]]
        return {
            item["path"]: self.objects.secrets[source["name"]][item["key"]]
            for source in sources
            for item in source["items"]
        }

    def _shared(self, path: Path, mode: int) -> None:
        subprocess.run(["chown", f"0:{self.spec['securityContext']['fsGroup']}", path], check=True)
        path.chmod(mode)

    def _write(self, folder: Path, files: dict[str, bytes], mode: int) -> None:
        """Links to links, so that all change at once."""
        version = folder / "..1"
        version.mkdir()
        (folder / "..data").symlink_to(version.name)
        for name, content in files.items():
            (version / name).write_bytes(content)
            self._shared(version / name, mode)
            (folder / name).symlink_to(f"..data/{name}")
        for each in (folder, version):
            self._shared(each, 0o2755)


def _of_image(what: str) -> list[str]:
    text = _CONTAINERFILE.read_text("utf-8")
    words: list[str] = json.loads(re.findall(rf"^{what} (\[.*\])$", text, re.M)[-1])
    return words


def _first_child(pid: int) -> int:
    """Process 1 of the namespace that ``unshare`` has made. ``LookupError``: it has ended."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    if not text:
        raise LookupError(f"{pid} has no child")
    return int(text[0])
