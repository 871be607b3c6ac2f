"""The servers that are compared: installing, starting, stopping.

    .venv-bench     forkserve (this tree), gunicorn, gevent, granian, Flask, Django: one interpreter for all, so that
                    an application costs the same under each

    with serving(command(python, "gunicorn", "gthread", workload, port, 1000), port, "/hello") as server:
        server.url, server.leader        a session of its own: whatever it forks is found, and gone afterwards
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.bench.errors import BenchError
from tests.bench.usage import processes_of
from tests.bench.workloads import Workload

ROOT: Final = Path(__file__).parents[2]
VENV: Final = ROOT / ".venv-bench"
PACKAGES: Final = ("gunicorn>=23", "packaging", "gevent>=24", "granian>=2", "flask>=3", "django>=4.2")
"""Beside forkserve; the newest that the package index has.  packaging is for gunicorn's gevent worker."""
APPLICATIONS: Final = (
    ROOT / "tests" / "bench" / "apps",
    ROOT / "docs" / "examples",
    ROOT / "docs" / "examples" / "django_site",
)

START_DEADLINE_S: Final = 30.0
STOP_DEADLINE_S: Final = 15.0
LOOK_INTERVAL_S: Final = 0.02
LOOK_S_MAX: Final = 2.0
IDLE_S: Final = 600
"""How long servers keep idle connections here: longer than any run looks at them."""

SPARE_CONNECTIONS: Final = 500
"""Servers are told to hold so many more than are made: wrk may connect anew before the old ones are seen to end."""

SERVERS: Final = ("forkserve", "gunicorn", "granian")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves.

    Attributes:
        leader: the first process of its session.
    """

    leader: int
    url: str
    port: int


def command(python: Path, name: str, worker: str, workload: Workload, port: int, connections_max: int) -> list[str]:
    """How a server is started with one worker process.

    Args:
        connections_max: it has to hold so many connections.
    """
    if name == "granian":  # it has no worker types, but threads
        threads = 1 if worker == "sync" else workload.threads
        options = f"--interface wsgi --host 127.0.0.1 --port {port} --workers 1 --blocking-threads {threads}"
        return [str(python.parent / "granian"), *options.split(), workload.target]
    options = f"--bind 127.0.0.1:{port} --workers 1 --worker-class {worker} --worker-connections {connections_max}"
    if worker == "gthread":
        options += f" --threads {workload.threads}"
    return [str(python), "-m", name, *options.split(), "--keep-alive", str(IDLE_S), workload.target]


@contextmanager
def serving(
    argv: Sequence[str], port: int, path: str, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Running]:
    """Run a server; inside, it answers ``path``; afterwards it is gone.

    Args:
        variables: for its environment.

    Raises:
        BenchError: it does not come up.
    """
    places = os.pathsep.join(map(str, APPLICATIONS))
    environ = {key: value for key, value in os.environ.items() if key not in _CONFIGURES}
    environ |= {"PYTHONPATH": places, **variables}
    with tempfile.TemporaryFile("w+b") as log, tempfile.TemporaryDirectory(prefix="forkserve-bench-") as place:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=place, env=environ
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_it_serves(process, url + path, log.fileno(), argv)
            yield Running(process.pid, url, port)
        finally:
            _end(process)


_CONFIGURES: Final = ("GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "DJANGO_SETTINGS_MODULE")


def _wait_until_it_serves(process: subprocess.Popen[bytes], url: str, log_fd: int, argv: Sequence[str]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    status = 0
    while time.monotonic() < deadline and process.poll() is None:
        status = status_of(url, LOOK_S_MAX)
        if status == 200:
            return
        time.sleep(LOOK_INTERVAL_S)
    said = os.pread(log_fd, 65536, 0).decode("utf-8", "replace").strip()
    how = f"answers {status}" if status else "does not answer"
    raise BenchError(
        f"this server {how} within {START_DEADLINE_S:g} s:\n  {' '.join(argv)}\nit said:\n{said or '(nothing)'}"
    )


def text_of(url: str) -> str:
    """The body of an answer.

    Raises:
        OSError: there is none, or it is an error.
    """
    with urllib.request.urlopen(url, timeout=LOOK_S_MAX) as answer:
        return str(answer.read(), "utf-8")


def status_of(url: str, timeout_s: float) -> int:
    """Ask once; 0 where there is no answer in time."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0  # the caller knows what that means


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the server gracefully, and whatever is left of its session at once."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        print(f"  (it did not stop within {STOP_DEADLINE_S:g} s and was killed)", file=sys.stderr)
    for pid in processes_of(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # ended by itself meanwhile
    process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; granian cannot say which one it was given."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# ---------------------------------------------------------------------------------------------- what is needed


def require(programs: Mapping[str, str]) -> None:
    """See that programs are there.

    Args:
        programs: names, each with Debian's package.

    Raises:
        BenchError: one is missing; the text says how to install it.
    """
    for program, package in programs.items():
        if shutil.which(program) is None:
            raise BenchError(f"{program} is not installed (Debian: apt install {package})")


def installed_python() -> Path:
    """The interpreter of .venv-bench, which is made or brought up to date first.

    Raises:
        BenchError: that failed.
    """
    python, mark = VENV / "bin" / "python", VENV / "installed"
    wanted = hashlib.sha256(f"{sys.version} {PACKAGES} {(ROOT / 'setup.cfg').read_text()}".encode()).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return python
    peers = ", ".join(re.split("[<>=]", package)[0] for package in PACKAGES)
    print(f"Installing forkserve, {peers} into {VENV} …", flush=True)
    install = f"{python} -m pip install --quiet --disable-pip-version-check --editable".split()
    for argv in ([sys.executable, "-m", "venv", "--clear", str(VENV)], [*install, str(ROOT), *PACKAGES]):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise BenchError(f"{' '.join(argv)} failed; is the package index reachable?\n{said}")
    mark.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """What is installed beside an interpreter, by package."""
    names = ["forkserve", "gunicorn", "gevent", "granian", "flask", "django"]
    code = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
        "print('python', sys.version.split()[0])"
    )
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())
