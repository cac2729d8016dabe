import pytest

from tests.worker.later import Later
from worker.types import KNOWN, DrawSpec, Parameters, SourceImage

NOW = Parameters(64, 96, 8, 2.0, "blurry")
LATER = Later(64, 96, 8, 2.0, "blurry")
INK = Later(64, 96, 8, 2.0, "blurry", style="ink")


def test_what_stands_for_a_picture_stays_from_version_to_version() -> None:
    """Places in the queue are signed over it: those of the version before must stay good."""
    assert DrawSpec("狐狸", 7, NOW).normalised().decode() == (
        '["狐狸",7,{"guidance_scale":2.0,"height":96,"negative_prompt":"blurry",'
        '"reproducible":false,"steps":8,"width":64}]'
    )


def test_a_later_field_left_out_leaves_signatures_and_fingerprints_as_they_were() -> None:
    def text(how: Parameters) -> bytes:
        return DrawSpec("a fox", 7, how).normalised()

    assert text(LATER) == text(NOW)
    assert text(INK) != text(NOW)


def test_each_field_changes_what_stands_for_a_picture() -> None:
    others = (
        Parameters(96, 64, 8, 2.0, "blurry"),
        Parameters(64, 96, 9, 2.0, "blurry"),
        Parameters(64, 96, 8, 2.5, "blurry"),
        Parameters(64, 96, 8, 2.0, "dark"),
        Parameters(64, 96, 8, 2.0, "blurry", reproducible=True),
    )
    specs = [DrawSpec("a fox", 7, how) for how in (NOW, *others)]
    specs += [DrawSpec("a cat", 7, NOW), DrawSpec("a fox", 8, NOW)]
    assert len({spec.normalised() for spec in specs}) == len(specs)


def test_the_picture_and_its_mask_change_what_stands_for_a_drawing_from_it() -> None:
    sources = (None, *(SourceImage(*said) for said in (("a", None), ("b", None))))
    sources += (SourceImage("a", None, mask_sha256="c"), SourceImage("a", None, placement="fit"))
    assert len({DrawSpec("a fox", 7, NOW, source).normalised() for source in sources}) == 5


@pytest.mark.parametrize(
    ("steps", "strength", "first"),
    [(8, 1.0, 0), (8, 0.6, 3), (8, 0.5, 4), (8, 0.01, 7), (8, 0.0, 8), (1, 0.5, 0)],
)
def test_strength_says_at_which_step_a_picture_comes_in(
    steps: int, strength: float, first: int
) -> None:
    how = Parameters(64, 64, steps, strength=strength)
    assert (how.first_step, how.drawn_steps) == (first, steps - first)


def test_only_a_later_field_that_is_used_needs_a_newer_worker() -> None:
    assert NOW.needs == LATER.needs == 0
    assert INK.needs == 9999 > KNOWN


def test_texts_are_what_people_wrote() -> None:
    assert INK.texts == {"negative_prompt": "blurry", "style": "ink"}
