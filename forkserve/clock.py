"""The two clocks, by the names that the rest of the house uses.

Deadlines and ages are measured by the monotonic clock, which all processes of one machine share (clock_gettime(2),
CLOCK_MONOTONIC); the wall clock is only for what people read.
"""

from __future__ import annotations

import time

monotonic_s = time.monotonic
"""Seconds since an arbitrary moment; the same for every process of this boot."""

monotonic_ns = time.monotonic_ns
"""Nanoseconds since the same moment: what the scoreboard's cells hold."""

wall_s = time.time
"""Seconds since 1970, for logs and the Date field; may jump."""
