import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.config import ROOT
from loadtest import prove
from loadtest.prove import LONG, SHORT, Proof


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readme_lists_every_proof_with_its_minutes(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    for name, proof in {**SHORT, **LONG}.items():
        assert f"| `{name}` | {proof.minutes} | " in text
        assert readme != "README.md" or f"| {proof.shows} |" in text


@pytest.mark.parametrize("proof", [*SHORT.values(), *LONG.values()])
def test_every_proof_is_a_command_of_the_checkout(proof: Proof) -> None:
    program = next(each for each in proof.command if each != "env" and "=" not in each)
    assert (ROOT / program).is_file()


def test_a_proof_that_does_not_hold_is_named_and_the_others_are_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prove, "ROOT", tmp_path)
    played = tmp_path / "played"
    proofs = {
        "bad": Proof("what is not so", _shell("exit 3"), 1),
        "good": Proof("what is so", _shell(f"cp $ZIMAGE_CONFIG {shlex.quote(str(played))}"), 1),
    }
    assert prove._prove(proofs) == 1
    last = capsys.readouterr().out.splitlines()[-2:]
    assert [line[:6] for line in last] == ["✗ bad ", "✓ good"]
    assert f'var_dir = "{tmp_path}/var/prove"' in played.read_text()


def test_what_is_no_proof_is_misuse() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.prove", "soap"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no such proof: soap; there are basics" in done.stderr


def _shell(line: str) -> tuple[str, ...]:
    return "sh", "-c", line
