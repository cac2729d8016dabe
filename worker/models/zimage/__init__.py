"""Z-Image, one denoising step at a time."""
