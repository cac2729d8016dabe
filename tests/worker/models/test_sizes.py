import pytest

from worker.models.sizes import fitted


@pytest.mark.parametrize(
    ("size", "max_pixels", "result"),
    [
        ((1024, 1024), 1024 * 1024, (1024, 1024)),
        ((1024, 1024), 512 * 512, (512, 512)),
        ((1280, 720), 512 * 512, (672, 384)),
        ((1000, 1000), 1 << 20, (992, 992)),
        ((64, 64), 256, (16, 16)),
    ],
)
def test_a_default_size_fits_the_limit(
    size: tuple[int, int], max_pixels: int, result: tuple[int, int]
) -> None:
    width, height = fitted(size, max_pixels, 16)
    assert (width, height) == result
    assert width * height <= max_pixels
