"""XML-RPC over a unix socket, as supervisord speaks it."""

import http.client
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError


class NoAnswer(Exception):
    """Nobody answers in time, or what came is no whole answer."""


def call(path: Path, timeout_s: float, method: str, *arguments: Any) -> Any:
    """What ``method`` of the server at the socket ``path`` returns.

    ``NoAnswer``, or ``xmlrpc.client.Fault`` where the server itself says no.
    """
    transport = UnixTransport(path, timeout_s)
    proxy = xmlrpc.client.ServerProxy("http://supervisor/RPC2", transport)
    try:
        return getattr(proxy, method)(*arguments)
    except xmlrpc.client.Fault:
        raise
    except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
        raise NoAnswer(str(error)) from error
    except (ExpatError, ValueError) as error:  # its end is missing, as of a server that just died
        raise NoAnswer(f"half an answer: {error}") from error
    finally:
        proxy("close")()


class UnixTransport(xmlrpc.client.Transport):
    """To the socket ``path``; every call ends within ``timeout_s`` of silence, by ``OSError``."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__()
        self._path, self._timeout_s = path, timeout_s

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = UnixConnection(self._path, self._timeout_s)
        self._connection = host, connection  # what close() closes
        return connection


class UnixConnection(http.client.HTTPConnection):
    """To the socket ``path``. ``close`` also ends what was refused, which httpx leaves open."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
