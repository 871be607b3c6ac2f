"""The fuzzer: inputs made of the raw corpus against real servers, until the time is over or one of them hurts.

    for each input:  make ─▶ deliver ─▶ judge ─▶ a good request on a fresh connection ─▶ the log
                     cases   client     judge    same worker, right answer               no error, no traceback
    now and then:    the worker has as many descriptors open as at the beginning

    python -m tests.fuzz.fuzz --seconds 120 --seed 7
    python -m tests.fuzz.fuzz --replay fuzz-failure.jsonl

Promises: a failure names the input, makes it as small as it can within a bounded number of tries, and writes it to a
file for ``--replay``; the same seed gives the same inputs.  The servers are real ones (tests/harness.py), each with one
worker; they and their files are gone afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from tests.conformance.driver import BODY_BYTES_MAX
from tests.fuzz import cases
from tests.fuzz.application import GOOD_PATH
from tests.fuzz.cases import PREAMBLES, Case, Mode
from tests.fuzz.client import deliver
from tests.fuzz.judge import TIMEOUT_S, Problem, judge
from tests.harness import Server, launch
from tests.serving import read_answer

DEFAULT_SECONDS: Final = 120.0
FAILURE: Final = Path("fuzz-failure.jsonl")
TELL_EVERY_S: Final = 0.5
"""How often a terminal is told how far it is."""
TELL_EVERY_IN_A_FILE_S: Final = 15.0
LOOK_EVERY: Final = 500
"""Inputs between two looks at the worker's descriptors."""
CLOSE_DEADLINE_S: Final = 4.0
"""By then the last connections are closed: above the server's linger of 2 s."""
RECENT_MAX: Final = 100
"""Inputs kept for the file of a failure that its last input alone does not bring about."""
ALONE_TRIES: Final = 20
"""A failure that depends on time may not come about at the first."""
SHRINK_TRIES_MAX: Final = 300
SHRINK_SECONDS_MAX: Final = 30.0
LEVELS_OF_DEFECTS: Final = frozenset({"error", "critical"})


