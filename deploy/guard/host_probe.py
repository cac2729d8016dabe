"""Ask a host over TLS, at its address: a connection that is kept, small answers.

A handshake for each question would cost a front of a hundred hosts half a core, so a connection is
kept for some questions and then made anew, as those of requests are. Bare streams instead of an
HTTP client for the same reason as in ``probe``.
"""

import asyncio
import json
import ssl
from contextlib import suppress

from deploy.guard.probe import Answer, NoAnswer, NobodyListens
from deploy.layout import Layout
from deploy.links import HOST_NAME

_MAX_BODY_BYTES = 256 * 1024
_QUESTIONS = 25
"""Of one connection: a new one is what proves that requests still get through."""


class Untrusted(Exception):
    """The host's certificate is not one of the cluster's hosts, or ours cannot be used."""


def context(layout: Layout) -> ssl.SSLContext:
    """As nginx connects. ``OSError`` (``ssl.SSLError`` is one) where certificates are missing."""
    made = ssl.create_default_context(cafile=str(layout.authority_certificate))
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_verify_locations(cafile=str(layout.revocation_list))
    made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    certificate, key = layout.cluster_certificate("front"), layout.cluster_key("front")
    made.load_cert_chain(certificate, key)
    return made


class HostConnection:
    """``ask`` is called by one task at a time."""

    def __init__(self) -> None:
        self._address = ""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._left = 0

    async def ask(self, address: str, url: str, tls: ssl.SSLContext, timeout_s: float) -> Answer:
        """The answer of ``address`` to GET ``url``. ``NobodyListens``: it cannot be reached;
        ``NoAnswer``: it is silent, or says what is not HTTP; ``Untrusted``."""
        if address != self._address:
            self.close()
            self._address = address
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(url, tls)
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise Untrusted(error.verify_message) from error
        except TimeoutError as error:
            self.close()
            raise NoAnswer(f"no answer in {timeout_s:g} s") from error
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise NobodyListens(str(error) or "the connection broke off") from error
        except BaseException:  # cancelled: half an answer may be on its way
            self.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams, self._left = None, 0

    async def _ask(self, url: str, tls: ssl.SSLContext) -> Answer:
        if self._left <= 0:
            self.close()
        if self._streams is not None:
            # The host may have closed it meanwhile: that says nothing of the host.
            with suppress(OSError, EOFError):
                return await self._exchange(url)
            self.close()
        host, _, port = self._address.rpartition(":")
        self._streams = await asyncio.open_connection(
            host.strip("[]"), int(port), ssl=tls, server_hostname=HOST_NAME, limit=_MAX_BODY_BYTES
        )
        self._left = _QUESTIONS
        return await self._exchange(url)

    async def _exchange(self, url: str) -> Answer:
        assert self._streams is not None
        reader, writer = self._streams
        self._left -= 1
        writer.write(f"GET {url} HTTP/1.1\r\nHost: {HOST_NAME}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, headers = _parsed(head)
        body = await reader.readexactly(min(int(headers["content-length"]), _MAX_BODY_BYTES))
        if headers.get("connection") == "close":
            self._left = 0
        return Answer(status, _json(body))


def _parsed(head: str) -> tuple[int, dict[str, str]]:
    """``ValueError`` where it is not the head of an answer with a length."""
    first, *lines = head.rstrip().split("\r\n")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
    try:
        status = int(first.split(" ")[1])
        int(headers["content-length"])
    except (IndexError, KeyError) as error:
        raise ValueError(f"not HTTP: {first[:40]!r}") from error
    return status, headers


def _json(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
