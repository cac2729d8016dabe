"""``cluster.toml``: what it may say (``schema``), read and checked (``reading``)."""

from deploy.config.patterns import is_plain_path
from deploy.config.reading import DEFAULT_PATH, ROOT, ConfigError, load, parse
from deploy.config.schema import ClusterConfig, Tls, WorkerGroup

__all__ = [
    "DEFAULT_PATH",
    "ROOT",
    "ClusterConfig",
    "ConfigError",
    "Tls",
    "WorkerGroup",
    "is_plain_path",
    "load",
    "parse",
]
