"""What `zimage up` and `zimage doctor` say of the store of pictures, against a real one."""

import os
import time
from pathlib import Path

import pytest

from deploy.cell import Cell
from deploy.config import parse
from deploy.host import private_file
from deploy.rollout import bucket_checks
from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.worker.storage.conftest import DAY
from worker.storage.bucket import LINK_S, Bucket
from worker.storage.bucket_images import BucketImages

pytestmark = pytest.mark.xdist_group("s3")


def cell(tmp_path: Path, store: ObjectStore, **objects: object) -> Cell:
    told = store.objects("checks", **objects).model_dump()
    data = {"cell": {"var_dir": str(tmp_path / "var")}, "objects": told}
    return Cell(parse(data), tmp_path / "cluster.toml")


def told(cell: Cell) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in bucket_checks.doctor(cell)]


def test_a_good_store_is_used_once_and_left_as_it_was(
    tmp_path: Path, object_store: ObjectStore
) -> None:
    good = cell(tmp_path, object_store)
    assert list(bucket_checks.before_up(good)) == []
    text = f"s3://pictures/checks at {object_store.endpoint} can be used"
    assert told(good) == [("ok", text)]
    Bucket(object_store.objects("checks")).require_list()


def test_without_a_bucket_nothing_is_said(tmp_path: Path) -> None:
    plain = Cell(parse({"cell": {"var_dir": str(tmp_path)}}), tmp_path / "cluster.toml")
    assert list(bucket_checks.before_up(plain)) == []
    assert list(bucket_checks.doctor(plain)) == []


def test_a_key_that_the_store_refuses_is_found(tmp_path: Path, object_store: ObjectStore) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(object_store.credentials.read_text().replace("secret-of", "guess-of"))
    wrong.chmod(0o600)
    [(level, text)] = told(cell(tmp_path, object_store, credentials_file=str(wrong)))
    assert level == "fail"
    assert "403" in text


def test_a_store_that_is_away_fails_the_doctor_and_not_the_start(
    tmp_path: Path, object_store: ObjectStore
) -> None:
    gone = cell(tmp_path, object_store, endpoint=f"http://127.0.0.1:{free_port()}")
    assert list(bucket_checks.before_up(gone)) == []
    [(level, text)] = told(gone)
    assert (level, "error sending request" in text) == ("fail", True)


def test_credentials_are_there_and_nobody_elses(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = cell(tmp_path, object_store, credentials_file=str(tmp_path / "none"))
    [finding] = bucket_checks.before_up(missing)
    assert (finding.level, "cannot be read" in finding.text) == ("fail", True)
    own = tmp_path / "credentials"
    own.write_bytes(object_store.credentials.read_bytes())
    own.chmod(0o644)
    [finding] = bucket_checks.before_up(cell(tmp_path, object_store, credentials_file=str(own)))
    assert (finding.level, finding.remedy) == ("warn", f"chmod 600 {own}")
    monkeypatch.setattr(
        private_file, "SECRETS", tmp_path
    )  # of a container, whose modes others choose
    assert not list(
        bucket_checks.before_up(cell(tmp_path, object_store, credentials_file=str(own)))
    )


def test_without_the_extra_the_start_is_refused(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [finding] = bucket_checks.before_up(cell(tmp_path, object_store))
    assert (finding.level, ".[s3]" in str(finding.remedy)) == ("fail", True)


@pytest.mark.parametrize(("ahead_s", "levels"), [(-LINK_S, ["fail", "ok"]), (12, ["warn", "ok"])])
def test_a_clock_that_differs_from_the_stores_is_found(
    ahead_s: float,
    levels: list[str],
    tmp_path: Path,
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket_checks, "_date", lambda endpoint: time.time() + ahead_s)
    found = told(cell(tmp_path, object_store))
    assert [level for level, _ in found] == levels
    assert f"{abs(ahead_s)} s" in found[0][1]


def test_a_store_that_checks_no_signature_is_found(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(64)
    monkeypatch.setattr("secrets.token_bytes", lambda size: data)
    monkeypatch.setattr(bucket_checks, "_get", lambda url: data)
    found = told(cell(tmp_path, object_store))
    assert found[0] == ("fail", "the store takes an address whose signature is wrong")
    assert found[1][0] == "warn"


def test_pictures_that_are_still_on_this_host_are_counted(
    tmp_path: Path, object_store: ObjectStore
) -> None:
    gone = cell(tmp_path, object_store, endpoint=f"http://127.0.0.1:{free_port()}")
    kept = BucketImages.of(object_store.objects("checks"), gone.layout.var_dir)
    kept.spool.add([(f"{DAY}/img_waits.png", b"waits")])
    long_ago = time.time() - 2 * 3600 - 60
    os.utime(kept.spool.pictures.path(f"{DAY}/img_waits.png"), (long_ago, long_ago))
    kept.folder.save(f"{DAY}/img_old.png", b"old")
    waits, old, away = bucket_checks.doctor(gone)
    assert waits.text == "1 pictures wait for it, the first for 2 h 1 min"
    assert (old.text, old.remedy) == (
        f"1 files are still in {gone.layout.images_dir}",
        "zimage images move",
    )
    assert away.level == "fail"
    plain = Cell(parse({"cell": {"var_dir": str(gone.layout.var_dir)}}), tmp_path / "cluster.toml")
    [left] = bucket_checks.doctor(plain)
    assert "are in no gallery" in left.text
