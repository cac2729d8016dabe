"""Imports that take as few seconds of every start as they can."""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

_TRACER = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable")
_ALONE = ("config",)  # a part of it that needs nothing of the rest
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


@contextmanager
def untraced() -> Iterator[None]:
    """Inside, ``torch._dynamo``, torch's tracer, looks imported; later as if nobody had asked.

    For libraries that mark what it shall do with their functions, which nobody here traces: a fifth
    of their imports is the tracer's own. Asking it for anything else imports it after all.
    """
    import torch

    spec = importlib.util.find_spec(_TRACER)
    if _TRACER in sys.modules or spec is None:
        yield
        return
    unready = _Unready(_TRACER)
    # diffusers asks of each model whether it was compiled.
    compiled = SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))
    path = list(spec.submodule_search_locations or ())
    vars(unready).update(dict.fromkeys(_MARKS, _as_it_is), __path__=path, eval_frame=compiled)
    sys.modules[_TRACER] = unready
    vars(torch)["_dynamo"] = unready
    try:
        yield
    finally:
        unready.leave()


class _Unready(ModuleType):
    """In the place of a module, until more is asked of it than what was put into it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _ALONE:
            return importlib.import_module(f"{self.__name__}.{name}")
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)

    def leave(self) -> None:
        """Let the next who asks import the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
            parent, _, name = self.__name__.rpartition(".")
            delattr(sys.modules[parent], name)


def _as_it_is(function: Any = None, *rest: object, **options: object) -> Any:
    return (lambda decorated: decorated) if function is None else function
