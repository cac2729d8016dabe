"""Whether pictures can go into the bucket of ``[objects]``, each finding with its remedy."""

import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib import util
from pathlib import Path

from deploy.cell import Cell
from deploy.finding import Finding
from deploy.host import private_file
from deploy.layout import objects_of
from deploy.rendering.store_address import CA_BUNDLE
from worker.errors import ObjectsAway
from worker.storage.bucket import LINK_S, Bucket, Credentials
from worker.storage.images import ImageStore, StoredFile, is_file
from worker.storage.spool import Spool
from worker.tables import Objects

_TIMEOUT_S = 5.0
_WARN_SKEW_S = 5.0
_ACCESS = (
    "check objects.url, endpoint and credentials_file; the key may put, get, delete and list "
    "below the prefix"
)


def before_up(cell: Cell) -> Iterator[Finding]:
    """What must hold before workers start: a store that is away stops none of them."""
    objects = objects_of(cell.config)
    if not objects.on:
        return
    if util.find_spec("obstore") is None:
        remedy = "pip install -c constraints.txt '.[s3]', or empty objects.url"
        yield Finding("fail", "objects", "obstore is not installed", remedy)
        return
    if objects.endpoint.startswith("https:") and not CA_BUNDLE.exists():
        text = f"nginx cannot check the store's certificate: there is no {CA_BUNDLE}"
        yield Finding("fail", "objects", text, "apt-get install ca-certificates")
    path = Path(objects.credentials_file)
    try:
        Credentials.read(path)
    except ValueError as error:
        remedy = "write [default] with aws_access_key_id and aws_secret_access_key into it"
        yield Finding("fail", "objects", str(error), remedy)
        return
    if private_file.is_exposed(path, path.stat().st_mode, 0o044):
        yield Finding("warn", "objects", f"others may read {path}", f"chmod 600 {path}")


def doctor(cell: Cell) -> Iterator[Finding]:
    """Everything that a worker and nginx do with the store, once."""
    objects = objects_of(cell.config)
    yield from _left_here(cell)
    if not objects.on or any(finding.level == "fail" for finding in before_up(cell)):
        return
    yield from _clock(objects)
    bucket, name = Bucket(objects), f"zimage-doctor-{secrets.token_hex(8)}"
    try:
        yield from _used(objects, bucket, name)
    except ObjectsAway as error:
        yield Finding("fail", "objects", f"{objects.url}: {error.why}", _ACCESS)
    except FileNotFoundError:
        text = f"{objects.url}: what was put a moment ago is not there"
        yield Finding("fail", "objects", text, _ACCESS)
    finally:
        _delete(bucket, name)


def _left_here(cell: Cell) -> Iterator[Finding]:
    """Pictures on this host that should be elsewhere."""
    var_dir, on = cell.layout.var_dir, cell.config.objects.on
    waiting = Spool(var_dir / "spool", 0).waiting()
    if waiting and on:
        text = f"{len(waiting):,} pictures wait for it, the first for {_age(waiting[0])}"
        yield Finding(
            "warn", "objects", text, "mend the store: they are brought to it by themselves"
        )
    elif waiting:
        text = f"{len(waiting):,} pictures in {var_dir / 'spool'} are in no gallery"
        yield Finding(
            "warn", "objects", text, "set objects.url again, then: zimage images move --back"
        )
    old = (
        sum(is_file(file.name) for file in ImageStore(cell.layout.images_dir).files()) if on else 0
    )
    if old:
        text = f"{old:,} files are still in {cell.layout.images_dir}"
        yield Finding("warn", "objects", text, "zimage images move")


def _age(file: StoredFile) -> str:
    minutes = int(time.time() - file.modified_at) // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _used(objects: Objects, bucket: Bucket, name: str) -> Iterator[Finding]:
    data = secrets.token_bytes(64)
    bucket.put(name, data)
    if bucket.get(name) != data:
        yield Finding("fail", "objects", "the store gives back other bytes than it got", _ACCESS)
        return
    if bucket.put(name, b"another"):
        remedy = "use a store that knows If-None-Match: a picture could be written over"
        yield Finding("fail", "objects", "the store writes over what is there", remedy)
        return
    bucket.require_list()
    yield from _signed(bucket.signed_url(name), data)
    bucket.delete([name])
    if bucket.has(name):
        yield Finding("fail", "objects", "the key may not delete", _ACCESS)
    else:
        yield Finding("ok", "objects", f"{objects.url} at {objects.endpoint} can be used")


def _signed(url: str, data: bytes) -> Iterator[Finding]:
    """How nginx gets pictures: by an address that is good for a minute, and no other."""
    if _get(url) != data:
        text = "an address that was signed for nginx is not taken"
        yield Finding("fail", "objects", text, "set this machine's clock, and check the endpoint")
    if _get(url.replace(f"X-Amz-Expires={LINK_S}", f"X-Amz-Expires={LINK_S * 9}")) is not None:
        text = "the store takes an address whose signature is wrong"
        yield Finding("fail", "objects", text, "use a store that checks signatures")
    if _get(url.partition("?")[0]) is not None:
        text = "whoever reaches the store can read pictures without a key"
        yield Finding("warn", "objects", text, "make the bucket private")


def _get(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def _clock(objects: Objects) -> Iterator[Finding]:
    """Addresses are signed by this machine's clock and judged by the store's."""
    try:
        store_at = _date(objects.endpoint)
    except (OSError, ValueError, TypeError):
        return  # what is used next says that it cannot be reached
    skew_s = store_at - time.time()
    text = f"the store's clock is {abs(skew_s):.0f} s {'ahead' if skew_s > 0 else 'behind'}"
    remedy = "let chrony or systemd-timesyncd set this machine's clock"
    if abs(skew_s) >= LINK_S / 2:
        yield Finding("fail", "objects", text, remedy)
    elif abs(skew_s) > _WARN_SKEW_S:
        yield Finding("warn", "objects", text, remedy)


def _date(endpoint: str) -> float:
    """Seconds since the epoch, as a server says whatever else it answers."""
    request = urllib.request.Request(f"{endpoint}/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            said = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        said = error.headers["Date"]
    return parsedate_to_datetime(said).timestamp()


def _delete(bucket: Bucket, name: str) -> None:
    if not bucket.away:
        try:
            bucket.delete([name])
        except ObjectsAway:
            return
