"""Whether a model's folder can be loaded, told from names, sizes and heads of its files.

Reads a few kB of each file and imports neither torch nor diffusers: ``zimage doctor`` and ``up``
look before a running cell is touched, a worker before it asks the hub.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from worker.models.loading.folder import ModelLoadError

_WEIGHTS = re.compile(
    r"(?P<base>diffusion_pytorch_model|model|pytorch_model)"
    r"(?:\.(?P<variant>[A-Za-z0-9_]+))?(?P<shard>-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)
_INDEX = re.compile(
    r"(?P<base>diffusion_pytorch_model|model|pytorch_model)"
    r"\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>[A-Za-z0-9_]+))?\.json"
)
_NOT_LOADED = (
    *(".safetensors", ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot"),
    *(".pb", ".pt", ".pth", ".tflite", ".xml", ".gif", ".jpeg", ".jpg", ".mp4", ".png", ".webp"),
)
"""Files beside the weights of a model: those of other programs, and pictures."""
_WITHOUT_WEIGHTS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "Extractor")
_POINTER = b"version https://git-lfs.github.com/spec/"
_COPY_AGAIN = "copy the model again, or download it again"
_FETCH_LFS = "run `git lfs pull` in its checkout, or download the model again"

_QUANTISERS = {
    "aqlm": "aqlm",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "gguf": "gguf",
    "gptq": "gptqmodel",
    "hqq": "hqq",
    "modelopt": "modelopt",
    "quanto": "optimum",
    "torchao": "torchao",
}
"""What reads weights of that ``quant_method``: without it, loading fails after minutes."""
_METHODS = (
    ("diffusers", "quantizers/quantization_config.py"),
    ("transformers", "utils/quantization_config.py"),
)


@dataclass(frozen=True)
class Flaw:
    """Why the model cannot be loaded: what is wrong with which file, and the remedy.

    ``missing``: a download would bring what is not there.
    """

    what: str
    remedy: str = _COPY_AGAIN
    missing: bool = False

    @property
    def is_of_copy(self) -> bool:
        """Whether another copy of the same model would not have it."""
        return self.missing or self.remedy in (_COPY_AGAIN, _FETCH_LFS)


def flaws(folder: Path) -> list[Flaw]:
    """Everything that keeps ``folder``, in diffusers' layout, from being loaded."""
    index = folder / "model_index.json"
    found = _json(index)
    if isinstance(found, Flaw):
        return [found]
    return [
        *_unknown_class("the pipeline", found.get("_class_name"), "diffusers", index),
        *(flaw for part in _parts(found) for flaw in _part_flaws(folder, part, index)),
    ]


def require_loadable(folder: Path) -> None:
    """Raise ``ModelLoadError`` with the first of the ``flaws``."""
    for flaw in flaws(folder):
        raise ModelLoadError(flaw.what, flaw.remedy)


def variant_of(files: Iterable[str]) -> str | None:
    """The variant that must be asked for, of paths relative to the model; None: there are plain
    files of every part. ``bf16`` goes before ``fp16``, and that before others."""
    plain: set[str] = set()
    variants: dict[str, set[str]] = {}
    for path in files:
        place, _, name = path.rpartition("/")
        if match := _WEIGHTS.fullmatch(name):
            if match["variant"]:
                variants.setdefault(match["variant"], set()).add(place)
            else:
                plain.add(place)
    needing = set().union(*variants.values()) - plain
    fitting = [name for name, places in variants.items() if needing and needing <= places]
    return min(fitting, key=lambda name: (name != "bf16", name != "fp16", name), default=None)


def files_of(folder: Path) -> list[str]:
    """Paths relative to ``folder`` of the files in it and in its parts."""
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return [str(path.relative_to(folder)) for path in paths if path.is_file()]


@dataclass(frozen=True)
class _Part:
    name: str
    library: str
    class_name: str

    def has_weights(self, names: list[str]) -> bool:
        """Told by its class and its folder's files: some classes' names say nothing."""
        if self.class_name.endswith(_WITHOUT_WEIGHTS):
            return False
        is_model = "config.json" in names or any(map(_WEIGHTS.fullmatch, names))
        return is_model or not any(map(_is_own_config, names))

    def needs_vocabulary(self, names: list[str]) -> bool:
        # The tokens of ByT5 are bytes.
        return "tokenizer_config.json" in names and not self.class_name.startswith("ByT5")


