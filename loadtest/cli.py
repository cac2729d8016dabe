"""``loadtest/run SCENARIO``: prove by load what a running cell holds.

Exit code 0: every objective of slo.toml is met; 1: one is missed, or the scenario could not be
played; 2: misuse. A report is written to var/reports either way. Where the cell does not run, it is
started, and ended afterwards.
"""

import argparse
import contextlib
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from deploy import output
from deploy.cli.options import config_path
from deploy.config import ROOT, ClusterConfig, ConfigError, load
from deploy.host import machine, processes
from deploy.host.utf8 import speak_utf8
from deploy.layout import Layout
from deploy.rendering.plan import plan
from loadtest import measures, report, run_file, slo
from loadtest.auth import KEY_VARIABLE, add_key
from loadtest.faults import Cell
from loadtest.faults.catalogue import FAULTS
from loadtest.observer import Observer
from loadtest.run_file import Run
from loadtest.runner import Options, Runner, RunnerError
from loadtest.scenarios import SCENARIOS, reports_folder


def main() -> int:
    speak_utf8()
    args = arguments()
    try:
        if args.scenario == "compare":
            output.say(f"› {report.compare(args.runs[0], args.runs[1])}")
            return 0
        if args.scenario == "table":
            output.say(report.fault_table(args.runs))
            return 0
        with running(config_path(args.config)) as path:
            return play(args, path)
    except (RunnerError, slo.SloError, ConfigError, OSError) as error:
        output.fail(str(error))
        return 1


@contextlib.contextmanager
def running(path: Path) -> Iterator[Path]:
    """The cell of ``path`` runs: as it did, or from here to the end."""
    if processes.members(Layout.of(load(path)).processes):
        yield path
        return
    _zimage(path, "up", "--no-draw")
    try:
        yield path
    finally:
        _zimage(path, "down")


def _zimage(path: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli.app", *arguments, "--config", str(path)], cwd=ROOT
    )
    if done.returncode:
        raise RunnerError(f"zimage {arguments[0]} failed; it said why")


def play(args: argparse.Namespace, path: Path) -> int:
    config = load(path)
    bounds = slo.load(args.slo, args.scenario)
    if config.listen.auth == "keys" and not args.key:
        raise RunnerError(
            "this cell asks for keys: zimage keys create loadtest, and give what it prints as "
            f"{KEY_VARIABLE}"
        )
    cell = Cell.of(config, path, args.key)
    if not cell.whole():
        raise RunnerError(f"the cell of {path} is not whole: zimage status")
    folder = reports_folder(cell.layout.var_dir, args.scenario)
    started = time.time()
    output.say(f"› {args.scenario}: {SCENARIOS[args.scenario].__doc__}")
    with Observer(cell) as observer:
        stage = Runner(cell, config, path, folder, options(args), observer)
        SCENARIOS[args.scenario](stage)
        time.sleep(1.0)  # one more look at the cell at rest
    run = finished(stage, args.scenario, started, bounds)
    run_file.save(folder, run)
    page = report.write(folder)
    for objective in run.objectives:
        output.say(f"{'✓' if objective.met else '✗'} {objective}")
    output.say(f"{'✓ passed' if run.passed else '✗ failed'}: {page}")
    return 0 if run.passed else 1


def finished(stage: Runner, scenario: str, started: float, bounds: dict[str, slo.Bound]) -> Run:
    """Everything that is known of a run. Figures of the scenario win over those of all users."""
    records, observer = stage.records(), stage.observer
    loaded_s = sum(part.end - part.start for part in stage.parts)
    measured = measures.of_users(records, loaded_s)
    measured["replayed"] = float(measures.replayed(stage.cell.layout.access_log, started))
    measured |= stage.measured
    return Run(
        scenario=scenario,
        started=started,
        ended=time.time(),
        about=about(stage.config),
        objectives=slo.judge(bounds, measured),
        measured=measured,
        parts=stage.parts,
        marks=stage.marks,
        faults=sorted(stage.faults, key=lambda fault: fault.at),
        lanes=observer.lanes,
        queue=observer.queue,
        resources=observer.resources,
        temporary_files=observer.temporary_files,
    )


def about(config: ClusterConfig) -> dict[str, str]:
    host = machine.read()
    workers = plan(config, host).workers
    devices = sorted({worker.device_name for worker in workers})
    version = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cell": config.cell.name,
        "model": ", ".join(model.source for model in config.served),
        "workers": f"{len(workers)} on {', '.join(devices)}",
        "machine": f"{host.cores} cores, {_processor()}",
        "version": version or "unknown",
        "Python": platform.python_version(),
    }


def options(args: argparse.Namespace) -> Options:
    return Options(
        users=args.users,
        duration_s=args.duration_s,
        every_s=args.every_s,
        requests=args.requests,
        sizes=args.sizes,
        steps=args.steps,
        seed=args.seed,
        faults=tuple(args.faults),
        max_hold_s=args.max_hold_s,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest/run", description=__doc__)
    commands = parser.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    for name, scenario in SCENARIOS.items():
        _add(commands.add_parser(name, help=scenario.__doc__, description=scenario.__doc__))
    compare = commands.add_parser("compare", help="Two runs side by side.")
    compare.add_argument("runs", nargs=2, type=Path, metavar="FOLDER", help="under var/reports")
    table = commands.add_parser("table", help="Every fault of some runs, as a table in Markdown.")
    table.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="under var/reports")
    return parser.parse_args()


def _add(parser: argparse.ArgumentParser) -> None:
    file = os.environ.get("ZIMAGE_CONFIG")
    parser.add_argument("--config", type=Path, default=file, help="cluster.toml of the cell")
    add_key(parser)
    parser.add_argument("--slo", type=Path, default=slo.DEFAULT_PATH, help="the objectives")
    parser.add_argument("--users", type=int, default=0, help="of the scenario, or a worker")
    parser.add_argument("--duration-s", type=float, default=0.0, help="of each part")
    parser.add_argument("--every-s", type=float, default=10.0, help="between two faults")
    parser.add_argument("--requests", type=int, default=10_000, help="of a soak")
    parser.add_argument("--sizes", default="", help="of pictures, such as 64x64,256x256")
    parser.add_argument("--steps", type=int, default=0, help="of each picture [the model's own]")
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order")
    parser.add_argument("--max-hold-s", type=float, default=math.inf, help="of any fault")
    parser.add_argument("--faults", nargs="*", default=[], choices=sorted(FAULTS), metavar="NAME")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
