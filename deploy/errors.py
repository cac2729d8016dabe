"""What commands end with, where the message is all that a person needs."""


class CellError(Exception):
    """A command failed; the message says what was last seen and what to do."""
