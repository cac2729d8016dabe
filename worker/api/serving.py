"""What a handler works with: the worker's life, and what it is built of."""

from starlette.requests import Request

from worker.components import Components
from worker.lifecycle import Lifecycle


def lifecycle_of(request: Request) -> Lifecycle:
    """Of the worker that handles ``request``."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    return lifecycle


def components_of(request: Request) -> Components:
    """Of a worker that is ready; raises ``NotReady`` or ``HandedBack`` where it is not."""
    lifecycle = lifecycle_of(request)
    lifecycle.require_ready()
    return lifecycle.components
