"""Whose model a request names, where a cell or its cluster has several: its worker's own, or that
of another pool.

nginx asks any worker first. It reads the request and asks nginx to have it drawn in the pool of
its model (``answers.POOL``), in its own one, too: so each pool's requests are counted in one place,
and whoever draws least is next. A front asks any host first, which hands back what only others can
draw (``answers.HAND_OVER``). Nothing is admitted, counted or held for it before.

A front says which pools of hosts it has (``X-Front-Pools``), and in which one it asks
(``X-Front-Pool``): so a request is handed over once at most. nginx lets nobody but fronts say it.
"""

import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request

from worker.api.middleware.request_context import RequestContext, context_of
from worker.components import Components
from worker.coordination.cell_models import CellModels
from worker.coordination.served_models import ServedModel, ServedModels
from worker.errors import NotFound, NotOnThisHost, NotReady, OtherHost, OtherModel

_RETRY_AFTER_S = 2.0, 5.0
_ANY = "any"
"""A front's pool of all hosts."""


def require_own(request: Request, components: Components, values: Mapping[str, Any]) -> None:
    """Return where this worker is to do what ``values`` ask for. Raises ``OtherModel`` where
    others are, ``NotFound`` where nobody is, ``NotReady`` where nginx cannot ask those now."""
    context, models = context_of(request), components.models
    known = served_to(context, models)
    if known is None:
        return
    wanted = _wanted(context, known, models, values.get("model"))
    if wanted is None:  # which whoever reads the field complains about
        return
    if not models.is_here(wanted):
        _hand_over(context, wanted)
    if models.several:
        _hand_on(context, wanted)
    elif isinstance(values, dict):
        values["model"] = models.name  # other hosts may have other aliases for it
    if not models.is_own(wanted):
        # nginx or this worker has another list of models, for a moment of a change.
        raise _not_now(wanted)


def served_to(context: RequestContext, models: CellModels) -> ServedModels | None:
    """The models that whoever asks may name: of the cluster, through a front."""
    return models.of_cluster() if context.header(b"x-front") else models.served()


def _hand_over(context: RequestContext, wanted: ServedModel) -> None:
    """To the hosts that have it. A front that has no pool of them yet asks one after the other."""
    asked_pool = context.header(b"x-front-pool")
    if asked_pool == _ANY:
        raise NotOnThisHost(wanted.name)
    pools = context.header(b"x-front-pools").split(",")
    for pool in (wanted.pool, _ANY):
        if not asked_pool and pool in pools:
            context.notes["handed_to"] = wanted.name
            raise OtherHost(pool, wanted.name)
    raise _not_now(wanted)


def _hand_on(context: RequestContext, wanted: ServedModel) -> None:
    """To the pool of this cell that has it."""
    asked_pool = context.header(b"x-pool")
    if not asked_pool and wanted.pool in context.header(b"x-pools").split(","):
        context.notes["handed_to"] = wanted.name
        raise OtherModel(wanted.pool, wanted.name)


def _not_now(wanted: ServedModel) -> NotReady:
    return NotReady(
        f"No worker with {wanted.name!r} can take the request now: try again.",
        retry_after_s=random.uniform(*_RETRY_AFTER_S),
    )


def _wanted(
    context: RequestContext, known: ServedModels, models: CellModels, name: object
) -> ServedModel | None:
    if name is None:
        # Of Azure's clients, which name it in the address and need not in the body.
        name = unquote(context.header(b"x-deployment"))
    if not isinstance(name, str):
        return None
    wanted = known.asked(name)
    if wanted is None:
        raise unknown(name, known, models)
    return wanted


def unknown(name: str, served: ServedModels, models: CellModels) -> NotFound:
    """No model is called so."""
    names = ", ".join(repr(model.name) for model in served.all)
    everywhere = models.of_cluster()
    elsewhere = everywhere is not None and everywhere.asked(name) is not None
    where = "here, but by other hosts: ask a front" if elsewhere else "here"
    return NotFound(
        f"model: {name[:100]!r} is not served {where}; use one of {names}, or leave the field out.",
        param="model",
        code="model_not_found",
    )
