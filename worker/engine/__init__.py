"""Queue, step scheduler, costs and admission. Imports neither Starlette nor diffusers.

Imports point downwards: ``engine`` → ``driver`` → ``forecast``, ``scheduler``, ``allowance``,
``heartbeat_writer`` → ``queue``, ``costs``, ``limits`` → ``request``.
"""

from worker.engine.costs import Costs
from worker.engine.engine import Engine
from worker.engine.limits import Limits
from worker.engine.request import (
    Drawn,
    DrawRequest,
    Event,
    Partial,
    Priority,
    Queued,
    Stepped,
)
from worker.engine.state import EngineState
from worker.engine.ticket import Ticket

__all__ = [
    "Costs",
    "DrawRequest",
    "Drawn",
    "Engine",
    "EngineState",
    "Event",
    "Limits",
    "Partial",
    "Priority",
    "Queued",
    "Stepped",
    "Ticket",
]
