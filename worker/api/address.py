"""By which address the client knows this cell, as nginx says of each request."""

from collections.abc import Mapping

from starlette.requests import Request

Headers = Mapping[bytes, bytes]


def is_https(headers: Headers) -> bool:
    """Whether the client came by HTTPS."""
    return headers.get(b"x-forwarded-proto") == b"https"


def path_of(headers: Headers) -> str:
    """Where a proxy in front has put the cell: empty, or such as ``/draw``."""
    return headers.get(b"x-forwarded-prefix", b"").decode("latin-1")


def root_of(request: Request) -> str:
    """``path_of`` the request: stands before every path that an answer names."""
    return path_of(dict(request.scope["headers"]))


def origin_of(request: Request) -> str:
    """Scheme and host, then ``root_of``: stands before a path in a link for somebody else."""
    scheme = request.headers.get("x-forwarded-proto", "")
    scheme = scheme if scheme in ("http", "https") else request.url.scheme
    return f"{scheme}://{request.headers.get('host', 'localhost')}{root_of(request)}"
