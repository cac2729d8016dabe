import io
from typing import BinaryIO

import pytest
import typer

from deploy.cli import prompt_files

TEXT = "一只红色的猫\r\n\r\n  a blue circle \n茶馆海报，第二轮"
PROMPTS = ["一只红色的猫", "a blue circle", "茶馆海报，第二轮"]


def file(raw: bytes) -> BinaryIO:
    opened = io.BytesIO(raw)
    opened.name = "prompts.txt"
    return opened


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gbk", "gb2312", "gb18030"]
)
def test_prompts_are_read_in_what_editors_and_spreadsheets_write(encoding: str) -> None:
    assert prompt_files.read(file(TEXT.encode(encoding))) == PROMPTS


def test_utf_16_of_either_order_is_read_by_its_mark() -> None:
    assert prompt_files.read(file(b"\xfe\xff" + TEXT.encode("utf-16-be"))) == PROMPTS
    assert prompt_files.read(file(b"\xff\xfe" + TEXT.encode("utf-16-le"))) == PROMPTS


@pytest.mark.parametrize(
    "raw",
    [
        TEXT.encode("utf-16-le"),
        "a café at night".encode("latin-1"),
        "un été\nà la mer".encode("latin-1"),
        "Größe, schöne Grüße".encode("latin-1"),
        "お茶の葉".encode("shift-jis"),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\xff\xfe\x00",
    ],
)
def test_what_cannot_be_read_for_certain_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(typer.BadParameter, match=r"prompts\.txt is neither .* save it as UTF-8"):
        prompt_files.read(file(raw))


def test_a_file_that_no_job_takes_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "MAX_BYTES", 1 << 20)
    opened = file(b"a\n" * (1 << 20))
    with pytest.raises(typer.BadParameter, match=r"prompts\.txt has more than 1 MiB"):
        prompt_files.read(opened)
    assert opened.tell() == (1 << 20) + 1
