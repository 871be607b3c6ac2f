"""The declarations: complete, consistent, and the only place that says something about a setting."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec
import pytest

from forkserve import settings_docs, workers
from forkserve.errors import SettingsError
from forkserve.gunicorn_names import UNSUPPORTED
from forkserve.settings import (
    HOOK_ARGUMENTS,
    SECTIONS,
    WORKER_CLASSES,
    Declaration,
    Hooks,
    Settings,
    advice,
    check,
    check_combinations,
    declarations,
    make_settings,
    names,
    restart_needed,
    table,
)
from forkserve.values import NotAllowed, read

ROOT = Path(__file__).resolve().parents[3]


def test_settings_survive_a_round_trip_through_json() -> None:
    settings = Settings(app="a:b", raw_env=("A=1",), logconfig_dict={"version": 1, "x": [None, 1.5, {"y": True}]})
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


@pytest.mark.parametrize("declaration", declarations(), ids=lambda declaration: declaration.name)
def test_declaration_is_complete(declaration: Declaration) -> None:
    assert declaration.setting.section in SECTIONS
    assert declaration.setting.help.endswith(".")
    assert declaration.allowed
    assert msgspec.convert(declaration.default, declaration.type) == declaration.default


def test_no_flag_alias_or_variable_is_declared_twice() -> None:
    flags = [flag.partition("=")[0] for each in declarations() for flag in each.setting.flags.replace("/", " ").split()]
    flags += [flag for other in UNSUPPORTED.values() for flag in other.flags.split()]
    flags += ["--version", "--help", "--print-config", "--check-config"]
    assert len(flags) == len(set(flags))
    assert not set(names()) & set(UNSUPPORTED)
    assert not set(HOOK_ARGUMENTS) & (set(names()) | set(UNSUPPORTED))
    assert len(names()) == len(table()) + sum(len(each.setting.aliases.split()) for each in declarations())


def test_every_hook_has_its_arguments_declared() -> None:
    assert set(HOOK_ARGUMENTS) == set(Hooks.__dataclass_fields__)


def test_worker_classes_are_those_that_exist() -> None:
    assert tuple(workers.WORKER_CLASSES) == WORKER_CLASSES


@pytest.mark.parametrize("path", ["docs/SETTINGS.md", "conf/forkserve.toml"])
def test_generated_page_is_up_to_date(path: str) -> None:
    page = (ROOT / path).read_text(encoding="utf-8")
    assert page == settings_docs.pages()[path], "run `python -m forkserve.settings_docs`"


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("workers", "4", 4),
        ("timeout", "30", 30.0),
        ("timeout", "2m", 120.0),
        ("timeout", "500ms", 0.5),
        ("timeout", "1.5h", 5400.0),
        ("timeout", 7, 7.0),
        ("limit_request_body", "10M", 10 << 20),
        ("limit_request_body", "64 kB", 64 << 10),
        ("limit_request_line", 0, 65536),
        ("limit_request_line", "0", 65536),
        ("limit_request_field_size", 0, 1 << 20),
        ("limit_request_fields", "0", 32768),
        ("reload", "yes", True),
        ("reload", "OFF", False),
        ("loglevel", "INFO", "info"),
        ("umask", "022", 0o22),
        ("umask", "0o22", 0o22),
        ("umask", "22", 22),
        ("umask", 0o77, 0o77),
        ("bind", "a:1, b:2", ("a:1", "b:2")),
        ("bind", ["a:1", "b:2,c:3"], ("a:1", "b:2", "c:3")),
        ("raw_env", "A=1,2", ("A=1,2",)),
        ("raw_env", ["A=1", "B="], ("A=1", "B=")),
        ("pidfile", "", None),
        ("pidfile", None, None),
        ("pidfile", Path("/run/x"), "/run/x"),
        ("pythonpath", [Path("/a"), "/b"], ("/a", "/b")),
        ("user", 1000, "1000"),
        ("preload", True, "on"),
        ("preload", False, "off"),
        ("preload", "Auto", "auto"),
        ("logconfig_dict", '{"version": 1}', {"version": 1}),
        ("logconfig_dict", {"a": (1, 2)}, {"a": [1, 2]}),
        ("forwarded_allow_ips", "10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
        ("forwarded_allow_ips", ["*"], ("*",)),
        ("forwarded_allow_ips", "", ()),
        ("proxy_allow_ips", "192.0.2.1", ("192.0.2.1",)),
        ("forwarder_headers", "SCRIPT_NAME,PATH_INFO", ("SCRIPT_NAME", "PATH_INFO")),
        ("secure_scheme_headers", {"X-Forwarded-Proto": "https"}, {"X-Forwarded-Proto": "https"}),
        ("secure_scheme_headers", '{"X-SSL": "on"}', {"X-SSL": "on"}),
        ("secure_scheme_headers", {}, {}),
        ("proxy_protocol", True, "auto"),
        ("proxy_protocol", False, "off"),
        ("proxy_protocol", "true", "auto"),
        ("proxy_protocol", "1", "auto"),
        ("proxy_protocol", "0", "off"),
        ("proxy_protocol", "none", "off"),
        ("proxy_protocol", "V2", "v2"),
        ("logger_class", "gunicorn.glogging.Logger", None),
        ("worker_class", "gunicorn.workers.sync.SyncWorker", "sync"),
        ("worker_class", "mysite.workers.Own", "mysite.workers.Own"),
        ("cert_reqs", ssl.CERT_REQUIRED, 2),
        ("cert_reqs", "1", 1),
        ("handshake_timeout", "500ms", 0.5),
    ],
)
def test_what_people_write_is_read(name: str, written: object, value: object) -> None:
    found = read(table()[name], written)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "written", "words"),
    [
        ("workers", 0, "a whole number of processes from 1 to 4096, or auto"),
        ("workers", "two", "a whole number"),
        ("workers", 1.5, "a whole number"),
        ("workers", True, "a whole number"),
        ("workers", [1], "a whole number"),
        ("backlog", "auto", "a whole number of connections from 1 to 65535"),
        ("timeout", "-1", "a number of seconds from 0 to"),
        ("timeout", "nan", "a number of seconds"),
        ("timeout", "inf", "a number of seconds"),
        ("timeout", "5 parsecs", "suffix: 500ms, 30s, 2m"),
        ("boot_timeout", 0, "above 0"),
        ("limit_request_line", "1s", "suffix: 64k, 10M, 1G"),
        ("limit_request_line", 10, "from 64 to 65536"),
        ("reload", "perhaps", "true or false"),
        ("reload", 2, "true or false"),
        ("loglevel", "loud", "one of debug, info, warning, error, critical"),
        ("umask", "999", "from 0 to 0o777"),
        ("umask", "rw", "from 0 to 0o777"),
        ("bind", "", "not empty"),
        ("bind", [], "not empty"),
        ("bind", [1], "a list of texts"),
        ("raw_env", "NAME", "NAME=value"),
        ("app", 3, "a text"),
        ("logconfig_dict", "[", "a table"),
        ("logconfig_dict", {"a": {"()": print}}, "a.() is an object of type builtin_function_or_method"),
        ("worker_class", "gthreads", "did you mean gthread?"),
        ("worker_class", "uvicorn.workers.UvicornWorker", "the worker classes here are sync, gthread, gevent; or"),
        ("forwarded_allow_ips", "10.0.0.1/8", "networks such as 10.0.0.0/8, or * (10.0.0.1/8 has host bits set)"),
        ("forwarded_allow_ips", "localhost", "'localhost' does not appear to be"),
        ("forwarded_allow_ips", [1], "IP addresses"),
        ("proxy_allow_ips", "*,all", "'all' does not appear to be"),
        ("forwarder_headers", "X-User", "header names with an underscore such as SCRIPT_NAME"),
        ("forwarder_headers", "*", "(not '*')"),
        ("forwarder_headers", "REMOTEUSER", "(not 'REMOTEUSER')"),
        ("forwarder_headers", "REMOTE_USER,transfer_encoding", "(not 'transfer_encoding')"),
        ("forwarder_headers", "CONTENT_LENGTH", "(not 'CONTENT_LENGTH')"),
        ("secure_scheme_headers", {"X_SSL": "on"}, "header names (with hyphens)"),
        ("secure_scheme_headers", {"X-SSL": 1}, "a table of header names"),
        ("secure_scheme_headers", ["X-SSL"], "a table of header names"),
        ("proxy_protocol", "v3", "one of off, v1, v2, auto"),
        ("proxy_protocol", 1, "one of off, v1, v2, auto"),
    ],
)
def test_what_is_wrong_is_refused_with_what_is_allowed(name: str, written: object, words: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        read(table()[name], written)
    assert words in str(caught.value)


def test_settings_made_by_hand_can_be_checked() -> None:
    assert check(Settings()) == []
    assert check(Settings(workers=0)) == ["workers = 0: expected a whole number of processes from 1 to 4096, or auto"]
    assert check(Settings(proxy_allow_ips=("10.0.0.1/8",)))[0].startswith(
        "proxy_allow_ips = ('10.0.0.1/8',): expected IP addresses, networks such as 10.0.0.0/8, or * (10.0.0.1/8 has"
    )
    assert check(Settings(initgroups=True))[0].startswith("initgroups = true takes the groups of `user`")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"logconfig": "a", "logconfig_json": "b"}, "logconfig and logconfig_json exclude each other"),
        ({"write_buffer_limit": 2048}, "write_buffer_limit = 2048 is below write_buffer_memory = 1048576"),
        ({"initgroups": True}, "which is not set: set user too"),
        ({"keyfile": "/k.pem"}, "keyfile = '/k.pem' is the key of a certificate that is not set: set certfile too"),
    ],
)
def test_impossible_combination_is_named(given: dict[str, object], words: str) -> None:
    settings = msgspec.structs.replace(Settings(), **given)
    assert any(words in problem for problem in check_combinations(settings))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_requests_jitter": 5}, "max_requests_jitter does nothing while max_requests = 0"),
        ({"daemon": True}, "daemon = true without errorlog"),
        ({"certfile": "/c.pem", "cert_reqs": 2}, "cert_reqs = 2 without ca_certs: a client that shows a certificate"),
        ({"cert_reqs": 1}, "cert_reqs and ca_certs do nothing without certfile"),
        ({"ca_certs": "/ca.pem"}, "cert_reqs and ca_certs do nothing without certfile"),
    ],
)
def test_surprising_combination_gives_advice(given: dict[str, object], words: str) -> None:
    assert words in advice(msgspec.structs.replace(Settings(), **given))[0]


def test_changes_that_a_reload_cannot_make_are_listed() -> None:
    old = Settings(workers=1, bind=("a:1",))
    assert restart_needed(old, msgspec.structs.replace(old, workers=2, bind=("b:1",))) == ["bind"]


def test_a_reload_can_change_the_certificate_but_not_switch_tls_on_or_off() -> None:
    off, on = Settings(), Settings(certfile="/c.pem", cert_reqs=1, ca_certs="/a.pem")
    assert restart_needed(on, msgspec.structs.replace(on, certfile="/d.pem", keyfile="/k.pem", ca_certs=None)) == []
    assert restart_needed(off, on) == restart_needed(on, off) == ["certfile", "ca_certs", "cert_reqs"]


def test_mapping_makes_settings_for_embedding() -> None:
    settings = make_settings({"bind": "unix:x.sock", "timeout": "1m", "wsgi_app": "a:b", "pidfile": "p"}, cwd="/srv")
    assert settings == Settings(bind=("unix:/srv/x.sock",), timeout=60.0, app="a:b", pidfile="/srv/p", chdir="/srv")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"wokers": 2}, "unknown setting 'wokers'; did you mean workers?"),
        ({"workers": 0}, "workers = 0: expected a whole number"),
        ({"initgroups": True}, "initgroups = true takes"),
    ],
)
def test_wrong_mapping_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_settings(given)
    assert words in str(caught.value)
