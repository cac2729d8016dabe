"""How clients get in: which key they show, and whom they trust where the cell speaks HTTPS."""

import argparse
import os
from dataclasses import dataclass, field

KEY_VARIABLE = "ZIMAGE_API_KEY"


@dataclass(frozen=True)
class Entry:
    """``ca``: a file of certificates; whoever shows one of them, or one that they vouch for, is
    trusted by any address, and nobody else. ``insecure``: anybody is."""

    key: str = field(default="", repr=False)
    ca: str = ""
    insecure: bool = False

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def add_key(parser: argparse.ArgumentParser) -> None:
    """``--key``, for commands that find everything else in the cell's configuration."""
    about = (
        f"of a cell that asks for keys; better as {KEY_VARIABLE}, which no list of processes has"
    )
    parser.add_argument("--key", default=os.environ.get(KEY_VARIABLE, ""), help=about)
