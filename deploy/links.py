"""Which host has which link of a front: written by the guard, read by whoever renders anew.

A link is a gate in nginx's pool and a process that carries connections to one host. Names of links
stand in nginx's configuration, hosts come and go.
"""

import json
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deploy.layout import Layout
from worker import whole_file

HOST_NAME = "zimage-host"
"""In the certificate of every host of a cluster: fronts ask for it, whatever the address."""

_POOL = "[0-9a-f]{10}"

GONE_AFTER_S = 60.0
"""A host that is out for so long has the place of a spare one in the next rendering: another closed
gate is tried with each request, and costs."""


@dataclass(frozen=True)
class Link:
    """``host`` is its id, ``workers`` how many are configured there. ``out_since``: since when it
    takes no requests, in seconds since the epoch; None while it does."""

    host: str
    address: str
    workers: int
    out_since: float | None = None


PROGRAM = "link-"
"""What supervisord's names of links begin with."""


ALIVE = "/link"
"""What a link's nginx answers itself."""

SOONEST = "soonest"
"""A front's gate to the host that will have room first."""


def reading(link: str) -> str:
    """Its other gate, which stays open while the host is full."""
    return f"{link}-read"


def program(link: str) -> str:
    """What supervisord calls ``link``."""
    return PROGRAM + link


def is_program(name: str) -> bool:
    return name.startswith(PROGRAM)


def read(layout: Layout) -> dict[str, Link]:
    """By name of link; empty where nobody has written any, or it cannot be read."""
    try:
        stored = json.loads(layout.links_json.read_bytes())
        return {name: Link(**link) for name, link in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write(layout: Layout, links: Mapping[str, Link]) -> None:
    """Readers see the old file or the new one, never half of it."""
    layout.links_dir.mkdir(mode=0o700, exist_ok=True)
    text = json.dumps({name: asdict(link) for name, link in links.items()}, indent=2)
    whole_file.replace(layout.links_json, text + "\n")


def in_use(layout: Layout) -> dict[str, int]:
    """Which the next rendering takes for busy: workers by link."""
    oldest = time.time() - GONE_AFTER_S
    return {
        name: link.workers
        for name, link in read(layout).items()
        if link.out_since is None or link.out_since > oldest
    }


def pools_in(host: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The pools of the models that a host serves, of its row; None: it does not say, or what no
    host of ours would."""
    facts = host.get("facts")
    pools = facts.get("pools") if isinstance(facts, dict) else None
    if not isinstance(pools, list) or not all(map(_is_pool, pools)):
        return None
    return tuple(sorted(pools))


def _is_pool(pool: object) -> bool:
    return isinstance(pool, str) and re.fullmatch(_POOL, pool) is not None


def differing(serves: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """``serves`` as it is, where its hosts have other models than each other; else nothing."""
    return dict(serves) if len(set(serves.values())) > 1 else {}


def serves(layout: Layout, used: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Of the links in ``used``, the pools of their hosts' models, where these differ."""
    try:
        hosts = json.loads(layout.hosts_json.read_bytes())["hosts"]
        of_host = {host["id"]: pools_in(host) for host in hosts}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    held = {name: of_host.get(link.host) for name, link in read(layout).items() if name in used}
    return differing({name: pools for name, pools in held.items() if pools is not None})


def waiting(layout: Layout) -> int:
    """How many hosts this front knows and has no link for; 0 where it knows none."""
    linked = {link.host for link in read(layout).values()}
    try:
        hosts = json.loads(layout.hosts_json.read_bytes())["hosts"]
        return sum(
            host["role"] != "front" and host["wanted"] != "removed" and host["id"] not in linked
            for host in hosts
        )
    except (OSError, ValueError, TypeError, KeyError):
        return 0
