"""A signal that ends a command: first its clean-up runs, and a stop is never left without a start.

SIGTERM and SIGINT ask for the end; SIGHUP says that the terminal is gone.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AGAIN_S = 0.02


class Interrupted(BaseException):
    """Somebody ended the command. No ``Exception``: what handles failures must not swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.exit_code = 128 + signum


class _Signals:
    """``raised``: the clean-up has begun, and no further signal may cut it short."""

    def __init__(self) -> None:
        self.raised = False
        self.deferrals = 0
        self.waiting: int | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            _let_terminal_go()
        if self.deferrals:
            self.waiting = signum
        elif not self.raised:
            self.raised = True
            raise Interrupted(signum)


_signals = _Signals()


def install() -> None:
    """From now on the ending signals raise ``Interrupted`` in the main thread, once."""
    _signals.raised = False
    sys.unraisablehook = _raise_again
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _signals.handle)


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python calls some functions, at a fork and as objects die, and goes on whatever they raise: a
    signal that comes meanwhile would be lost, and with it every later one."""
    swallowed = unraisable.exc_value
    if not isinstance(swallowed, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    _signals.raised = False
    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), swallowed.signum))
    again.daemon = True
    again.start()


@contextmanager
def deferred() -> Iterator[None]:
    """What is begun in the block is finished: a signal meanwhile is raised after it."""
    _signals.deferrals += 1
    try:
        yield
    finally:
        _signals.deferrals -= 1
        waiting = _signals.waiting
        if waiting is not None and not _signals.deferrals:
            _signals.waiting = None
            _signals.handle(waiting, None)


def _let_terminal_go() -> None:
    # Each word to it would be an error, in the middle of the clean-up.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
