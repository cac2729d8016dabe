"""Whose model a request names, where a cell has several: its worker's own, or another pool's.

nginx asks any worker first. It reads the request and asks nginx to have it drawn in the pool of
its model (``answers.POOL``), in its own one, too: so each pool's requests are counted in one place,
and whoever draws least is next. Nothing is admitted, counted or held for it before.
"""

import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request

from worker.api.middleware.request_context import context_of
from worker.components import Components
from worker.coordination.served_models import ServedModel, ServedModels
from worker.errors import NotFound, NotReady, OtherModel

_RETRY_AFTER_S = 2.0, 5.0


def require_own(request: Request, components: Components, values: Mapping[str, Any]) -> None:
    """Return where this worker is to do what ``values`` ask for. Raises ``OtherModel`` where
    others are, ``NotFound`` where nobody is, ``NotReady`` where nginx cannot ask those now."""
    served = components.models.served()
    if served is None:
        return
    wanted = _wanted(request, served, values.get("model"))
    if wanted is None:  # which whoever reads the field complains about
        return
    context, own = context_of(request), components.models.is_own(wanted)
    asked_pool = context.header(b"x-pool")
    if not asked_pool and wanted.pool in context.header(b"x-pools").split(","):
        context.notes["handed_to"] = wanted.name
        raise OtherModel(wanted.pool, wanted.name)
    if not own:
        # nginx or this worker has another list of models, for a moment of a change.
        raise NotReady(
            f"No worker with {wanted.name!r} can take the request now: try again.",
            retry_after_s=random.uniform(*_RETRY_AFTER_S),
        )


def _wanted(request: Request, served: ServedModels, name: object) -> ServedModel | None:
    if name is None:
        # Of Azure's clients, which name it in the address and need not in the body.
        name = unquote(context_of(request).header(b"x-deployment"))
    if not isinstance(name, str):
        return None
    wanted = served.asked(name)
    if wanted is None:
        raise unknown(name, served)
    return wanted


def unknown(name: str, served: ServedModels) -> NotFound:
    """No model is called so."""
    names = ", ".join(repr(model.name) for model in served.all)
    return NotFound(
        f"model: {name[:100]!r} is not served here; use one of {names}, or leave the field out.",
        param="model",
        code="model_not_found",
    )
