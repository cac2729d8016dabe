"""From cluster.toml to files."""
