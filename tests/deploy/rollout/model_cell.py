"""A cell in one file: what supervisord, guard and nginx would do, a moment at a time.

Commands run against it unchanged, in a child process that may be killed at any of their calls. Its
state is in files, so that the next command finds what the killed one left. A gate is a file here:
there while it is open.
"""

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deploy import rollout_record
from deploy.config import parse
from deploy.guard.journal import Journal
from deploy.guard.left_behind import LeftBehind
from deploy.guard.troubles import Troubles
from deploy.host import processes
from deploy.layout import Layout
from deploy.rendering.render import NGINX_DIGEST
from deploy.rollout import converge, interrupts, nginx_digest, operation, roll
from deploy.supervision.supervise import Changes, ProgramState

CODE = "c0de"


class ModelCell:
    """``wanted``: version of each worker that the plan has. ``broken`` ones never start."""

    certificate = None
    url = "http://model/"

    def __init__(self, folder: Path, wanted: dict[str, str]) -> None:
        self.layout = Layout(folder, folder / "run")
        limits = {"up_timeout_s": 5, "load_allowance_s": 2, "compile_allowance_s": 2}
        self.config = parse(
            {"cell": {"var_dir": str(folder)}, "audit": {"log": False}, "timeouts": limits}
        )
        self.host = SimpleNamespace(worker_code=CODE, nginx_path="/usr/sbin/nginx")
        self.supervisor = self
        self.wanted = wanted
        self.left_until_the_end = -1  # calls
        self.end: Callable[[], None] = lambda: None
        self._file = folder / "model.json"

    @property
    def plan(self) -> Any:
        names = tuple(self.wanted)
        workers = [SimpleNamespace(name=name, model="") for name in names]
        return SimpleNamespace(names=names, gates=frozenset(names), workers=workers)

    def begin(self) -> None:
        """The first ``up`` is done."""
        self.layout.create()
        processes.record(self.layout.processes, os.getpid())
        rendered = self.rendered()
        for name, text in rendered.items():
            path = self.layout.render_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        names = list(self.wanted)
        self._write(
            programs={
                n: ["RUNNING", v] for n, v in {**self.wanted, "guard": "", "nginx": ""}.items()
            },
            guarded=names,
            settings=_digest(rendered["guard.json"]),
            nginx=names,
            nobody=False,
        )
        self.tick()

    def rendered(self) -> dict[str, str]:
        names = list(self.wanted)
        return {
            "supervisord.conf": "own\n[program:all]\n" + json.dumps(self.wanted),
            "guard.json": json.dumps(names),
            NGINX_DIGEST: f"return 200 {','.join(names)};\n",
        }

    # What goes on beside the command

    def tick(self) -> None:
        """A moment passes: the guard looks at every worker that it knows."""
        model = self.model
        for name in model["guarded"]:
            runs = model["programs"].get(name, ["STOPPED"])[0] == "RUNNING"
            drained = self.layout.drained_flag(name).exists()
            gate = self.layout.gate(name)
            gate.touch() if runs and not drained else gate.unlink(missing_ok=True)
        drawing = [n for n in model["nginx"] if self._draws(n)]
        self._write(**{**model, "nobody": model["nobody"] or not drawing})

    def heal(self) -> None:
        """The guard's turn after a command is gone. It has died, too, and is there again."""
        self._start_guard()
        journal = Journal()
        left = LeftBehind(self.layout, journal, Troubles(journal))
        left._clear()
        for name in left.stopped():
            if self.model["programs"].get(name, [""])[0] == "STOPPED":
                self._set(name, "RUNNING")
        self.tick()
        self.tick()

    @property
    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file.read_text())
        return found

    def _draws(self, name: str) -> bool:
        state = self.model["programs"].get(name, ["STOPPED"])[0]
        return self.layout.gate(name).exists() and state == "RUNNING"

    def _write(self, **model: Any) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(model))
        fresh.replace(self._file)

    def _set(self, name: str, state: str, version: str | None = None) -> None:
        model = self.model
        before = model["programs"].get(name, ["STOPPED", ""])
        model["programs"][name] = [state, before[1] if version is None else version]
        self._write(**model)

    def _call(self) -> None:
        self.tick()
        self.left_until_the_end -= 1
        if self.left_until_the_end == 0:
            self.end()

    # supervisord

    def answers(self) -> bool:
        return True

    def states(self) -> dict[str, ProgramState]:
        self._call()
        return self.programs()

    def reread(self) -> Changes:
        self._call()
        file = self._on_disk()
        runs = {n: p[1] for n, p in self.model["programs"].items() if n not in {"guard", "nginx"}}
        return Changes(
            tuple(n for n in file if n not in runs),
            tuple(n for n in file if n in runs and file[n] != runs[n]),
            tuple(n for n in runs if n not in file),
        )

    def start(self, name: str) -> None:
        self._call()
        broken = self.model["programs"].get(name, ["", ""])[1] == "broken"
        self._set(name, "FATAL" if broken else "RUNNING")
        if name == "guard":
            self._start_guard()

    def _start_guard(self) -> None:
        text = self.layout.guard_json.read_text()
        changes = {"guarded": json.loads(text), "settings": _digest(text)}
        self._write(**{**self.model, **changes})

    def stop(self, name: str, timeout_s: float) -> None:
        self._call()
        self._set(name, "STOPPED")
        self._call()

    def add(self, name: str) -> None:
        self._call()
        self._set(name, "STOPPED", self._on_disk()[name])

    def remove(self, name: str) -> None:
        self._call()
        model = self.model
        del model["programs"][name]
        self._write(**model)

    def renew(self, name: str) -> None:
        self._call()
        self._set(name, "STOPPED", self._on_disk().get(name, ""))
        self.start(name)

    def signal(self, name: str, signum: str) -> None:
        self._call()
        assert (name, signum) == ("nginx", "HUP")
        self._write(**{**self.model, "nginx": self._digest().split(",")})

    def _on_disk(self) -> dict[str, str]:
        text = self.layout.supervisord_conf.read_text().split("[program:all]\n")[1]
        found: dict[str, str] = json.loads(text)
        return found

    def _digest(self) -> str:
        return nginx_digest.rendered(self)  # type: ignore[arg-type]

    # The cell as commands see it

    def programs(self) -> dict[str, ProgramState]:
        programs = self.model["programs"].items()
        return {n: ProgramState(n, p[0], 1, 0.0, 0, "") for n, p in programs}

    def state(self) -> dict[str, Any]:
        self._call()
        return {"at": time.time() + 1, "stale": False, "settings": self.model["settings"]}

    def workers(self) -> dict[str, dict[str, Any]]:
        self._call()
        return {name: self._worker(name) for name in self.model["guarded"]}

    def _worker(self, name: str) -> dict[str, Any]:
        program = self.model["programs"].get(name, ["STOPPED"])[0]
        drained = self.layout.drained_flag(name).exists()
        state = (
            "drained" if drained else {"RUNNING": "ready", "FATAL": "fatal"}.get(program, "dead")
        )
        return {"name": name, "state": state, "open": self._draws(name), "code": CODE}

    def log_tail(self, program: str, lines: int = 12) -> str:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _no_clock(cell: ModelCell) -> Iterator[None]:
    """Moments pass by ticks; what nginx runs with, the model says."""
    passed = [0.0]

    def sleep(seconds: float) -> None:
        passed[0] += seconds
        cell.tick()

    time.sleep, time.monotonic = sleep, lambda: passed[0]  # type: ignore[assignment]
    processes._all = list  # no orphans; this machine may have thousands of processes
    os.fsync = lambda _: None  # type: ignore[assignment]
    nginx_digest.running = lambda cell: ",".join(cell.model["nginx"])  # type: ignore[attr-defined]
    yield


def run(cell: ModelCell, words: list[str], calls: int, how: str) -> int:
    """A command on ``cell``, ended at its call number ``calls``; its exit code as of a shell."""
    child = os.fork()
    if child == 0:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os._exit(_command(cell, words, calls, how))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _command(cell: ModelCell, words: list[str], calls: int, how: str) -> int:
    def end() -> None:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        interrupts._signals.handle(signal.SIGTERM, None)

    interrupts._signals.raised = False
    cell.left_until_the_end, cell.end = calls, end
    kind: rollout_record.Kind = "up" if words[0] == "up" else "restart"
    try:
        with _no_clock(cell), operation.begin(cell, kind, " ".join(words), words[1:]) as rollout:  # type: ignore[arg-type]
            if kind == "up":
                converge.apply(rollout, cell.rendered())
                converge.wait_ready(cell)  # type: ignore[arg-type]
            else:
                roll.restart(rollout, words[1:])
    except interrupts.Interrupted:
        return 143
    except BaseException:
        return 1
    return 0
