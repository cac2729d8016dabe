"""XML-RPC over a unix socket, as supervisord speaks it."""

import http.client
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any


class UnixTransport(xmlrpc.client.Transport):
    """To the socket ``path``; every call ends within ``timeout_s`` of silence, by ``OSError``."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__()
        self._path, self._timeout_s = path, timeout_s

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _Connection(self._path, self._timeout_s)
        self._connection = host, connection  # what close() closes
        return connection


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("supervisor", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
