"""Where people find the page: ``listen.public_url`` in its parts."""

from dataclasses import dataclass
from urllib.parse import urlsplit

TAKEN = ("v1", "ops", "js", "css", "errors", "internal")
"""First parts of paths that are the cell's own: no proxy's path may begin with one."""

_DEFAULT_PORTS = {("http", 80), ("https", 443)}


@dataclass(frozen=True)
class PublicUrl:
    """``host`` has the port, unless it is the scheme's own; ``path`` is empty or begins with a
    slash and ends with none."""

    scheme: str
    host: str
    path: str

    @classmethod
    def of(cls, text: str) -> "PublicUrl":
        parts = urlsplit(text)
        host = parts.netloc.lower()
        if (parts.scheme, parts.port) in _DEFAULT_PORTS:
            host = host.rpartition(":")[0]
        return cls(parts.scheme, host, parts.path.rstrip("/"))

    @property
    def name(self) -> str:
        """The host alone."""
        return urlsplit(f"//{self.host}").hostname or ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}/"
