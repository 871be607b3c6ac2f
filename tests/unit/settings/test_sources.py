"""Where settings come from: precedence, origins, and the message of every failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkserve.config_files import ConfigFileError
from forkserve.errors import SettingsError
from forkserve.sources import Loaded, load, load_hooks


class Place:
    """A directory to start in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str | bytes) -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        return target

    def load(self, environ: dict[str, str] | None = None, **cli_values: object) -> Loaded:
        return load(cli_values, environ or {}, str(self.path))

    def failure(self, environ: dict[str, str] | None = None, **cli_values: object) -> str:
        with pytest.raises(SettingsError) as caught:
            self.load(environ, **cli_values)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
        return str(caught.value)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield Place(tmp_path)
    sys.modules.pop("__config__", None)


def test_defaults_hold_where_nothing_is_set(place: Place) -> None:
    loaded = place.load()
    assert loaded.settings.bind == ("127.0.0.1:8000",)
    assert loaded.settings.chdir == str(place.path)
    assert set(loaded.origins.values()) == {"default"}
    assert (loaded.warnings, loaded.config_path) == ((), None)


SOURCES: list[tuple[str, Callable[[Place, dict[str, str], dict[str, object]], object], str]] = [
    ("file", lambda place, env, cli: place.write("forkserve.toml", "workers = 2"), "forkserve.toml: workers"),
    ("platform", lambda place, env, cli: env.update(WEB_CONCURRENCY="3"), "environment: WEB_CONCURRENCY"),
    (
        "arguments",
        lambda place, env, cli: env.update(GUNICORN_CMD_ARGS="-w 4"),
        "environment: GUNICORN_CMD_ARGS --workers",
    ),
    ("own variable", lambda place, env, cli: env.update(FORKSERVE_WORKERS="5"), "environment: FORKSERVE_WORKERS"),
    ("command line", lambda place, env, cli: cli.update(workers="6"), "command line: --workers"),
]


@pytest.mark.parametrize("count", range(1, 6), ids=[name for name, _, _ in SOURCES])
def test_stronger_source_wins_and_is_recorded(place: Place, count: int) -> None:
    environ: dict[str, str] = {}
    cli: dict[str, object] = {}
    for _, apply, _ in SOURCES[:count]:
        apply(place, environ, cli)
    loaded = place.load(environ, **cli)
    assert loaded.settings.workers == count + 1
    assert loaded.origins["workers"] == SOURCES[count - 1][2]


def test_port_sets_bind_only_where_nothing_else_does(place: Place) -> None:
    loaded = place.load({"PORT": "80"})
    assert loaded.settings.bind == ("0.0.0.0:80",)
    assert loaded.origins["bind"] == "environment: PORT"
    place.write("forkserve.toml", "bind = 'a:1'")
    assert place.load({"PORT": "80"}).settings.bind == ("a:1",)


def test_forwarded_allow_ips_of_the_platform_is_a_default(place: Place) -> None:
    platform = {"FORWARDED_ALLOW_IPS": "*"}
    loaded = place.load(platform)
    assert loaded.settings.forwarded_allow_ips == ("*",)
    assert loaded.origins["forwarded_allow_ips"] == "environment: FORWARDED_ALLOW_IPS"
    assert place.load({"FORWARDED_ALLOW_IPS": ""}).settings.forwarded_allow_ips == ()
    place.write("gunicorn.conf.py", "forwarded_allow_ips = '10.0.0.0/8'")
    loaded = place.load(platform)
    assert loaded.settings.forwarded_allow_ips == ("10.0.0.0/8",)
    assert loaded.origins["forwarded_allow_ips"] == "gunicorn.conf.py: forwarded_allow_ips"
    assert place.failure({"FORWARDED_ALLOW_IPS": "a"}).startswith("environment: FORWARDED_ALLOW_IPS = 'a': expected IP")


def test_proxy_protocol_flag_may_stand_alone(place: Place) -> None:
    def given(words: str) -> str:
        return place.load({"GUNICORN_CMD_ARGS": words}).settings.proxy_protocol

    assert given("--proxy-protocol") == "auto"
    assert given("--proxy-protocol --workers 2") == "auto"
    assert given("--proxy-protocol v1 --proxy-allow-from '*'") == "v1"
    assert given("--proxy-protocol=off") == "off"
    assert "--proxy-protocol = 'v3': expected one of" in place.failure({"GUNICORN_CMD_ARGS": "--proxy-protocol v3"})


