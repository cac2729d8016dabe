"""A version that the cluster wants this host to take: begun once, and what came of it.

``zimage upgrade`` takes the cell there, and restarts the program ``membership`` on its way. So it
runs in a session of its own, beside a process that waits for its end and writes it down; whoever
comes after finds it there.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from deploy.cluster.settings import MembershipSettings
from deploy.host import whole_file
from deploy.host.processes import Identity
from worker.storage.hosts import Host

State = Literal["under way", "done", "failed"]

_LINES = 4
_MAX_CHARS = 600


@dataclass(frozen=True)
class Attempt:
    """``at``: when it was wanted, by the database's clock, which tells one attempt from the next.
    ``text``: its last words."""

    version: str
    at: float
    state: State
    text: str = ""
    owner: Identity | None = None

    def told(self) -> dict[str, Any]:
        """For the other hosts."""
        return {"version": self.version, "at": self.at, "state": self.state, "text": self.text}


class Upgrades:
    """What the program ``membership`` does about them."""

    def __init__(self, settings: MembershipSettings) -> None:
        self._settings = settings
        self.begun: list[subprocess.Popen[bytes]] = []

    def follow(self, own: Host) -> dict[str, Any] | None:
        """Begin what is wanted of this host, unless that was done; what is to be told of it."""
        # Those that have ended are zombies until somebody asks.
        self.begun = [process for process in self.begun if process.poll() is None]
        if not own.wanted_version:
            return None
        known = _read(self._settings.upgrade_json)
        if known is None or known.at != own.wanted_version_at:
            known = self._begin(own.wanted_version, own.wanted_version_at)
        elif _is_dead(known):
            # It may have written its end since it was read.
            known = _read(self._settings.upgrade_json) or known
        if _is_dead(known):
            text = f"it was cut short; see {self._settings.upgrade_log}"
            known = self._note(Attempt(known.version, known.at, "failed", text))
        return known.told()

    def _begin(self, version: str, at: float) -> Attempt:
        settings = self._settings
        if version == settings.version:
            return self._note(Attempt(version, at, "done"))
        if not os.access(settings.versions_dir, os.W_OK):
            text = f"{settings.versions_dir} is not this user's; as who may write there:"
            return self._note(Attempt(version, at, "failed", f"{text} zimage upgrade {version}"))
        # Before it runs: it may be over before we are back.
        attempt = self._note(Attempt(version, at, "under way", owner=Identity.of(os.getpid())))
        words = [repr(at), version, str(settings.upgrade_json), str(settings.upgrade_log)]
        with settings.upgrade_log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, *words, *settings.upgrade_command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=settings.versions_dir,
                start_new_session=True,  # nobody who ends this program's group ends it
            )
        self.begun.append(process)
        return attempt

    def _note(self, attempt: Attempt) -> Attempt:
        _write(self._settings.upgrade_json, attempt)
        return attempt


def _is_dead(attempt: Attempt) -> bool:
    return attempt.state == "under way" and not (attempt.owner and attempt.owner.alive)


def main(arguments: list[str]) -> int:
    """Run the command, and write down what came of it."""
    at, version, result, log, *command = arguments
    begun = Attempt(version, float(at), "under way", owner=Identity.of(os.getpid()))
    _write(Path(result), begun)
    done = subprocess.run(
        [*command, version], stdin=subprocess.DEVNULL, check=False, env=_environment()
    )
    state: State = "done" if done.returncode == 0 else "failed"
    text = "" if state == "done" else _end(log)
    _write(Path(result), replace(begun, state=state, text=text, owner=None))
    return done.returncode


def _environment() -> dict[str, str]:
    own = {"CODE", "SETTINGS"}  # of the program that began it
    return {name: value for name, value in os.environ.items() if name not in own}


def _end(log: str) -> str:
    with suppress(OSError):
        lines = Path(log).read_bytes()[-16_384:].decode(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-_LINES:] if line.strip())[-_MAX_CHARS:]
    return ""


def _read(path: Path) -> Attempt | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(path.read_bytes())
        owner = said.pop("owner")
        return Attempt(**said, owner=owner and Identity(**owner))
    return None


def _write(path: Path, attempt: Attempt) -> None:
    whole_file.write(path, json.dumps(asdict(attempt)).encode(), 0o600)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
