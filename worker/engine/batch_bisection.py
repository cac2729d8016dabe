"""Find the pictures that make a call fail, and get the others through. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.engine.queue import Picture
from worker.errors import DrawingFailed, Refused, ZimageError
from worker.models.base import OutOfMemory


@dataclass(frozen=True)
class Failure:
    """Why a call failed, without the exception: its traceback holds the call's memory."""

    error: ZimageError
    memory: bool = False

    @classmethod
    def of(cls, raised: Exception) -> "Failure":
        """What a client is told of ``raised``."""
        if isinstance(raised, OutOfMemory):
            message = "the device has no room for a picture of this size: ask for a smaller one"
            return cls(Refused(message, param="size", code="out_of_memory"), memory=True)
        if isinstance(raised, ZimageError):
            return cls(_bare(raised))
        if isinstance(raised, ValueError):
            return cls(Refused(str(raised)))
        return cls(DrawingFailed(f"the drawing failed in this worker ({type(raised).__name__})"))


def run(
    pictures: Sequence[Picture],
    call: Callable[[Sequence[Picture]], Failure | None],
    alive: Callable[[Sequence[Picture]], list[Picture]],
    failed: Callable[[Sequence[Picture], Failure], None],
) -> None:
    """``call`` with all of ``pictures``; what fails together is tried in halves (out of memory)
    or one by one. ``failed`` hears of every failure, a final one being that of one picture."""
    parts = [list(pictures)]
    while parts:
        part = alive(parts.pop(0))
        failure = call(part) if part else None
        if failure is None:
            continue
        failed(part, failure)
        parts[:0] = _split(part, 2 if failure.memory else len(part))


def _bare(error: ZimageError) -> ZimageError:
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _split(part: list[Picture], into: int) -> list[list[Picture]]:
    if len(part) == 1:
        return []
    size = -(-len(part) // into)
    return [part[at : at + size] for at in range(0, len(part), size)]
