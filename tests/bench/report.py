"""Tables for people and JSON for programs.  Pure but for asking whether there is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from tests.bench.idle import IdleCost
from tests.bench.samples import Sample, Summary, summary_of
from tests.bench.workloads import WORKLOADS

BASE: Final = "gunicorn"
"""The server that others are compared with."""

BOLD, GREEN, RED, PLAIN = "\033[1m", "\033[32m", "\033[31m", "\033[0m"


class Result:
    """All that was measured of one worker type.

    Attributes:
        samples: by workload and server.
        alone: microseconds of a call in a loop without a server, by workload.
        in_place: the same in forkserve.
    """

    def __init__(self, worker: str, connections: int) -> None:
        self.worker = worker
        self.connections = connections
        self.samples: dict[str, dict[str, list[Sample]]] = {}
        self.alone: dict[str, list[float]] = {}
        self.in_place: dict[str, float] = {}
        self.calls: dict[str, dict[str, dict[str, float]]] = {}
        self.idle: dict[str, IdleCost] = {}

    def summaries(self, workload: str) -> dict[str, Summary]:
        """The medians of one workload, by server."""
        return {server: summary_of(samples) for server, samples in self.samples[workload].items()}

    def possible_per_s(self, workload: str, server: str) -> float | None:
        """Answers a second that this workload allows this server at best."""
        described = WORKLOADS[workload]
        at_once = described.calls_at_once(server, self.worker, self.connections)
        return described.possible_per_s(at_once, median_of(self.alone.get(workload, [])))


def median_of(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if not ordered:
        return 0.0
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def has_colours() -> bool:
    """Is the output a terminal that wants them (no-color.org)?"""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(result: Result, *, is_coloured: bool = False) -> str:
    """The requests: a line for each workload and server."""
    lines = [
        f"{result.worker:9} {'server':10}{'requests/s':>11}{'x ' + BASE:>12}{'µs CPU':>9}{'x ' + BASE:>12}"
        f"{'min … max':>17}{'p50 ms':>9}{'p99 ms':>9}{'p99/p50':>9}{'others':>8}  note"
    ]
    if is_coloured:
        lines[0] = BOLD + lines[0] + PLAIN
    for workload in result.samples:
        summaries = result.summaries(workload)
        base, title = summaries.get(BASE), workload
        for server, found in summaries.items():
            is_shown = is_coloured and server != BASE
            lines.append(
                f"{title:9} {server:10}{found.per_s:11,.0f}"
                + _ratio(found.per_s / base.per_s if base else None, is_shown, is_good_below=False)
                + f"{found.cpu_us:9.1f}"
                + _ratio(found.cpu_us / base.cpu_us if base else None, is_shown, is_good_below=True)
                + f"{f'{found.cpu_us_min:.1f} … {found.cpu_us_max:.1f}':>17}{found.p50_ms:9.2f}{found.p99_ms:9.2f}"
                + f"{found.unfairness:9.1f}{found.others:8.0%}  {_note(result, workload, server, found)}"
            )
            title = ""
        if workload in result.alone:
            costs = {"in a loop": median_of(result.alone[workload]), "in place": result.in_place.get(workload, 0.0)}
            lines += [f"{'':9} {name:10}{'':23}{cost:9.1f}" for name, cost in costs.items() if cost]
    return "\n".join(line.rstrip() for line in lines)


def _ratio(value: float | None, is_coloured: bool, *, is_good_below: bool) -> str:
    if value is None:
        return f"{'-':>12}"
    text = f"{value:12.2f}"
    if not is_coloured:
        return text
    return (GREEN if (value < 1) == is_good_below else RED) + text + PLAIN


def _note(result: Result, workload: str, server: str, found: Summary) -> str:
    notes = list(found.complaints)
    possible = result.possible_per_s(workload, server)
    if possible and (WORKLOADS[workload].wait_s or workload == "compute"):
        notes.insert(0, f"{found.per_s / possible:.1%} of the possible")
    return "; ".join(notes)


def idle_table(result: Result) -> str:
    """The idle connections: a line for each server."""
    lines = [
        f"{result.worker:9} {'server':10}{'idle':>8}{'kept':>18}{'KB each':>9}{'µs CPU alone':>14}{'beside':>9}"
        f"{'times':>7}{'p99 ms alone':>14}{'beside':>9}"
    ]
    for server, cost in result.idle.items():
        kept = f"{cost.kept[0]:,} … {cost.kept[1]:,}"
        lines.append(
            f"{'':9} {server:10}{cost.asked:8,}{kept:>18}{cost.bytes_each / 1024:9.2f}{cost.alone_us:14.1f}"
            f"{cost.beside_us:9.1f}{cost.slowdown:7.2f}{cost.alone_p99_ms:14.2f}{cost.beside_p99_ms:9.2f}"
        )
    return "\n".join(lines)


def calls_table(result: Result, names_max: int = 8) -> str:
    """System calls a request: a line for each workload and server."""
    lines = [f"{result.worker:9} {'server':10}{'calls':>8}  which"]
    for workload, servers in result.calls.items():
        title = workload
        for server, counts in servers.items():
            shown = ", ".join(f"{name} {count:.2f}" for name, count in list(counts.items())[:names_max])
            lines.append(f"{title:9} {server:10}{sum(counts.values()):8.2f}  {shown}")
            title = ""
    return "\n".join(lines)


def document(result: Result) -> dict[str, Any]:
    """Everything of one worker type, for JSON."""
    return {
        "worker": result.worker,
        "connections": result.connections,
        "requests": {
            workload: {
                server: {
                    "median": asdict(summary_of(samples)),
                    "samples": [asdict(sample) for sample in samples],
                    "possible_per_s": result.possible_per_s(workload, server),
                }
                for server, samples in servers.items()
            }
            for workload, servers in result.samples.items()
        },
        "alone_us": result.alone,
        "in_place_us": result.in_place,
        "calls_per_request": result.calls,
        "idle": {server: asdict(cost) for server, cost in result.idle.items()},
    }


def heading(versions: Mapping[str, str], machine: str, load: str) -> str:
    """Which servers, on what, under which load."""
    return f"{', '.join(f'{name} {version}' for name, version in versions.items())}\n{machine}\n{load}"
