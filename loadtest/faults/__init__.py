"""Faults to inject into a running cell on this machine.

Independent of any load generator: tests and scenarios share them. Every fault works from outside,
on real processes, and takes its targets from the cell's own state; nothing in the product knows
of it. ``catalogue.FAULTS`` names them all; ``chaos.inject`` runs one and measures the pool.
"""

from loadtest.faults.cell import Cell, process_ids
from loadtest.faults.workers import crash_loop, kill, stop

__all__ = ["Cell", "crash_loop", "kill", "process_ids", "stop"]