def test_wrong_port_is_refused(place: Place) -> None:
    assert place.failure({"PORT": "http"}).startswith("environment: PORT = 'http': expected a port number")
    assert "PORT = '65536'" in place.failure({"PORT": "65536"})


def test_workers_auto_counts_cpus(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkserve.cpus.available_cpus", lambda: 7)
    loaded = place.load({"WEB_CONCURRENCY": "auto"})
    assert (loaded.settings.workers, loaded.origins["workers"]) == (7, "environment: WEB_CONCURRENCY")
    place.write("forkserve.toml", "workers = 'auto'")
    assert place.load().settings.workers == 7


def test_wrong_value_names_source_key_value_and_what_is_allowed(place: Place) -> None:
    allowed = "expected a whole number of processes from 1 to 4096, or auto"
    assert place.failure(workers="x") == f"command line: --workers = 'x': {allowed}"
    assert place.failure({"FORKSERVE_WORKERS": "x"}) == f"environment: FORKSERVE_WORKERS = 'x': {allowed}"
    assert place.failure({"WEB_CONCURRENCY": "x"}) == f"environment: WEB_CONCURRENCY = 'x': {allowed}"
    place.write("forkserve.toml", "workers = 0")
    assert place.failure() == f"forkserve.toml: workers = 0: {allowed}"
    assert place.failure(workers="2") == f"forkserve.toml: workers = 0: {allowed}"


def test_wrong_secret_is_not_shown(place: Place) -> None:
    message = place.failure(raw_env=("PASSWORDhunter2",))
    assert "hunter2" not in message
    assert message.startswith("command line: --env = ***: ")


def test_unknown_name_in_toml_is_an_error_with_its_line(place: Place) -> None:
    place.write("forkserve.toml", "bind = 'a:1'\n\nwokers = 3\n")
    assert place.failure() == "forkserve.toml line 3: unknown setting 'wokers'; did you mean workers?"
    place.write("forkserve.toml", "qqq = 3\n")
    assert place.failure() == "forkserve.toml line 1: unknown setting 'qqq'"


def test_table_in_toml_is_explained(place: Place) -> None:
    place.write("forkserve.toml", "[server]\nbind = 'a:1'\n")
    assert place.failure().startswith("forkserve.toml line 1: [server] is a table, but settings are not in tables")


def test_hooks_and_gunicorns_other_settings_are_refused_in_toml(place: Place) -> None:
    place.write("forkserve.toml", "pre_fork = 'x'")
    assert "pre_fork is a hook, which needs a Python configuration file" in place.failure()
    place.write("forkserve.toml", "ssl_version = 'x'")
    assert place.failure() == (
        "forkserve.toml line 1: ssl_version is gunicorn's: forkserve speaks TLS 1.2 and 1.3: narrow that by the hook "
        "ssl_context"
    )


def test_same_setting_by_two_names_is_refused(place: Place) -> None:
    place.write("forkserve.toml", "app = 'a'\nwsgi_app = 'b'")
    assert place.failure() == "forkserve.toml: app and wsgi_app are the same setting: keep one of them"
    os.remove(place.path / "forkserve.toml")
    assert "are the same setting" in place.failure({"FORKSERVE_APP": "a", "FORKSERVE_WSGI_APP": "b"})


def test_file_cannot_name_another_file(place: Place) -> None:
    place.write("forkserve.toml", "config = 'other.toml'")
    assert place.failure() == "forkserve.toml: config names this file: use -c or the variable FORKSERVE_CONFIG"


def test_broken_toml_names_the_line(place: Place) -> None:
    place.write("forkserve.toml", "bind = 'a:1'\nworkers 2\n")
    message = place.failure()
    assert message.startswith("forkserve.toml: not valid TOML: ")
    assert "line 2" in message
    place.write("forkserve.toml", b"app = '\xff'")
    assert place.failure().startswith("forkserve.toml: not valid TOML: 'utf-8' codec can't decode")


def test_unreadable_file_is_named(place: Place) -> None:
    reason = "cannot read the configuration file no.toml (No such file or directory)"
    assert place.failure(config="no.toml") == f"command line: --config: {reason}"
    assert place.failure({"FORKSERVE_CONFIG": "no.toml"}) == f"environment: FORKSERVE_CONFIG: {reason}"
    assert place.failure({"GUNICORN_CMD_ARGS": "-c no.toml"}) == f"environment: GUNICORN_CMD_ARGS --config: {reason}"
    assert place.failure(config="no.py").endswith("file no.py (No such file or directory)")
    assert place.failure(config="..").endswith("(Is a directory)")
    assert place.failure(config="python:no.such") == (
        "command line: --config: cannot read the configuration module 'no.such': there is no such Python module"
    )


def test_unknown_variable_is_an_error_with_a_near_name(place: Place) -> None:
    assert place.failure({"FORKSERVE_WOKERS": "3"}) == (
        "environment: FORKSERVE_WOKERS is no setting of forkserve; did you mean FORKSERVE_WORKERS?"
    )
    assert place.failure({"FORKSERVE_workers": "3"}).endswith("did you mean FORKSERVE_WORKERS?")
    assert place.failure({"FORKSERVE_QQQQQQ": "3"}).endswith("docs/SETTINGS.md lists them")


def test_variables_of_a_kubernetes_service_named_forkserve_are_none_of_ours(place: Place) -> None:
    prefix = "FORKSERVE_PORT_8000_TCP"
    environ = {
        "FORKSERVE_SERVICE_HOST": "10.0.0.1",
        "FORKSERVE_SERVICE_PORT": "8000",
        "FORKSERVE_SERVICE_PORT_HTTP": "8000",
        "FORKSERVE_PORT": "tcp://10.0.0.1:8000",
        **dict.fromkeys((prefix, prefix + "_PROTO", prefix + "_PORT", prefix + "_ADDR"), "x"),
    }
    assert set(place.load(environ).origins.values()) == {"default"}


def test_unknown_name_of_an_embedding_program_is_an_error(place: Place) -> None:
    assert place.failure(wokers=2) == "command line: unknown setting 'wokers'; did you mean workers?"


def test_gunicorns_arguments_are_read_from_the_environment(place: Place) -> None:
    words = "--bind a:1 --bind=b:2 --preload -e A=1 --reload --umask 022 'mysite:create(1)'"
    settings = place.load({"GUNICORN_CMD_ARGS": words}).settings
    assert settings.bind == ("a:1", "b:2")
    assert (settings.preload, settings.raw_env, settings.reload, settings.umask) == ("on", ("A=1",), True, 0o22)
    assert settings.app == "mysite:create(1)"


def test_gunicorns_other_arguments_give_one_warning(place: Place) -> None:
    loaded = place.load({"GUNICORN_CMD_ARGS": "--worker-tmp-dir /dev/shm --no-sendfile"})
    assert len(loaded.warnings) == 1
    assert (
        "ignored: worker_tmp_dir, sendfile" in loaded.warnings[0]
        or "ignored: sendfile, worker_tmp_dir" in loaded.warnings[0]
    )


@pytest.mark.parametrize("words", ["--wrkers 2", "--workers", "'", "a b"])
def test_wrong_arguments_in_the_environment_are_refused(place: Place, words: str) -> None:
    assert place.failure({"GUNICORN_CMD_ARGS": words}).startswith(f"environment: GUNICORN_CMD_ARGS = {words!r}: ")


def test_configuration_file_is_found_or_named(place: Place) -> None:
    place.write("gunicorn.conf.py", "workers = 2")
    assert place.load().config_path == str(place.path / "gunicorn.conf.py")
    place.write("forkserve.toml", "workers = 3")
    loaded = place.load()
    assert (loaded.settings.workers, loaded.settings.config) == (3, str(place.path / "forkserve.toml"))
    assert loaded.warnings == ("forkserve.toml and gunicorn.conf.py are both here: gunicorn.conf.py is ignored",)
    place.write("conf/other.py", "workers = 4")
    loaded = place.load({"FORKSERVE_CONFIG": "conf/other.py"})
    assert (loaded.settings.workers, loaded.origins["workers"]) == (4, "conf/other.py: workers")
    assert place.load({"FORKSERVE_CONFIG": "nope"}, config="file:forkserve.toml").settings.workers == 3


def test_configuration_module_is_read(place: Place) -> None:
    place.write("deploy/__init__.py", "")
    place.write("deploy/settings.py", "workers = 5\ndef on_exit(server): ...")
    loaded = place.load(config="python:deploy.settings")
    assert (loaded.settings.workers, loaded.config_path) == (5, "python:deploy.settings")
    assert loaded.hooks.on_exit is not None


def test_python_file_is_read_anew_each_time(place: Place) -> None:
    place.write("gunicorn.conf.py", "workers = 2")
    assert place.load().settings.workers == 2
    place.write("gunicorn.conf.py", "workers = 3")
    assert place.load().settings.workers == 3


GUNICORN_FILE = """
import multiprocessing
import os as user
from collections import OrderedDict as app
_private = 1
cores = 4
bind = "unix:run/x.sock"
workers = "3"
threads = 2
preload_app = True
umask = 0o22
pidfile = None
group = 100
errorlog = "-"
accesslog = "log/access"
reload_extra_files = ["a.html"]
worker_tmp_dir = "/dev/shm"
keyfile = "key.pem"
certfile = "certificate.pem"
cert_reqs = __import__("ssl").CERT_NONE
do_handshake_on_connect = True
sendfile = None
proxy_protocol = True
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
forwarder_headers = "SCRIPT_NAME,PATH_INFO"
proxy_allow_ips = "10.0.0.0/8"
log_level = "debug"
raw_env = ["A=1"]
def timeout(): ...
def pre_fork(server, worker): return "pre_fork"
def post_request(worker, req): return (worker, req)
def helper(): ...
"""


def test_gunicorns_file_works(place: Place) -> None:
    place.write("gunicorn.conf.py", GUNICORN_FILE)
    loaded = place.load()
    settings = loaded.settings
    assert settings.bind == (f"unix:{place.path}/run/x.sock",)
    assert (settings.workers, settings.threads, settings.preload, settings.umask) == (3, 2, "on", 0o22)
    assert (settings.user, settings.app, settings.timeout, settings.group) == (None, None, 30.0, "100")
    assert settings.accesslog == f"{place.path}/log/access"
    assert (settings.proxy_protocol, settings.proxy_allow_ips) == ("auto", ("10.0.0.0/8",))
    assert settings.secure_scheme_headers == {"X-FORWARDED-PROTO": "https"}
    assert settings.forwarder_headers == ("SCRIPT_NAME", "PATH_INFO")
    assert settings.reload_extra_files == (f"{place.path}/a.html",)
    assert (settings.certfile, settings.keyfile) == (f"{place.path}/certificate.pem", f"{place.path}/key.pem")
    assert settings.cert_reqs == 0
    assert loaded.origins["preload"] == "gunicorn.conf.py: preload_app"
    assert loaded.warnings == (
        "gunicorn.conf.py: 'log_level' is no setting and is ignored; did you mean loglevel?",
        "gunicorn.conf.py: not supported in this release, ignored: worker_tmp_dir, do_handshake_on_connect "
        "(docs/SETTINGS.md says what happens instead)",
    )
    assert loaded.hooks.pre_fork is not None
    assert loaded.hooks.pre_fork(1, 2) == "pre_fork"
    assert loaded.hooks.post_request is not None
    assert loaded.hooks.post_request("worker", "req", "environ", "resp") == ("worker", "req")


def test_worker_class_that_does_not_exist_here_is_refused(place: Place) -> None:
    place.write("gunicorn.conf.py", "worker_class = 'tornado'")
    assert place.failure() == (
        "gunicorn.conf.py: worker_class = 'tornado': the worker classes here are sync, gthread, gevent; "
        "or name a class of your own by its dotted path"
    )


def test_class_in_a_python_file_becomes_its_dotted_path(place: Place) -> None:
    place.write("gunicorn.conf.py", "from logging import Logger as logger_class")
    assert place.load().settings.logger_class == "logging.Logger"
    place.write("gunicorn.conf.py", "class logger_class: ...")
    assert "must lie in a module of its own" in place.failure()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pre_fork = 3", "gunicorn.conf.py: pre_fork = 3: expected a function of (server, worker)"),
        ("def pre_fork(x): ...", "gunicorn.conf.py: pre_fork must be a function of (server, worker)"),
        (
            "def post_request(a): ...",
            "gunicorn.conf.py: post_request must be a function of (worker, req, environ, resp)",
        ),
        ("\nworkers = (\n", "gunicorn.conf.py line 2: syntax error: '(' was never closed"),
        ("raise SystemExit(4)", "gunicorn.conf.py failed: SystemExit: 4"),
        ("import not_there_at_all", "gunicorn.conf.py failed: ModuleNotFoundError: No module named 'not_there_at_all'"),
    ],
)
def test_wrong_python_file_is_refused(place: Place, text: str, message: str) -> None:
    place.write("gunicorn.conf.py", text)
    assert place.failure() == message


