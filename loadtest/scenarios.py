"""The scenarios. Each plays on a stage and leaves figures in ``stage.measured``."""

import contextlib
import itertools
import re
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.config import ROOT
from deploy.host import processes
from loadtest import gradio_server, measures, mixture, shapes
from loadtest.client import session_of
from loadtest.faults import Cell
from loadtest.run_file import Part
from loadtest.runner import Runner, RunnerError, drained

_ARRIVALS = "arrivals.py"
_PEOPLE = ("Designer", "Program", "Batch")
_CAPACITY_P95_S = 10.0
_MAX_STEPS = 20
_USERS_PER_WORKER = 8
_POLL_S = 0.2
_SWEEP_S = 30.0  # answers that nginx has sent are deleted some seconds later


def throughput(stage: Runner) -> None:
    """1, 2, 3 … workers under the same load a worker: the scaling curve."""
    names = sorted(stage.cell.open())
    duration_s = stage.options.duration_s or 30.0
    try:
        for name in names[1:]:
            stage.zimage(f"drain {name}", "drain", name)
        for count in range(1, len(names) + 1):
            if count > 1:
                stage.zimage(f"undrain {names[count - 1]}", "undrain", names[count - 1])
            users = count * (stage.options.users or _USERS_PER_WORKER)
            plural = "s" if count > 1 else ""
            stage.play(f"{count} worker{plural}", users, duration_s, "Single", file=_ARRIVALS)
    finally:
        for name in names[1:]:
            stage.zimage(f"undrain {name}", "undrain", name)
    rates = [part.measured["pictures_per_s"] for part in stage.parts]
    for count, rate in enumerate(rates, start=1):
        stage.measured[f"pictures_per_s_{count}"] = rate
        stage.measured[f"efficiency_{count}"] = rate / (count * rates[0]) if rates[0] else 0.0


def failover(stage: Runner) -> None:
    """20 users for 2 minutes, a random fault every 10 s."""
    duration_s = stage.options.duration_s or 120.0
    with stage.load(stage.options.users or 20, duration_s, *_PEOPLE) as part:
        part.name = "failover"
        stage.inject_until(part.start + duration_s)
    stage.measured |= measures.of_faults(stage.faults)


def faults(stage: Runner) -> None:
    """Every fault once, one after the other, under light load: what users see of each."""
    with stage.load(stage.options.users or 6, stage.options.duration_s or 3600.0, *_PEOPLE) as part:
        part.name = "faults"
        time.sleep(5)
        stage.inject_each()
        stage.stop_load()
    stage.measured |= measures.of_faults(stage.faults)
    stage.measured |= measures.apart(stage.records(), stage.faults)


def basics(stage: Runner) -> None:
    """A worker is killed, hangs, is stopped and is drained under load: nothing is lost."""
    with stage.load(stage.options.users or 6, stage.options.duration_s or 3600.0, *_PEOPLE) as part:
        part.name = "basics"
        time.sleep(5)
        stage.inject_each("kill", "step-hangs", "stop")
        worker = stage.cell.workers()[0]
        stage.zimage(f"drain {worker}", "drain", worker)
        stage.zimage(f"undrain {worker}", "undrain", worker)
        stage.stop_load()
    stage.measured |= measures.of_faults(stage.faults)
    stage.measured["changes_failed"] = float(sum(bool(mark.error) for mark in stage.marks))


def mixed(stage: Runner) -> None:
    """Pictures from text, from pictures, within masks and with adapters, while a worker is killed,
    hangs, is drained, and all are restarted: nothing is lost, and each is the right one."""
    duration_s = stage.options.duration_s or 3600.0
    with adapters(stage), stage.load(
        stage.options.users or 8, duration_s, "Mixed", file="mixed_users.py"
    ) as part:  # fmt: skip
        part.name = "mixed"
        _wait_for_records(stage, part)
        stage.inject_each("kill", "step-hangs")
        worker = stage.cell.workers()[0]
        stage.zimage(f"drain {worker}", "drain", worker)
        stage.zimage(f"undrain {worker}", "undrain", worker)
        stage.zimage("rolling restart", "restart", "--rolling")
        stage.stop_load()
    stage.measured |= measures.of_faults(stage.faults)
    stage.measured |= measures.by_kind(stage.records(), (*mixture.KINDS, "upload"))
    stage.measured["changes_failed"] = float(sum(bool(mark.error) for mark in stage.marks))


@contextlib.contextmanager
def adapters(stage: Runner) -> Iterator[None]:
    """The cell has those of the mixture, under names of its own."""
    try:
        for file, name in mixture.ADAPTERS.items():
            path = str(ROOT / "tinymodel" / "loras" / f"{file}.safetensors")
            mark = stage.zimage(f"adapter {name}", "loras", "add", path, "--name", name)
            if mark.error:
                raise RunnerError(mark.error)
        yield
    finally:
        for name in mixture.ADAPTERS.values():
            stage.zimage(f"without {name}", "loras", "remove", name)


