"""Files of trainers become adapters of one form, or are refused with the reason."""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.models.loras import made
from worker.models.loras import head as heads
from worker.models.loras.adding import add
from worker.models.loras.conversion import layers_of
from worker.models.loras.folder import LoraFolder, put, values_digest
from worker.models.loras.head import UnusableLora

QUERY, OUT, UP = (
    "layers.0.attention.to_q",
    "layers.1.attention.to_out.0",
    "layers.2.feed_forward.w1",
)
MODULES = (QUERY, OUT, UP, "context_refiner.0.attention.to_k", "layers.0.adaLN_modulation.0")


@pytest.fixture
def layers(small_zimage: Any) -> dict[str, tuple[int, int]]:
    return layers_of(small_zimage.transformer)


@pytest.mark.parametrize("names", [made.peft, made.kohya, made.comfy])
def test_names_and_alphas_of_each_trainer_become_one_form(
    tmp_path: Path, layers: dict[str, tuple[int, int]], names: made.Names
) -> None:
    pairs = made.tensors(layers, MODULES)
    file = made.write(tmp_path / "x.safetensors", pairs, names, alpha=2.0)
    added = add(file, "ink", tmp_path / "loras", layers)
    assert (added.name, added.rank) == ("ink", 4)
    assert added.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert dict(added.shapes) == {module: layers[module] for module in MODULES}
    kept = load_file(added.path)
    for module, (a, b) in pairs.items():
        product = kept[f"{module}.lora_B.weight"] @ kept[f"{module}.lora_A.weight"]
        torch.testing.assert_close(product, b @ a * (2.0 / 4))


@pytest.mark.parametrize("names", [made.kohya, made.comfy])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_one_layer_of_queries_keys_and_values_becomes_three(
    tmp_path: Path, layers: dict[str, tuple[int, int]], names: made.Names, alpha: float | None
) -> None:
    own = "layers.0.attention"
    shapes = {f"{own}.qkv": (96, 3 * 96), f"{own}.out": (96, 96)}
    pairs = made.tensors(shapes, tuple(shapes))
    file = made.write(tmp_path / "x.safetensors", pairs, names, alpha)
    kept = load_file(add(file, "x", tmp_path / "loras", layers).path)

    def product(module: str) -> torch.Tensor:
        return kept[f"{own}.{module}.lora_B.weight"] @ kept[f"{own}.{module}.lora_A.weight"]

    factor = 1.0 if alpha is None else alpha / 4
    for parts, module in ((("to_q", "to_k", "to_v"), "qkv"), (("to_out.0",), "out")):
        a, b = pairs[f"{own}.{module}"]
        torch.testing.assert_close(torch.cat(list(map(product, parts))), b @ a * factor)


def _kind(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {f"diffusion_model.{QUERY}.{name}": torch.zeros(shape)}


REFUSED = [
    (_kind("dora_scale", 96), "it is a DoRA"),
    (_kind("lokr_w1", 4, 4), "it is a LoKr"),
    (_kind("hada_w1_a", 4, 4), "it is a LoHa"),
    ({"lora_te_x.lora_down.weight": torch.zeros(4, 4)}, "it is an adapter of a text encoder"),
    ({"layers.0.weight": torch.zeros(4, 4)}, "layers.0.weight is nothing of a LoRA"),
    (_kind("lora_A.weight", 300, 300), "has rank 300, and 1 to 256 are used"),
    (_kind("lora_A.weight", 4, 4, 3, 3), "has 4 dimensions"),
    ({f"{QUERY}.lora_A.weight": torch.zeros(4, 96)}, "the two sides of layers.0.attention.to_q"),
    (
        {"nowhere.lora_A.weight": torch.zeros(4, 96), "nowhere.lora_B.weight": torch.zeros(96, 4)},
        "the model has no layer nowhere: use an adapter for this cell's model",
    ),
    (
        {
            f"{QUERY}.lora_A.weight": torch.zeros(4, 64),
            f"{QUERY}.lora_B.weight": torch.zeros(96, 4),
        },
        "to_q takes 96 values and gives 96, here 64 and 96",
    ),
    (
        {
            f"{QUERY}.lora_A.weight": torch.full((4, 96), torch.nan),
            f"{QUERY}.lora_B.weight": torch.zeros(96, 4),
        },
        "has values that are no numbers",
    ),
    (
        {f"{QUERY}.lora_A.weight": torch.zeros(4, 96, dtype=torch.float64)},
        "is F64: use a copy in F32, F16 or BF16",
    ),
]


@pytest.mark.parametrize(("state", "why"), REFUSED)
def test_what_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path,
    layers: dict[str, tuple[int, int]],
    state: dict[str, torch.Tensor],
    why: str,
) -> None:
    file = tmp_path / "x.safetensors"
    save_file(state, file)
    with pytest.raises(UnusableLora) as refused:
        add(file, "x", tmp_path / "loras", layers)
    assert why in str(refused.value)
    assert not (tmp_path / "loras").exists()


