"""Models behind one protocol: start, step, finish."""
