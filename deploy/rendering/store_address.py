"""Where nginx finds the store of pictures: all of it constant but the object and its signature."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from worker.tables import Objects

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
"""Authorities that this machine trusts; one's own is added by ``update-ca-certificates``."""
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class StoreAddress:
    """``folder``: URL of the prefix, with a slash at its end. ``host``: as signatures have it, so
    without the port that the scheme has anyway. ``resolvers``: who knows the host's addresses;
    empty where it is one."""

    folder: str
    host: str
    name: str
    tls: bool
    resolvers: tuple[str, ...]
    ca_bundle: Path = CA_BUNDLE


def store_address(objects: Objects, nameservers: Sequence[str]) -> StoreAddress | None:
    """Of the store that ``[objects]`` names; None where pictures are in a folder."""
    if not objects.on:
        return None
    parts = urlsplit(objects.endpoint.lower())
    name = parts.hostname or ""
    port = parts.port or _PORTS[parts.scheme]
    shown = f"[{name}]" if ":" in name else name
    reached = "127.0.0.1" if name == "localhost" else shown  # nginx reads no /etc/hosts later on
    path = "/".join(part for part in (objects.bucket, objects.prefix) if part)
    return StoreAddress(
        folder=f"{parts.scheme}://{reached}:{port}/{path}/",
        host=shown if port == _PORTS[parts.scheme] else f"{shown}:{port}",
        name=name,
        tls=parts.scheme == "https",
        resolvers=() if _is_address(reached) else tuple(_bracketed(n) for n in nameservers),
    )


def nameservers_of(resolv_conf: str) -> tuple[str, ...]:
    """Those that ``/etc/resolv.conf`` names, without scopes, which nginx does not know."""
    words = (line.split() for line in resolv_conf.splitlines())
    named = (w[1] for w in words if len(w) > 1 and w[0] == "nameserver")
    return tuple(name for name in named if _is_address(name) and "%" not in name)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True
