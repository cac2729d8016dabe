"""A real S3-compatible store, SeaweedFS: it checks signatures, as few fakes do."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from worker.tables import Objects

BUCKET = "pictures"
_KEY, _SECRET = "AKTESTS", "secret-of-the-tests"
_START_S = 60.0


PORTS = 8
"""That it listens on."""


class ObjectStore:
    """One that keeps its things in ``folder``. Its processes end on SIGKILL only. ``within``: what
    its command begins with, such as that of a namespace."""

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        address: str = "127.0.0.1",
        within: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.port = ports[0]
        self.endpoint = f"http://{address}:{self.port}"
        self._address = address
        self._within = within
        names = ["s3.port.grpc", "master.port", "master.port.grpc", "volume.port"]
        names += ["volume.port.grpc", "filer.port", "filer.port.grpc"]
        self._ports = dict(zip(names, ports[1:], strict=True))
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.credentials = folder / "credentials"
        self.credentials.write_text(
            f"[default]\naws_access_key_id = {_KEY}\naws_secret_access_key = {_SECRET}\n"
        )
        self.credentials.chmod(0o600)
        self._process: subprocess.Popen[bytes] | None = None

    def objects(self, prefix: str, **changes: object) -> Objects:
        """The settings of a cell with its pictures here, all below ``prefix``."""
        values = {
            "url": f"s3://{BUCKET}/{prefix}",
            "endpoint": self.endpoint,
            "credentials_file": str(self.credentials),
        }
        return Objects(**{**values, **changes})

    def start(self) -> None:
        """Start it, where it left off, and wait until it takes a picture."""
        options = [f"-{name}={port}" for name, port in self._ports.items()]
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._within,
                    str(Path(sys.executable).with_name("weed")),
                    "-logtostderr=true",
                    *("server", "-filer", "-s3", f"-s3.port={self.port}"),
                    f"-dir={data}",
                    f"-s3.config={self.folder / 's3.json'}",
                    *(f"-ip={self._address}", f"-ip.bind={self._address}", "-s3.iam=false"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0", "-metricsPort=0"),
                    "-s3.autoCreateBucket=false",
                    *("-master.volumeSizeLimitMB=64", "-volume.max=16", "-volume.minFreeSpace=0"),
                    "-master.electionTimeout=1s",
                    *options,
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(self.folder)},
                start_new_session=True,
            )
        self._wait_until_it_takes_a_picture()

    def kill(self) -> None:
        """As a crash does. ``start`` brings it back with all it had."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _wait_until_it_takes_a_picture(self) -> None:
        deadline = time.monotonic() + _START_S
        while not (self._put("") and self._put("ready")):
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = (self.folder / "log").read_text()[-2000:]
                raise RuntimeError(f"the store takes no picture: {log}")
            time.sleep(0.1)

    def _put(self, name: str) -> bool:
        """An object, or without a name the bucket itself."""
        from obstore import sign
        from obstore.store import S3Store

        store = S3Store(
            BUCKET,
            endpoint=self.endpoint,
            access_key_id=_KEY,
            secret_access_key=_SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        url = sign(store, "PUT", name, timedelta(seconds=60))
        request = urllib.request.Request(url, data=b"x" if name else b"", method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=10.0):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 409  # the bucket is there
        except OSError:
            return False
