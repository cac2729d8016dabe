"""A run as one self-contained page and a Markdown summary; two runs side by side."""

from loadtest.report.build import compare, fault_table, write

__all__ = ["compare", "fault_table", "write"]
