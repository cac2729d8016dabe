"""With stand-ins that compute what the two libraries do, and on a Hopper card with themselves."""

import copy
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_z_image import FeedForward, ZImageTransformerBlock

import worker.models.acceleration
from worker.models.acceleration import fp8, optimisations
from worker.models.zimage.rotary import attended

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
WIDTH, HIDDEN = 64, 96


def real(test: Any) -> Any:
    """Meets the libraries themselves, whose warnings are about themselves."""
    skip = pytest.mark.skipif(not HOPPER, reason="no Hopper card")
    return skip(pytest.mark.filterwarnings("ignore")(test))


@dataclass(frozen=True)
class GemmConfig:
    tile_m: int
    tile_n: int
    pingpong: bool
    is_dynamic_persistent: bool
    device_capacity: int
    cluster_m: int = 2
    cluster_n: int = 1


def gemm_act(
    rows: torch.Tensor,
    weights: torch.Tensor,
    *,
    activation: str | None,
    store_preact: bool,
    config: GemmConfig,
    concat_layout: tuple[str] | None,
) -> tuple[None, torch.Tensor]:
    assert not store_preact
    tiles.append(config.tile_m)
    product = rows @ weights
    if activation is None:
        return None, product
    assert (activation, concat_layout) == ("swiglu", ("B",))
    gate, value = product.chunk(2, -1)
    return None, F.silu(gate) * value


