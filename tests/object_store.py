"""The S3-compatible store of the tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from loadtest.cluster import object_store
from loadtest.cluster.object_store import BUCKET
from tests.ports import free_ports

__all__ = ["BUCKET", "ObjectStore", "running"]


class ObjectStore(object_store.ObjectStore):
    """On ports that nobody else has."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, free_ports(object_store.PORTS))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ObjectStore]:
    """A store of its own in ``folder``, which ends with the block."""
    store = ObjectStore(folder)
    try:
        store.start()
        yield store
    finally:
        store.kill()
