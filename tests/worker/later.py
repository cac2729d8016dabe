"""The parameters of a version to come."""

from dataclasses import dataclass
from typing import Annotated

from worker.types import Declared, Parameters


@dataclass(frozen=True)
class Later(Parameters):
    """As they are, and a field that its migration 9999 brings."""

    style: Annotated[str, Declared(since=9999, label="Style")] = ""
