"""Imports that take as few seconds of every start as they can."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_UNUSED = ("peft", "sklearn")
"""diffusers and transformers import them wherever they happen to be installed. They serve adapters
and a way of decoding text that no pipeline here has, and took four seconds."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Inside, what is not used looks as if it were not installed, and no garbage is looked for;
    what is there at the end stays for good.

    None in ``sys.modules`` makes an import fail:
    https://docs.python.org/3/reference/import.html#the-module-cache
    """
    hidden = [name for name in _UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # before the collector runs again: it would visit millions of objects at once
        gc.enable()
        for name in hidden:
            sys.modules.pop(name, None)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, ``torch.compile`` gives back what it is given.

    For modules that offer compiled functions which nobody here calls: naming them is enough to
    import all of torch's compiler, 1.7 seconds of a start.
    """
    import torch  # loaded by then; this module is imported before it

    compile_function = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_function


def _as_it_is(function: Any = None, *rest: object, **options: object) -> Any:
    return (lambda decorated: decorated) if function is None else function
