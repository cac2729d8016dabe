"""The systemd unit that runs a cell from boot on."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deploy.cell import Cell
from deploy.host import account
from deploy.installation import BASE, lasting_python
from deploy.rollout.down import end_timeout_s

_TEMPLATES = Path(__file__).parents[1] / "systemd"
_MARGIN_S = 30.0
_READ_ONLY = tuple(map(Path, ("/usr", "/boot", "/efi", "/etc")))  # by ProtectSystem=full


def render_unit(cell: Cell, user: str) -> str:
    """Its text. ``user`` runs it; empty: root, who becomes the cell's user by himself."""
    words = [lasting_python(), "-P", "-m", "deploy.cli.app", "up", "--foreground", "--no-draw"]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # a unit, not HTML
    )
    var_dir = cell.layout.var_dir
    becomes = cell.config.cell.user or account.DEFAULT_USER
    return environment.get_template("zimage.service.j2").render(
        config=cell.config,
        command=" ".join(map(_quoted, [*words, "--config", str(cell.config_path)])),
        root=_escaped(str(BASE)),
        required=" ".join(_quoted(str(path)) for path in (BASE, var_dir)),
        writable=_quoted(str(var_dir)) if any(map(var_dir.is_relative_to, _READ_ONLY)) else "",
        user=user,
        service_user="" if user or becomes == "root" else _quoted(becomes),
        useradd=" ".join(("useradd", *account.USERADD_OPTIONS)),
        stop_timeout_s=round(end_timeout_s(cell) + _MARGIN_S),
    )


def _quoted(word: str) -> str:
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"' if escaped != word or re.search(r"[\s';]", word) else word


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
