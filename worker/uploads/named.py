"""Pictures that requests and jobs name by their id: of the gallery, and uploads.

They are their owner's only, whatever may be seen by others. Addresses are none: nothing is fetched.
"""

import re
from dataclasses import dataclass

import sqlalchemy as sa

from worker.errors import NotFound
from worker.storage import gallery, images, uploads
from worker.storage.database import Database
from worker.storage.images import Images
from worker.threads import ThreadPool
from worker.uploads.sources import Sent, Size

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class Named:
    """A picture that there is. ``prompt``: what it was drawn from, empty of an upload.
    ``transparent``: in parts. ``sha256``: of the file that was sent; empty: of the file itself."""

    id: str
    created_at: float
    name: str
    size: Size
    prompt: str = ""
    transparent: bool = False
    sha256: str = ""


class NamedPictures:
    """``shared``: several hosts have one store, which may lack what one of them has just drawn."""

    def __init__(
        self, database: Database, store: Images, threads: ThreadPool, *, shared: bool
    ) -> None:
        self._database = database
        self._store = store
        self._threads = threads
        self._shared = shared

    async def find(self, owner: str, id: str, field: str) -> Named:
        """The picture ``id`` of ``owner``; raises ``NotFound`` for ``field``."""
        found = await self._database.read(lambda c: find(c, owner, id))
        if found is None:
            expired = " It may have expired: send it again." if is_upload(id) else ""
            message = f"{field}: there is no picture {id[:70]!r} of yours.{expired}"
            raise NotFound(message, param=field)
        return found

    async def read(self, named: Named) -> Sent:
        """Its file. Raises ``NotFound``, ``PictureElsewhere`` or ``StoreAway``."""
        try:
            data = await self._threads.do(lambda: self._store.read(named.name))
        except FileNotFoundError:
            remedy = "send it again" if is_upload(named.id) else "draw it again with its seed"
            raise images.lost(named.id, named.created_at, remedy, shared=self._shared) from None
        return Sent(data, named.sha256 or Sent.of(data).sha256, named.id)


def find(connection: sa.Connection, owner: str, id: str) -> Named | None:
    """The picture ``id``, if it is the owner's."""
    if is_upload(id):
        upload = uploads.find(connection, id)
        if upload is None or upload.owner != owner:
            return None
        return Named(
            id,
            upload.created_at,
            upload.name,
            (upload.width, upload.height),
            transparent=upload.transparent,
            sha256=upload.sha256,
        )
    picture = gallery.find(connection, id)
    if picture is None or picture.owner != owner:
        return None
    return Named(id, picture.created_at, picture.name, picture.parameters.size, picture.prompt)


def is_upload(id: str) -> bool:
    return id.startswith("upload_")


def is_id(text: str) -> bool:
    """Whether a picture could be called so."""
    return re.fullmatch(f"{images.ID}|{uploads.ID}", text) is not None


def is_address(text: str) -> bool:
    """Whether it would have to be fetched: ``http:``, ``data:``, ``file:`` and all others."""
    return _ADDRESS.match(text) is not None or text.startswith("//")
