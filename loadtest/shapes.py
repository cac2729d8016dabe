"""How many users there are at a time. Pure: seconds in, users out, None when it is over."""

import math
from dataclasses import dataclass
from typing import Literal

Name = Literal["constant", "steps", "spike", "day"]
NAMES: tuple[Name, ...] = ("constant", "steps", "spike", "day")


def few(users: int) -> int:
    """How many of ``users`` there are beside a spike."""
    return max(1, users // 5)


@dataclass(frozen=True)
class Shape:
    """``users`` is the constant number, the peak of spike and day, and one step's height."""

    name: Name
    users: int
    run_s: float
    step_s: float = 30.0

    def users_at(self, passed_s: float, *, broken: bool = False) -> int | None:
        """``broken``: an objective is missed; the steps end there, for the capacity is found."""
        if passed_s >= self.run_s or (broken and self.name == "steps"):
            return None
        share = passed_s / self.run_s
        match self.name:
            case "steps":
                return self.users * (1 + int(passed_s / self.step_s))
            case "spike":  # a fifth of the users, and all of them in the middle third
                return self.users if 1 / 3 <= share < 2 / 3 else few(self.users)
            case "day":  # from night over noon to night
                return max(1, round(self.users * (0.1 + 0.9 * math.sin(math.pi * share) ** 2)))
            case _:
                return self.users
