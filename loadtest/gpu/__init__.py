"""What is measured on a real GPU. Needs no network."""
