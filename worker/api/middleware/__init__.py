"""What goes for every request."""
