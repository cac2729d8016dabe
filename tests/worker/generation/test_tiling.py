"""A picture in tiles: cut, drawn in any order, put together without a seam."""

import random

import numpy as np
import pytest

from worker.engine.request import NO_PIXELS, Drawn, Stepped
from worker.generation.tiling import Axis, Tiles, Tiling
from worker.types import DrawSpec, Parameters, Pixels, SourceImage


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def tiling_of(pixels: Pixels, most: tuple[int, int], seed: int = 7) -> Tiling:
    height, width, _ = pixels.shape
    source = SourceImage("a" * 64, pixels, placement="upscale 2")
    whole = DrawSpec("a fox", seed, Parameters(width, height, 8, strength=0.25), source)
    return Tiling(whole, Tiles.of(source, most, 16))


def drawn(tiling: Tiling, index: int, pixels: Pixels | None) -> Drawn:
    spec = tiling.specs[index]
    assert spec.source is not None
    found = spec.source.pixels if pixels is None else pixels
    assert found is not None
    return Drawn(index, spec, found, 5.0 + index, 100.0, 2, 0.5)


@pytest.mark.parametrize("most", [64, 256, 1024])
def test_weights_add_up_at_each_pixel_and_tiles_are_alike(most: int) -> None:
    for length in (*range(64, 2049, 16), 4096):
        axis = Axis.of(length, most, 16)
        total = np.zeros(length, np.uint32)
        for tile, start in enumerate(axis.starts):
            assert start % 16 == 0
            total[start : start + axis.side] += axis.weights(tile)
        assert (total == 256).all(), axis
        assert axis.side == min(length, most)


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (272, 400), (1024, 512)])
def test_what_is_cut_and_put_together_is_the_same(size: tuple[int, int]) -> None:
    before = noise(*size)
    tiling = tiling_of(before, (256, 256))
    order = list(range(len(tiling.specs)))
    random.Random(1).shuffle(order)
    told = [tiling.take(drawn(tiling, index, None)) for index in order]
    assert np.array_equal(told[-1].pixels, before)
    assert all(one.pixels is NO_PIXELS for one in told[:-1])
    assert sorted(one.image_index for one in told) == list(range(len(order)))
    assert (told[-1].image_index, told[-1].spec) == (0, tiling.whole)


def test_each_tile_is_as_large_and_has_a_seed_of_its_own() -> None:
    tiling = tiling_of(noise(512, 512), (256, 256), seed=2**32 - 2)
    assert len(tiling.specs) == 9
    assert {spec.parameters.size for spec in tiling.specs} == {(256, 256)}
    assert [spec.seed for spec in tiling.specs][:3] == [2**32 - 2, 2**32 - 1, 0]
    assert {spec.parameters.strength for spec in tiling.specs} == {0.25}


def test_tiles_that_came_out_darker_or_redder_get_their_tones_back() -> None:
    tiling = tiling_of(np.full((512, 512, 3), (90, 120, 150), np.uint8), (256, 256))
    for index in range(len(tiling.specs)):
        flat = np.full((256, 256, 3), (90 + 6 * index, 120 - 3 * index, 150), np.uint8)
        whole = tiling.take(drawn(tiling, index, flat)).pixels
    assert (whole == (90, 120, 150)).all()


def test_a_tile_keeps_its_own_detail() -> None:
    tiling = tiling_of(np.full((256, 256, 3), 100, np.uint8), (256, 256))
    stripes = np.full((256, 256, 3), 120, np.uint8)
    stripes[:, ::2] = 140
    whole = tiling.take(drawn(tiling, 0, stripes)).pixels
    assert set(np.unique(whole[:, ::2])) == {110}
    assert set(np.unique(whole[:, 1::2])) == {90}


def test_one_tile_fades_into_the_next() -> None:
    tiling = tiling_of(np.full((256, 512, 3), 100, np.uint8), (256, 256))
    for index in range(len(tiling.specs)):
        stripes = np.full((256, 256, 3), 100, np.uint8)
        if index % 2:
            stripes[::2], stripes[1::2] = 80, 120
        whole = tiling.take(drawn(tiling, index, stripes)).pixels.astype(int)
    contrast = whole[1] - whole[0]
    assert (contrast.min(), contrast.max()) == (0, 40)
    assert np.abs(np.diff(contrast, axis=0)).max() <= 2


def test_what_it_took_is_that_of_all_tiles() -> None:
    tiling = tiling_of(noise(256, 400), (256, 256))
    whole = [tiling.take(drawn(tiling, k, None)) for k in range(2)][-1]
    assert (whole.queue_ms, whole.inference_ms, whole.batch_size, whole.device_s) == (
        5.0,
        101.0,
        2,
        1.0,
    )


def test_steps_of_tiles_count_together() -> None:
    tiling = tiling_of(noise(256, 400), (256, 256))
    steps = [Stepped(0, 1, 2, 9.0), Stepped(1, 1, 2, 8.0), Stepped(0, 2, 2, 7.0)]
    assert [tiling.followed(step) for step in steps] == [
        Stepped(0, 1, 4, 9.0),
        Stepped(0, 2, 4, 8.0),
        Stepped(0, 3, 4, 7.0),
    ]
