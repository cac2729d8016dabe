"""One ``cluster.toml`` in, one frozen object out, or every problem at once."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy.config import messages, renamed
from deploy.config.schema import ClusterConfig

ROOT = Path(__file__).resolve().parents[2]
"""The checkout. Relative paths in ``cluster.toml`` start here."""

DEFAULT_PATH = ROOT / "deploy" / "cluster.toml"


class ConfigError(Exception):
    """``problems`` has one ``key.path: what is wrong; remedy`` line each."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.path = path
        self.problems = problems


def _ignore(line: str) -> None: ...


def load(path: Path, warn: Callable[[str], None] = _ignore) -> ClusterConfig:
    """Read and check ``path``; ``ConfigError`` lists every problem.

    ``warn`` gets a line for each key that is still read by its old name.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a mark
    except OSError as error:
        remedy = f"give its path with --config, or copy {DEFAULT_PATH}"
        raise ConfigError(path, [f"{path}: {error.strerror}; {remedy}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(path, [f"{path}: not UTF-8 ({error.reason}); save it as UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, [f"{path}: not TOML: {error}; mend that line"]) from None
    return parse(data, path, warn)


def parse(
    data: dict[str, Any], path: Path = DEFAULT_PATH, warn: Callable[[str], None] = _ignore
) -> ClusterConfig:
    """Check ``data`` as if it had been read from ``path``."""
    try:
        # strict: TOML has types, so "7860" where a number belongs is a mistake worth naming.
        return ClusterConfig.model_validate(renamed.in_place(data, warn), strict=True)
    except ValidationError as error:
        raise ConfigError(path, messages.lines_of(error.errors())) from None