def flash_attn_func(*tensors: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Rows × tokens × heads × values, as that library has them."""
    query, key, value = (each.transpose(1, 2) for each in tensors)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None


@dataclass
class GemmEpilogue:
    """What a product's epilogue computes, by itself: ``function`` of sums and operands."""

    function: Any
    ops: dict[str, Any]
    prepass: Any
    outputs: tuple[str, ...]

    def gemm(
        self, rows: torch.Tensor, weights: torch.Tensor, output: torch.Tensor | None, **how: Any
    ) -> None:
        if how.get("concat_layout"):
            weights = torch.stack(weights.float().chunk(2), 1).flatten(0, 1)
        sums = rows.float() @ weights.float().t()
        operands = {n: op(sums, how["epi_args"][n], self.prepass) for n, op in self.ops.items()}
        written = {name: how["epi_args"][name] for name in self.outputs}
        written |= {} if output is None else {"D": output}
        for name, found in self.function(sums, **operands).items():
            written[name].copy_(found)
        tiles.append(how["tile_M"])


def gemm_epilogue(
    *,
    ops: Any,
    prepass: Any = None,
    prepass_outs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = (),
    mode: str | None = None,
) -> Any:
    assert mode == ("acc_pair" if prepass or outputs else None)
    return lambda function: GemmEpilogue(function, ops, prepass, outputs)


def head_rstd(name: str, eps: float) -> Any:
    def factors(sums: torch.Tensor, head: torch.Tensor, prepass: Any) -> torch.Tensor:
        squares = prepass(sums)[name].unflatten(1, (-1, len(head)))
        means = squares.mean(-1, keepdim=True).expand_as(squares)
        factors: torch.Tensor = (means + eps).rsqrt().flatten(1)
        return factors

    return factors


def rotary_cos_sin_load(name: str) -> Any:
    return lambda sums, table, _: table.repeat(1, sums.shape[1] // table.shape[1])


def row_vec_load(name: str) -> Any:
    return lambda _, row, __: row


def col_vec_load(name: str) -> Any:
    return lambda _, column, __: column[:, None]


def scaled_mm(
    rows: torch.Tensor, weights: torch.Tensor, *, scale_a: Any, scale_b: Any, **how: Any
) -> torch.Tensor:
    """torch's for a card; its own for a CPU has come late."""
    product: torch.Tensor = (rows.float() * scale_a) @ (weights.float() * scale_b)
    return product.to(how["out_dtype"])


def swiglu(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * value


PAIRS = SimpleNamespace(
    unpack=lambda values: (values[:, ::2], values[:, 1::2]),
    pack=lambda *values: torch.stack(values, -1).flatten(1),
)
tiles: list[int] = []


def fused_gated(feed: Any, inputs: torch.Tensor) -> torch.Tensor:
    tiles.append(0)
    output: torch.Tensor = F.silu(feed.w1(inputs)) * feed.w3(inputs)
    return output


def fused_turned(query: torch.Tensor, key: torch.Tensor, attention: Any, table: Any) -> Any:
    tiles.append(-1)
    return query, key


class Narrow(NamedTuple):
    values: torch.Tensor
    factors: torch.Tensor


def narrow(inputs: torch.Tensor) -> Narrow:
    values, factors = fp8.quantized(inputs.flatten(0, -2))
    return Narrow(values.view(inputs.shape), factors.flatten())


def gated_narrow(both: torch.Tensor) -> Narrow:
    tiles.append(0)
    return narrow(swiglu(*both.chunk(2, -1)))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    libraries: dict[str, dict[str, Any]] = {
        "flash_attn": {},
        "flash_attn.cute": {"flash_attn_func": flash_attn_func},
        "quack": {},
        "quack.activation": {"swiglu": swiglu},
        "quack.epilogue": {"math": PAIRS},
        "quack.epilogue.frontend": {"gemm_epilogue": gemm_epilogue},
        "quack.epilogue.head_rmsnorm": {"HeadRstd": head_rstd},
        "quack.epilogue.ops": {"RowVecLoad": row_vec_load, "ColVecLoad": col_vec_load},
        "quack.epilogue.rotary": {"rotary_cos_sin_load": rotary_cos_sin_load},
        "quack.gemm_config": {"GemmConfig": GemmConfig},
        "quack.gemm_interface": {"gemm_act": gemm_act},
        "worker.models.acceleration.fused": {
            "Narrow": Narrow,
            "Normed": Any,
            "Project": Any,
            "gated": fused_gated,
            "gated_narrow": gated_narrow,
            "normalised": print,
            "quantized": fp8.quantized,
            "turned": fused_turned,
        },
    }
    for name, there in libraries.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**there))
    stand_in = sys.modules["worker.models.acceleration.fused"]
    monkeypatch.setattr("worker.models.acceleration.fused", stand_in, raising=False)
    for name in ("hopper", "hopper_fp8"):
        monkeypatch.delitem(sys.modules, f"worker.models.acceleration.{name}", raising=False)
        monkeypatch.delattr(f"worker.models.acceleration.{name}", raising=False)
    tiles.clear()
    yield importlib.import_module("worker.models.acceleration.hopper")
    # Wherever it can be found: the tests on a card, below, want the real libraries.
    for name in ("hopper", "hopper_fp8"):
        sys.modules.pop(f"worker.models.acceleration.{name}", None)
        if hasattr(worker.models.acceleration, name):
            delattr(worker.models.acceleration, name)


@pytest.fixture
def hopper_fp8(hopper: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    return importlib.import_module("worker.models.acceleration.hopper_fp8")


@pytest.mark.parametrize(("tokens", "tile"), [(40, 0), (600, 128), (2100, 256)])
@torch.no_grad()
def test_a_packed_feed_forward_computes_what_it_did(
    hopper: ModuleType, tokens: int, tile: int
) -> None:
    feed: Any = FeedForward(WIDTH, HIDDEN)
    inputs = torch.randn(2, tokens, WIDTH)
    wanted = feed(inputs)
    hopper.pack(feed.w1, feed.w3)
    assert torch.allclose(feed.w2(hopper.gated(feed, inputs)), wanted, atol=1e-5)
    assert tiles == [tile]  # by the tokens of both rows
    assert torch.allclose(feed(inputs), wanted, atol=1e-6)


def test_packed_weights_are_kept_once(hopper: ModuleType) -> None:
    feed: Any = FeedForward(WIDTH, HIDDEN)
    hopper.pack(feed.w1, feed.w3)
    addresses = feed.w1.weight.data_ptr(), feed.w3.weight.data_ptr()
    assert addresses == (feed.w1.packed.data_ptr(), feed.w1.packed[HIDDEN:].data_ptr())


@pytest.mark.parametrize(("tokens", "asked"), [(40, []), (4100, [256])])
@torch.no_grad()
def test_layers_of_one_input_share_a_product(
    hopper: ModuleType, tokens: int, asked: list[int]
) -> None:
    layers: list[Any] = [torch.nn.Linear(WIDTH, width, bias=False) for width in (64, 64, 32)]
    inputs = torch.randn(2, tokens, WIDTH)
    wanted = [layer(inputs) for layer in layers]
    hopper.pack(*layers)
    for given, one in zip(hopper.multiplied(inputs, *layers), wanted, strict=True):
        assert torch.allclose(given, one, atol=1e-5)
    assert tiles == asked  # few are left to cuBLAS
    (alone,) = hopper.multiplied(inputs, layers[2])  # one of them asked for by itself
    assert torch.allclose(alone, wanted[2], atol=1e-5)


def an_attention(width: int, heads: int) -> Any:
    attention: Any = torch.nn.Module()
    attention.heads = heads
    for name in ("to_q", "to_k", "to_v"):
        setattr(attention, name, torch.nn.Linear(width, width, bias=False))
    for name in ("norm_q", "norm_k"):
        setattr(attention, name, torch.nn.RMSNorm(width // heads, 1e-5))
        torch.nn.init.normal_(getattr(attention, name).weight)
    return attention


@torch.no_grad()
def test_queries_and_keys_are_turned_inside_their_product(hopper: ModuleType) -> None:
    """As the model's own attention turns them; each row of a batch by its own places."""
    tokens, heads = 4100, 4
    attention = an_attention(WIDTH, heads)
    angles = torch.rand(tokens, WIDTH // heads // 2) * 6
    inputs = torch.randn(2, tokens, WIDTH)
    products = [attention.to_q(inputs), attention.to_k(inputs), attention.to_v(inputs)]
    hopper.pack_attention(attention)
    project = hopper.projecting(torch.stack([angles.cos(), angles.sin()], -1), 2)
    given = project(attention, inputs)
    for name, turned, product in zip("qk", given[:2], products[:2], strict=True):
        product = product.unflatten(2, (heads, -1))
        pairs = torch.view_as_complex(
            getattr(attention, f"norm_{name}")(product).unflatten(3, (-1, 2))
        )
        wanted = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None])
        assert torch.allclose(turned, wanted.flatten(2), atol=1e-5)
    assert torch.allclose(given[2], products[2], atol=1e-5)
    assert tiles == [256, 192]
    few = hopper.projecting(torch.zeros(100, 8, 2), 2)(attention, inputs[:, :100])
    for given_few, product in zip(few, products, strict=True):
        assert torch.allclose(given_few, product[:, :100], atol=1e-5)
    assert tiles == [256, 192, -1]  # turned by the other kernel


def test_attention_is_that_of_each_head(hopper: ModuleType) -> None:
    query, key, value = torch.randn(3, 2, 10, 4, 8)
    wanted = F.scaled_dot_product_attention(*(e.transpose(1, 2) for e in (query, key, value)))
    given = hopper.attended(query.flatten(2), key.flatten(2), value.flatten(2), 4)
    assert torch.allclose(given, wanted.transpose(1, 2).flatten(2), atol=1e-6)


def a_block_in_8_bits() -> Any:
    """Its layers, and what each was."""
    block: Any = torch.nn.Module()
    block.attention, block.feed_forward = an_attention(WIDTH, 4), FeedForward(WIDTH, HIDDEN)
    block.attention.to_out = torch.nn.ModuleList([torch.nn.Linear(WIDTH, WIDTH, bias=False)])
    plain = copy.deepcopy(block)
    fp8.shrink(block, torch.device("cpu"))
    return block, plain


@pytest.mark.parametrize(("tokens", "tile"), [(40, []), (300, [128])])
@torch.no_grad()
def test_products_in_8_bits_scale_tokens_and_weights(
    hopper_fp8: ModuleType, tokens: int, tile: list[int]
) -> None:
    """Every token and every weight's row by its own: they are of very different sizes."""
    block, plain = a_block_in_8_bits()
    inputs = torch.randn(2, tokens, WIDTH) * torch.logspace(-3, 3, tokens)[:, None]
    wanted = [layer(inputs) for layer in (plain.attention.to_q, plain.attention.to_v)]
    hopper_fp8.pack_block(block)
    query, _, value = hopper_fp8.projecting(torch.zeros(tokens, 8, 2), 2)(
        block.attention, narrow(inputs)
    )
    assert [each for each in tiles if each > 0] == tile  # few are left to cuBLAS
    for given, one in zip((query, value), wanted, strict=True):
        assert ((given - one).norm(dim=-1) / one.norm(dim=-1)).max() < 0.1
    (given,) = hopper_fp8.multiplied(inputs, block.attention.to_out[0])
    assert _off(given, plain.attention.to_out[0](inputs)) < 0.05
    assert (given.dtype, given.shape) == (torch.bfloat16, inputs.shape)


@pytest.mark.parametrize(("tokens", "tile"), [(40, 0), (300, 192)])
@torch.no_grad()
def test_a_feed_forward_in_8_bits_is_gated_inside_its_product(
    hopper_fp8: ModuleType, tokens: int, tile: int
) -> None:
    block, plain = a_block_in_8_bits()
    inputs = torch.randn(2, tokens, WIDTH)
    hopper_fp8.pack_block(block)
    fed = hopper_fp8.gated(block.feed_forward, narrow(inputs))
    assert tiles == [tile]  # by the tokens of both rows
    (given,) = hopper_fp8.multiplied(fed, block.feed_forward.w2)
    assert _off(given, plain.feed_forward(inputs)) < 0.08


@torch.no_grad()
def test_packed_8_bit_weights_are_kept_once(hopper_fp8: ModuleType) -> None:
    block, plain = a_block_in_8_bits()
    hopper_fp8.pack_block(block)
    feed, attention = block.feed_forward, block.attention
    packed = feed.w1.packed.values
    assert (feed.w1.weight.data_ptr(), feed.w3.weight.data_ptr()) == (
        packed.data_ptr(),
        packed[HIDDEN:].data_ptr(),
    )
    assert attention.to_out[0].packed.values.data_ptr() == attention.to_out[0].weight.data_ptr()
    inputs = torch.randn(1, 3, WIDTH)
    assert _off(feed.w3(inputs), plain.feed_forward.w3(inputs)) < 0.05  # each still by itself


def test_a_bias_is_not_dropped_in_silence(hopper_fp8: ModuleType) -> None:
    block, _ = a_block_in_8_bits()
    block.feed_forward.w2.bias = torch.zeros(WIDTH)
    with pytest.raises(ValueError, match="bias"):
        hopper_fp8.pack_block(block)


def test_what_cannot_be_built_is_left_out(hopper: ModuleType) -> None:
    """Here prove() asks for a device that is not there."""
    plan = optimisations.Optimisations(
        attention="flash4", products="quack", why=(("graphs", "on"),)
    )
    found = optimisations.proved(plan, torch.device("cuda", 99))
    assert (found.attention, found.products) == ("native", "native")
    assert dict(found.why)["attention"].startswith("native: ")
    assert dict(found.why)["graphs"] == "on"
    assert optimisations.ways(found) == {}


def test_only_what_is_chosen_is_called(hopper: ModuleType) -> None:
    assert optimisations.ways(optimisations.Optimisations(attention="flash4")) == {
        "attend": hopper.attended
    }
    assert optimisations.ways(optimisations.Optimisations(products="quack")) == {
        "gate": hopper.gated,
        "multiply": hopper.multiplied,
        "projecting": hopper.projecting,
    }


def test_8_bit_weights_have_products_of_their_own(hopper_fp8: ModuleType) -> None:
    found = optimisations.ways(optimisations.Optimisations(products="quack", fp8="transformer"))
    norm = found.pop("norm")
    assert norm.keywords == {"narrow": True}
    assert found == {
        "gate": hopper_fp8.gated,
        "multiply": hopper_fp8.multiplied,
        "projecting": hopper_fp8.projecting,
    }


@real
@pytest.mark.parametrize("tokens", [64, 1300, 8400])
@torch.no_grad()
def test_the_real_ones_compute_the_same(tokens: int) -> None:
    pytest.importorskip("quack")
    pytest.importorskip("flash_attn.cute")
    from worker.models.acceleration import fused, hopper

    device = torch.device("cuda")
    hopper.prove_attention(device)
    hopper.prove_products(device)
    feed: Any = FeedForward(512, 1024).to(device, torch.bfloat16)
    inputs = torch.randn(1, tokens, 512, dtype=torch.bfloat16, device=device)
    wanted = fused.gated(feed, inputs)
    hopper.pack(feed.w1, feed.w3)
    assert _off(hopper.gated(feed, inputs), wanted) < 0.01
    query, key, value = torch.randn(3, 2, tokens, 512, dtype=torch.bfloat16, device=device)
    given = hopper.attended(query, key, value, 4)
    assert _off(given, attended(query, key, value, 4)) < 0.01
    alone = hopper.attended(query[1:], key[1:], value[1:], 4)
    assert torch.equal(alone[0], given[1])
    layers = [torch.nn.Linear(512, 512, bias=False, device=device).bfloat16() for _ in range(3)]
    plain = fused.products(query, *layers)
    hopper.pack(*layers)
    for wanted, each in zip(plain, hopper.multiplied(query, *layers), strict=True):
        assert _off(each, wanted) < 0.01
    if tokens >= 8192:  # with fewer they are cuBLAS's
        (together,), (by_itself,) = (hopper.multiplied(e, layers[0]) for e in (query, query[1:]))
        assert torch.equal(together[1], by_itself[0])


@real
@pytest.mark.parametrize("tokens", [64, 4200])
@torch.no_grad()
def test_the_real_product_turns_queries_and_keys_the_same(tokens: int) -> None:
    """Two rows; the longer ones by the kernel that has more than 8192 tokens."""
    pytest.importorskip("quack")
    pytest.importorskip("flash_attn.cute")
    from worker.models.acceleration import fused, hopper

    attention = an_attention(512, 4).to("cuda", torch.bfloat16)
    angles = torch.rand(tokens, 64, device="cuda") * 6
    table = torch.stack([angles.cos(), angles.sin()], -1)
    inputs = torch.randn(2, tokens, 512, dtype=torch.bfloat16, device="cuda")
    wanted = fused.projecting(table, 2)(attention, inputs)
    hopper.pack_attention(attention)
    for given, each in zip(hopper.projecting(table, 2)(attention, inputs), wanted, strict=True):
        assert _off(given, each) < 0.01


@real
@pytest.mark.parametrize("tokens", [64, 300, 4200])
@torch.no_grad()
def test_a_real_block_in_8_bits_computes_the_same(tokens: int) -> None:
    pytest.importorskip("quack")
    from worker.models.acceleration import fused, hopper_fp8

    device = torch.device("cuda")
    hopper_fp8.prove_products(device)
    block: Any = ZImageTransformerBlock(0, 768, 6, 6, 1e-5, True, modulation=True)
    block = block.to(device, torch.bfloat16)
    fp8.shrink(block, device, multiply=True)
    angles = torch.rand(tokens, 64, device=device) * 6
    table = torch.stack([angles.cos(), angles.sin()], -1)
    inputs = torch.randn(2, tokens, 768, dtype=torch.bfloat16, device=device)
    time = torch.randn(2, 256, dtype=torch.bfloat16, device=device)
    wanted = fused.blocks([block, block], inputs, table, time)
    hopper_fp8.pack_block(block)
    given = fused.blocks([block, block], inputs, table, time, **hopper_fp8.ways())
    assert _off(given, wanted) < 0.03
    alone = fused.blocks([block, block], inputs[1:], table, time[1:], **hopper_fp8.ways())
    assert _off(alone[0], given[1]) < 0.03  # by other kernels where there are half as many


def _off(given: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((given - wanted).float().norm() / wanted.float().norm())
