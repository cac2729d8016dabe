"""Files, paths and what programs print are UTF-8 to us, whatever the locale says."""

import codecs
import locale
import os
import sys


def speak_utf8() -> None:
    """In a locale that is not UTF-8, start this process again in Python's UTF-8 mode.

    Under zh_CN.GB18030, say, Python would read cluster.toml, write configurations and name
    folders in that encoding, which nginx, supervisord and the workers do not. Words of the command
    line come over as UTF-8, and the terminal is written to in its own encoding.
    """
    if sys.flags.utf8_mode:
        os.environ.pop("PYTHONIOENCODING", None)  # for this process's terminal alone
        return
    encoding = locale.getencoding()
    if codecs.lookup(encoding).name == codecs.lookup(sys.getfilesystemencoding()).name == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:replace")
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execv(sys.executable, [_as_utf8(word) for word in words])


def _as_utf8(word: str) -> bytes:
    """Names of files mostly are; what a person typed is in the terminal's encoding."""
    raw = os.fsencode(word)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return word.encode("utf-8", "surrogateescape")
    return raw
