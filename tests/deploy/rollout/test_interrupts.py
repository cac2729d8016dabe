"""Real signals to a real process."""

import signal
import subprocess
import sys

import pytest

from deploy.config import ROOT

COMMAND = """
import os, signal, sys
from deploy.rollout import interrupts
out = os.fdopen(os.dup(1), "w")
def say(word): print(word, file=out, flush=True)
interrupts.install()
try:
    with interrupts.deferred():
        say("begun")
        sys.stdin.readline()
        say("finished")
    say("never")
except interrupts.Interrupted as interrupted:
    print("a terminal that is gone takes this, too", flush=True)
    signal.raise_signal(signal.SIGTERM)
    say("cleaned up")
    sys.exit(interrupted.exit_code)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_was_begun_is_finished_and_the_clean_up_runs_once(signum: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdin is not None
        assert command.stdout is not None
        assert command.stdout.readline() == "begun\n"
        command.send_signal(signum)
        command.stdin.write("\n")
        command.stdin.flush()
        said = command.stdout.read().splitlines()
    assert [line for line in said if "terminal" not in line] == ["finished", "cleaned up"]
    assert command.returncode == 128 + signum


SWALLOWED = {
    "fork": """
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signum))
subprocess.run(["true"], preexec_fn=lambda: None)
""",
    "destructor": """
class Doomed:
    def __del__(self): signal.raise_signal(signum)
Doomed()
""",
}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("where", SWALLOWED)
def test_a_signal_that_comes_where_python_swallows_it_ends_the_command(
    where: str, signum: signal.Signals
) -> None:
    program = f"import os, signal, subprocess, time\nsignum = signal.Signals({int(signum)})\n"
    program += "from deploy.rollout import interrupts\ninterrupts.install()\ntry:"
    program += SWALLOWED[where].replace("\n", "\n    ") + "time.sleep(20)\n"
    program += "except interrupts.Interrupted as found: os._exit(found.exit_code)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signum, "")


def test_nohup_keeps_a_command() -> None:
    program = "from deploy.rollout import interrupts; interrupts.install(); import signal\n"
    program += "signal.raise_signal(signal.SIGHUP); print('goes on')"
    done = subprocess.run(
        ["nohup", sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "goes on\n"
