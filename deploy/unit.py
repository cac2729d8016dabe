"""The systemd unit that runs a cell from boot on."""

import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deploy import roll
from deploy.cell import Cell
from deploy.config import ROOT

_TEMPLATES = Path(__file__).with_name("systemd")


def render_unit(cell: Cell, user: str) -> str:
    """Its text. ``user`` runs it; empty: root, who becomes the cell's user by himself."""
    words = [str(Path(sys.executable)), "-m", "deploy.cli", "up", "--foreground", "--no-draw"]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # a unit, not HTML
    )
    return environment.get_template("zimage.service.j2").render(
        config=cell.config,
        command=" ".join(map(_quoted, [*words, "--config", str(cell.config_path)])),
        root=_escaped(str(ROOT)),
        user=user,
        stop_timeout_s=round(roll.stop_timeout_s(cell) + 60),
    )


def _quoted(word: str) -> str:
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word else word


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
