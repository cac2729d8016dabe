"""The rendered files: test them, show how they differ from what is there, put them in place."""

import difflib
import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.cell import Cell, CellError
from deploy.rendering.render import SETTINGS

_SHOWN_LINES = 8
_DIGEST = re.compile(r"-[0-9a-f]{10}(?=\.json$)")


@dataclass(frozen=True)
class FileChange:
    """``lines`` are the changed ones of a unified diff, with their sign."""

    name: str
    lines: tuple[str, ...]

    @property
    def summary(self) -> str:
        added = sum(line.startswith("+") for line in self.lines)
        return f"{self.name}  +{added} −{len(self.lines) - added}"

    @property
    def shown(self) -> list[str]:
        """The first few: without comments, and a line that changes for every worker once."""
        counts = Counter(line for line in self.lines if _says_something(line))
        lines = [line + (f"   (× {n})" if n > 1 else "") for line, n in counts.items()]
        over = len(lines) - _SHOWN_LINES
        more = [f"… {over} more"] if over > 0 else []
        return [*lines[:_SHOWN_LINES], *more]


def changes(directory: Path, files: dict[str, str]) -> list[FileChange]:
    """How ``files`` differ from what lies in ``directory``; a file that must go counts too.

    A worker's document is compared with the newest before it, and all workers' count as one.
    """
    newest_last = sorted(_files(directory), key=lambda path: path.stat().st_mtime_ns)
    old = {_plain(p.relative_to(directory).as_posix()): p.read_text() for p in newest_last}
    new = {_plain(name): text for name, text in files.items()}
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(old.keys() | new.keys()):
        shown = f"{SETTINGS}/" if name.startswith(f"{SETTINGS}/") else name
        found[shown] = found.get(shown, ()) + _changed(old.get(name, ""), new.get(name, ""))
    return [FileChange(name, lines) for name, lines in found.items() if lines]


def _changed(old: str, new: str) -> tuple[str, ...]:
    diff = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return tuple(line for line in list(diff)[2:] if not line.startswith("@@"))


def check_nginx(cell: Cell, files: dict[str, str]) -> None:
    """``nginx -t`` on ``files``, away from the running cell; ``CellError`` with what it says."""
    with _staged(files) as directory:
        command = [cell.host.nginx_path, "-t", "-q", "-e", "stderr"]
        command += ["-p", f"{cell.layout.var_dir}/", "-c", str(directory / "nginx.conf")]
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=False,
        )
    if done.returncode != 0:
        raise CellError(f"nginx refuses the rendered configuration:\n{done.stderr.strip()}")


def write(directory: Path, files: dict[str, str]) -> None:
    """Make ``directory`` hold exactly ``files``, each replaced whole."""
    put(directory, files)
    prune(directory, files)


def put(directory: Path, files: dict[str, str]) -> None:
    """Replace or add ``files``, each whole and for this user alone.

    All are written before the first is put in place: a full disk leaves the former ones.
    """
    fresh = {directory / name: _fresh(directory / name) for name in files}
    try:
        for (path, new), text in zip(fresh.items(), files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            new.touch(0o600)
            new.write_text(text, encoding="utf-8")
    except OSError:
        for new in fresh.values():
            new.unlink(missing_ok=True)
        raise
    for path, new in fresh.items():
        new.replace(path)


def prune(directory: Path, files: Collection[str]) -> None:
    """Remove everything but ``files``."""
    for path in list(_files(directory)):
        if path.relative_to(directory).as_posix() not in files:
            path.unlink()


def _plain(name: str) -> str:
    return _DIGEST.sub("", name)


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _says_something(line: str) -> bool:
    text = line[1:].strip()
    # Which settings a document has is shown under its own name.
    return bool(text) and not text.startswith(("#", ";", "ZIMAGE_SETTINGS="))


def _files(directory: Path) -> Iterator[Path]:
    return (p for p in directory.rglob("*") if p.is_file()) if directory.is_dir() else iter(())


@contextmanager
def _staged(files: dict[str, str]) -> Iterator[Path]:
    with TemporaryDirectory(prefix="zimage-render-") as name:
        directory = Path(name)
        write(directory, files)
        yield directory
