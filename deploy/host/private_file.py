"""Files with secrets, which nobody else of the machine is to read."""

from pathlib import Path

SECRETS = Path("/run/secrets")
"""Where engines of containers put secrets: for this container alone, with a mode of their own."""


def is_exposed(path: Path, mode: int, to: int) -> bool:
    """Whether ``mode``, that of ``path``, lets in any of ``to`` (0o004: every user)."""
    return bool(mode & to) and not path.is_relative_to(SECRETS)
