"""What each host of a cluster serves: its models and adapters, with what tells whether two hosts
have the same; and what all of them serve together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from deploy.cluster.differences import MOST_LORAS
from deploy.cluster.settings import MembershipSettings
from worker import whole_file
from worker.coordination.live_workers import DIGEST, published
from worker.coordination.served_models import ServedModel, dump, pool_of
from worker.models.loras.folder import LoraFolder
from worker.storage.hosts import Host

_DIGITS = 16


class Serving:
    """Of this host."""

    def __init__(self, settings: MembershipSettings) -> None:
        self._settings = settings
        self._loras = None if settings.lora_dir is None else LoraFolder(settings.lora_dir)
        self._written = ""

    def facts(self) -> dict[str, Any]:
        """For its row; nothing of one that draws nothing. Cheap: it is read every two seconds."""
        settings = self._settings
        if not settings.serves:
            return {}
        told = list(published(settings.run_dir).values())
        models = list(_told_of(settings.serves, told))
        loras = {} if self._loras is None else self._loras.all()
        return {
            "serves": models,
            "pools": sorted(pool_of(model["name"]) for model in models),
            "loras": {name: loras[name].sha256[:_DIGITS] for name in sorted(loras)[:MOST_LORAS]},
        }

    def write_down(self, rows: Sequence[Host]) -> None:
        """For this host's workers, where it has changed."""
        path, text = self._settings.cluster_models_json, dump(everywhere(rows))
        if path is not None and text != self._written:
            whole_file.replace(path, text)
            self._written = text


def _told_of(
    serves: Sequence[ServedModel], told: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """``told``: what workers have said of their models, the newest last. One that has no name in
    ``cluster.toml`` is told of once it was loaded."""
    for model in serves:
        found = [each for each in told if not model.name or each.get("id") == model.name]
        about = dict(found[-1]) if found else {}
        name = model.name or about.get("id")
        if name:
            digest = about.pop(DIGEST, "")
            yield {
                "name": name,
                "aliases": list(model.aliases),
                "source": model.source,
                "digest": digest,
                "about": about or None,
            }


def everywhere(rows: Sequence[Host]) -> list[ServedModel]:
    """All models of a cluster, in the same order on each host: as the host that joined first names
    them, then the next. The first draws what names none."""
    found: dict[str, ServedModel] = {}
    here = (host for host in rows if host.draws and host.wanted != "removed")
    for host in sorted(here, key=lambda host: (host.joined_at, host.id)):
        for model in served_by(host):
            known = found.get(model.pool)
            found[model.pool] = model if known is None else _joined(known, model)
    return list(found.values())


def served_by(host: Host) -> list[ServedModel]:
    """What a host says that it serves; nothing, where it says nothing that can be read."""
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        return [
            ServedModel(
                str(told["name"]),
                tuple(map(str, told["aliases"])),
                str(told["source"]),
                None if told["about"] is None else dict(told["about"]),
            )
            for told in host.facts.get("serves", ())
        ]
    return []


def _joined(first: ServedModel, other: ServedModel) -> ServedModel:
    """One model of two hosts, which may give it different aliases."""
    aliases = dict.fromkeys((*first.aliases, *other.aliases))
    return replace(first, aliases=tuple(aliases), about=first.about or other.about)
