"""Whether this version's code can be loaded at all: seen before a running cell is touched.

In a checkout code changes under the workers that run it. They go on with what they have loaded, and
the next `up` takes each to the new code; one file that cannot be imported would end the first.
"""

import re
import subprocess
from collections.abc import Collection

from deploy.cell import Cell
from deploy.finding import Finding
from deploy.host import processes
from deploy.installation import BASE, PYTHON
from deploy.supervision import supervise

PROGRAMS = ("worker.__main__", "deploy.guard.__main__")
"""What supervisord starts of ours, and all that it loads."""

SIDECARS = {"membership": "deploy.cluster.__main__", "alarms": "deploy.alarms.__main__"}
"""And what some cells have beside it."""

_TIMEOUT_S = 120.0
_LINES = 3


def differs(cell: Cell, rendered: dict[str, str]) -> bool:
    """Whether a running cell is to go on with other code than it was started with."""
    if not processes.members(cell.layout.processes):
        return False
    try:
        running = cell.layout.supervisord_conf.read_text(encoding="utf-8")
    except OSError:
        return False
    return _programs(running) != _programs(rendered["supervisord.conf"])


def loads(home: str, python: str = PYTHON, *, sidecars: Collection[str] = ()) -> Finding:
    """Whether ``python`` can import what supervisord starts."""
    programs = (*PROGRAMS, *(SIDECARS[name] for name in sidecars))
    command = [python, "-P", "-c", f"import {', '.join(programs)}"]
    try:
        done = subprocess.run(
            command,
            cwd=BASE,
            env=supervise.environment(home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "fail", "code", f"is not loaded after {_TIMEOUT_S:g} s", "see the disk's load"
        )
    if done.returncode == 0:
        return Finding("ok", "code", "all programs can be loaded")
    said = " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-_LINES:])
    return Finding(
        "fail", "code", f"cannot be loaded: {said}", "mend it, or go back to a version that can"
    )


def _programs(text: str) -> set[str]:
    """With which Python, code and packages they run."""
    return set(re.findall(r'^command = "[^"]+"|\b(?:CODE|PACKAGES)="\w+"', text, re.M))