class Target:
    """A server under test, and what must not change about it.

    Args:
        log: the server's, open for reading.
        unix_path: its other address.
        tally: what became of the requests.
        preamble: what a good connection begins with.
    """

    def __init__(self, server: Server, log: IO[bytes], unix_path: str, tally: Counter[str], preamble: bytes) -> None:
        self._preamble = preamble
        self._server = server
        self._address = ("127.0.0.1", server.port)
        self._unix_path = unix_path
        self._log = log
        self._number = 0
        self._tally = tally
        self.settle()
        self._descriptors = self._descriptor_count()

    def try_case(self, case: Case) -> str | None:
        """What is wrong after this case; None if nothing is."""
        try:
            try:
                judge(case, deliver(case, self._address, self._unix_path), self._tally)
            finally:
                self._look()
        except Problem as problem:
            if problem.__context__ is not None:
                return f"{problem}; before that: {problem.__context__}"
            return str(problem)
        return None

    def settle(self) -> None:
        """Take the worker that is there now as the one that must stay, and what the log holds as known."""
        self._worker = self._server.wait_for_workers(1)[0]
        self._log.seek(0, os.SEEK_END)

    def look_at_descriptors(self) -> str | None:
        """What is wrong with the number of the worker's open descriptors, once all connections are over."""
        try:
            self._server.wait_until(
                lambda: self._descriptor_count() <= self._descriptors, "closed descriptors", CLOSE_DEADLINE_S
            )
        except AssertionError:
            return f"the worker has {self._descriptor_count()} descriptors open instead of {self._descriptors}"
        return None

    def _descriptor_count(self) -> int:
        return len(os.listdir(f"/proc/{self._worker}/fd"))

    def _look(self) -> None:
        """A good request on a fresh connection; then the log, to which the worker has written before it answered."""
        self._number += 1
        request = f"GET {GOOD_PATH}?{self._number} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        try:
            with socket.create_connection(self._address, timeout=20) as sock:
                sock.sendall(self._preamble + request)
                answer = read_answer(sock.makefile("rb"))
        except (OSError, AssertionError) as error:
            raise Problem(f"the good request after it failed: {type(error).__name__}: {error}") from error
        if answer is None or answer.body != f"{self._worker} {self._number}".encode():
            raise Problem(f"the good request after it was answered by {answer}, not by worker {self._worker}")
        for line in self._log:
            self._look_at_line(str(line, "utf-8", "replace"))

    def _look_at_line(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            raise Problem(f"the log has a line that is no event: {line[:500]}") from None
        if event.get("level", "").lower() in LEVELS_OF_DEFECTS or event.get("traceback"):
            raise Problem(f"the log has: {json.dumps(event)[:4000]}")


class Targets:
    """A server for each mode."""

    def __init__(self, targets: Mapping[Mode, Target], tally: Counter[str]) -> None:
        self._targets = targets
        self.tally = tally

    def try_case(self, case: Case) -> str | None:
        """What is wrong after this case; None if nothing is."""
        return self._targets[case.mode].try_case(case)

    def settle(self) -> None:
        """Take the workers that are there now as those that must stay."""
        for each in self._targets.values():
            each.settle()

    def look_at_descriptors(self) -> str | None:
        """What is wrong with the numbers of the workers' open descriptors."""
        return next(filter(None, (each.look_at_descriptors() for each in self._targets.values())), None)


ARGUMENTS: Final = {
    Mode.BUFFERED: ("--request-buffering",),
    Mode.STREAMED: ("--no-request-buffering",),
    Mode.PROXIED: ("--proxy-protocol", "auto"),
}


@contextmanager
def targets(
    application: str = "tests.fuzz.application:application",
    *,
    path: Path | None = None,
    worker_class: str = "sync",
    modes: Iterable[Mode] = tuple(Mode),
) -> Iterator[Targets]:
    """A server for each mode; they end with the block.

    Args:
        path: where the application is found, if not here.
    """
    tally: Counter[str] = Counter()
    with ExitStack() as stack:
        found = {mode: stack.enter_context(_serving(application, path, tally, mode, worker_class)) for mode in modes}
        yield Targets(found, tally)


@contextmanager
def _serving(
    application: str, path: Path | None, tally: Counter[str], mode: Mode, worker_class: str
) -> Iterator[Target]:
    """A server with one worker and short times."""
    with tempfile.TemporaryDirectory(prefix="forkserve-fuzz-") as folder:
        unix_path = f"{folder}/socket"
        settings = {
            "--workers": 1,
            "--worker-class": worker_class,
            "--limit-request-body": BODY_BYTES_MAX,
            "--header-timeout": TIMEOUT_S,
            "--body-timeout": TIMEOUT_S,
            "--keep-alive": 0.2,
            "--graceful-timeout": 3,
            "--access-logfile": f"{folder}/access.log",  # what it writes of strange requests is under test too
            "--pythonpath": path or folder,
        }
        server = launch(
            *(str(word) for pair in settings.items() for word in pair),
            *ARGUMENTS[mode],
            application,
            cwd=Path(folder),
            log_path=Path(folder, "server.log"),
            bind=("127.0.0.1:0", f"unix:{unix_path}"),
        )
        try:
            server.wait_for("server.ready")
            with server.log_path.open("rb") as log:
                yield Target(server, log, unix_path, tally, PREAMBLES[0] if mode is Mode.PROXIED else b"")
        finally:
            server.end()


# ---------------------------------------------------------------------------------------------- the run


@dataclass
class Failure:
    """The cases that bring it about, in order, and what is wrong after the last."""

    cases: list[Case]
    problem: str


def run(
    inputs: Iterable[Case],
    aim: Targets,
    *,
    seconds: float = float("inf"),
    narrowed: bool = True,
    tell: Callable[[int], None] = lambda _: None,
) -> Failure | None:
    """Try inputs until they end, time is over, or one hurts.

    Args:
        narrowed: make the failure as small as can be.
        tell: is called with the number of inputs done.
    """
    until = time.monotonic() + seconds
    recent: deque[Case] = deque(maxlen=RECENT_MAX)
    for number, case in enumerate(inputs, 1):
        recent.append(case)
        problem = aim.try_case(case)
        if problem is None and number % LOOK_EVERY == 0:
            problem = aim.look_at_descriptors()
        if problem is not None:
            failure = Failure(list(recent), problem)
            return _narrow(failure, aim) if narrowed else failure
        tell(number)
        if time.monotonic() > until:
            break
    problem = aim.look_at_descriptors()
    return None if problem is None else Failure(list(recent), problem)


def _narrow(failure: Failure, aim: Targets) -> Failure:
    """Only the last case, made small, if it brings about a failure alone."""

    def problem_of(case: Case) -> str | None:
        aim.settle()
        return aim.try_case(case)

    last = failure.cases[-1]
    problem = next(filter(None, (problem_of(last) for _ in range(ALONE_TRIES))), None)
    if problem is None:
        return failure
    small, problem = shrink(last, problem, problem_of)
    return Failure([small], problem)


def shrink(case: Case, problem: str, problem_of: Callable[[Case], str | None]) -> tuple[Case, str]:
    """The smallest case found that still has a problem: fewer parts first, then fewer bytes."""
    until = time.monotonic() + SHRINK_SECONDS_MAX
    for _ in range(SHRINK_TRIES_MAX):
        for candidate in _smaller(case):
            found = problem_of(candidate)
            if time.monotonic() > until:
                return case, problem
            if found is not None:
                case, problem = candidate, found
                break
        else:
            break
    return case, problem


def _smaller(case: Case) -> Iterator[Case]:
    """The case with all parts joined, without one part, or without a run of bytes: halves, quarters, … single bytes."""
    if len(case.parts) > 1:
        yield replace(case, parts=(case.data,))
    for index in range(len(case.parts) if 1 < len(case.parts) <= 50 else 0):
        yield replace(case, parts=case.parts[:index] + case.parts[index + 1 :])
    for index, part in enumerate(case.parts[:50]):
        size = len(part) // 2
        while size:
            for start in range(0, len(part), size):
                parts = (*case.parts[:index], part[:start] + part[start + size :], *case.parts[index + 1 :])
                yield replace(case, parts=parts)
            size = size // 2 if size > len(part) // 64 else 0


def generated(seed: str) -> Iterator[Case]:
    """The inputs of a seed, without an end."""
    return (cases.make_case(seed, number) for number in itertools.count(1))


# ---------------------------------------------------------------------------------------------- the command


class Teller:
    """Says how far it is: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, aim: Targets, seconds: float) -> None:
        self._aim = aim
        self._seconds = seconds
        self._began = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._interval_s = TELL_EVERY_S if self._is_terminal else TELL_EVERY_IN_A_FILE_S
        self._next = self._began + self._interval_s

    def __call__(self, number: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval_s
            line = f"  {now - self._began:4.0f} of {self._seconds:.0f} s  {self.described(number)}"
            print(f"\r{line}\033[K" if self._is_terminal else line, end="" if self._is_terminal else "\n", flush=True)

    def described(self, number: int) -> str:
        """Inputs, and what became of their requests."""
        seen = ", ".join(f"{count:,} {what}" for what, count in self._aim.tally.most_common())
        return f"{number:,} inputs: {seen}"

    def clear(self) -> None:
        """Take the changing line away."""
        if self._is_terminal:
            print("\r\033[K", end="")


def coloured(text: str, colour: int) -> str:
    """In a colour, on a terminal."""
    return f"\033[{colour}m{text}\033[0m" if sys.stdout.isatty() else text


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.fuzz", description="try to hurt a worker")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help=f"how long ({DEFAULT_SECONDS:g})")
    parser.add_argument("--seed", default=str(random.randrange(1_000_000)), help="of the inputs (a new one)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try the inputs of a failure's file instead")
    parser.add_argument("--worker-class", default="sync", help="of the servers (sync)")
    parser.add_argument("--failure", type=Path, metavar="FILE", default=FAILURE, help=f"to write ({FAILURE})")
    return parser.parse_args()


def main() -> int:
    """Run it; 1 when an input hurts."""
    options = parse_arguments()
    with targets(worker_class=options.worker_class) as aim:
        if options.replay is not None:
            inputs: Iterable[Case] = cases.load(options.replay)
            print(f"Trying the inputs of {options.replay} …")
        else:
            inputs = generated(options.seed)
            print(f"Seed {options.seed}, for {options.seconds:g} s …", flush=True)
        tell = Teller(aim, options.seconds)
        done = 0

        def on_progress(number: int) -> None:
            nonlocal done
            done = number
            tell(number)

        failure = run(inputs, aim, seconds=options.seconds, tell=on_progress)
        tell.clear()
        print(f"  {tell.described(done)}")
    if failure is None:
        print(coloured("Nothing hurt the worker.", 32))
        return 0
    print(coloured("FAILED: ", 31) + f"{failure.cases[-1].name}: {failure.problem}")
    if options.replay is None:
        cases.save(options.failure, failure.cases, failure.problem)
        print(f"Written to {options.failure}; try it again: python -m tests.fuzz.fuzz --replay {options.failure}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
