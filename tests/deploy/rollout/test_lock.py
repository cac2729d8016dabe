import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.config import ROOT
from deploy.rollout import lock

HOLDER = """
import sys
from pathlib import Path
from deploy.rollout import lock
with lock.exclusive(Path(sys.argv[1]), "restart --rolling", "alice"):
    print(flush=True)
    sys.stdin.readline()
"""


def test_refusal_names_who_holds_it_since_when_and_for_what(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for _ in range(2):  # being refused takes no word of it away
            with pytest.raises(lock.Held) as held, lock.exclusive(path, "up", "bob"):
                pass
            who = r"`zimage restart --rolling` by alice"
            text = rf"{who} \(process {holder.pid}, since \d\d:\d\d:\d\d\)"
            assert held.match(text)
        holder.kill()
    with lock.exclusive(path, "up", "bob"):  # whoever is killed holds nothing
        pass


def test_holder_without_a_word_is_somebody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock.exclusive(path, "up", "bob"):
        os.truncate(path, 0)
        with (
            pytest.raises(lock.Held, match="another zimage command"),
            lock.exclusive(path, "up", "bob"),
        ):
            pass
