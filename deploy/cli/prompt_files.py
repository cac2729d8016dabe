"""Prompts out of a file, a line each, in whatever encoding an editor or spreadsheet wrote it."""

import codecs
import io
from typing import BinaryIO

import typer

MAX_BYTES = 16 << 20
"""More than any job takes."""

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read(file: BinaryIO) -> list[str]:
    """Its lines without those that are empty. Raises BadParameter, which names the file."""
    raw = file.read(MAX_BYTES + 1)
    name = getattr(file, "name", "the input")
    if len(raw) > MAX_BYTES:
        raise typer.BadParameter(f"{name} has more than {MAX_BYTES >> 20} MiB: split it")
    text = _decoded(raw)
    if text is None:
        raise typer.BadParameter(
            f"{name} is neither UTF-8, UTF-16 with its mark nor GBK: save it as UTF-8"
        )
    return [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]


def _decoded(raw: bytes) -> str | None:
    marked = next((encoding for mark, encoding in _MARKS.items() if raw.startswith(mark)), None)
    for encoding in (marked,) if marked else ("utf-8", "gb18030"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text or (encoding == "gb18030" and not _is_chinese(text)):
            return None
        return text
    return None


def _is_chinese(text: str) -> bool:
    """Bytes of Latin-1 and of much else are GB 18030 as well, but then of characters that hardly
    anybody writes: most of what is written in Chinese stands in GB 2312."""
    foreign = [character for character in text if not character.isascii()]
    usual = "".join(foreign).encode("gb2312", "ignore").decode("gb2312")
    return len(usual) * 10 >= len(foreign) * 9
