"""Where hosts of a cluster have two different things under one name. Pure.

A request is drawn by any host that has its model: so all of those should have the same files of it,
and the same adapters, or it depends on chance what a picture is like.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

MOST_LORAS = 200
"""The first by name are told: every host reads what all say, every two seconds."""

Host = Mapping[str, Any]
"""Its row: ``id``, ``role``, ``wanted`` and ``facts``."""


@dataclass(frozen=True)
class Difference:
    """``hosts``: those that have the same, by each other; ``lacking``: who has none at all."""

    kind: Literal["model", "adapter"]
    name: str
    hosts: tuple[tuple[str, ...], ...]
    lacking: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For people."""
        if len(self.hosts) == 1:
            return f"{self.kind} {self.name} is missing on {', '.join(self.lacking)}"
        groups = "; ".join(", ".join(group) for group in self.hosts)
        lacking = f"; missing on {', '.join(self.lacking)}" if self.lacking else ""
        return f"{self.kind} {self.name} is another one on each of: {groups}{lacking}"

    @property
    def remedy(self) -> str:
        """What makes it the same everywhere."""
        if self.kind == "model":
            return "have the same files on each, then zimage restart --rolling; or another name"
        return "zimage loras add the same file on each, or remove it"


@dataclass
class _Serving:
    """Of one host: digests by name, as far as it tells."""

    id: str
    models: dict[str, str] = field(default_factory=dict)
    loras: dict[str, str] = field(default_factory=dict)

    def tells_of(self, lora: str) -> bool:
        """Whether that it is not among ``loras`` means that it is not there."""
        return len(self.loras) < MOST_LORAS or lora <= max(self.loras)


def differences(hosts: Sequence[Host]) -> list[Difference]:
    """Models first, by name. Of those that draw and are not removed."""
    serving = [found for host in hosts if (found := _serving(host)) is not None]
    return [*_of_models(serving), *_of_loras(serving)]


def _serving(host: Host) -> _Serving | None:
    if host["role"] == "front" or host["wanted"] == "removed":
        return None
    with suppress(KeyError, TypeError, AttributeError, ValueError):  # another host wrote it
        facts = host["facts"]
        models = {str(m["name"]).lower(): str(m["digest"]) for m in facts.get("serves", ())}
        loras = {str(name): str(sha256) for name, sha256 in facts.get("loras", {}).items()}
        return _Serving(str(host["id"]), models, loras) if models else None
    return None


def _of_models(serving: list[_Serving]) -> Iterator[Difference]:
    for name in sorted({name for host in serving for name in host.models}):
        # Without a digest: it has not loaded it yet, or could not read all of it.
        have = {host.id: host.models[name] for host in serving if host.models.get(name)}
        if len(set(have.values())) > 1:
            yield Difference("model", name, _grouped(have))


def _of_loras(serving: list[_Serving]) -> Iterator[Difference]:
    for name in sorted({name for host in serving for name in host.loras}):
        holders = [host for host in serving if name in host.loras]
        # Who shares no model with any of them may be asked for none of it.
        models = {model for host in holders for model in host.models}
        concerned = [host for host in serving if models & host.models.keys()]
        lacking = [h.id for h in concerned if name not in h.loras and h.tells_of(name)]
        have = {host.id: host.loras[name] for host in holders}
        if lacking or len(set(have.values())) > 1:
            yield Difference("adapter", name, _grouped(have), tuple(lacking))


def _grouped(have: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, list[str]] = {}
    for id, digest in sorted(have.items()):
        groups.setdefault(digest, []).append(id)
    return tuple(tuple(group) for group in groups.values())
