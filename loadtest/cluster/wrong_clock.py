"""``zimage`` on a machine whose clock is wrong: so is that of all that it starts."""

import shutil
import subprocess
from pathlib import Path

from deploy.cli import app
from deploy.supervision import supervise

_VARIABLES = ("LD_PRELOAD", "AHEAD_S")


def variables(folder: Path, ahead_s: int) -> dict[str, str]:
    """The environment of whoever shall be so far ahead; how long things take stays right.
    ``folder``: for what is made for it. ``LookupError`` where it cannot be made."""
    if shutil.which("cc") is None:
        raise LookupError("no compiler here, so no clock can be wrong: apt-get install gcc")
    source, library = Path(__file__).with_suffix(".c"), folder / "wrong_clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    library.chmod(0o755)
    return dict(zip(_VARIABLES, (str(library), str(ahead_s)), strict=True))


def main() -> None:
    supervise.KEPT_VARIABLES += _VARIABLES  # a cell inherits little
    app.main()


if __name__ == "__main__":
    main()
