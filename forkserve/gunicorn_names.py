"""gunicorn's settings that have no counterpart in this release, and why.

A gunicorn configuration file that uses them still works: they are named together in one warning.  On the command line
they are refused, each with its reason.  A name that is in neither this table nor :mod:`forkserve.settings` is unknown.

(gunicorn 27.0.1 has 120 settings; the rest are settings of ours, by the same names.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unsupported:
    """One setting of gunicorn's that does nothing here.

    Attributes:
        flags: its command-line flags, separated by blanks.
        why: what forkserve does instead, after "forkserve".
        takes_value: whether the flags are followed by a value.
    """

    flags: str
    why: str
    takes_value: bool = True


_ASGI = "is a WSGI server"
_STRICT = "reads HTTP strictly, always"
_DIRTY = "has no dirty arbiters"
_CONTROL = "has no control socket yet"
_SYSLOG = "does not write to syslog yet: use logconfig_dict"
_STATSD = "does not send to statsd yet"
_HTTP2 = "speaks HTTP/1.1"

UNSUPPORTED: Mapping[str, Unsupported] = {
    "asgi_loop": Unsupported("--asgi-loop", _ASGI),
    "asgi_lifespan": Unsupported("--asgi-lifespan", _ASGI),
    "asgi_disconnect_grace_period": Unsupported("--asgi-disconnect-grace-period", _ASGI),
    "websocket_max_message_size": Unsupported("--websocket-max-message-size", _ASGI),
    "root_path": Unsupported("--root-path", _ASGI),
    "http_parser": Unsupported("--http-parser", "has one parser"),
    "reload_engine": Unsupported("--reload-engine", "watches files with watchfiles"),
    "spew": Unsupported("--spew", "has no line tracer: use sys.settrace in the application", takes_value=False),
    "check_config": Unsupported("", "has it as the command-line flag --check-config only"),
    "print_config": Unsupported("", "has it as the command-line flag --print-config only"),
    "sendfile": Unsupported("--no-sendfile", "decides itself when to use sendfile", takes_value=False),
    "reuse_port": Unsupported("--reuse-port", "shares one socket between its workers", takes_value=False),
    "worker_tmp_dir": Unsupported("--worker-tmp-dir", "keeps heartbeats in shared memory"),
    "header_map": Unsupported("--header-map", "drops header names with underscores, but for forwarder_headers"),
    "paste": Unsupported("--paste --paster", "does not read PasteDeploy files: name a factory as APP"),
    "raw_paste_global_conf": Unsupported("--paste-global", "does not read PasteDeploy files"),
    "protocol": Unsupported("--protocol", "speaks HTTP only"),
    "uwsgi_allow_ips": Unsupported("--uwsgi-allow-from", "speaks HTTP only"),
    "permit_obsolete_folding": Unsupported("--permit-obsolete-folding", _STRICT, takes_value=False),
    "strip_header_spaces": Unsupported("--strip-header-spaces", _STRICT, takes_value=False),
    "permit_unconventional_http_method": Unsupported("--permit-unconventional-http-method", _STRICT, takes_value=False),
    "permit_unconventional_http_version": Unsupported(
        "--permit-unconventional-http-version", _STRICT, takes_value=False
    ),
    "casefold_http_method": Unsupported("--casefold-http-method", _STRICT, takes_value=False),
    "disable_redirect_access_to_syslog": Unsupported("--disable-redirect-access-to-syslog", _SYSLOG, takes_value=False),
    "syslog_addr": Unsupported("--log-syslog-to", _SYSLOG),
    "syslog": Unsupported("--log-syslog", _SYSLOG, takes_value=False),
    "syslog_prefix": Unsupported("--log-syslog-prefix", _SYSLOG),
    "syslog_facility": Unsupported("--log-syslog-facility", _SYSLOG),
    "enable_stdio_inheritance": Unsupported(
        "-R --enable-stdio-inheritance", "leaves standard input and output as they are", takes_value=False
    ),
    "statsd_host": Unsupported("--statsd-host", _STATSD),
    "dogstatsd_tags": Unsupported("--dogstatsd-tags", _STATSD),
    "statsd_prefix": Unsupported("--statsd-prefix", _STATSD),
    "enable_backlog_metric": Unsupported("--enable-backlog-metric", _STATSD, takes_value=False),
    "default_proc_name": Unsupported("", "takes proc_name"),
    "pre_exec": Unsupported("", "has no upgrade by USR2 yet"),
    "ssl_version": Unsupported("--ssl-version", "speaks TLS 1.2 and 1.3: narrow that by the hook ssl_context"),
    "do_handshake_on_connect": Unsupported(
        "--do-handshake-on-connect", "never waits in a handshake: handshake_timeout limits it", takes_value=False
    ),
    "http_protocols": Unsupported("--http-protocols", _HTTP2),
    "http2_cleartext": Unsupported("--http2-cleartext", _HTTP2),
    "http2_max_concurrent_streams": Unsupported("--http2-max-concurrent-streams", _HTTP2),
    "http2_initial_window_size": Unsupported("--http2-initial-window-size", _HTTP2),
    "http2_max_frame_size": Unsupported("--http2-max-frame-size", _HTTP2),
    "http2_max_header_list_size": Unsupported("--http2-max-header-list-size", _HTTP2),
    "dirty_apps": Unsupported("--dirty-app", _DIRTY),
    "dirty_workers": Unsupported("--dirty-workers", _DIRTY),
    "dirty_timeout": Unsupported("--dirty-timeout", _DIRTY),
    "dirty_threads": Unsupported("--dirty-threads", _DIRTY),
    "dirty_graceful_timeout": Unsupported("--dirty-graceful-timeout", _DIRTY),
    "on_dirty_starting": Unsupported("", _DIRTY),
    "dirty_post_fork": Unsupported("", _DIRTY),
    "dirty_worker_init": Unsupported("", _DIRTY),
    "dirty_worker_exit": Unsupported("", _DIRTY),
    "control_socket": Unsupported("--control-socket", _CONTROL),
    "control_socket_mode": Unsupported("--control-socket-mode", _CONTROL),
    "control_socket_disable": Unsupported("--no-control-socket", _CONTROL, takes_value=False),
}
"""gunicorn's name, its flags and what forkserve does instead."""


def warning_for(source: str, names: list[str]) -> str:
    """The one warning that lists what a gunicorn configuration sets and forkserve does not act on."""
    listed = ", ".join(names)
    return f"{source}: not supported in this release, ignored: {listed} (docs/SETTINGS.md says what happens instead)"
