"""What texts of ``cluster.toml`` may look like, and how a problem says so."""

import re

from worker.tables import BUCKET_URL, ENDPOINT, LINE, MARK, MARK_CHARACTERS, TRACES_ENDPOINT

NAME = r"^[a-z][a-z0-9-]{0,31}$"
NAME_OR_NONE = r"^([a-z][a-z0-9-]{0,31})?$"
HOST_AND_PORT = r"^(([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]+\]):[1-9]\d{0,4})?$"
INTERFACE = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,14})?$"
INTERFACE_ADDRESS = r"^([0-9A-Fa-f.:]+/\d{1,3})?$"
DEVICE = r"^(cpu|\d+|GPU-[0-9A-Za-z-]+|MIG-[0-9A-Za-z/-]+|)$"
DEVICES = r"^(cpu(, *cpu)+|(\d+|GPU-[0-9A-Za-z-]+)(, *(\d+|GPU-[0-9A-Za-z-]+))+|)$"
DATABASE = (
    r"^(sqlite:////[^\"'\\$;#{}?%\x00-\x1f\x7f]+"
    r"|postgresql(\+psycopg)?://[^\"'\\$;#{}\s\x00-\x1f\x7f]+)?$"
)
HOST = r"^(\*\.)?[A-Za-z0-9:][A-Za-z0-9.:-]{0,250}$"
NETWORK = r"^[0-9a-fA-F.:]+(/\d{1,3})?$"
PUBLIC_URL = (
    r"^(https?://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?"
    r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?)?$"
)
MIRROR = (
    r"^(https?://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?"
    r"(/[A-Za-z0-9_.-]+)*/?)?$"
)
# Of what nginx takes for words of its own in a map ("default", "~…") none has ://
ORIGIN = r"^(\*|null|[a-z][a-z0-9+.-]*://[A-Za-z0-9.:\[\]_-]+)$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
ADDRESS = r"^\[?[0-9A-Za-z.:-]{1,253}\]?$"
USER = r"^([A-Za-z_][A-Za-z0-9_.-]{0,31})?$"
PATH = r"^[^\"'\\$;#{}\x00-\x1f\x7f]*$"  # nginx and supervisor read these as more than a path
# nginx looks for patterns and for the end of a socket's path; supervisor expands % twice
PLACE = r"^[^\"'\\$;#{}*?\[\]:%\x00-\x1f\x7f]*$"
WORDS = {
    ADDRESS: 'must be an IP address such as "127.0.0.1" or "::"',
    USER: "must be the name of a user: letters, digits, _ . and - (32 at most)",
    PATH: "must be a path without quotes, backslashes, control characters and any of $ ; # { }",
    PLACE: "must be a path without quotes, backslashes, control characters "
    "and any of $ ; # { } * ? [ ] : %",
    NAME: "must be small letters, digits and dashes (32 at most)",
    NAME_OR_NONE: "must be small letters, digits and dashes (32 at most)",
    HOST_AND_PORT: 'must be a host and a port such as "10.0.0.7:7862"',
    INTERFACE: 'must be the name of a network interface, such as "eth0"',
    INTERFACE_ADDRESS: 'must be an address with its network\'s length, such as "10.0.0.100/24"',
    DEVICE: 'must be "cpu", a GPU\'s number such as "0", or a UUID from nvidia-smi -L',
    DEVICES: 'must be two or more GPUs\' numbers or UUIDs, such as "0,1"; slices cannot be joined',
    BUCKET_URL: 'must be a bucket and what its objects\' names begin with: "s3://bucket/prefix"',
    ENDPOINT: 'must be scheme, host and port of the store, such as "https://s3.example.com"',
    DATABASE: 'must be "sqlite:////absolute/path/of/a/file.db" or "postgresql://user@host/name"',
    HOST: "must be a host's name or an IP address",
    MARK: f"must be up to 16 {MARK_CHARACTERS}",
    LINE: "must be one line without control characters",
    ORIGIN: 'must be an origin as browsers send it, such as "https://chat.example.com", '
    '"app://obsidian.md" or "null", without a path; or "*"',
    NETWORK: 'must be an IP address or a network such as "10.1.0.0/16"',
    PUBLIC_URL: 'must be the address of the page, such as "https://draw.example.com" or '
    '"https://example.com/draw"',
    MIRROR: 'must be the address of a hub\'s mirror, such as "https://hf-mirror.com"',
    VARIABLE: "must be the name of an environment variable",
    TRACES_ENDPOINT: 'must be a URL with its path, such as "http://127.0.0.1:4318/v1/traces"',
}

CANNOT_PASS = (
    "supervisor cannot pass on double quotes, control characters, "
    "; or # after a blank, and ' at the ends"
)
OTHER_WAY = "name a file or a link without them"


def is_plain_path(path: str) -> bool:
    """Whether nginx and supervisor read ``path`` as a path and nothing more."""
    return re.fullmatch(PLACE, path) is not None


def is_passed(value: str) -> bool:
    """Whether a program of supervisord's gets ``value`` as it is, as a variable in its environment.

    In its files a blank and ; or # begin a comment, wherever they stand; quotes cannot be escaped,
    and those at the ends are taken off.
    """
    return not re.search(r"""["\x00-\x08\x0a-\x1f\x7f]|\s[;#]|^'|'$""", value)
