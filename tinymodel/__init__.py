"""The tiny model that is shipped with the kit: Z-Image architecture, a few megabytes, draws shapes."""
