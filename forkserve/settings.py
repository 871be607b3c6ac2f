"""What may be set: every setting of forkserve, declared once.

    class Settings:
        workers: Annotated[int, Meta(ge=1), Setting("Workers", "How many …", flags="-w --workers")] = 1
                           │    │           │                                                         └ default
                           │    │ limits    └ section, help, unit, flags, environment, what a reload can change
                           └ type
        declarations() ─▶ command line, --help, environment, TOML and Python files, docs/SETTINGS.md,
                          conf/forkserve.toml

Promises: :class:`Settings` is flat plain data that survives a round trip through JSON (it travels to other processes);
nothing about a setting is written down a second time anywhere.

Leaves to others: where values come from (:mod:`forkserve.sources`), how text becomes a value (:mod:`forkserve.values`),
gunicorn's settings that have no counterpart here (:mod:`forkserve.gunicorn_names`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from forkserve.errors import SettingsError

Hook = Callable[..., Any]
"""A function of the user's that is called at a moment of the server's life."""

WORKER_CLASSES = ("sync", "gthread", "gevent")
"""The worker types of this release, by name."""

ACCESS_LOG_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
"""gunicorn's default format of an access log line."""


SECURE_SCHEME_HEADERS = {"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"}
"""gunicorn's: which fields of a proxy, with which values, say that the client came by TLS."""

LOOPBACK = ("127.0.0.1", "::1")
"""The proxies that are trusted unless the user says otherwise: those of this machine, as in gunicorn."""

NETWORKS = "IP addresses, networks such as 10.0.0.0/8, or *"
UNDERSCORE_NAMES = "header names with an underscore such as SCRIPT_NAME, which no field of HTTP's own stands for"
SCHEME_FIELDS = "header names (with hyphens) and of each the text that means https"


def _current_directory() -> str:
    """Where this process is; / when that directory is gone, as for a daemon."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a declaration says beside name, type, limits and default.

    Attributes:
        section: heading under which help and docs list it.
        help: what it does, one or two sentences without the unit and the default.
        flags: command-line flags, separated by blanks; ``--on/--off`` for a pair, ``--flag=value`` for a flag that
            stands for a value.  Empty: not on the command line.
        unit: ``"seconds"`` and ``"bytes"`` also allow texts with a suffix such as ``"2m"`` and ``"64k"``.
        env: environment variables beside ``FORKSERVE_<NAME>``, separated by blanks, weaker than that.
        default_env: an environment variable that gives the default, weaker than everything (as in gunicorn).
        aliases: other names in configuration files, separated by blanks (gunicorn's name for the same thing).
        reload: whether a reload can change it; otherwise a changed value waits for a restart.
        secret: the value may hold passwords and is masked where it is shown.
        bare: what the flag stands for without a value.
        split: a text in place of a list is cut at commas.
        path: a file or directory; a relative one is relative to ``chdir``.
        items: what the items of a list or table are, in words, where :mod:`forkserve.values` checks more than the type.
        words: texts that stand for a value that :mod:`forkserve.sources` finds out, separated by blanks.
        zero_means: the value that 0 is taken for, where gunicorn reads 0 as "no limit".
        shown_default: the default in words, where the value itself depends on the process.
    """

    section: str
    help: str
    flags: str = ""
    unit: str = ""
    env: str = ""
    default_env: str = ""
    aliases: str = ""
    reload: bool = True
    secret: bool = False
    bare: str = ""
    split: bool = False
    path: bool = False
    items: str = ""
    words: str = ""
    zero_means: int | None = None
    shown_default: str | None = None


APPLICATION = "Application"
SOCKET = "Sockets"
TLS = "TLS"
PROXIES = "Proxies in front"
WORKERS = "Workers"
TIMES = "Time limits"
LIFE = "Reload and restart"
REQUESTS = "Request limits"
PROCESS = "Process"
LOGGING = "Logging"
DEVELOPMENT = "Development"