def test_failing_python_file_shows_its_own_traceback(place: Place) -> None:
    path = place.write("gunicorn.conf.py", "def compute():\n    return 1 / 0\nworkers = compute()\n")
    with pytest.raises(
        ConfigFileError, match=r"gunicorn.conf.py failed: ZeroDivisionError: division by zero"
    ) as caught:
        place.load()
    lines = caught.value.traceback_text.splitlines()
    assert lines[:3] == [
        "Traceback (most recent call last):",
        f'  File "{path}", line 3, in <module>',
        "    workers = compute()",
    ]
    assert "config_files" not in caught.value.traceback_text


def test_python_file_imports_from_the_directory_without_hiding_other_modules(place: Place) -> None:
    place.write("sizes_of_ours.py", "count = 6")
    place.write("gunicorn.conf.py", "import sizes_of_ours\nworkers = sizes_of_ours.count")
    assert place.load().settings.workers == 6
    assert sys.path[-1] == str(place.path)


def test_modules_of_a_python_file_are_read_anew_too(place: Place) -> None:
    place.write("gunicorn.conf.py", "from sizes_of_ours import *")
    for count in (6, 777):
        place.write("sizes_of_ours.py", f"workers = {count}")
        assert place.load().settings.workers == count


def test_hooks_are_loaded_again_in_another_process(place: Place) -> None:
    path = place.write("gunicorn.conf.py", "def on_exit(server): return server")
    hook = load_hooks(str(path)).on_exit
    assert hook is not None
    assert hook(5) == 5
    assert load_hooks(None).on_exit is None
    assert load_hooks(str(place.write("forkserve.toml", ""))).on_exit is None


