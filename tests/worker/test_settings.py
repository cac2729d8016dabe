"""Where settings come from, and which one wins."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from worker.settings import DOCUMENT, Settings, problems


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Name a document with these settings."""

    def tell(**settings: Any) -> None:
        (tmp_path / "w1.json").write_text(json.dumps(settings), encoding="utf-8")
        monkeypatch.setenv(DOCUMENT, str(tmp_path / "w1.json"))

    return tell


def test_a_flag_wins_over_a_variable_and_that_over_the_document(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(max_steps=10, max_images=10, max_batch=10)
    monkeypatch.setenv("ZIMAGE_MAX_IMAGES", "9")
    monkeypatch.setenv("ZIMAGE_MAX_BATCH", "9")
    read = CliApp.run(Settings, cli_args=["--max-batch", "8"])
    assert (read.max_steps, read.max_images, read.max_batch) == (10, 9, 8)


def test_a_variable_sets_one_key_of_a_table(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told(audit={"max_mib": 7, "keep_days": 9})
    monkeypatch.setenv("ZIMAGE_AUDIT_MAX_MIB", "8")
    audit = Settings().audit
    assert (audit.max_mib, audit.keep_days, audit.prompt_chars) == (8, 9, 1000)


def test_a_document_with_an_unknown_setting_is_refused(told: Any) -> None:
    told(max_stepz=10)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert problems(caught.value)[0].startswith("max_stepz: ")


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_no_document_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w1.json").write_text(text, encoding="utf-8")
    monkeypatch.setenv(DOCUMENT, str(tmp_path / "w1.json"))
    with pytest.raises(SettingsError, match=r"ZIMAGE_SETTINGS: .*w1\.json is no settings document"):
        Settings()


def test_a_missing_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DOCUMENT, str(tmp_path / "gone.json"))
    with pytest.raises(SettingsError, match="No such file"):
        Settings()
