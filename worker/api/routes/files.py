"""Finished pictures behind signed links: this worker checks, nginx sends the file."""

import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker.api.address import origin_of
from worker.api.routes import gallery
from worker.api.schemas.openapi import Part, operation, parameter
from worker.api.serving import components_of
from worker.components import Components
from worker.errors import NotFound
from worker.generation.imaging import MEDIA_TYPES
from worker.lifecycle import Lifecycle
from worker.storage import gallery as pictures

ROUTE = "/v1/images/files"
_FILE = {kind: {"type": "string", "format": "binary"} for kind in MEDIA_TYPES.values()}


def link(request: Request, components: Components, name: str) -> str:
    """An absolute link to picture ``name`` that works for ``url_ttl_s``, at the client's host."""
    expires = int(time.time() + components.settings.url_ttl_s)
    signature = components.signer.sign(name, expires)
    query = f"expires={expires}&signature={signature}"
    return f"{origin_of(request)}{ROUTE}/{name}?{query}"


async def get_file(request: Request) -> Response:
    """Hand a picture over to nginx where the link is ours and still good."""
    components = components_of(request)
    name = request.path_params["name"]
    expires = request.query_params.get("expires", "")
    signature = request.query_params.get("signature", "")
    if not components.signer.valid(name, expires, signature):
        raise HTTPException(403, "This link is not one of ours: use it exactly as it was given.")
    left_s = int(expires) - int(time.time())
    if left_s <= 0:
        raise HTTPException(403, "This link has expired: draw the picture again.")
    address = await gallery.address_of(components, name)
    if address is None:
        await _require_nowhere(components, name)
        raise NotFound("This picture has been deleted to make room: draw it again.")
    return Response(
        headers={
            "X-Accel-Redirect": address,
            "Content-Type": MEDIA_TYPES[name.rpartition(".")[2]],
            "Content-Disposition": f'inline; filename="{name.rpartition("/")[2]}"',
            "Cache-Control": f"private, max-age={left_s}",
        }
    )


async def _require_nowhere(components: Components, name: str) -> None:
    """Raise ``PictureElsewhere`` where another host may keep the picture for the store."""
    id = name.rpartition("/")[2].partition(".")[0]
    if components.settings.host:
        picture = await components.database.read(lambda c: pictures.find(c, id))
        if picture is not None:
            raise gallery.lost(components, picture)


def openapi(_: Lifecycle) -> Part:
    get = operation(
        "A picture behind a signed link, as `response_format: url` gives it.",
        {200: _FILE},
        errors=(404,),
        parameters=(
            parameter("path", "day", {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}),
            parameter("path", "file", {"type": "string", "minLength": 1}),
            parameter("query", "expires", {"type": "string"}),
            parameter("query", "signature", {"type": "string"}),
        ),
    )
    return Part({f"{ROUTE}/{{day}}/{{file}}": {"get": get}})
