"""A machine without ``[cluster]``, a database's URL and a bucket gets no package that it did not
get before there were such. Whoever adds one here says to every single host why it is worth it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PACKAGES = """
    accelerate alembic annotated-doc annotated-types anyio certifi cffi charset-normalizer click
    colorama cryptography diffusers h11 hf-xet httpcore httpcore2 httptools httpx httpx2
    httpx2-jsfetch huggingface-hub idna importlib-metadata isal lazy-importer mako markdown-it-py
    mdurl numpy nvidia-ml-py orjson packaging pillow pip prometheus-client psutil pycparser pydantic
    pydantic-core pydantic-settings pygments python-dotenv python-multipart pyyaml regex requests
    rich
    safetensors shellingham sqlalchemy starlette supervisor tokenizers tqdm transformers truststore
    typer typing-inspection urllib3 uvicorn uvloop zipp
"""
TORCH = """
    filelock fsspec jinja2 markupsafe mpmath networkx setuptools sympy torch typing-extensions
"""

_RECORD = '#!/bin/sh\necho "${0##*/} $*" >> "$TOLD"\n'
_ID = "#!/bin/sh\necho 0\n"
_TEE = "#!/bin/sh\ncat > /dev/null\n"


@pytest.mark.parametrize(("name", "packages"), [("kit", PACKAGES), ("torch-cpu", TORCH)])
def test_packages_of_the_kit_are_these(name: str, packages: str) -> None:
    text = (ROOT / f"deploy/requirements/{name}.txt").read_text(encoding="utf-8")
    assert re.findall(r"^([\w.-]+)==", text, re.M) == packages.split()


def test_the_machine_is_given_nginx_and_the_kit_alone(tmp_path: Path) -> None:
    """As ``scripts/up`` begins, on a machine that has Python and nothing else."""
    programs, told = tmp_path / "bin", tmp_path / "told"
    programs.mkdir()
    for name in ("bash", "cat", "dirname", "sha256sum", "printf", "mktemp", "uname"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name, text in {"id": _ID, "tee": _TEE}.items():
        (programs / name).write_text(text)
    recorded = ("apt-get", "systemctl", "env", "chmod", "rm")
    for name in recorded:
        (programs / name).write_text(_RECORD)
    python = tmp_path / "checkout/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(_RECORD)
    for path in (*programs.iterdir(), python):
        if not path.is_symlink():
            path.chmod(0o755)
    (tmp_path / "checkout/scripts").mkdir()
    text = (ROOT / "scripts/env").read_text(encoding="utf-8")
    # Where this machine has an nginx, that one shall not be seen.
    bare = text.replace('PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v nginx', "false")
    assert bare != text
    (tmp_path / "checkout/scripts/env").write_text(bare)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / "checkout" / name)
    done = subprocess.run(
        [str(shutil.which("bash")), str(tmp_path / "checkout/scripts/env")],
        env={"PATH": str(programs), "TOLD": str(told), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = told.read_text(encoding="utf-8").splitlines()
    installed = [line.split("--no-install-recommends ")[1] for line in said if " install " in line
                 and "apt-get" in line]  # fmt: skip
    assert installed == ["nginx"]
    pip = [line.partition("-c constraints.txt ")[2] for line in said if "-m pip install" in line]
    assert pip == ["pip", "-e ."]
