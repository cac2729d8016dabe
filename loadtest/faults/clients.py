"""Clients that misbehave. Contexts, as in ``workers``; threads with plain sockets.

They come from another loopback address than well-behaved load, as strangers would. What the cell
answers them is checked: ``Unexpected`` names an answer that no client should see.
"""

import contextlib
import itertools
import json
import os
import resource
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from loadtest.faults.cell import Cell

_STRANGER = "127.0.0.2"
_TIMEOUT_S = 10.0
_BLIND = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # they check manners, not certificates
_BLIND.check_hostname, _BLIND.verify_mode = False, ssl.CERT_NONE


class Unexpected(AssertionError):
    """The cell answered a misbehaving client in a way that it should not."""


@contextlib.contextmanager
def idle_connections(cell: Cell, _worker: str, count: int = 10_000) -> Iterator[None]:
    """Open connections that never send anything, and come again when they are dropped."""
    _allow_files(count + 512)

    def crowd(over: threading.Event) -> None:
        held = [_dial(cell) for _ in range(count)]
        try:
            while not over.wait(0.5):
                held = [_again(cell, one) for one in held]
        finally:
            for one in held:
                one.close()

    with _in_thread(crowd):
        yield


@contextlib.contextmanager
def slow_loris(cell: Cell, _worker: str, count: int = 200) -> Iterator[None]:
    """Bodies that arrive one byte a second."""
    head = f"{_post(cell)}Content-Length: 1000\r\n\r\n{{".encode()

    def drip(over: threading.Event) -> None:
        held = [_connect(cell) for _ in range(count)]
        for one in held:
            _send(one, head)
        while not over.wait(1.0):
            for one in held:
                _send(one, b" ")
        for one in held:
            one.close()

    with _in_thread(drip):
        yield


@contextlib.contextmanager
def half_closed(cell: Cell, _worker: str, count: int = 20) -> Iterator[None]:
    """Whole requests whose sender closes its side at once, and others that close both."""
    body = json.dumps({"prompt": "left behind", "size": "256x256"}).encode()
    request = f"{_post(cell)}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def leave(over: threading.Event) -> None:
        held = []
        for number in range(count):
            one = _connect(cell)
            _send(one, request)
            _half_close(one)
            held.append(one) if number % 2 else one.close()
            if over.wait(0.05):
                break
        over.wait()
        for one in held:
            one.close()

    with _in_thread(leave):
        yield


@contextlib.contextmanager
def giant_bodies(cell: Cell, _worker: str, mib: int = 64) -> Iterator[None]:
    """Bodies far over the limit, announced and in chunks: 413."""
    post = _post(cell)
    announced = f"{post}Content-Length: {mib << 20}\r\n\r\n".encode()
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    chunked = f"{post}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 64
    with _in_thread(_repeat(cell, [announced, chunked], {413})):
        yield


@contextlib.contextmanager
def malformed_bodies(cell: Cell, _worker: str) -> Iterator[None]:
    """No HTTP, no JSON, not UTF-8, nested deep, cut short, unknown and absurd fields: 4xx."""
    bodies = [
        b"",
        b"{",
        b"\xff\xfe\x00",
        os.urandom(4096),
        b"[" * 100_000,
        b'{"prompt": 5}',
        b'{"prompt": "a", "size": "9999999x1"}',
        b'{"prompt": "a", "seed": 1e400}',
        b'{"prompt": "a", "prompt_": "\\ud800"}',
        b"null",
    ]
    post = _post(cell).encode()
    whole = [post + b"Content-Length: %d\r\n\r\n" % len(b) + b for b in bodies]
    whole += [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n"]
    with _in_thread(_repeat(cell, whole, {400, 413, 414, 422, 505})):
        yield


@contextlib.contextmanager
def _in_thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    over, errors = threading.Event(), []

    def run() -> None:
        try:
            work(over)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(2 * _TIMEOUT_S)
    if errors:
        raise errors[0]


def _repeat(
    cell: Cell, requests: list[bytes], allowed: set[int]
) -> Callable[[threading.Event], None]:
    """Send one after another until it is over; every answer must have an allowed status."""

    def work(over: threading.Event) -> None:
        for request in itertools.cycle(requests):
            if over.wait(0.02):
                return
            with contextlib.closing(_connect(cell)) as one:
                _send(one, request)
                _half_close(one)
                _check(_answer(one), allowed)

    return work


def _check(answer: bytes, allowed: set[int]) -> None:
    if not answer:
        return  # closed without a word: fine for what is no HTTP
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head.startswith(b"HTTP/") else 0
    if status not in allowed or b"<html" in body.lower():
        raise Unexpected(f"answered with {answer[:300]!r}")


def _answer(connection: socket.socket) -> bytes:
    received = b""
    deadline = time.monotonic() + _TIMEOUT_S
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline and len(received) < 65536:
            piece = connection.recv(65536)
            if not piece:
                break
            received += piece
    return received


def _post(cell: Cell) -> str:
    """The head of a request to draw, but for its last lines."""
    said = {"Host": "localhost", "Content-Type": "application/json", **cell.entry.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    return f"POST /v1/images/generations HTTP/1.1\r\n{lines}"


def _connect(cell: Cell) -> socket.socket:
    """To where requests are sent: by TLS where the cell speaks it."""
    plain = _dial(cell)
    if not cell.url.startswith("https:"):
        return plain
    try:
        return _BLIND.wrap_socket(plain)
    except OSError:
        plain.close()
        raise


def _dial(cell: Cell) -> socket.socket:
    target = urlsplit(cell.url)
    address = (target.hostname or "127.0.0.1", target.port or 80)
    local = address[0].startswith("127.")
    source = (_STRANGER, 0) if local else None
    for _ in range(50):
        with contextlib.suppress(OSError):
            return socket.create_connection(address, _TIMEOUT_S, source)
        time.sleep(0.1)
    raise Unexpected(f"{address} takes no connection")


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


def _half_close(connection: socket.socket) -> None:
    """End our side without a word, under TLS too, and still read."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)


def _again(cell: Cell, connection: socket.socket) -> socket.socket:
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLHUP | select.POLLERR)
    if not poll.poll(0):
        return connection
    connection.close()
    return _dial(cell)


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise PermissionError(f"{count} open files are needed and {hard} allowed: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
