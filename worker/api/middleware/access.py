"""Who is let in. Every route is closed unless it is named here."""

import time
from collections.abc import Awaitable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from worker.accounts import tokens
from worker.api import answers, cookies
from worker.api.address import Headers, is_https
from worker.api.caller import Caller
from worker.api.middleware.request_context import RequestContext
from worker.components import Components
from worker.errors import Forbidden, LimitReached, Unauthenticated, ZimageError
from worker.storage.keys import Key

INTERNAL = frozenset({"/readyz", "/livez", "/metrics", "/admin/drain", "/admin/undrain"})
"""Nothing of a user's. But for ``/readyz`` nginx offers none of them to users."""

_AZURE = b"api-key"  # what Azure's clients of OpenAI send in place of Authorization
_SESSION = "/v1/session"
_LINKS = "/v1/images/files/"

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Access:
    """Lets in whoever shows a good key or is signed in with one, where ``auth`` is ``keys``."""

    def __init__(self, app: ASGIApp, components: Components) -> None:
        self._app = app
        self._components = components
        self._keys = components.settings.auth == "keys"

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and self._keys and not is_open(scope["path"]):
            try:
                self._check(scope)
            except ZimageError as error:
                return answers.of_error(error)(scope, receive, send)
        return self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        context: RequestContext = scope["context"]
        headers = context.headers
        # A key in a header is the only proof then: a browser adds a cookie whoever asks for it.
        in_header = _names_key(headers)
        key = self._of_header(scope, headers) if in_header else self._of_cookie(scope, headers)
        context.notes["key"] = key.name
        scope["caller"] = Caller.of(key)

    def _of_header(self, scope: Scope, headers: Headers) -> Key:
        """A page of any site may show a key: no browser adds one by itself."""
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            token = headers.get(_AZURE, b"").decode("latin-1")
            if not token:
                raise denied(self._components, scope["context"], "no bearer")
        return key_of(self._components, scope["context"], token.strip())

    def _of_cookie(self, scope: Scope, headers: Headers) -> Key:
        key = signed_in(self._components, headers)
        if key is None:
            raise denied(self._components, scope["context"], "no key", count=False)
        require_own_page(scope["method"], headers)
        return key


def _names_key(headers: Headers) -> bool:
    return bool(headers.get(b"authorization") or headers.get(_AZURE))


def is_open(path: str) -> bool:
    """Whether ``path`` asks for no key, or its handler for another proof."""
    return path in INTERNAL or _asks_itself(path)


def _asks_itself(path: str) -> bool:
    """Whether the handler wants a proof of its own: the key to sign in with, a link's signature."""
    return path == _SESSION or path.startswith(_LINKS)


def key_of(components: Components, context: RequestContext, token: str) -> Key:
    """The good key ``token``; raises ``Unauthenticated``, ``LimitReached`` or ``StoreAway``."""
    key = components.keys.holder(token)
    why_not = "wrong key" if key is None else key.why_not(time.time())
    if key is None or why_not is not None:
        raise denied(components, context, why_not or "")
    return key


def signed_in(components: Components, headers: Headers) -> Key | None:
    """The key that the cookie stands for, if it is still good."""
    session = session_in(components, headers)
    key = None if session is None else key_behind(components, session)
    return None if key is None or key.why_not(time.time()) else key


def key_behind(components: Components, session: tokens.Session) -> Key | None:
    """The key that ``session`` was got with, unless all its sessions of then were ended since."""
    key = components.keys.named(session.key_id)
    return key if key is not None and key.version == session.version else None


def session_in(components: Components, headers: Headers) -> tokens.Session | None:
    """The session that counts, if the cookie of one is ours and it is not over."""
    return next(iter(sessions_in(components, headers)), None)


def sessions_in(components: Components, headers: Headers) -> list[tokens.Session]:
    """Of all cookies that are ours, the one that counts first. None is over or was ended."""
    told: dict[str, str] = {}
    for part in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        told.setdefault(name, value)
    cell = components.settings.cell
    texts = [told.get(cookies.name_of(headers, cell), "")]
    if is_https(headers):
        # Under the plain name a neighbouring host may have set it, so that only counts as an
        # earlier version named all. Nobody can have a fresh one of those.
        texts += filter(tokens.is_of_before_ids, [told.get(cookies.COOKIE, "")])
    secrets, now = components.keys.secrets, time.time()
    max_s = components.settings.session_max_s
    signed = [(secret, text) for text in texts if text for secret in secrets]
    read = [tokens.read_session(secret, text, now, max_s) for secret, text in signed]
    return [session for session in read if session and not components.keys.has_ended(session.id)]


def denied(
    components: Components, context: RequestContext, why: str, *, count: bool = True
) -> Unauthenticated | LimitReached:
    """The error for whoever showed no good key. Says nothing that would help to guess one; the
    log says why, without the key."""
    context.notes["denied"] = why
    components.metrics.denied.labels(why.replace(" ", "_")).inc()
    wait_s = components.auth_throttle.add(context.key) if count else 0.0
    if wait_s:
        return LimitReached(
            "Too many wrong keys came from this address: wait a minute.", retry_after_s=wait_s
        )
    return Unauthenticated(
        "A valid API key is needed: send it as Authorization: Bearer KEY or as api-key: KEY, "
        "or sign in on the page."
    )


def require_own_page(method: str, headers: Headers) -> None:
    """Raise ``Forbidden`` where a page of another site may have made a browser change something.

    A cookie goes along whatever page made the browser send this; the browser says which.
    """
    if method in _SAFE or headers.get(b"sec-fetch-site") == b"same-origin":
        return
    origin = _site_of(headers.get(b"origin", b"").decode("latin-1"))
    if not origin or origin != headers.get(b"host", b"").decode("latin-1").lower():
        raise Forbidden(
            "Sent with a cookie, this needs the Origin of the cell's own page: programs send "
            "Authorization: Bearer KEY instead. If this is that page, set listen.public_url to its "
            "address: a proxy in front changes it."
        )


def refuse_other_pages(method: str, headers: Headers) -> None:
    """Raise ``Forbidden`` where a page of another site sent this. Programs say no ``Origin``."""
    if headers.get(b"origin"):
        require_own_page(method, headers)


def _site_of(origin: str) -> str:
    """Host and port. Not the scheme: whoever terminates TLS before nginx changes it."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # half of an IPv6 address
        return ""
