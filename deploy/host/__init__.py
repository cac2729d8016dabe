"""This machine: what it has, what runs on it, and what could go wrong."""
