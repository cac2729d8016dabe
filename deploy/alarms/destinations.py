"""Who is told: a line of a file each, as Apprise writes them. The lines are secrets.

``mailto://``, ``wecombot://``, ``feishu://``, ``dingtalk://``, ``slack://``, ``json://`` and a
hundred others: https://appriseit.com/services/
"""

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import apprise

from deploy.host import private_file

_MOST = 32
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class DestinationsError(Exception):
    """The file cannot be used; says why and what to do, without a secret."""


@dataclass(frozen=True)
class Destination:
    shown: str
    """Without what is secret in it."""
    plugin: apprise.NotifyBase = field(repr=False)

    async def tell(self, title: str, text: str, kind: apprise.NotifyType) -> bool:
        """Whether the other side took it."""
        return bool(await self.plugin.async_notify(body=text, title=title, notify_type=kind))


def read(path: Path) -> list[Destination]:
    """All of ``path``, in its order. Empty lines and those that begin with # are none."""
    try:
        with path.open(encoding="utf-8") as file:
            if private_file.is_exposed(path, os.fstat(file.fileno()).st_mode, _OTHERS):
                raise DestinationsError(f"other users may read {path}; chmod 600 {path}")
            lines = enumerate(file.read().splitlines(), start=1)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DestinationsError(f"{path}: {why}; write a line for each to be told") from None
    found = [
        _destination(line.strip(), path, number)
        for number, line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not found:
        raise DestinationsError(f"{path} names nobody; write a line for each to be told")
    if len(found) > _MOST:
        raise DestinationsError(f"{path} names {len(found)}, over {_MOST}; tell a group instead")
    return found


def _destination(line: str, path: Path, number: int) -> Destination:
    plugin = apprise.Apprise.instantiate(line)
    if plugin is None:
        raise DestinationsError(
            f"{path}, line {number}: not what Apprise knows, such as "
            '"mailto://user:password@example.com" or "feishu://token"; see '
            "https://appriseit.com/services/"
        )
    url = str(plugin.url(privacy=True))  # type: ignore[no-untyped-call]
    scheme, _, rest = url.partition("://")
    # A webhook's path is often its password, and Apprise hides that of the services it knows only.
    host = re.split(r"[/?]", rest.rpartition("@")[2], maxsplit=1)[0]
    return Destination(f"line {number}: {scheme}://{host}", plugin)
