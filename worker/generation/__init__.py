"""What becomes of pixels: files, and the labels that they carry."""