def test_paths_are_relative_to_chdir(place: Place) -> None:
    (place.path / "site").mkdir()
    place.write(
        "forkserve.toml", "chdir = 'site'\npidfile = 'x.pid'\npythonpath = 'lib,/abs'\nbind = ['unix:@n', 'fd://3']"
    )
    settings = place.load().settings
    assert settings.chdir == f"{place.path}/site"
    assert settings.pidfile == f"{place.path}/site/x.pid"
    assert settings.pythonpath == (f"{place.path}/site/lib", "/abs")
    assert settings.bind == ("unix:@n", "fd://3")


def test_missing_chdir_is_refused(place: Place) -> None:
    assert place.failure(chdir="nope") == f"command line: --chdir = '{place.path}/nope': there is no such directory"


def test_impossible_combination_names_its_source(place: Place) -> None:
    place.write("forkserve.toml", "initgroups = true")
    assert place.failure().startswith("forkserve.toml: initgroups = true takes the groups of `user`")
    assert place.failure({"FORKSERVE_WRITE_BUFFER_LIMIT": "2k", "FORKSERVE_USER": "x"}).startswith(
        "environment: write_buffer_limit = 2048 is below"
    )


def test_text_that_cannot_travel_is_refused(place: Place) -> None:
    assert place.failure({"FORKSERVE_PIDFILE": "/run/\udcff"}).endswith("expected text in UTF-8")
    place.write("forkserve.toml", 'pythonpath = ["a", "b\\u0000"]')
    assert place.failure().endswith("expected text without NUL")


def test_current_directory_that_cannot_travel_is_refused(place: Place) -> None:
    odd = place.path / "\udcff"
    odd.mkdir()
    with pytest.raises(SettingsError, match=r"chdir = .*: expected text in UTF-8"):
        load({}, {}, str(odd))
