"""What was found out about this machine or a cell, with its remedy."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """``level`` fail: the cell cannot work so. warn: it can, but a person should know."""

    level: Literal["ok", "warn", "fail"]
    subject: str
    text: str
    remedy: str = ""