SECTIONS = (APPLICATION, SOCKET, TLS, PROXIES, WORKERS, TIMES, LIFE, REQUESTS, PROCESS, LOGGING, DEVELOPMENT)
"""The sections in the order in which help and docs show them."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one server, complete and checked; see docs/SETTINGS.md for each of them.

    Built by :func:`forkserve.sources.load`, or by hand for embedding (then :func:`check` finds wrong values).
    """

    @property
    def worker_type(self) -> str:
        """The worker class in force: more than one thread makes sync gthread, as in gunicorn."""
        return "gthread" if self.worker_class == "sync" and self.threads > 1 else self.worker_class

    # Application
    app: Annotated[
        str | None,
        Setting(
            APPLICATION,
            "The application: module:attribute, module (its attribute `application`) or a factory such as "
            "module:create_app('production'). On the command line it is the argument APP.",
            aliases="wsgi_app",
        ),
    ] = None
    config: Annotated[
        str | None,
        Setting(
            APPLICATION,
            "The configuration file: TOML if its name ends in .toml, otherwise Python with gunicorn's names; "
            "python:MODULE imports one. Without it ./forkserve.toml or ./gunicorn.conf.py is used where there is one.",
            flags="-c --config",
            reload=False,
        ),
    ] = None
    chdir: Annotated[
        str,
        Setting(
            APPLICATION,
            "The directory to change to before the application is loaded; relative paths in settings start there.",
            flags="--chdir",
            shown_default="the current directory",
            reload=False,
        ),
    ] = msgspec.field(default_factory=_current_directory)
    pythonpath: Annotated[
        tuple[str, ...],
        Setting(
            APPLICATION,
            "Directories put in front of Python's module path; separated by commas.",
            flags="--pythonpath",
            split=True,
            path=True,
        ),
    ] = ()
    raw_env: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^=\x00]+=[^\x00]*$")], ...],
        Setting(
            APPLICATION,
            "Environment variables for the application, each as NAME=value.",
            flags="-e --env",
            secret=True,
        ),
    ] = ()
    preload: Annotated[
        Literal["auto", "on", "off"],
        Setting(
            APPLICATION,
            "Load the application before the workers are forked, so that they share its memory and start at once. "
            "`auto` looks after loading whether forking is safe (no threads, no open connections) and otherwise lets "
            "every worker load for itself.",
            flags="--preload=on --no-preload=off --preload-auto=auto",
            aliases="preload_app",
        ),
    ] = "auto"

    # Sockets
    bind: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(min_length=1),
        Setting(
            SOCKET,
            "The addresses to listen on: HOST:PORT, [IPV6]:PORT, unix:PATH, fd://N; several are separated by commas, "
            "or the flag is repeated. Where nothing sets it and the variable PORT is there: 0.0.0.0:$PORT.",
            flags="-b --bind",
            split=True,
            reload=False,
        ),
    ] = ("127.0.0.1:8000",)
    backlog: Annotated[
        int,
        Meta(ge=1, le=65535),
        Setting(
            SOCKET,
            "How many connections may wait in the kernel to be accepted; the kernel's own limit is net.core.somaxconn.",
            flags="--backlog",
            unit="connections",
            reload=False,
        ),
    ] = 2048

    # TLS
    certfile: Annotated[
        str | None,
        Setting(
            TLS,
            "The certificate, in PEM form, followed by those between it and the authority. It switches TLS on, for all "
            "addresses that are listened on; taken anew when the file changes. It can be changed by a reload, but TLS "
            "cannot be switched on or off by one.",
            flags="--certfile",
            path=True,
        ),
    ] = None
    keyfile: Annotated[
        str | None,
        Setting(
            TLS,
            "The private key of the certificate, in PEM form and not encrypted; the master reads it, with its own "
            "rights.",
            flags="--keyfile",
            path=True,
            shown_default="in certfile",
        ),
    ] = None
    ca_certs: Annotated[
        str | None,
        Setting(
            TLS,
            "The authorities that client certificates are checked against, in PEM form.",
            flags="--ca-certs",
            path=True,
        ),
    ] = None
    cert_reqs: Annotated[
        int,
        Meta(ge=0, le=2),
        Setting(
            TLS,
            "Whether clients show a certificate: 0 = they are not asked, 1 = they may, 2 = they must (ssl.CERT_NONE, "
            "CERT_OPTIONAL, CERT_REQUIRED).",
            flags="--cert-reqs",
        ),
    ] = 0
    ciphers: Annotated[
        str | None,
        Setting(
            TLS,
            "The ciphers of TLS 1.2, in OpenSSL's cipher list format; those of TLS 1.3 are not affected.",
            flags="--ciphers",
            shown_default="those of Python's ssl module",
        ),
    ] = None
    handshake_timeout: Annotated[
        float,
        Meta(gt=0, le=86400),
        Setting(
            TLS,
            "How long a client may take from its connection to the end of the TLS handshake; then it is closed.",
            flags="--handshake-timeout",
            unit="seconds",
        ),
    ] = 10.0
    suppress_ragged_eofs: Annotated[
        bool,
        Setting(
            TLS,
            "Take the end of a connection without TLS's own word of farewell (close_notify) for an ordinary end, as "
            "many clients make it. Requests cannot be cut by that unseen: they have their own framing.",
            flags="--suppress-ragged-eofs/--no-suppress-ragged-eofs",
        ),
    ] = True
    # Proxies in front
    forwarded_allow_ips: Annotated[
        tuple[str, ...],
        Setting(
            PROXIES,
            "The proxies whose word about the client counts (secure_scheme_headers, forwarder_headers, forwarded_for), "
            "separated by commas; `*` trusts everybody. Peers of unix sockets are always trusted.",
            flags="--forwarded-allow-ips",
            default_env="FORWARDED_ALLOW_IPS",
            split=True,
            items=NETWORKS,
        ),
    ] = LOOPBACK
    secure_scheme_headers: Annotated[
        dict[str, str],
        Setting(
            PROXIES,
            "Which header fields of trusted proxies, with which values, mean that the client came by https; another "
            "value means http, and fields that contradict each other are refused. In configuration files only.",
            items=SCHEME_FIELDS,
        ),
    ] = msgspec.field(default_factory=SECURE_SCHEME_HEADERS.copy)
    forwarder_headers: Annotated[
        tuple[str, ...],
        Setting(
            PROXIES,
            "Header names with an underscore that trusted proxies may send; they arrive with HTTP_ before them, and "
            "SCRIPT_NAME also moves that prefix of the path from PATH_INFO to SCRIPT_NAME. The proxy must not pass "
            "them on from its clients. gunicorn's default is SCRIPT_NAME,PATH_INFO.",
            flags="--forwarder-headers",
            split=True,
            items=UNDERSCORE_NAMES,
        ),
    ] = ()
    forwarded_for: Annotated[
        bool,
        Setting(
            PROXIES,
            "Take REMOTE_ADDR from the X-Forwarded-For of trusted proxies: the right-most address that is not in "
            "forwarded_allow_ips.",
            flags="--forwarded-for/--no-forwarded-for",
        ),
    ] = False
    proxy_protocol: Annotated[
        Literal["off", "v1", "v2", "auto"],
        Setting(
            PROXIES,
            "Expect each connection to begin with the PROXY protocol, which tells the client's address: version 1 "
            "(text), version 2 (binary), or either (`auto`, also true). A connection without it is refused.",
            flags="--proxy-protocol",
            bare="auto",
        ),
    ] = "off"
    proxy_allow_ips: Annotated[
        tuple[str, ...],
        Setting(
            PROXIES,
            "Who may connect while proxy_protocol is on, separated by commas; others are refused with 403. Peers of "
            "unix sockets always may.",
            flags="--proxy-allow-from",
            split=True,
            items=NETWORKS,
        ),
    ] = LOOPBACK

    # Workers
    workers: Annotated[
        int,
        Meta(ge=1, le=4096),
        Setting(
            WORKERS,
            "How many worker processes serve. `auto`: one for each CPU that this process may use, counting the "
            "control group's quota.",
            flags="-w --workers",
            unit="processes",
            env="WEB_CONCURRENCY",
            words="auto",
        ),
    ] = 1
    worker_class: Annotated[
        str,
        Meta(min_length=1),
        Setting(
            WORKERS,
            "The type of the workers: sync (one request at a time in each), gthread (`threads` at a time), gevent "
            "(`worker_connections` at a time; needs the extra forkserve[gevent]), the name of one that a package "
            "offers, or the dotted path of a class.",
            flags="-k --worker-class",
        ),
    ] = "sync"
    threads: Annotated[
        int,
        Meta(ge=1, le=10_000),
        Setting(
            WORKERS,
            "How many requests a worker runs at a time, on threads; more than one makes sync gthread.",
            flags="--threads",
            unit="threads",
        ),
    ] = 1
    worker_connections: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        Setting(
            WORKERS,
            "How many connections a worker holds open at once; at the limit, idle ones are closed for newcomers.",
            flags="--worker-connections",
            unit="connections",
        ),
    ] = 1000
    max_requests: Annotated[
        int,
        Meta(ge=0),
        Setting(
            WORKERS,
            "Replace a worker after this many requests, the new one before the old one; 0 = never.",
            flags="--max-requests",
            unit="requests",
        ),
    ] = 0
    max_requests_jitter: Annotated[
        int,
        Meta(ge=-1),
        Setting(
            WORKERS,
            "Up to this many requests more, by chance for each worker, so that they do not come to their end together; "
            "-1 = a tenth of max_requests.",
            flags="--max-requests-jitter",
            unit="requests",
        ),
    ] = -1
    max_worker_age: Annotated[
        float,
        Meta(ge=0, le=86400 * 365),
        Setting(
            WORKERS,
            "Replace a worker that is older, the new one before the old one; up to a tenth later, so that workers do "
            "not leave together. 0 = never.",
            flags="--max-worker-age",
            unit="seconds",
        ),
    ] = 0.0
    max_worker_memory: Annotated[
        int,
        Meta(ge=0),
        Setting(
            WORKERS,
            "Replace a worker that uses more memory, the new one before the old one: its proportional share (PSS), or "
            "its resident memory where that cannot be read. 0 = no limit.",
            flags="--max-worker-memory",
            unit="bytes",
        ),
    ] = 0

    # Time limits
    timeout: Annotated[
        float,
        Meta(ge=0, le=86400 * 365),
        Setting(
            TIMES,
            "A worker that has shown no life for this long (a sync worker: one request takes this long) is killed and "
            "replaced; 0 = never.",
            flags="-t --timeout",
            unit="seconds",
        ),
    ] = 30.0
    request_timeout: Annotated[
        float,
        Meta(ge=0, le=86400),
        Setting(
            TIMES,
            "How long a call of the application may take. Then the client gets 504, forkserve.RequestTimeout is raised "
            "in the call, its stack is logged, and the worker is replaced when its other requests are done; "
            "0 = no limit.",
            flags="--request-timeout",
            unit="seconds",
        ),
    ] = 0.0
    graceful_timeout: Annotated[
        float,
        Meta(ge=0, le=86400 * 365),
        Setting(
            TIMES,
            "How long a worker that has been asked to leave may go on with its requests before it is killed.",
            flags="--graceful-timeout",
            unit="seconds",
        ),
    ] = 30.0
    boot_timeout: Annotated[
        float,
        Meta(gt=0, le=86400),
        Setting(
            TIMES,
            "How long the application may take to load.",
            flags="--boot-timeout",
            unit="seconds",
        ),
    ] = 60.0
    keepalive: Annotated[
        float,
        Meta(ge=0, le=86400),
        Setting(
            TIMES,
            "How long an idle connection is kept for its next request. The default is above the 60 seconds of common "
            "balancers, so that they close first; 0 = close after each answer.",
            flags="--keep-alive --keepalive",
            unit="seconds",
        ),
    ] = 75.0
    header_timeout: Annotated[
        float,
        Meta(gt=0, le=86400),
        Setting(
            TIMES,
            "How long a client may take to send the head of a request; then 408.",
            flags="--header-timeout",
            unit="seconds",
        ),
    ] = 15.0
    body_timeout: Annotated[
        float,
        Meta(gt=0, le=86400),
        Setting(
            TIMES,
            "How long a client may be silent in the middle of a request's body; then 408.",
            flags="--body-timeout",
            unit="seconds",
        ),
    ] = 30.0
    body_min_rate: Annotated[
        int,
        Meta(ge=0),
        Setting(
            TIMES,
            "The slowest that a request's body may come, on average, in bytes a second; a client that is behind by "
            "more than body_timeout gets 408. 0 = any.",
            flags="--body-min-rate",
            unit="bytes",
        ),
    ] = 240
    write_timeout: Annotated[
        float,
        Meta(gt=0, le=86400),
        Setting(
            TIMES,
            "How long a client may take nothing of an answer before its connection is closed.",
            flags="--write-timeout",
            unit="seconds",
        ),
    ] = 30.0

    write_min_rate: Annotated[
        int,
        Meta(ge=0),
        Setting(
            TIMES,
            "The slowest that a client may take an answer, on average, in bytes a second; one that is behind by more "
            "than write_timeout is disconnected. 0 = any.",
            flags="--write-min-rate",
            unit="bytes",
        ),
    ] = 240

    # Reload and restart
    warmup: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^/[!-~]*$")], ...],
        Setting(
            LIFE,
            "Paths that each new worker asks the application for before it is ready, separated by commas. After a "
            "server error (5xx) or an exception the worker does not come up, and a reload is given up.",
            flags="--warmup",
            split=True,
        ),
    ] = ()
    max_unavailable: Annotated[
        int,
        Meta(ge=1),
        Setting(
            LIFE,
            "How many workers may be exchanged at once when they are replaced on purpose.",
            flags="--max-unavailable",
            unit="workers",
        ),
    ] = 1
    restart_intensity: Annotated[
        int,
        Meta(ge=1),
        Setting(
            LIFE,
            "So many dead workers within restart_period are replaced at once; after more, each replacement waits "
            "longer than the one before.",
            flags="--restart-intensity",
            unit="restarts",
        ),
    ] = 10
    restart_period: Annotated[
        float,
        Meta(gt=0, le=86400),
        Setting(
            LIFE,
            "The time over which restart_intensity counts.",
            flags="--restart-period",
            unit="seconds",
        ),
    ] = 10.0

    # Request limits
    limit_request_line: Annotated[
        int,
        Meta(ge=64, le=65536),
        Setting(
            REQUESTS,
            "The longest request line (method, target and version); then 414.",
            flags="--limit-request-line",
            unit="bytes",
            zero_means=65536,
        ),
    ] = 8190
    limit_request_fields: Annotated[
        int,
        Meta(ge=1, le=32768),
        Setting(
            REQUESTS,
            "How many header fields a request may have; then 431.",
            flags="--limit-request-fields",
            unit="fields",
            zero_means=32768,
        ),
    ] = 100
    limit_request_field_size: Annotated[
        int,
        Meta(ge=64, le=1 << 20),
        Setting(
            REQUESTS,
            "The longest header field, name and value together; then 431.",
            flags="--limit-request-field-size --limit-request-field_size",
            unit="bytes",
            zero_means=1 << 20,
        ),
    ] = 8190
    limit_request_body: Annotated[
        int,
        Meta(ge=0),
        Setting(
            REQUESTS,
            "The largest request body; then 413. 0 = no limit.",
            flags="--limit-request-body",
            unit="bytes",
        ),
    ] = 0
    request_buffering: Annotated[
        bool,
        Setting(
            REQUESTS,
            "Read the whole body before the application is called, so that slow clients occupy no worker. Off: the "
            "application reads it as it comes.",
            flags="--request-buffering/--no-request-buffering",
        ),
    ] = True
    body_memory: Annotated[
        int,
        Meta(ge=0),
        Setting(
            REQUESTS,
            "Request bodies up to this size are held in memory, larger ones in a temporary file.",
            flags="--body-memory",
            unit="bytes",
        ),
    ] = 65536
    write_buffer_memory: Annotated[
        int,
        Meta(ge=1024),
        Setting(
            REQUESTS,
            "What a slow client has not taken yet of an answer is held in memory up to this size, and beyond it in a "
            "temporary file.",
            flags="--write-buffer-memory",
            unit="bytes",
        ),
    ] = 1 << 20
    write_buffer_limit: Annotated[
        int,
        Meta(ge=1024),
        Setting(
            REQUESTS,
            "The most that is held of one answer; then the worker waits for the client.",
            flags="--write-buffer-limit",
            unit="bytes",
        ),
    ] = 1 << 30
    tmp_upload_dir: Annotated[
        str | None,
        Setting(
            REQUESTS,
            "The directory for temporary files of bodies and answers.",
            flags="--tmp-upload-dir",
            path=True,
            shown_default="the system's directory for temporary files",
        ),
    ] = None

    # Process
    pidfile: Annotated[
        str | None,
        Setting(PROCESS, "A file to write the master's process id to.", flags="-p --pid", path=True, reload=False),
    ] = None
    proc_name: Annotated[
        str | None,
        Setting(
            PROCESS,
            "A name for this server, shown by ps and top beside the role of each process.",
            flags="-n --name",
        ),
    ] = None
    user: Annotated[
        str | None,
        Setting(
            PROCESS,
            "The user, by name or number, that the application runs as; needs a start as root.",
            flags="-u --user",
            shown_default="the user who starts it",
        ),
    ] = None
    group: Annotated[
        str | None,
        Setting(
            PROCESS,
            "The group, by name or number, that the application runs as; needs a start as root.",
            flags="-g --group",
            shown_default="the group of the process that starts it",
        ),
    ] = None
    umask: Annotated[
        int,
        Meta(ge=0, le=0o777),
        Setting(
            PROCESS,
            "The bits that files which the server and the application create do not get; a text that begins with 0 is "
            "octal, as in 022.",
            flags="-m --umask",
        ),
    ] = 0
    initgroups: Annotated[
        bool,
        Setting(
            PROCESS,
            "Take the supplementary groups of `user` too.",
            flags="--initgroups/--no-initgroups",
        ),
    ] = False
    daemon: Annotated[
        bool,
        Setting(
            PROCESS,
            "Go to the background. Under systemd or in a container leave it off.",
            flags="-D --daemon",
            reload=False,
        ),
    ] = False

    # Logging
    errorlog: Annotated[
        str,
        Meta(min_length=1),
        Setting(
            LOGGING,
            "The file that the server's own messages go to; - is standard error.",
            flags="--error-logfile --log-file --errorlog",
            path=True,
        ),
    ] = "-"
    accesslog: Annotated[
        str | None,
        Setting(
            LOGGING,
            "The file that gets a line for each request; - is standard output.",
            flags="--access-logfile --accesslog",
            path=True,
            shown_default="no access log",
        ),
    ] = None
    access_log_format: Annotated[
        str,
        Setting(
            LOGGING,
            "The format of an access log line, in gunicorn's atoms such as %(h)s; json: one JSON object a request.",
            flags="--access-logformat --access-log-format",
        ),
    ] = ACCESS_LOG_FORMAT
    loglevel: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        Setting(LOGGING, "The least important messages that are still written.", flags="--log-level"),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"],
        Setting(
            LOGGING,
            "text for people (with colours on a terminal, unless NO_COLOR is set), json for machines: one object a "
            "line. `auto` is text.",
            flags="--log-format",
        ),
    ] = "auto"
    logconfig: Annotated[
        str | None,
        Setting(
            LOGGING,
            "A file in the INI format of logging.config.fileConfig; the server writes to the logger `forkserve`, and a "
            "line for each request to `forkserve.access` where that has handlers.",
            flags="--log-config",
            path=True,
        ),
    ] = None
    logconfig_dict: Annotated[
        dict[str, Any],
        Setting(
            LOGGING,
            "What logging.config.dictConfig takes, as plain data; classes and functions by their dotted paths. "
            "gunicorn.error and gunicorn.access are read as forkserve and forkserve.access. In configuration files "
            "only.",
        ),
    ] = msgspec.field(default_factory=dict)
    logconfig_json: Annotated[
        str | None,
        Setting(
            LOGGING,
            "A JSON file with what logging.config.dictConfig takes.",
            flags="--log-config-json",
            path=True,
        ),
    ] = None
    logger_class: Annotated[
        str | None,
        Setting(
            LOGGING,
            "The dotted path of a function or class that is called with the settings and returns the logging.Logger "
            "which gets the server's messages.",
            flags="--logger-class",
        ),
    ] = None
    capture_output: Annotated[
        bool,
        Setting(
            LOGGING,
            "Send what the application prints (its standard output and error) to the error log.",
            flags="--capture-output/--no-capture-output",
        ),
    ] = False

    # Development
    reload: Annotated[
        bool,
        Setting(
            DEVELOPMENT,
            "Reload by itself when a source file of the application changes. For development; needs the extra "
            "forkserve[reload].",
            flags="--reload/--no-reload",
            reload=False,
        ),
    ] = False
    reload_extra_files: Annotated[
        tuple[str, ...],
        Setting(
            DEVELOPMENT,
            "Further files to watch for `reload`, such as templates or configuration.",
            flags="--reload-extra-file",
            path=True,
            reload=False,
        ),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """The user's functions for moments of the server's life; gunicorn's names, arguments and meanings.

    They come from a Python configuration file or from the embedding program, never from text.  :data:`HOOK_ARGUMENTS`
    names what each is called with.
    """

    on_starting: Hook | None = None
    on_reload: Hook | None = None
    when_ready: Hook | None = None
    pre_fork: Hook | None = None
    post_fork: Hook | None = None
    post_worker_init: Hook | None = None
    worker_int: Hook | None = None
    worker_abort: Hook | None = None
    pre_request: Hook | None = None
    post_request: Hook | None = None
    child_exit: Hook | None = None
    worker_exit: Hook | None = None
    nworkers_changed: Hook | None = None
    on_exit: Hook | None = None
    ssl_context: Hook | None = None


HOOK_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "on_starting": ("server",),
    "on_reload": ("server",),
    "when_ready": ("server",),
    "pre_fork": ("server", "worker"),
    "post_fork": ("server", "worker"),
    "post_worker_init": ("worker",),
    "worker_int": ("worker",),
    "worker_abort": ("worker",),
    "pre_request": ("worker", "req"),
    "post_request": ("worker", "req", "environ", "resp"),
    "child_exit": ("server", "worker"),
    "worker_exit": ("server", "worker"),
    "nworkers_changed": ("server", "new_value", "old_value"),
    "on_exit": ("server",),
    "ssl_context": ("config", "default_ssl_context_factory"),
}
"""What each hook is called with."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """One setting with everything that is known about it.

    Attributes:
        name: its name in files; ``FORKSERVE_`` and the name in capitals in the environment.
        type: its Python type, with the limits that msgspec checks.
        default: its default value.
        setting: the rest of its declaration.
    """

    name: str
    type: Any
    default: Any
    setting: Setting

    @property
    def plain_type(self) -> Any:
        """The type without its limits."""
        found = self.type
        while get_origin(found) is Annotated:
            found = get_args(found)[0]
        return found

    @property
    def limits(self) -> tuple[Meta, ...]:
        """The limits of the value itself (not those of a list's items)."""
        found, limits = self.type, tuple[Meta, ...]()
        while get_origin(found) is Annotated:
            found, *notes = get_args(found)
            limits += tuple(note for note in notes if isinstance(note, Meta))
        return limits

    @property
    def is_list(self) -> bool:
        """Whether it holds several values."""
        return get_origin(self.plain_type) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it can be; empty where it is not a choice."""
        return get_args(self.plain_type) if get_origin(self.plain_type) is Literal else ()

    @property
    def variable(self) -> str:
        """Its own environment variable."""
        return "FORKSERVE_" + self.name.upper()

    @property
    def allowed(self) -> str:
        """What a value may be, in words: "a whole number from 1 to 4096, or auto"."""
        words = self._allowed_by_type()
        return f"{words}, or {self.setting.words.replace(' ', ', ')}" if self.setting.words else words

    def _allowed_by_type(self) -> str:
        kind, unit = self.plain_type, self.setting.unit
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if kind is bool:
            return "true or false"
        if self.name == "umask":
            return "a whole number from 0 to 0o777"
        if kind in (int, float):
            noun = "a whole number" if kind is int else "a number"
            suffixes = {"bytes": " (or with a suffix: 64k, 10M, 1G)", "seconds": " (or with a suffix: 500ms, 30s, 2m)"}
            return noun + (f" of {unit}" if unit else "") + self._range() + suffixes.get(unit, "")
        if self.name == "raw_env":
            return "a list of texts NAME=value"
        if self.setting.items:
            return ("a table of " if get_origin(kind) is dict else "") + self.setting.items
        if self.is_list:
            return "a text or a list of texts" + (", not empty" if self._range() else "")
        return "a table" if get_origin(kind) is dict else "a text"

    def _range(self) -> str:
        found = {key: getattr(meta, key) for meta in self.limits for key in ("ge", "gt", "le", "min_length")}
        low, above, high = found.get("ge"), found.get("gt"), found.get("le")
        if low is not None and high is not None:
            return f" from {low} to {high}"
        if above is not None:
            return f" above {above}" + (f" up to {high}" if high is not None else "")
        if low is not None:
            return f", {low} or more"
        return " not empty" if found.get("min_length") else ""


def declarations() -> tuple[Declaration, ...]:
    """Every declaration, in the order of the sections."""
    return tuple(table().values())


@cache
def table() -> Mapping[str, Declaration]:
    """Every declaration by the setting's name, in the order of the sections (computed once, read only)."""
    hints = get_type_hints(Settings, include_extras=True)
    found = [_declaration(field, hints[field.name]) for field in msgspec.structs.fields(Settings)]
    found.sort(key=lambda declaration: SECTIONS.index(declaration.setting.section))
    return {declaration.name: declaration for declaration in found}


def _declaration(field: msgspec.structs.FieldInfo, hint: Any) -> Declaration:
    notes = getattr(hint, "__metadata__", ())
    setting = next(note for note in notes if isinstance(note, Setting))
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return Declaration(field.name, hint, default, setting)


@cache
def names() -> Mapping[str, str]:
    """Every name that configuration files may use, with the setting that it stands for."""
    found = {name: name for name in table()}
    for name, declaration in table().items():
        found.update(dict.fromkeys(declaration.setting.aliases.split(), name))
    return found


def make_settings(given: Mapping[str, object], cwd: str | None = None) -> Settings:
    """Settings from values by name, for embedding; texts such as ``"2m"`` are read as in a configuration file.

    Args:
        given: values by setting (or by gunicorn's name for it); what is left out has its default.
        cwd: the directory in which relative paths begin; None: the current one.

    Raises:
        SettingsError: a name is unknown, or a value or combination is wrong.
    """
    from forkserve import values

    found: dict[str, Any] = {}
    for key, value in given.items():
        name = names().get(key)
        if name is None:
            near = get_close_matches(key, names(), n=1)
            raise SettingsError(f"unknown setting {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            found[name] = values.read(table()[name], value)
        except values.NotAllowed as error:
            raise SettingsError(f"{key} = {value!r}: {error}") from error
    values.resolve_paths(found, cwd or os.getcwd())
    settings = Settings(**found)
    for problem in check_combinations(settings):
        raise SettingsError(problem)
    return settings


def check(settings: Settings) -> list[str]:
    """What is wrong with settings built by hand: wrong values, else impossible combinations; [] if nothing."""
    from forkserve import values

    problems = []
    for name, declaration in table().items():
        value = getattr(settings, name)
        try:
            msgspec.convert(value, declaration.type)
            values.check_items(declaration, value)
        except msgspec.ValidationError:
            problems.append(f"{name} = {value!r}: expected {declaration.allowed}")
        except values.NotAllowed as error:
            problems.append(f"{name} = {value!r}: {error}")
    return problems or check_combinations(settings)


def check_combinations(settings: Settings) -> list[str]:
    """The combinations of settings that cannot work, one line each; [] if there is none."""
    problems = []
    given = [name for name in ("logconfig", "logconfig_dict", "logconfig_json") if getattr(settings, name)]
    if len(given) > 1:
        problems.append(f"{' and '.join(given)} exclude each other: keep one of them")
    if settings.write_buffer_limit < settings.write_buffer_memory:
        problems.append(
            f"write_buffer_limit = {settings.write_buffer_limit} is below write_buffer_memory = "
            f"{settings.write_buffer_memory}: raise the first or lower the second"
        )
    if settings.keyfile and not settings.certfile:
        problems.append(f"keyfile = {settings.keyfile!r} is the key of a certificate that is not set: set certfile too")
    if settings.initgroups and settings.user is None:
        problems.append("initgroups = true takes the groups of `user`, which is not set: set user too")
    return problems


def advice(settings: Settings) -> list[str]:
    """What is allowed but will surprise, one line each; each says what happens instead."""
    found = []
    if settings.max_requests_jitter > 0 and not settings.max_requests:
        found.append("max_requests_jitter does nothing while max_requests = 0: workers are not replaced by requests")
    if not settings.certfile and (settings.cert_reqs or settings.ca_certs):
        found.append("cert_reqs and ca_certs do nothing without certfile: TLS is off")
    elif settings.cert_reqs and not settings.ca_certs:
        found.append(
            f"cert_reqs = {settings.cert_reqs} without ca_certs: a client that shows a certificate is refused, unless "
            "the hook ssl_context names authorities"
        )
    if settings.daemon and settings.errorlog == "-":
        found.append("daemon = true without errorlog: messages of the server in the background go nowhere")
    return found


def restart_needed(old: Settings, new: Settings) -> list[str]:
    """The names of changed settings that a reload cannot change, in order; they keep their values until a restart.

    While a reload goes on, workers of both generations accept from the same sockets: all of them speak TLS, or none.
    """
    switches_tls = (old.certfile is None) != (new.certfile is None)
    return [
        name
        for name, declaration in table().items()
        if (not declaration.setting.reload or (switches_tls and declaration.setting.section == TLS))
        and getattr(old, name) != getattr(new, name)
    ]