def rolling(stage: Runner) -> None:
    """A rolling restart and two changes of configuration under load."""
    longest_s = stage.options.duration_s or 1800.0
    changed = stage.folder / "cluster.toml"
    text = stage.config_path.read_text(encoding="utf-8")
    limits = stage.config.limits.request
    changes = [
        ("max_steps", _table_of_steps(text), limits.max_steps - 1, "workers change, one by one"),
        ("keepalive_timeout_s", "nginx", 70.5, "nginx changes: a reload"),
    ]
    with stage.load(stage.options.users or 12, longest_s, *_PEOPLE) as part:
        part.name = "rolling"
        time.sleep(5)
        stage.zimage("rolling restart", "restart", "--rolling")
        for key, table, value, what in changes:
            text = edited(text, table, key, value)
            changed.write_text(text, encoding="utf-8")
            stage.zimage(what, "up", "--no-draw", "--config", str(changed))
        stage.zimage("back to the configuration before", "up", "--no-draw")
        time.sleep(5)
        stage.stop_load()
    stage.measured["changes_failed"] = float(sum(bool(mark.error) for mark in stage.marks))
    stage.measured["changes_s"] = max(mark.end for mark in stage.marks) - stage.marks[0].at


def overload(stage: Runner) -> None:
    """Three times the capacity, as long as requests may queue, by arrivals that wait for nobody."""
    # In half of that the queue is as long as it may be, and the rest is refused.
    duration_s = stage.options.duration_s or max(60.0, stage.config.limits.worker.max_queue_wait_s)
    users = len(stage.cell.open()) * _USERS_PER_WORKER
    before = stage.play("capacity", users, min(20.0, duration_s), "Single", file=_ARRIVALS)
    capacity = before.measured["requests_per_s"]
    _wait_for_quiet(stage)
    rate = ("--arrivals-per-s", f"{3 * capacity:.3f}", "Crowd")
    with stage.load(1, duration_s, *rate, file=_ARRIVALS) as part:
        part.name = "three times the capacity"
        _wait_for_arrivals(stage, part, duration_s)
        over_at = time.time()
        stage.measured["accepts_again_s"] = _accepts_again(stage.cell)
    _wait_for_quiet(stage)
    # The figures of accepted requests under overload, not of those before.
    stage.measured |= part.measured
    stage.measured["capacity_per_s"] = capacity
    waited_s = drained(stage.observer.queue, over_at)
    if waited_s is not None:
        stage.measured["drained_s"] = waited_s


def soak(stage: Runner) -> None:
    """Many requests without a fault: nothing may grow."""
    users = stage.options.users or len(stage.cell.open()) * _USERS_PER_WORKER
    pids = {name: stage.cell.pid(name) for name in stage.cell.workers()}
    trial = stage.play("trial", users, 20.0, *_PEOPLE)
    left = stage.options.requests - trial.measured["requests"]
    rate = trial.measured["requests"] / (trial.end - trial.start)
    while left > 0:
        part = stage.play("soak", users, max(10.0, 1.05 * left / rate), *_PEOPLE)
        left -= part.measured["requests"]
    stage.measured["restarts"] = float(sum(stage.cell.pid(name) != pids[name] for name in pids))
    time.sleep(_SWEEP_S)
    observer = stage.observer
    stage.measured |= measures.of_resources(observer.resources)
    stage.measured["temporary_files_growth"] = measures.growth(observer.temporary_files)
    stage.measured["temporary_files_left"] = float(observer.temporary_files[-1][1])


def capacity(stage: Runner) -> None:
    """More and more users until p95 passes 10 s or a request fails."""
    step_s, step = stage.options.duration_s or 20.0, stage.options.users or 3
    options = ("--shape", "steps", "--step-s", str(step_s), "--max-latency-s", str(_CAPACITY_P95_S))
    whole = stage.play("steps", step, _MAX_STEPS * step_s, *options, "Single", file=_ARRIVALS)
    steps = stage.split(whole, step_s, lambda k: f"{step * (k + 1)} users")
    held = list(itertools.takewhile(_held, steps))
    stage.measured["capacity_users"] = float(step * len(held))
    stage.measured["capacity_per_s"] = max(
        (part.measured["requests_per_s"] for part in held), default=0.0
    )


def spike(stage: Runner) -> None:
    """A few users, five times as many for a third of the time, and a few again."""
    duration_s, users = stage.options.duration_s or 90.0, stage.options.users or 20
    whole = stage.play("spike", users, duration_s, "--shape", "spike", *_PEOPLE)
    stage.split(whole, duration_s / 3, ("before", "spike", "after").__getitem__)
    over_at = whole.start + 2 * duration_s / 3
    calm = drained(stage.observer.queue, over_at, shapes.few(users))
    if calm is not None:
        stage.measured["calm_again_s"] = calm


