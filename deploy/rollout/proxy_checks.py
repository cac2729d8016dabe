"""What the access log tells of a proxy in front that nobody told the cell of."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.cell import Cell
from deploy.finding import Finding

_READ_BYTES = 1 << 20
_SHOWN = 3


def proxies(cell: Cell) -> Iterator[Finding]:
    """Proxies that pass requests on unnamed, and pages that are refused as another site's."""
    listen, lines = cell.config.listen, list(_last_lines(cell.layout.access_log))
    unnamed, refused = _most(lines, "unnamed_proxy"), _most(lines, "refused_origin")
    if unnamed:
        yield Finding(
            "warn",
            "proxy",
            f"requests come through {unnamed}, which listen.trusted_proxies does not name: whoever "
            "is behind it counts as one address, and whether they came by https is not known",
            "name it there, if it is yours; see docs/proxies.md",
        )
    if refused:
        yield Finding(
            "warn",
            "proxy",
            f"pages at {refused} were refused as another site's",
            "if this cell is meant, set listen.public_url to that address, or let the proxy in "
            "front pass Host on; see docs/proxies.md",
        )
    if not unnamed and not refused and (listen.trusted_proxies or listen.public):
        named = ", ".join(listen.trusted_proxies) or "none is named"
        where = f"; people come by {listen.public}" if listen.public else ""
        yield Finding("ok", "proxy", f"{named}{where}")


def _most(lines: list[dict[str, Any]], field: str) -> str:
    counted = Counter(line[field] for line in lines if line.get(field) not in (None, "", "null"))
    return ", ".join(f"{value} ({count} ×)" for value, count in counted.most_common(_SHOWN))


def _last_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _READ_BYTES))
            texts = file.read().splitlines()
    except OSError:
        return
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:  # cut, or being written
            continue
        if isinstance(line, dict):
            yield line
