"""``results.zip`` can be unpacked while it comes: readers of streams need each size beforehand."""

import shutil
import struct
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.http_server import QuietHandler
from tests.http_server import serving as serving_http
from tests.object_store import ObjectStore
from tests.worker.conftest import ready, serving
from tests.worker.jobs.conftest import over, settings_of
from tests.worker.storage.test_jobs import Store
from worker.errors import StoreAway
from worker.jobs import archive as module
from worker.jobs.archive import archive
from worker.storage import gallery
from worker.storage.bucket_images import BucketImages
from worker.storage.images import Images

pytestmark = pytest.mark.anyio

_HEADER = struct.Struct("<4sHHHHHIIIHH")
_SIZES_FOLLOW, _UTF8 = 1 << 3, 1 << 11

UNPACK = """
import java.io.*;
import java.util.zip.*;
class Unpack {
    public static void main(String[] arguments) throws IOException {
        try (ZipInputStream in = new ZipInputStream(System.in)) {
            for (ZipEntry entry; (entry = in.getNextEntry()) != null;) {
                CRC32 crc = new CRC32();
                crc.update(in.readAllBytes());
                System.out.println(entry.getName() + " " + crc.getValue());
            }
        }
    }
}
"""


@pytest.fixture
async def made(home: Path, store: Store) -> tuple[bytes, list[bytes]]:
    """The archive of a job one of whose pictures was deleted, and the files of the others."""
    async with serving(settings_of(home)) as (service, _):
        await ready(service)
        job = await over(store, store.create(prompts=("a red hill", "gone " * 100, "山")))
        names = []
        for item in store.items(job.id):
            image = store(gallery.find, str(item.image_id))
            assert image is not None
            names.append(image.name)
        images = service.components.images
        images.delete([names.pop(1)])
        chunks = [chunk async for chunk in archive(service.components.database, images, job)]
        return b"".join(chunks), [images.read(name) for name in names]


class Failing:
    """Pictures of ``images``, where every second call finds the store away."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._calls = 0

    def read(self, name: str) -> bytes:
        self._calls += 1
        if self._calls % 2:
            raise StoreAway("away for a moment")
        return self._images.read(name)


async def test_a_store_that_fails_a_read_does_not_cut_it(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    async with serving(settings_of(home)) as (service, _):
        await ready(service)
        job = await over(store, store.create(prompts=("a", "b", "c")))
        images = Failing(service.components.images)
        database = service.components.database
        stream = b"".join([chunk async for chunk in archive(database, images, job)])  # type: ignore[arg-type]
        monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
        with pytest.raises(StoreAway):
            await anext(archive(database, Failing(service.components.images), job))  # type: ignore[arg-type]
    assert list(entries(stream)) == ["0001-a.png", "0002-b.png", "0003-c.png"]


class Cutting(QuietHandler):
    """Passes GET on to a store, and breaks off in the middle of the first ``cuts`` answers."""

    store = ""
    cuts = 0

    def do_GET(self) -> None:
        asked = urllib.request.Request(f"{self.store}{self.path}", headers=dict(self.headers))
        try:
            answer = urllib.request.urlopen(asked, timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            data, cls = answer.read(), type(self)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
        cut, cls.cuts = cls.cuts > 0, max(0, cls.cuts - 1)
        self.wfile.write(data[: len(data) // 2] if cut else data)


@pytest.fixture
def cutting(object_store: ObjectStore) -> Iterator[type[Cutting]]:
    handler = type("Handler", (Cutting,), {"store": object_store.endpoint})
    with serving_http(handler) as handler.url:  # type: ignore[attr-defined]
        yield handler


@pytest.mark.xdist_group("s3")
async def test_a_bucket_that_breaks_off_in_the_middle_does_not_cut_it(
    home: Path, store: Store, object_store: ObjectStore, cutting: Any, tmp_path: Path
) -> None:
    prefix = f"archive/{uuid.uuid4()}"
    whole = BucketImages.of(object_store.objects(prefix), tmp_path / "whole")
    cut = BucketImages.of(object_store.objects(prefix, endpoint=cutting.url), tmp_path / "cut")
    async with serving(settings_of(home)) as (service, _):
        await ready(service)
        job = await over(store, store.create(prompts=("a", "b", "c")))
        for file in service.components.images.files():
            whole.save(file.name, service.components.images.read(file.name))
        cutting.cuts = 3  # one that its client reads again by itself would show nothing
        stream = b"".join([chunk async for chunk in archive(service.components.database, cut, job)])
    assert (len(entries(stream)), cutting.cuts) == (3, 0)


def entries(stream: bytes) -> dict[str, bytes]:
    """Names and contents, by local headers alone, one after the other."""
    found, at = {}, 0
    while stream[at : at + 4] == b"PK\x03\x04":
        fields = _HEADER.unpack_from(stream, at)
        _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = fields
        assert not flags & _SIZES_FOLLOW
        assert (method, packed) == (0, size)
        at += _HEADER.size
        name = stream[at : at + name_bytes]
        at += name_bytes + extra_bytes
        data = stream[at : at + size]
        assert zlib.crc32(data) == crc
        found[name.decode("utf-8" if flags & _UTF8 else "ascii")] = data
        at += size
    assert stream[at : at + 4] == b"PK\x01\x02"
    return found


async def test_size_and_checksum_stand_before_each_picture(made: tuple[bytes, list[bytes]]) -> None:
    stream, pictures = made
    missing = b"Deleted meanwhile:\n2: " + (b"gone " * 100)[:100] + b"\n"
    assert entries(stream) == {
        "0001-a-red-hill.png": pictures[0],
        "0003-山.png": pictures[1],
        "missing.txt": missing,
    }


@pytest.mark.skipif(not shutil.which("funzip"), reason="needs funzip")
async def test_funzip_takes_the_first_picture(made: tuple[bytes, list[bytes]]) -> None:
    stream, pictures = made
    done = await anyio.run_process(["funzip"], input=stream, check=False)
    assert done.stdout == pictures[0]


@pytest.mark.skipif(not shutil.which("java"), reason="needs java")
async def test_java_reads_all_of_them_as_a_stream(
    made: tuple[bytes, list[bytes]], tmp_path: Path
) -> None:
    stream, pictures = made
    (tmp_path / "Unpack.java").write_text(UNPACK)
    command = ["java", "-Dstdout.encoding=UTF-8", str(tmp_path / "Unpack.java")]
    done = await anyio.run_process(command, input=stream, check=False)
    told = dict(line.rsplit(" ", 1) for line in done.stdout.decode().splitlines())
    assert done.stderr == b""
    assert told["0001-a-red-hill.png"] == str(zlib.crc32(pictures[0]))
    assert len(told) == 3
