"""One worker process: HTTP on top, the engine in the middle, a pipeline below.

Imports point downwards only; docs/architecture.md has the rooms and what may import what.
"""
