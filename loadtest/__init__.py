"""Proof by load: traffic that checks every picture, faults, and scenarios with a verdict."""
