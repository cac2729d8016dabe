"""One cluster.toml in, a running cell out."""