def _raw(head: bytes, values: bytes = b"") -> bytes:
    return struct.pack("<Q", len(head)) + head + values


def _lie(shape: list[int], end: int) -> bytes:
    about = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    return _raw(json.dumps({f"{QUERY}.lora_A.weight": about}).encode(), b"\0" * 64)


HOSTILE = [
    (b"", "no whole .safetensors file"),
    (b"\xff" * 64, "no whole .safetensors file"),
    (_raw(b"[" * 50), "no safetensors head"),
    (_raw(b'{"a": {"dtype": "F32"}}'), "no safetensors head"),
    (_raw(b'{"__metadata__": 3}'), "no safetensors head"),
    (_lie([4, -4], 64), "no safetensors head"),
    (_lie([4, 4], 60), "does not lie where its head says"),
    (_lie([4, 1 << 20], 1 << 24), "does not lie where its head says"),
    (_lie([256, 1 << 40], 1 << 50), "values, and 268,435,456 are read"),
    (_raw(b"{}"), "nothing of a LoRA in it"),
]


@pytest.mark.parametrize(("data", "why"), HOSTILE)
def test_a_hostile_head_is_refused_before_any_value_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, why: str
) -> None:
    monkeypatch.setattr(torch, "frombuffer", lambda *_, **__: pytest.fail("it was loaded"))
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(UnusableLora) as refused:
        add(file, "x", tmp_path / "loras", None)
    assert why in str(refused.value)


def test_a_long_head_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with file.open("wb") as hollow:
        hollow.write(struct.pack("<Q", heads.MAX_HEAD_BYTES + 1))
        hollow.truncate(heads.MAX_HEAD_BYTES + 64)
    with pytest.raises(UnusableLora, match=f"and {heads.MAX_HEAD_BYTES} are read"):
        add(file, "x", tmp_path / "loras", None)


def test_pickles_pipes_and_giants_are_refused_by_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with (tmp_path / "giant.safetensors").open("wb") as giant:
        giant.truncate(heads.MAX_FILE_BYTES + 1)
    for name, why in (
        ("x.pt", "pickled code, which is never run"),
        ("giant.safetensors", "MiB are read"),
        ("none.safetensors", "it cannot be read"),
        ("pipe.safetensors", "it is no file"),
    ):
        with pytest.raises(UnusableLora, match=why):
            add(tmp_path / name, "x", tmp_path / "loras", None)


def test_the_folder_tells_of_what_is_there_now(
    tmp_path: Path, layers: dict[str, tuple[int, int]]
) -> None:
    folder = LoraFolder(tmp_path / "loras")
    assert folder.all() == {}
    file = made.write(tmp_path / "a.safetensors", made.tensors(layers, (QUERY,)))
    ink = add(file, "ink", folder.path, layers)
    assert folder.all() == {"ink": ink}
    assert values_digest(ink) == ink.values_sha256
    with pytest.raises(UnusableLora, match="there is an adapter ink already"):
        put(folder.path, "ink", b"")
    (folder.path / "by-hand.safetensors").write_bytes(file.read_bytes())
    (folder.path / "BAD NAME.safetensors").write_bytes(file.read_bytes())
    assert set(folder.all()) == {"ink"}
    problems = folder.problems()
    assert "was put here by hand" in problems["by-hand.safetensors"].what
    assert "is no name for an adapter" in problems["BAD NAME.safetensors"].what
    ink.path.unlink()
    assert folder.all() == {}
