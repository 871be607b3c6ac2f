"""Why a benchmark ends early."""

from __future__ import annotations


class BenchError(Exception):
    """The benchmark cannot go on; the text says why and what to do."""