def parts_of(folder: Path) -> dict[str, str]:
    """The parts that ``model_index.json`` in ``folder`` lists, each with its class's name; none
    where it cannot be read."""
    found = _json(folder / "model_index.json")
    return {} if isinstance(found, Flaw) else {p.name: p.class_name for p in _parts(found)}


def _parts(index: dict[str, Any]) -> Iterator[_Part]:
    """Those that ``model_index.json`` lists; ``[null, null]`` is a part that is left out."""
    for name, value in index.items():
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2:
            library, class_name = value
            if isinstance(library, str) and isinstance(class_name, str):
                yield _Part(name, library, class_name)


def _part_flaws(model: Path, part: _Part, index: Path) -> Iterator[Flaw]:
    yield from _unknown_class(part.name, part.class_name, part.library, index)
    folder = model / part.name
    if not folder.is_dir():
        if any(_WEIGHTS.fullmatch(path.name) for path in model.iterdir()):
            return  # transformers' layout: the part lies beside model_index.json
        yield Flaw(f"{folder} is missing, which {index.name} names", missing=True)
        return
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    small = [name for name in names if not _WEIGHTS.fullmatch(name)]
    yield from (_pointer(folder / name) for name in small if _is_pointer(folder / name))
    if part.has_weights(names):
        yield from _config_flaws(folder / "config.json")
        yield from _weights_flaws(folder, names, variant_of(files_of(model)))
    elif part.needs_vocabulary(names) and not any(map(_is_vocabulary, small)):
        yield Flaw(f"{folder} has no vocabulary", missing=True)
    for name in small:
        if _is_own_config(name) and isinstance(flaw := _json(folder / name), Flaw):
            yield from _unless_pointer(folder / name, flaw)


def _is_vocabulary(name: str) -> bool:
    others = ("added_tokens.json", "config.json", "special_tokens_map.json")
    is_other = name in others or _is_own_config(name) or name.endswith((".jinja", ".md"))
    return not is_other


def _is_own_config(name: str) -> bool:
    """What stands in place of ``config.json`` where there are no weights: ``scheduler_config.json``
    and its like."""
    return name.endswith("_config.json") and name != "generation_config.json"


def _config_flaws(path: Path) -> Iterator[Flaw]:
    config = _json(path)
    if isinstance(config, Flaw):
        yield from _unless_pointer(path, config)
    elif "quantization_config" in config:
        yield from _quantisation_flaws(path, config["quantization_config"])


def _unless_pointer(path: Path, flaw: Flaw) -> Iterator[Flaw]:
    if not _is_pointer(path):  # said already
        yield flaw


def _quantisation_flaws(path: Path, config: object) -> Iterator[Flaw]:
    remedy = "name a copy of the model that is not quantised"
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not isinstance(method, str):
        yield Flaw(f"{path}: quantization_config names no quant_method", remedy)
    elif method in _QUANTISERS and util.find_spec(_QUANTISERS[method]) is None:
        package = _QUANTISERS[method]
        yield Flaw(
            f"{path}: weights are quantised by {method[:40]}, and {package} is not installed",
            f"install {package} into .venv, or {remedy}",
        )
    elif method not in _QUANTISERS and f'"{method}"' not in _known_methods():
        yield Flaw(f"{path}: weights are quantised by {method[:40]}, which is unknown", remedy)


def needed(paths: Iterable[str], parts: Iterable[str]) -> list[str]:
    """Which of ``paths``, those of all files of a model at its hub, a pipeline of ``parts`` (names
    of folders) loads: of weights one variant and one format, and nothing for other frameworks."""
    folders = {"", *parts}
    inside = [path for path in paths if path.rpartition("/")[0] in folders]
    variant = variant_of(inside)
    # transformers' layout: a part without a folder lies beside model_index.json
    at_root = bool(folders - {path.rpartition("/")[0] for path in inside})
    taken = []
    for folder in sorted(folders):
        names = [path.rpartition("/")[2] for path in inside if path.rpartition("/")[0] == folder]
        chosen, index = _loaded(names, variant) if folder or at_root else ([], None)
        taken += [
            f"{folder}/{name}" if folder else name
            for name in names
            if name in (*chosen, index) or _is_small(name)
        ]
    return taken


def _is_small(name: str) -> bool:
    """Settings, vocabularies, licences."""
    is_weights = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
    return not (is_weights or name.startswith(".") or name.lower().endswith(_NOT_LOADED))


