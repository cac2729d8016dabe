"""What users ask for: prompts whose pictures can be checked, in the sizes that people use."""

import os
import random
from typing import Any

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square")
SMALL = ("256x256",)
MIXED = ("256x256", "256x256", "256x384", "384x256", "320x320")
SEEDS = 4


def prompt(rng: random.Random) -> str:
    """One shape in the middle whose colour a picture must show there."""
    return f"a large {rng.choice(COLOURS)} {rng.choice(SHAPES)} in the centre, white background"


def wish(rng: random.Random, sizes: tuple[str, ...] = SMALL, steps: int = 0) -> dict[str, Any]:
    """A request of a small family, so that each picture is drawn often and can be compared.

    The negative prompt changes nothing at guidance 0, but makes each request its own: the cell
    remembers requests that workers died of, and users seldom ask twice for the same. ``steps`` 0:
    the model's own.
    """
    return {
        **({"steps": steps} if steps else {}),
        "prompt": prompt(rng),
        "size": rng.choice(sizes),
        "seed": 1000 * rng.randrange(SEEDS),
        "negative_prompt": os.urandom(8).hex(),
        "store": False,  # nobody wants these in a gallery
    }
