"""What the cookie of a session is called, and where browsers send it.

Under HTTPS browsers take ``__Host-`` from this host alone, for all of its paths. A cell below a
path shares its host: its cookie is ``__Secure-``, for that path, and says whose it is.
"""

from worker.api.address import Headers, is_https, path_of

COOKIE = "zimage_session"
SECURE_COOKIE = f"__Host-{COOKIE}"


def plain_name(headers: Headers, cell: str) -> str:
    """Its name over http."""
    return f"{COOKIE}_{cell}" if path_of(headers) else COOKIE


def secure_name(headers: Headers, cell: str) -> str:
    """Its name over HTTPS."""
    return f"__Secure-{plain_name(headers, cell)}" if path_of(headers) else SECURE_COOKIE


def name_of(headers: Headers, cell: str) -> str:
    """Its name for whoever asks so."""
    return (secure_name if is_https(headers) else plain_name)(headers, cell)


def path_for(headers: Headers) -> str:
    """The path below which browsers send it."""
    return f"{path_of(headers)}/"