def _loaded(names: list[str], variant: str | None) -> tuple[list[str], str | None]:
    """Weights that would be loaded, and their index: those of ``variant`` where there are any."""
    for wanted in dict.fromkeys((variant, None)):
        for kind in ("safetensors", "bin"):
            chosen = [n for n in names if _is_weights(n, wanted, kind)]
            index = next((n for n in names if _is_index(n, wanted, kind)), None)
            if chosen or index:
                return chosen, index
    return [], None


def _weights_flaws(folder: Path, names: list[str], variant: str | None) -> Iterator[Flaw]:
    """Of the files that would be loaded."""
    chosen, index = _loaded(names, variant)
    if chosen or index:
        yield from _chosen_flaws(folder, chosen, index)
        return
    others = [name for name in names if _WEIGHTS.fullmatch(name)]
    if others:
        yield Flaw(
            f"{folder} has only {', '.join(others[:3])}, and no variant is there for every part",
            "download the variant that you want whole, with no other beside it",
        )
    else:
        yield Flaw(f"{folder} has no weights", missing=True)


def _is_weights(name: str, variant: str | None, kind: str) -> bool:
    match = _WEIGHTS.fullmatch(name)
    return match is not None and (match["variant"], match["kind"]) == (variant, kind)


def _is_index(name: str, variant: str | None, kind: str) -> bool:
    match = _INDEX.fullmatch(name)
    return match is not None and (match["variant"], match["kind"]) == (variant, kind)


def _chosen_flaws(folder: Path, chosen: list[str], index: str | None) -> Iterator[Flaw]:
    whole = [name for name in chosen if "-of-" not in name]
    if whole:  # goes before an index, for all loaders
        yield from file_flaws(folder / whole[0])
    elif index is None:
        yield Flaw(f"{folder} has {chosen[0]} and no index of such files", missing=True)
    else:
        yield from _shard_flaws(folder, index)


def _shard_flaws(folder: Path, index: str) -> Iterator[Flaw]:
    found = _json(folder / index)
    if isinstance(found, Flaw):
        yield from _unless_pointer(folder / index, found)
        return
    table = found.get("weight_map")
    if not isinstance(table, dict) or not table:
        yield Flaw(f"{folder / index} names no files")
        return
    shards = sorted(set(map(str, table.values())))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        what = f"{folder} lacks {len(missing)} of {len(shards)} files, such as {missing[0]}"
        yield Flaw(what, missing=True)
    for name in shards:
        if name not in missing:
            yield from file_flaws(folder / name)


def file_flaws(path: Path) -> Iterator[Flaw]:
    """Of one file of weights."""
    if _is_pointer(path):
        yield _pointer(path)
    elif path.stat().st_size == 0:
        yield Flaw(f"{path} is empty")
    elif path.suffix == ".safetensors":
        try:
            # It compares what the head promises with the file's size.
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            yield Flaw(f"{path} is cut or damaged ({error})")


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _pointer(path: Path) -> Flaw:
    return Flaw(f"{path} is a pointer of Git LFS, not the file itself", _FETCH_LFS)


def _json(path: Path) -> dict[str, Any] | Flaw:
    if not path.is_file():
        return Flaw(f"{path} is missing", missing=True)
    if _is_pointer(path):
        return _pointer(path)
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return Flaw(f"{path} cannot be read ({error})")
    return value if isinstance(value, dict) else Flaw(f"{path} is no JSON object")


def _unknown_class(what: str, name: object, library: str, index: Path) -> Iterator[Flaw]:
    """Of classes of diffusers; whether a class draws pictures from text only loading can tell."""
    if not isinstance(name, str):
        yield Flaw(
            f"{index} asks for code of its own ({name})",
            "such code is never run; use a pipeline that is part of diffusers",
        )
    elif library == "diffusers" and (text := _diffusers_names()) and f'"{name}"' not in text:
        yield Flaw(
            f"{index}: {what} is a {name[:60]}, which the installed diffusers lacks",
            "install a newer diffusers, or name another model",
        )


@functools.cache
def _diffusers_names() -> str:
    """The text that lists what diffusers exports: importing it takes seconds. "": not here."""
    return _source("diffusers", "__init__.py")


@functools.cache
def _known_methods() -> str:
    """The texts that list ways of quantisation."""
    return "".join(_source(*place) for place in _METHODS)


def _source(package: str, path: str) -> str:
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        return ""
    file = Path(spec.origin).parent / path
    return file.read_text("utf-8") if file.is_file() else ""
