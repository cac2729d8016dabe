"""Locust patches the standard library, so that it is looked at from another process."""

import subprocess
import sys

import pytest

from deploy.config import ROOT


@pytest.mark.parametrize(
    ("file", "users"),
    [
        ("locustfile.py", ["Batch", "Designer", "Program"]),
        ("arrivals.py", ["Crowd", "Single"]),
        ("mixed_users.py", ["Mixed"]),
        ("gradio_users.py", ["GradioSingle"]),
    ],
)
def test_locust_finds_the_users(file: str, users: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", f"loadtest/{file}", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line.strip() for line in done.stdout.splitlines()[1:]) == users
