"""The cell's supervisord: one client of it, and nginx as it starts it."""
