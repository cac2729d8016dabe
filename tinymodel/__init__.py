"""The tiny model shipped with the kit: Z-Image architecture, 16 MB, draws coloured shapes."""