def day(stage: Runner) -> None:
    """From night over noon to night, in minutes."""
    duration_s, users = stage.options.duration_s or 240.0, stage.options.users or 20
    stage.play("day", users, duration_s, "--shape", "day", *_PEOPLE)


def side_by_side(stage: Runner) -> None:
    """The same load on the cell and on one Gradio process with its queue, over the same model."""
    gradio_server.require()
    duration_s, users = stage.options.duration_s or 60.0, stage.options.users or 10
    ours = stage.play("this cell", users, duration_s, "Single", file=_ARRIVALS)
    _wait_for_quiet(stage)
    with gradio_server.started(stage.config, stage.folder) as url:
        theirs = stage.play(
            "one Gradio process", users, duration_s, "--gradio", url, "GradioSingle",
            file="gradio_users.py",
        )  # fmt: skip
    for name in ("pictures_per_s", "p50_s", "p95_s"):
        stage.measured[f"cell_{name}"] = ours.measured[name]
        stage.measured[f"gradio_{name}"] = theirs.measured[name]
    rates = ours.measured["pictures_per_s"], theirs.measured["pictures_per_s"]
    stage.measured["throughput_ratio"] = rates[0] / rates[1]
    stage.measured["gradio_failed"] = theirs.measured["failed"]
    stage.measured["failed"] = ours.measured["failed"]


SCENARIOS: dict[str, Callable[[Runner], None]] = {
    "throughput": throughput,
    "failover": failover,
    "faults": faults,
    "basics": basics,
    "mixed": mixed,
    "rolling": rolling,
    "overload": overload,
    "soak": soak,
    "capacity": capacity,
    "spike": spike,
    "day": day,
    "side-by-side": side_by_side,
}


def _held(part: Part) -> bool:
    return part.measured["p95_s"] <= _CAPACITY_P95_S and not part.measured["failed"]


def _table_of_steps(text: str) -> str:
    """Where ``max_steps`` stands: a file may have its old place."""
    old = "max_steps" in tomllib.loads(text).get("limits", {})
    return "limits" if old else "limits.request"


def edited(text: str, table: str, key: str, value: float) -> str:
    """``cluster.toml`` with one key changed, wherever it stands or is missing."""
    head = re.search(rf"^\[{table}\][^\n]*\n", text, re.MULTILINE)
    if head is None:
        return f"{text}\n[{table}]\n{key} = {value}\n"
    rest = text[head.end() :]
    end = re.search(r"^\[", rest, re.MULTILINE)
    body = rest[: end.start()] if end else rest
    without = re.sub(rf"^{key}\s*=[^\n]*\n", "", body, flags=re.MULTILINE)
    return f"{text[: head.end()]}{key} = {value}\n{without}{rest[len(body) :]}"


def _wait_for_records(stage: Runner, part: Part, timeout_s: float = 60.0) -> None:
    """Until the first user has an answer."""
    part_file = stage.folder / f"part-{stage.parts.index(part)}.jsonl"
    if not processes.wait_for(part_file.exists, timeout_s):
        raise RunnerError(f"no answer after {timeout_s:g} s: see {stage.folder}/locust.log")


def _wait_for_arrivals(stage: Runner, part: Part, duration_s: float) -> None:
    """Until the crowd has sent its last: ``duration_s`` after Locust sent its first."""
    _wait_for_records(stage, part)
    time.sleep(max(0.0, part.start + duration_s + 2.0 - time.time()))


def _accepts_again(cell: Cell) -> float:
    """Seconds until a request is taken and not refused."""
    began = time.monotonic()
    body: dict[str, Any] = {"prompt": "again", "size": "256x256", "stream": True}
    session = session_of(cell.entry)
    while time.monotonic() - began < 180:
        answer = session.post(
            f"{cell.url}/v1/images/generations", json=body, stream=True, timeout=30
        )
        answer.close()  # a stream's header comes as soon as it is admitted
        if answer.status_code == 200:
            return time.monotonic() - began
        time.sleep(_POLL_S)
    raise RunnerError("refuses requests 180 s after the overload")


def _wait_for_quiet(stage: Runner, timeout_s: float = 300.0) -> None:
    deadline, since = time.time() + timeout_s, time.time()
    while drained(stage.observer.queue, since + 1.5) is None:
        if time.time() > deadline:
            raise RunnerError(f"the cell still draws after {timeout_s:g} s")
        time.sleep(_POLL_S)


def reports_folder(var_dir: Path, name: str) -> Path:
    """A new folder ``var/reports/<time>-<scenario>``."""
    folder = var_dir / "reports" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    folder.mkdir(parents=True)
    return folder
