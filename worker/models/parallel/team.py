"""One pipeline on several cards: this process leads, and a helper process stands by on each other.

The lead alone holds text encoder, decoder and samples. It sends a command for each step of the
transformer, and everybody computes a share of it (``ulysses``). They live and die together: the
kernel kills a helper whose lead is gone, and the lead ends at once when a helper has ended or is
silent: no step can be finished without it. To everybody else that is one worker that died.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from worker import exits, log
from worker.models.loading.folder import ModelLoadError
from worker.settings import Settings

PROGRAM = ("-m", "worker.models.parallel.helper")
BEAT_S = 0.5
"""A helper says so often that it is there."""
_SILENCE_S = 5.0
_LAST_LINES_S = 0.2  # the log's thread writes them
_END_S = 5.0


Verb = Literal["record", "replay", "forward", "forget"]


class Start(NamedTuple):
    """A helper's first message."""

    settings: Settings
    rank: int
    store: Path


class Command(NamedTuple):
    """``record``: draw it, and keep a graph of it; ``replay`` that; ``forward``: without a graph;
    ``forget`` the graph of ``shape``, or all of None. ``fixed``: by fixed kernels."""

    verb: Verb
    shape: Any = None
    fixed: bool = False


class Reply(NamedTuple):
    """What became of a command, or of the start. ``error``: None if it went well."""

    error: str | None = None
    memory: bool = False  # it was a lack of memory


@dataclass
class Helper:
    rank: int
    process: subprocess.Popen[bytes]
    commands: Connection
    beats: int  # file descriptor

    def receive(self) -> Reply:
        """Its next reply; ``HelperLost`` when it has ended."""
        try:
            reply: Reply = self.commands.recv()
        except (EOFError, OSError):
            raise HelperLost(f"the process on card {self.rank + 1} has ended") from None
        return reply


class HelperLost(Exception):
    """A helper is gone; this process is about to end as well."""


Lost = Callable[[int], None]
"""Called from a thread with an exit code for the process."""


def end_process(code: int) -> None:
    """As a kill would: what this worker had taken on is drawn by others."""
    time.sleep(_LAST_LINES_S)
    os._exit(code)


@dataclass
class Team:
    """The helpers of this process. ``store``: a file in which torch's processes find each other."""

    settings: Settings
    store: Path
    on_lost: Lost = end_process
    silence_s: float = _SILENCE_S
    helpers: list[Helper] = field(default_factory=list)
    _allowed_s: float = 0.0  # of silence now
    _closing: bool = False

    @classmethod
    def start(
        cls,
        settings: Settings,
        *,
        program: Sequence[str] = PROGRAM,
        on_lost: Lost = end_process,
        silence_s: float = _SILENCE_S,
    ) -> "Team":
        """Start a helper for each device but the first; they begin to load at once."""
        store = settings.run_dir / f"{settings.name}.{os.getpid()}.store"
        store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        store.unlink(missing_ok=True)
        team = cls(plain(settings), store, on_lost, silence_s)
        team._allowed_s = settings.load_allowance_s
        for rank in range(1, team.world):
            started = threading.Event()
            keep = partial(team._keep, rank, program, started)
            threading.Thread(target=keep, name=f"helper-{rank}", daemon=True).start()
            started.wait()
        return team

    @property
    def world(self) -> int:
        """Processes, this one among them."""
        return len(self.settings.devices)

    def await_replies(self) -> None:
        """Of a start; ``ModelLoadError`` says what is wrong."""
        for helper in self.helpers:
            try:
                reply = helper.receive()
            except HelperLost as error:
                reply = Reply(str(error))
            if reply.error:
                raise ModelLoadError(f"card {helper.rank + 1}: {reply.error}", "see the log above")

    def loaded(self) -> None:
        """From now on helpers may not be silent for long."""
        self._allowed_s = self.silence_s

    @contextlib.contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Within, helpers may be silent for longer: they compile."""
        self._allowed_s = max(seconds, self.silence_s)
        try:
            yield
        finally:
            self._allowed_s = self.silence_s

    def send(self, command: Command) -> None:
        """To all; ``HelperLost`` where one is gone."""
        for helper in self.helpers:
            try:
                helper.commands.send(command)
            except OSError:
                raise HelperLost(f"the process on card {helper.rank + 1} has ended") from None

    def receive(self) -> Reply:
        """One reply of all: the worst."""
        replies = [helper.receive() for helper in self.helpers]
        failed = [reply for reply in replies if reply.error]
        return min(failed, key=lambda reply: reply.memory, default=Reply())

    def close(self) -> None:
        """Let the helpers end, and wait for it."""
        self._closing = True
        for helper in self.helpers:
            helper.commands.close()
        for helper in self.helpers:
            try:
                helper.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                helper.process.kill()
                helper.process.wait()
        self.store.unlink(missing_ok=True)

    def _keep(self, rank: int, program: Sequence[str], started: threading.Event) -> None:
        # The whole life of a helper in one thread: the kernel kills it when this thread ends.
        helper = _spawn(rank, program, self.settings.name)
        self.helpers.append(helper)
        helper.commands.send(Start(self.settings, rank, self.store))
        started.set()
        why = self._watch(helper)
        if self._closing:
            return
        helper.process.kill()
        code = helper.process.wait()
        log.event("helper lost", card=rank + 1, pid=helper.process.pid, why=why, code=code)
        self.on_lost(code if code in exits.NAMES and code else exits.HELPER_LOST)

    def _watch(self, helper: Helper) -> str:
        """Why it is lost, once it is."""
        silent = 0  # polls, not time: a machine that stood still has said nothing about anybody
        while silent * BEAT_S <= self._allowed_s:
            # Not select(): it takes no descriptor above 1023, and a worker may have more.
            ready = connection.wait([helper.beats], BEAT_S * (1 + (silent > 0)))
            silent = 0 if ready else silent + 1
            if ready and not os.read(helper.beats, 4096):
                return "it has ended"
        return f"silent for {silent * BEAT_S:.0f} s"


def plain(settings: Settings) -> Settings:
    """What another process can read: not a class of the program that this one runs."""
    return Settings(**settings.model_dump(include=set(Settings.model_fields)))


def _spawn(rank: int, program: Sequence[str], name: str) -> Helper:
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    arguments = [str(theirs.fileno()), str(write), str(os.getpid())]
    process = subprocess.Popen(
        [sys.executable, *program, *arguments],
        pass_fds=(theirs.fileno(), write),
        env={**os.environ, "ZIMAGE_NAME": f"{name}-{rank}"},
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    os.close(write)
    return Helper(rank, process, Connection(ours.detach()), read)
