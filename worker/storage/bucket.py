"""A bucket of an S3-compatible store.

Every call ends within seconds. After one that the store did not answer, or refused, others of its
kind fail at once, and one call at a time tries again.
"""

import configparser
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from worker.storage.images import StoredFile, is_file
from worker.storage.outage import Outage
from worker.tables import Objects

if TYPE_CHECKING:
    from obstore.store import S3Store

T = TypeVar("T")

LINK_S = 900
"""How long a signed address is good, and so how far this machine's clock may be behind the store's.
It may be ahead as far, for every request: S3's own limit."""
_QUICK_S, _TRANSFER_S, _CONNECT_S = 3.0, 10.0, 1.5
_REREAD_S = 300.0  # credentials, so that they can be exchanged while workers run
_LISTED_AT_ONCE = 1000
_NEEDED = ("aws_access_key_id", "aws_secret_access_key")
_NOISE = re.compile(
    r"^Generic S3 error: |Error performing (list request: )?|, after \d+ retries, .*? (?= - )"
)
_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True)
class Credentials:
    """Of a role of the store that may do no more than this cell does."""

    key_id: str
    secret: str
    token: str | None
    region: str

    @classmethod
    def read(cls, path: Path) -> "Credentials":
        """Raises ``ValueError`` where the file is not there or lacks something."""
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except OSError as error:  # never to be taken for an object that is not there
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
        found = dict(parser["default"]) if parser.has_section("default") else {}
        missing = [key for key in _NEEDED if key not in found]
        if missing:
            raise ValueError(f"{path} has no {missing[0]} in a section [default]")
        return cls(
            found["aws_access_key_id"],
            found["aws_secret_access_key"],
            found.get("aws_session_token"),
            found.get("region", "us-east-1"),
        )


class Bucket:
    """Names are those of ``Images``, below the prefix. Any call may raise ``ObjectsAway``."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._stores: tuple[S3Store, S3Store] | None = None  # for small calls, and for pictures
        self._reads, self._writes = Outage("be read"), Outage("be written")

    @property
    def away(self) -> str:
        """Why it cannot be used, as far as the last call knows; "": it can."""
        return self._writes.why or self._reads.why

    def put(self, name: str, data: bytes) -> bool:
        """Store an object, safe on return; whether it was not there before, for what is there is
        never written over."""
        from obstore import put
        from obstore.exceptions import AlreadyExistsError

        kind = _TYPES.get(name.rpartition(".")[2], "application/octet-stream")
        try:
            self._write(
                lambda _, store: put(
                    store, name, data, mode="create", attributes={"Content-Type": kind}
                ),
                AlreadyExistsError,
            )
        except AlreadyExistsError:
            return False
        return True

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        from obstore import head

        try:
            self._read(lambda store, _: head(store, name), FileNotFoundError)
        except FileNotFoundError:
            return False
        return True

    def get(self, name: str) -> bytes:
        """An object's content; ``FileNotFoundError``."""
        from obstore import get

        return self._read(lambda _, store: bytes(get(store, name).bytes()), FileNotFoundError)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, as far as they are there."""
        from obstore import delete

        if names:
            self._write(lambda store, _: delete(store, names))

    def files(self) -> list[StoredFile]:
        """All pictures and thumbnails; what else lies in the bucket is none of ours."""
        from obstore import list as listed

        def all_of(store: "S3Store", _: "S3Store") -> list[StoredFile]:
            return [
                StoredFile(meta["path"], meta["size"], meta["last_modified"].timestamp())
                for some in listed(store, chunk_size=_LISTED_AT_ONCE)
                for meta in some
                if is_file(meta["path"])
            ]

        return self._read(all_of)

    def require_list(self) -> None:
        """Ask for the beginning of the list, whatever stands in it."""
        from obstore import list as listed

        self._read(lambda store, _: next(iter(listed(store, chunk_size=1)), None))

    def signed(self, name: str) -> str:
        """The query that lets whoever has it get this object, for ``LINK_S``. Asks nobody."""
        return urlsplit(self.signed_url(name)).query

    def signed_url(self, name: str) -> str:
        """The object's address with this query."""
        from obstore import sign
        from obstore.exceptions import BaseError

        try:
            store, _ = self._built()
            return sign(store, "GET", name, timedelta(seconds=LINK_S))
        except (BaseError, ValueError) as error:
            raise self._reads.failed(_in_words(error)) from error

    def try_again(self) -> None:
        """See whether a bucket that was away is back."""
        if self._reads.why:
            self.require_list()  # a missing object would be an answer of no bucket, too
        if self._writes.why:
            probe = f"probe-{secrets.token_hex(8)}"
            self.put(probe, b"")
            self.delete([probe])

    # Calls: a store that is full or read-only may go on being read

    def _read(self, work: "Callable[[S3Store, S3Store], T]", *answers: type[Exception]) -> T:
        return self._call(self._reads, work, *answers)

    def _write(self, work: "Callable[[S3Store, S3Store], T]", *answers: type[Exception]) -> T:
        return self._call(self._writes, work, *answers)

    def _call(
        self,
        outage: Outage,
        work: "Callable[[S3Store, S3Store], T]",
        *answers: type[Exception],
    ) -> T:
        """The result of ``work``, or one of ``answers``; all else means that the store is away."""
        from obstore.exceptions import BaseError

        outage.require_turn()
        try:
            result = work(*self._built())
        except answers:
            outage.ended()
            raise
        except (BaseError, OSError, ValueError) as error:
            raise outage.failed(_in_words(error)) from error
        outage.ended()
        return result

    # The client

    def _built(self) -> "tuple[S3Store, S3Store]":
        if self._stores is None:
            self._stores = self._store(_QUICK_S), self._store(_TRANSFER_S)
        return self._stores

    def _store(self, timeout_s: float) -> "S3Store":
        from obstore.store import S3Store

        path = Path(self._objects.credentials_file)
        first = Credentials.read(path)
        return S3Store(
            self._objects.bucket,
            prefix=self._objects.prefix or None,
            endpoint=self._objects.endpoint,
            region=first.region,
            virtual_hosted_style_request=False,
            disable_bulk_delete=True,  # which not every store knows
            credential_provider=lambda: _provided(Credentials.read(path)),
            client_options={
                "allow_http": self._objects.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "timeout": timedelta(seconds=timeout_s),
            },
            retry_config={
                "max_retries": 1,
                "retry_timeout": timedelta(seconds=timeout_s),
                "backoff": {"init_backoff": timedelta(milliseconds=100)},
            },
        )


def _provided(credentials: Credentials) -> Any:
    return {
        "access_key_id": credentials.key_id,
        "secret_access_key": credentials.secret,
        "token": credentials.token,
        "expires_at": datetime.now(UTC) + timedelta(seconds=_REREAD_S),
    }


def _in_words(error: Exception) -> str:
    """What obstore says, without its debug output, and the store's own word for it."""
    text = str(error).strip() or type(error).__name__
    code = re.search(r"<Code>(\w+)</Code>", text)
    line = _NOISE.sub("", text.splitlines()[0].partition("<")[0]).rstrip(" :")[:300]
    return f"{line}: {code[1]}" if code else line
