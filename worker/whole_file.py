"""Files that others read while they are written anew: the old one or the new one, whole."""

import os
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Put ``text`` in place of what ``path`` has; its folder must be there. Nothing is synced: who
    needs it after a crash of the machine writes otherwise."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
