"""A hub of one model on this machine, which speaks as Hugging Face's and as ModelScope's do.

It can be silent, cut what it sends, send slowly, or send something else than it lists.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

MODEL = "ours/tiny"
COMMIT = "c" * 40
LARGE_BYTES = 100_000
"""From here on a file lies in the store of large ones, where the hub sends whoever asks for it."""


class LocalHub(ThreadingHTTPServer):
    """``asked``: paths of all requests; ``ranges``: of those that went on with a file.

    ``silent``: accepts and never answers. ``hush``: sends so many bytes of a file, then nothing.
    ``cut_after``: of no file more than its first so many bytes come, however often the rest is
    asked for. ``cut_once``: an answer with a file ends after so many bytes, once a file.
    ``spoilt``: files of these names come with another first byte. ``piece_bytes``: at a time.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.ranges: list[tuple[str, int]] = []
        self.silent = False
        self.hush: int | None = None
        self.cut_after: int | None = None
        self.cut_once: int | None = None
        self.cut: set[str] = set()
        self.spoilt: set[str] = set()
        self.piece_bytes: int | None = None
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store_url(self) -> str:
        """As hubs have it, under another name: their library follows it for content alone."""
        return f"http://localhost:{self.server_port}/store"

    def files(self) -> dict[str, Path]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path for path in found}

    @property
    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [path.removeprefix("content:") for path in self.asked if path.startswith("content:")]


@contextmanager
def local_hub(folder: Path) -> Iterator[LocalHub]:
    server = LocalHub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        try:
            if self.server.silent:
                self._wait()
            elif path.startswith("/api/v1/"):
                self._modelscope(path.removeprefix("/api/v1/"))
            elif path.startswith("/store/"):
                self._content(path.removeprefix("/store/"), {})
            else:
                self._hugging_face(path)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _wait(self) -> None:
        self.server.closing.wait()
        self.close_connection = True

    # Hugging Face
    def _hugging_face(self, path: str) -> None:
        files = self.server.files()
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            self._json([_entry(name, file) for name, file in files.items()])
        elif path in (f"/api/models/{MODEL}", f"/api/models/{MODEL}/revision/main"):
            siblings = [_sibling(name, file) for name, file in files.items()]
            self._json({"id": MODEL, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
            self._resolve(path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/"))
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _resolve(self, name: str) -> None:
        file = self.server.files().get(name)
        if file is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif _is_large(file):
            linked = {
                "Location": f"{self.server.store_url}/{name}",
                "X-Linked-Etag": f'"{sha256(file)}"',
                "X-Linked-Size": str(file.stat().st_size),
                "X-Repo-Commit": COMMIT,
            }
            self._send(302, b"", linked)
        else:
            self._content(name, {"ETag": f'"{_git(file)}"', "X-Repo-Commit": COMMIT})

    # ModelScope
    def _modelscope(self, path: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if path == f"models/{MODEL}/repo/files":
            files = [_listed(name, file) for name, file in self.server.files().items()]
            self._json({"Code": 200, "Success": True, "Data": {"Files": files}})
        elif path == f"models/{MODEL}/repo":
            self._content(query["FilePath"][0], {})
        elif path == f"models/{MODEL}":
            self._json({"Code": 200, "Success": True, "Data": {"Path": "ours", "Name": "tiny"}})
        else:
            self._send(404, b'{"Code": 404, "Success": false, "Message": "not found"}', {})

    # both
    def _content(self, name: str, headers: dict[str, str]) -> None:
        server = self.server
        file = server.files().get(name)
        if file is None:
            self._send(404, b"{}", {})
            return
        content = bytearray(file.read_bytes())
        if name in server.spoilt:
            content[0] ^= 1
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if self.command == "GET":
            server.asked.append(f"content:{name}")
        if first:
            server.ranges.append((name, first))
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(206 if first else 200, bytes(content[first:]), headers, self._sent(name, first))

    def _sent(self, name: str, first: int) -> int | None:
        """How many bytes come before the connection ends; None: all."""
        server = self.server
        if server.cut_once is not None and name not in server.cut and self.command == "GET":
            server.cut.add(name)
            return server.cut_once
        return None if server.cut_after is None else max(0, server.cut_after - first)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "GET":
            return
        if self.server.hush is not None and len(body) > self.server.hush:
            self.wfile.write(body[: self.server.hush])
            self._wait()
            return
        step = self.server.piece_bytes or len(body) or 1
        for start in range(0, len(body[:sent]), step):
            self.wfile.write(body[:sent][start : start + step])
            self.wfile.flush()
        self.close_connection = sent is not None and sent < len(body)


def _is_large(file: Path) -> bool:
    return file.stat().st_size >= LARGE_BYTES


def _entry(name: str, file: Path) -> dict[str, Any]:
    """Of the listing by folders."""
    lfs = {"oid": sha256(file), "size": file.stat().st_size, "pointerSize": 130}
    entry = {"type": "file", "path": name, "size": file.stat().st_size, "oid": _git(file)}
    return entry | ({"lfs": lfs} if _is_large(file) else {})


def _sibling(name: str, file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    lfs = {"sha256": sha256(file), "size": size, "pointerSize": 130}
    sibling = {"rfilename": name, "size": size, "blobId": _git(file)}
    return sibling | ({"lfs": lfs} if _is_large(file) else {})


def _listed(name: str, file: Path) -> dict[str, Any]:
    return {
        "Path": name,
        "Name": name.rpartition("/")[2],
        "Type": "blob",
        "Size": file.stat().st_size,
        "Sha256": sha256(file),
        "Revision": COMMIT,
    }


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _git(file: Path) -> str:
    content = file.read_bytes()
    head = f"blob {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
