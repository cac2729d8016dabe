"""Routes and wire formats."""
