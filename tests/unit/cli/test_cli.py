"""The command: its words, its output, its exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forkserve import __version__, cli
from forkserve.settings import SECTIONS, declarations

FLASK_SITE = "from flask import Flask\napp = Flask('site')\ndef create_app(name): return Flask(name)\n"


class Outcome(SimpleNamespace):
    """How a command ended: its code and the lines of both its streams."""

    code: int
    out: list[str]
    err: list[str]


class Shell:
    """A directory in which commands run as a newcomer types them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def run(self, *words: str, environ: dict[str, str] | None = None) -> Outcome:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "VIRTUAL_ENV") if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-m", "forkserve", *words],
            cwd=self.path,
            env=kept | {"PYTHONWARNINGS": "error"} | (environ or {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Outcome(code=done.returncode, out=done.stdout.splitlines(), err=done.stderr.splitlines())

    def error(self, *words: str, code: int = 2) -> str:
        """Run what must fail with one line; the line without its beginning."""
        outcome = self.run(*words)
        assert outcome.code == code, outcome
        assert outcome.out == []
        (line,) = outcome.err
        assert line.startswith("forkserve: error: ")
        return line.removeprefix("forkserve: error: ")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_version_is_printed(shell: Shell) -> None:
    outcome = shell.run("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, [f"forkserve {__version__}"], [])
    assert shell.run("-w", "3", "--version").out == [f"forkserve {__version__}"]


def test_version_and_help_do_not_load_what_serving_needs(shell: Shell) -> None:
    script = (
        "import sys; from forkserve.cli import run; run([{!r}]); print(sorted(n for n in sys.modules if n in {!r}))"
    )
    heavy = ["forkserve.master", "forkserve.posix.process", "forkserve.server.loader", "socket", "watchfiles"]
    for word, more in (("--version", ["click", "msgspec"]), ("--help", [])):
        done = subprocess.run(
            [sys.executable, "-c", script.format(word, heavy + more)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_flag_under_its_section_with_unit_and_default(shell: Shell) -> None:
    outcome = shell.run("--help", environ={"COLUMNS": "100"})
    assert outcome.code == 0
    text = "\n".join(outcome.out)
    titles = [line[:-1] for line in outcome.out if re.fullmatch(r"[A-Z][A-Za-z ]+:", line)]
    assert titles == [*SECTIONS, "Information"]
    for declaration in declarations():
        for flag in declaration.setting.flags.replace("/", " ").split():
            assert flag.partition("=")[0] in text
    words = " ".join(text.split())
    assert "[seconds; default: 75]" in words
    assert "[default: the current directory]" in words
    assert "_FORKSERVE_COMPLETE=bash_source" in words
    assert "--worker-tmp-dir" not in text


def test_missing_application_says_what_to_type(shell: Shell) -> None:
    message = shell.error()
    assert message.startswith("no application: type `forkserve MODULE:ATTRIBUTE`, for example `forkserve mysite.wsgi:")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--wrkers", "3"], "no such option --wrkers; did you mean --workers or --worker-class?"),
        (["--qqqqqq"], "no such option --qqqqqq; see --help"),
        (["--print-confg"], "no such option --print-confg; did you mean --print-config or --config?"),
        (["--workers"], "option '--workers' requires an argument"),
        (["a:b", "c:d"], "got unexpected extra argument (c:d)"),
        (
            ["-w", "x", "a:b"],
            "command line: --workers = 'x': expected a whole number of processes from 1 to 4096, or auto",
        ),
        (
            ["--log-level", "loud"],
            "command line: --log-level = 'loud': expected one of debug, info, warning, error, critical",
        ),
        (["--preload", "--no-preload"], "command line: give only one of --preload, --no-preload, --preload-auto"),
        (
            ["--worker-tmp-dir", "/dev/shm", "a:b"],
            "command line: --worker-tmp-dir is gunicorn's: forkserve keeps heartbeats in shared memory; leave it out",
        ),
        (
            ["-k", "tornado", "a:b"],
            "command line: --worker-class = 'tornado': the worker classes here are sync, gthread, gevent; or name "
            "a class of your own by its dotted path",
        ),
        (
            ["-c", "no.py", "a:b"],
            "command line: --config: cannot read the configuration file no.py (No such file or directory)",
        ),
        (
            ["--initgroups", "a:b"],
            "command line: initgroups = true takes the groups of `user`, which is not set: set user too",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(shell: Shell, words: Sequence[str], message: str) -> None:
    assert shell.error(*words) == message


def test_wrong_address_names_its_source(shell: Shell) -> None:
    shell.write("forkserve.toml", "app = 'a:b'\nbind = 'a:b:c'\n")
    assert shell.error().startswith("forkserve.toml: bind: bind 'a:b:c' is no address: ")


def test_reload_without_its_extra_says_what_to_install(shell: Shell) -> None:
    hidden = "import sys; sys.modules['watchfiles'] = None; from forkserve.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "--reload", "a:b"],
        cwd=shell.path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "pip install 'forkserve[reload]'" in done.stderr


def test_print_config_says_where_each_value_came_from(shell: Shell) -> None:
    shell.write("forkserve.toml", "workers = 3\ntimeout = '1m'\nlogconfig_dict = {version = 1, 'a b' = [1.5, true]}\n")
    outcome = shell.run(
        "--print-config", "-m", "022", "-e", "DB=hunter2", "-e", "X=1", "--threads", "2", environ={"PORT": "9000"}
    )
    assert outcome.code == 0
    assert 'bind = ["0.0.0.0:9000"]  # environment: PORT' in outcome.out
    assert "workers = 3  # forkserve.toml: workers" in outcome.out
    assert "timeout = 60  # forkserve.toml: timeout" in outcome.out
    assert "umask = 0o022  # command line: --umask" in outcome.out
    assert 'raw_env = ["DB=***", "X=***"]  # command line: --env' in outcome.out
    assert "# pidfile is not set  # default" in outcome.out
    assert len(outcome.out) == len(declarations())
    assert "hunter2" not in "".join(outcome.out)
    assert outcome.err == []


def test_printed_configuration_can_be_used_as_a_file(shell: Shell) -> None:
    text = "\n".join(shell.run("--print-config", "--keep-alive", "0.5", "--access-logformat", '"%(r)s" \\ é').out)
    table = tomllib.loads(text)
    assert table["keepalive"] == 0.5
    assert table["access_log_format"] == '"%(r)s" \\ é'
    shell.write("again.toml", text)
    again = shell.run("--print-config", "-c", "again.toml")
    assert (again.code, again.err) == (0, [])


def test_print_config_lists_hooks(shell: Shell) -> None:
    shell.write("gunicorn.conf.py", "def on_exit(server): ...\ndef pre_fork(server, worker): ...")
    assert shell.run("--print-config").out[-1].startswith("# hooks: pre_fork, on_exit  # /")


def test_check_config_says_what_it_found(shell: Shell) -> None:
    shell.write("site_c.py", "import os\nassert os.environ['MODE'] == 'test'\n" + FLASK_SITE)
    shell.write("forkserve.toml", "app = 'site_c:app'\nworkers = 2\nraw_env = ['MODE=test']\n")
    outcome = shell.run("--check-config")
    assert (outcome.code, outcome.err) == (0, [])
    assert outcome.out == [
        f"configuration  {shell.path}/forkserve.toml",
        "bind           127.0.0.1:8000  (default)",
        "workers        2 sync  (forkserve.toml: workers)",
        "application    site_c:app: Flask (flask.app.Flask)",
        "all well: nothing was started",
    ]


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("site_d:create_app('x')", "Flask (flask.app.Flask)"),
        ("site_d:app.wsgi_app", "Flask (builtins.method)"),
        ("site_d:plain", "function plain of site_d"),
        ("site_d:django_app", "Django (django.core.handlers.wsgi.WSGIHandler)"),
        ("site_d:own", "an object of site_d.Own"),
    ],
)
def test_check_config_recognises_the_application(shell: Shell, spec: str, found: str) -> None:
    django = (
        "from django.conf import settings\nsettings.configure()\nfrom django.core.wsgi import get_wsgi_application\n"
        "django_app = get_wsgi_application()\n"
    )
    own = "class Own:\n    def __call__(self, e, s): ...\nown = Own()\ndef plain(e, s): ...\n"
    shell.write("site_d.py", FLASK_SITE + django + own)
    outcome = shell.run("--check-config", spec)
    assert outcome.code == 0, outcome
    assert outcome.out[-2] == f"application    {spec}: {found}"


def test_check_config_shows_the_applications_own_traceback(shell: Shell) -> None:
    shell.write("site_e.py", "def f():\n    raise RuntimeError('no database')\nf()\n")
    outcome = shell.run("--check-config", "site_e:app")
    assert outcome.code == 3
    assert outcome.err[0] == "Traceback (most recent call last):"
    assert outcome.err[1] == f'  File "{shell.path}/site_e.py", line 3, in <module>'
    assert outcome.err[-1] == "forkserve: error: site_e:app: importing site_e failed: RuntimeError: no database"


def test_check_config_refuses_what_is_no_application(shell: Shell) -> None:
    shell.write("site_f.py", "application = 3\n")
    assert shell.error("--check-config", "site_f", code=3).endswith("of type int, not a WSGI callable")
    assert "there is no module 'site_ff'" in shell.error("--check-config", "site_ff", code=3)


def test_check_config_is_not_kept_by_the_applications_threads(shell: Shell) -> None:
    shell.write(
        "site_g.py",
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\ndef application(e, s): ...",
    )
    assert shell.run("--check-config", "site_g").code == 0


def test_failing_configuration_file_shows_its_own_traceback(shell: Shell) -> None:
    shell.write("gunicorn.conf.py", "workers = 1 / 0\n")
    outcome = shell.run("a:b")
    assert outcome.code == 2
    assert outcome.err[1] == f'  File "{shell.path}/gunicorn.conf.py", line 1, in <module>'
    assert outcome.err[-1] == "forkserve: error: gunicorn.conf.py failed: ZeroDivisionError: division by zero"


def test_lost_current_directory_is_a_system_error(shell: Shell) -> None:
    script = (
        "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); from forkserve.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "a:b"], cwd=shell.path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "the current directory cannot be read (No such file or directory)" in done.stderr


def test_symbolic_link_in_the_current_directory_is_kept(shell: Shell) -> None:
    (shell.path / "release1").mkdir()
    (shell.path / "current").symlink_to("release1")
    link = f"{shell.path}/current"
    environ = {"PWD": link}
    done = subprocess.run(
        [sys.executable, "-m", "forkserve", "--print-config"],
        cwd=link,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f'chdir = "{link}"  # default' in done.stdout


def test_closed_standard_streams_are_no_trap(shell: Shell) -> None:
    done = subprocess.run(
        f"exec {sys.executable} -m forkserve --wrkers <&- >&- 2>&-", shell=True, cwd=shell.path, check=False, timeout=60
    )
    assert done.returncode == 2


def test_reader_of_the_help_may_leave_early(shell: Shell) -> None:
    script = f"{sys.executable} -m forkserve --help | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("Usage: forkserve")
    assert done.stderr == ""


def test_shell_completion_offers_flags(shell: Shell) -> None:
    environ = {"_FORKSERVE_COMPLETE": "bash_complete", "COMP_WORDS": "forkserve --work", "COMP_CWORD": "1"}
    outcome = shell.run(environ=environ)
    assert "plain,--workers" in outcome.out
    assert "plain,--worker-tmp-dir" not in outcome.out


def test_master_gets_settings_hooks_and_a_way_to_read_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class FakeMaster:
        def __init__(self, app: str, settings: Any, **rest: Any) -> None:
            made.append(SimpleNamespace(app=app, settings=settings, **rest))

        def run(self) -> int:
            return 3

    monkeypatch.setattr("forkserve.master.Master", FakeMaster)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name in ("PORT", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS")]:
        monkeypatch.delenv(name)
    Path("gunicorn.conf.py").write_text("workers = 2\ndef on_exit(server): ...")
    assert cli.run(["-b", "127.0.0.1:0", "site:app"]) == 3
    (master,) = made
    assert (master.app, master.settings.workers, master.settings.bind) == ("site:app", 2, ("127.0.0.1:0",))
    assert master.hooks.on_exit is not None
    assert master.config_path == str(tmp_path / "gunicorn.conf.py")
    Path("gunicorn.conf.py").write_text("workers = 5")
    again = master.reload_settings()
    assert (again.settings.workers, again.settings.bind, again.hooks.on_exit) == (5, ("127.0.0.1:0",), None)
    assert str(tmp_path) in sys.path
    sys.modules.pop("__config__", None)


def test_example_in_gunicorns_style_works(shell: Shell) -> None:
    example = Path(__file__).resolve().parents[3] / "conf" / "gunicorn.conf.py"
    outcome = shell.run("--print-config", "-c", str(example))
    assert (outcome.code, outcome.err) == (0, [])
    assert any(line.startswith("workers = 2 ") for line in outcome.out)
    assert outcome.out[-1].startswith("# hooks: when_ready, post_fork, child_exit")


def test_example_toml_works(shell: Shell) -> None:
    example = Path(__file__).resolve().parents[3] / "conf" / "forkserve.toml"
    uncommented = re.sub(r"^# (\w+ = )", r"\1", example.read_text(), flags=re.M)
    kept = [line for line in uncommented.splitlines() if not re.match(r"chdir|logconfig", line)]
    shell.write("all.toml", "\n".join(kept))
    outcome = shell.run("--print-config", "-c", "all.toml")
    assert (outcome.code, outcome.err) == (0, [])
    assert sum("all.toml: " in line for line in outcome.out) == len(declarations()) - 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--access-logformat=%(h"], "command line: --access-logformat = '%(h': incomplete format key"),
        (["--tmp-upload-dir=/nope"], "command line: --tmp-upload-dir = '/nope': there is no such directory"),
    ],
)
def test_setting_that_no_worker_could_use_is_refused_before_the_start(
    shell: Shell, words: Sequence[str], message: str
) -> None:
    shell.write("site_one.py", FLASK_SITE)
    for more in ([], ["--check-config"]):
        assert shell.error(*words, *more, "site_one:app") == message


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--worker-class=no.such"], 2, "command line: --worker-class: worker_class = 'no.such': No module named 'no'"),
        (["--worker-class=broken.Class"], 2, "worker_class = 'broken.Class': importing broken failed: SyntaxError: "),
        (["--user=nosuchuser"], 1, "there is no user 'nosuchuser' on this system"),
        (["--group=nosuchgroup"], 1, "there is no group 'nosuchgroup' on this system"),
    ],
)
def test_check_config_looks_at_what_a_start_would_need(
    shell: Shell, words: Sequence[str], code: int, message: str
) -> None:
    shell.write("broken.py", "def (")
    shell.write("site_one.py", FLASK_SITE)
    assert message in shell.error("--check-config", *words, "site_one:app", code=code)


@pytest.mark.parametrize("spec", ["m:" + "a." * 3000 + "b", "m:f({[]: 1})", "m:f(" + "(" * 300 + ")" * 300 + ")"])
def test_application_that_cannot_be_read_is_one_line(shell: Shell, spec: str) -> None:
    shell.write("m.py", "")
    error = shell.error("--check-config", spec, code=3)
    is_too_deep_here = error.endswith("create_app('production', debug=False)")
    assert is_too_deep_here or "has no attribute 'a'" in error  # Python 3.13 reads the first one


def test_toml_that_is_nested_too_deep_is_one_line(shell: Shell) -> None:
    shell.write("forkserve.toml", "x = " + "[" * 5000)
    assert shell.error("m:app") == "forkserve.toml: not valid TOML: its lists or tables are nested too deep"


def test_combination_names_the_source_of_any_of_its_settings(shell: Shell) -> None:
    shell.write("forkserve.toml", "write_buffer_memory = '2g'\n")
    assert shell.error("m:app").startswith("forkserve.toml: write_buffer_limit = 1073741824 is below")
