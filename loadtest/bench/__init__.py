"""Benchmarks: one question each, answered by a ratio."""
