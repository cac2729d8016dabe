"""Questions that may look at very many rows: few at a time for one key, and not for long."""

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from worker.api.caller import Caller
from worker.api.schemas.fields import bad
from worker.components import Components
from worker.storage.database import QueryTooLong

T = TypeVar("T")


async def search(
    components: Components,
    caller: Caller,
    work: Callable[[sa.Connection], T],
    *,
    param: str,
    remedy: str,
) -> T:
    """The result of ``work``; where it takes too long, the request is refused because of
    ``param``."""
    give_back = components.searches.take(caller.turn)
    try:
        return await components.database.search(work)
    except QueryTooLong:
        bad(param, f"takes too long: {remedy}")
    finally:
        give_back()
