"""What hosts say that they serve, and what that makes of a cluster."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deploy import links
from deploy.cluster.differences import MOST_LORAS
from deploy.cluster.serving import Serving, everywhere, served_by
from tests.deploy.cluster import cells
from worker.coordination.live_workers import publish
from worker.coordination.served_models import ServedModel, ServedModelsFile, pool_of
from worker.models.loras import folder as loras

TURBO = {"name": "turbo", "aliases": ["dall-e-3"], "source": "tiny", "digest": "d", "about": None}
PHOTO = {"name": "photo", "aliases": [], "source": "", "digest": "e", "about": {"id": "photo"}}


def serving(folder: Path, *serves: ServedModel) -> Serving:
    (folder / "run").mkdir(exist_ok=True)
    told = cells.settings(
        folder,
        serves=serves,
        lora_dir=folder / "loras",
        cluster_models_json=folder / "cluster-models.json",
    )
    return Serving(told)


def host(id: str, *serves: dict[str, Any], **changes: Any) -> Any:
    return cells.host(id, facts={"serves": list(serves)}, **changes)


def test_host_tells_what_its_workers_have_loaded(tmp_path: Path) -> None:
    here = serving(tmp_path, ServedModel("turbo", ("dall-e-3",), "tiny"), ServedModel("photo"))
    publish(tmp_path / "run", "w1", {"id": "turbo", "edits": True, "digest": "old"})
    publish(tmp_path / "run", "w2", {"id": "turbo", "edits": True, "digest": "d"})
    os.utime(tmp_path / "run" / "w1.model", (1, 1))
    facts = here.facts()
    turbo, photo = facts["serves"]
    assert turbo == {**TURBO, "about": {"id": "turbo", "edits": True}}
    assert (photo["name"], photo["digest"], photo["about"]) == ("photo", "", None)
    assert facts["pools"] == sorted((pool_of("turbo"), pool_of("photo")))
    assert links.pools_in({"facts": facts}) == tuple(facts["pools"])


def test_model_without_a_name_is_told_of_once_it_was_loaded(tmp_path: Path) -> None:
    here = serving(tmp_path, ServedModel("", (), "/models/poster"))
    assert here.facts()["serves"] == []
    publish(tmp_path / "run", "w1", {"id": "poster", "digest": "d"})
    [told] = here.facts()["serves"]
    assert (told["name"], told["digest"]) == ("poster", "d")


def test_front_alone_serves_nothing(tmp_path: Path) -> None:
    assert serving(tmp_path).facts() == {}


def test_adapters_are_told_by_their_files_and_so_many_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = serving(tmp_path, ServedModel("turbo"))
    known = {f"{k:04}": _lora(f"{k:04}", tmp_path) for k in range(MOST_LORAS + 5)}
    monkeypatch.setattr(loras.LoraFolder, "all", lambda _: known)
    told = here.facts()["loras"]
    assert len(told) == MOST_LORAS
    assert told["0007"] == known["0007"].sha256[:16]


def _lora(name: str, folder: Path) -> loras.StoredLora:
    sha256 = f"{int(name):064x}"[::-1]
    return loras.StoredLora(name, folder / name, sha256, 4, 1, "", {}, sha256)


def test_models_of_a_cluster_stand_in_the_order_in_which_hosts_joined() -> None:
    first = host("b", TURBO, joined_at=1.0)
    later = host("a", PHOTO, {**TURBO, "aliases": ["fast"], "about": {"id": "x"}}, joined_at=2.0)
    found = everywhere([later, first])
    assert [model.name for model in found] == ["turbo", "photo"]
    assert found[0].aliases == ("dall-e-3", "fast")
    assert found[0].about == {"id": "x"}


def test_removed_hosts_and_fronts_serve_nothing_and_those_that_are_away_do() -> None:
    rows = [
        host("a", TURBO, wanted="removed"),
        host("b", PHOTO, wanted="out", lost_at=1.0),
        host("c", TURBO, role="front"),
    ]
    assert [model.name for model in everywhere(rows)] == ["photo"]


@pytest.mark.parametrize("told", [[{}], [{**TURBO, "aliases": 5}], 7, [3]])
def test_what_no_host_of_ours_says_is_nothing(told: object) -> None:
    assert served_by(cells.host("a", facts={"serves": told})) == []
    assert links.pools_in({"facts": {"pools": told}}) is None


def test_pools_that_would_be_no_names_in_nginx_are_no_pools() -> None:
    assert links.pools_in({"facts": {"pools": ["abcdef0123", "x;} server {"]}}) is None


def test_list_for_workers_is_written_when_it_changes_alone(tmp_path: Path) -> None:
    here, path = serving(tmp_path, ServedModel("turbo")), tmp_path / "cluster-models.json"
    here.write_down([host("a", TURBO)])
    written = path.stat().st_mtime_ns, path.stat().st_ino
    here.write_down([host("a", TURBO, queued=7)])
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written
    here.write_down([host("a", TURBO), host("b", PHOTO)])
    known = ServedModelsFile(path).read()
    assert known is not None
    assert [model.name for model in known.all] == ["turbo", "photo"]
    assert (known.all[1].about, json.loads(path.read_text())[0].get("about")) == (
        {"id": "photo"},
        None,
    )
