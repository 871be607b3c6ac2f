"""TLS as users meet it: with curl, requests and openssl, certificates that are renewed, and what stands in the way."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import forkserve
from forkserve.errors import SettingsError
from tests.certificates import Authority, Pair, common_name, openssl
from tests.harness import DEADLINE_S, LOOK_INTERVAL_S, ROOT, Server, assert_no_request_lost

Start = Callable[..., Server]
WriteApp = Callable[..., None]

TELLS = """\
import hashlib, time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/large":
        start_response("200 OK", [("Content-Length", str(20 << 20))])
        return [bytes([number]) * (1 << 20) for number in range(20)]
    if environ["PATH_INFO"] == "/slow":
        while True:
            time.sleep(0.01)
    body = environ["wsgi.input"].read()
    told = [
        environ["wsgi.url_scheme"],
        environ.get("SSL_PROTOCOL", "none"),
        environ.get("SSL_CLIENT_VERIFY", "none"),
        environ.get("SSL_CLIENT_S_DN", "none"),
        str(len(body)),
        hashlib.sha256(body).hexdigest(),
    ]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(told).encode()]
"""


class Secure:
    """Certificate files of one server, and how its clients speak."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.authority = authority
        self.certificate = directory / "c.pem"
        self.key = directory / "k.pem"
        self.words = ("--certfile", str(self.certificate), "--keyfile", str(self.key))
        self.put(authority.issue("first.test"))

    def put(self, pair: Pair, *, key: bool = True) -> None:
        """Replace the files, one after the other, as tools do."""
        for source, place in ((pair.certificate, self.certificate), *([(pair.key, self.key)] if key else [])):
            fresh = place.with_suffix(".new")
            shutil.copyfile(source, fresh)
            fresh.replace(place)

    def connect(self, server: Server, pair: Pair | None = None, **options: Any) -> ssl.SSLSocket:
        """A client after its handshake."""
        context = self.authority.client_context(pair)
        return context.wrap_socket(server.raw(), server_hostname="localhost", **options)

    def name_shown(self, server: Server) -> str:
        """Of the certificate that a new connection is shown."""
        with self.connect(server) as client:
            return common_name(client)


@pytest.fixture
def secure(tmp_path: Path, authority: Authority) -> Secure:
    return Secure(tmp_path, authority)


@pytest.fixture
def serve(start: Start, write_app: WriteApp, secure: Secure) -> Start:
    """``serve("--flag", …)`` starts app.py, which tells what it was told, with a certificate."""
    write_app(code=TELLS)

    def run(*words: str, **options: Any) -> Server:
        server = start("app:app", *secure.words, "--log-level", "debug", *words, **options)
        server.client_context = secure.authority.client_context()
        return server

    return run


def ask(client: ssl.SSLSocket, path: str = "/") -> bytes:
    """One request on a connection that is kept; the answer."""
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = client.recv(65536)
        assert more, answer
        answer += more
    return answer


# ------------------------------------------------------------------------------------------- clients


def curl(server: Server, secure: Secure, *words: str, data: bytes = b"") -> str:
    command = ["curl", "-sS", "--cacert", secure.authority.certificate, "--max-time", "60", *words]
    done = subprocess.run(command, input=data, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, f"{done.stderr.decode()} {server.described()}"
    return done.stdout.decode()


def test_curl_is_answered_on_a_kept_connection(serve: Start, secure: Secure) -> None:
    server = serve()
    assert server.urls[0].startswith("https://127.0.0.1:")
    told = curl(server, secure, "-w", "\n%{num_connects} %{ssl_verify_result}\n", *server.urls * 3).splitlines()
    assert [line for line in told if line.startswith("https TLSv1.3 NONE none 0 ")] == told[::2]
    assert told[1::2] == ["1 0", "0 0", "0 0"]


def test_curl_uploads_megabytes_in_chunks(serve: Start, secure: Secure) -> None:
    server = serve()
    content = os.urandom(5_000_000)
    told = curl(server, secure, "-H", "Transfer-Encoding: chunked", "-T", "-", server.urls[0] + "/x", data=content)
    assert told.split()[-2:] == ["5000000", hashlib.sha256(content).hexdigest()]


def test_requests_keeps_its_connection(serve: Start, secure: Secure) -> None:
    server = serve()
    with requests.Session() as session:
        session.trust_env = False  # the environment may name other authorities
        session.verify = str(secure.authority.certificate)
        for _ in range(5):
            assert session.get(server.urls[0], timeout=DEADLINE_S).text.startswith("https TLSv1.3")
        assert session.post(server.urls[0], data=b"x" * 100_000, timeout=DEADLINE_S).text.split()[4] == "100000"


def test_openssls_client_is_answered(serve: Start, secure: Secure) -> None:
    server = serve()
    place = ("-connect", f"127.0.0.1:{server.port}", "-CAfile", secure.authority.certificate, "-verify_return_error")
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    told = openssl("s_client", *place, "-alpn", "h2,http/1.1", "-ign_eof", data=request)
    assert "ALPN protocol: http/1.1" in told
    assert "Verify return code: 0 (ok)" in told
    assert "https TLSv1.3" in told


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_every_worker_type_speaks_tls(serve: Start, secure: Secure, worker_class: str) -> None:
    server = serve("-k", worker_class, "--threads", "1" if worker_class == "sync" else "4")
    told = curl(server, secure, "-w", "\n%{num_connects}\n", *server.urls * 3).splitlines()
    assert [line.split()[0] for line in told[::2]] == ["https"] * 3
    assert told[1::2] == ["1", "0", "0"]
    content = os.urandom(2_000_000)
    told = curl(server, secure, "-T", "-", server.urls[0] + "/x", data=content).split()
    assert told[-1] == hashlib.sha256(content).hexdigest()
    large = curl(server, secure, "--limit-rate", "40M", server.urls[0] + "/large")
    assert len(large) == 20 << 20
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_an_overdue_call_is_answered_in_its_place(serve: Start, secure: Secure, worker_class: str) -> None:
    server = serve("-k", worker_class, "--request-timeout", "300ms", workers=1)
    with secure.connect(server, suppress_ragged_eofs=False) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while more := client.recv(65536):
            answer += more
    assert answer.startswith(b"HTTP/1.1 504 ")
    server.wait_until(lambda: server.get().status == 200, "the next request is answered")


def test_http_in_clear_is_told_to_use_https(serve: Start) -> None:
    server = serve()
    answer = server.get(url=server.urls[0].replace("https://", "http://"))
    assert answer.status == 400
    assert "https://" in answer.text


def test_tls_1_1_is_refused(serve: Start) -> None:
    """By the server: this client would speak it, with ciphers that were in use then."""
    server = serve()
    words = ("-connect", f"127.0.0.1:{server.port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    done = subprocess.run(["openssl", "s_client", *words], input=b"", capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert server.wait_for("tls.failed")["level"] == "debug"
    assert "unsupported protocol" in server.events("tls.failed")[0]["message"]


def test_silent_clients_do_not_keep_others_waiting(serve: Start, secure: Secure) -> None:
    server = serve(workers=1)
    silent = [server.raw() for _ in range(100)]
    for each in silent[::2]:
        each.sendall(b"\x16\x03\x01\x02\x00")
    with secure.connect(server) as client:
        assert ask(client).startswith(b"HTTP/1.1 200 ")
    for each in silent:
        each.close()


def test_a_slow_reader_of_a_large_answer_holds_no_worker(serve: Start, secure: Secure) -> None:
    server = serve(workers=1)
    with secure.connect(server) as slow:
        slow.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = slow.recv(1000)  # it has begun
        assert server.get().status == 200
        while block := slow.recv(65536):
            answer += block
    body = b"".join(bytes([number]) * (1 << 20) for number in range(20))
    assert answer.partition(b"\r\n\r\n")[2] == body


def test_a_silent_client_is_closed_at_the_limit(serve: Start) -> None:
    server = serve("--handshake-timeout", "500ms")
    with server.raw() as client:
        assert client.recv(1000) == b""


# ------------------------------------------------------------------------------------------- client certificates


def test_a_demanded_certificate_is_checked_and_told(serve: Start, secure: Secure, tmp_path: Path) -> None:
    authority = secure.authority
    server = serve("--cert-reqs", "2", "--ca-certs", str(authority.certificate))
    with secure.connect(server, authority.issue("client.test")) as client:
        assert b" SUCCESS CN=client.test " in ask(client)
    for pair in (None, Authority(tmp_path, "Another authority").issue("client.test")):
        with secure.connect(server, pair) as client, pytest.raises(ssl.SSLError, match="ALERT"):
            ask(client)
    server.wait_for("tls.failed", count=2)
    assert "Traceback" not in server.log()


# ------------------------------------------------------------------------------------------- renewal


def test_a_renewed_certificate_is_taken_without_a_signal_and_open_connections_go_on(
    serve: Start, secure: Secure
) -> None:
    server = serve()
    with secure.connect(server) as old, assert_no_request_lost(server, clients=2):
        assert ask(old).startswith(b"HTTP/1.1 200 ")
        secure.put(secure.authority.issue("second.test"))
        assert server.wait_for("tls.renewed")["version"] == 2
        for _ in range(10):  # each of the workers
            assert secure.name_shown(server) == "second.test"
        assert ask(old).startswith(b"HTTP/1.1 200 ")
        assert common_name(old) == "first.test"
    assert server.events("worker.exit") == []


def test_a_bad_replacement_leaves_the_old_one_in_use(serve: Start, secure: Secure) -> None:
    server = serve()
    new = secure.authority.issue("second.test")
    secure.put(new, key=False)
    assert "going on with the certificate of before" in server.wait_for("tls.refused")["message"]
    assert secure.name_shown(server) == "first.test"
    secure.put(new)
    server.wait_for("tls.renewed")
    assert secure.name_shown(server) == "second.test"
    assert len(server.events("tls.refused")) == 1


def test_a_reload_with_a_bad_certificate_keeps_the_old_one_and_reloads_the_rest(serve: Start, secure: Secure) -> None:
    server = serve()
    secure.put(secure.authority.issue("second.test"), key=False)
    server.hup()
    server.wait_for("reload.done")
    assert server.events("tls.refused")
    assert secure.name_shown(server) == "first.test"


def test_reloads_under_load_lose_no_request(serve: Start, secure: Secure) -> None:
    server = serve()
    with assert_no_request_lost(server) as load:
        for generation in (2, 3):
            secure.put(secure.authority.issue(f"number{generation}.test"))
            load.wait_for_answers(10)
            server.hup()
            server.wait_for("reload.done", generation=generation)
    assert secure.name_shown(server) == "number3.test"


def test_who_has_not_begun_moves_at_a_reload_and_who_has_is_told_to_close(serve: Start, secure: Secure) -> None:
    server = serve(workers=1)
    with server.raw() as silent, secure.connect(server) as idle:
        ask(idle)
        (old,) = server.worker_pids()
        server.hup()
        server.wait_for("reload.done")
        assert b"Connection: close\r\n" in ask(idle)
        server.wait_for_workers(1, generation=2, without=old)
        with secure.authority.client_context().wrap_socket(silent, server_hostname="localhost") as client:
            assert ask(client).startswith(b"HTTP/1.1 200 ")


def test_a_stop_under_load_loses_no_request(serve: Start) -> None:
    server = serve()
    with assert_no_request_lost(server, until_refused=True):
        server.term()
    assert server.wait_exit() == 0


def test_a_reload_cannot_switch_tls_off(start: Start, write_app: WriteApp, secure: Secure, tmp_path: Path) -> None:
    write_app(code=TELLS)
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(f"certfile = {str(secure.certificate)!r}\nkeyfile = {str(secure.key)!r}\n")
    server = start("app:app")
    config.write_text("")
    server.hup()
    assert "certfile, keyfile" in server.wait_for("settings.kept")["message"]
    server.wait_for("reload.done")
    assert secure.name_shown(server) == "first.test"


# ------------------------------------------------------------------------------------------- processes


def sessions_resumed(server: Server, secure: Secure, tries: int) -> int:
    """How often a session of one connection is resumed by later ones, at whichever worker."""
    context = secure.authority.client_context()
    session, resumed = None, 0
    for _ in range(tries):
        with context.wrap_socket(server.raw(), server_hostname="localhost", session=session) as client:
            ask(client)
            resumed += client.session_reused or 0
            session = session or client.session
    return resumed


def test_any_worker_resumes_the_session_of_any_other(serve: Start, secure: Secure) -> None:
    server = serve(workers=4)
    assert sessions_resumed(server, secure, 20) == 19


@pytest.fixture
def guarded(secure: Secure) -> Iterator[tuple[str, str]]:
    """Certificate and key in a folder that only root may enter."""
    with tempfile.TemporaryDirectory() as place:
        for path in (secure.certificate, secure.key):
            shutil.copy(path, place)
            os.chmod(f"{place}/{path.name}", 0o600)
        yield f"{place}/c.pem", f"{place}/k.pem"


def tells_its_user(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    return [f"{os.getuid()} {os.getgid()}".encode()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_an_object_is_served_by_workers_that_may_not_read_the_key(secure: Secure, guarded: tuple[str, str]) -> None:
    certificate, key = guarded
    settings = {"certfile": certificate, "keyfile": key, "user": "65534", "group": "65534", "chdir": "/"}
    context = secure.authority.client_context()
    with forkserve.running(tells_its_user, settings) as server:

        def name_shown() -> str:
            raw = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S)
            with context.wrap_socket(raw, server_hostname="localhost") as client:
                assert ask(client).endswith(b"65534 65534")
                return common_name(client)

        assert name_shown() == "first.test"
        renewed = secure.authority.issue("renewed.test")
        shutil.copy(renewed.key, key)
        shutil.copy(renewed.certificate, certificate)
        deadline = time.monotonic() + DEADLINE_S
        while name_shown() != "renewed.test":
            assert time.monotonic() < deadline, "the certificate was not taken anew"
            time.sleep(LOOK_INTERVAL_S)


@pytest.mark.parametrize("preload", ["--preload-auto", "--no-preload"])
def test_a_key_that_only_root_may_read_serves_workers_of_another_user(
    start: Start, secure: Secure, guarded: tuple[str, str], preload: str
) -> None:
    may_start = [sys.executable, "-c", "import os; os.setuid(65534); import wsgiref.simple_server, ssl"]
    if subprocess.run(may_start, capture_output=True, check=False).returncode:
        pytest.skip("only root may become another user, which must be able to run this Python")
    certificate, key = guarded
    words = ("--certfile", certificate, "--keyfile", key, "--user", "65534", "--group", "65534", "--chdir", "/")
    server = start("wsgiref.simple_server:demo_app", *words, preload)
    for pid in server.worker_pids():
        assert "Uid:\t65534\t65534" in Path(f"/proc/{pid}/status").read_text()
    assert secure.name_shown(server) == "first.test"
    renewed = secure.authority.issue("renewed.test")
    shutil.copy(renewed.key, key)
    shutil.copy(renewed.certificate, certificate)
    server.wait_for("tls.renewed")
    assert secure.name_shown(server) == "renewed.test"


def test_unix_sockets_and_several_addresses_speak_tls(serve: Start, secure: Secure, tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    serve(bind=("127.0.0.1:0", f"unix:{path}"))
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(DEADLINE_S)
    raw.connect(path)
    with secure.authority.client_context().wrap_socket(raw, server_hostname="localhost") as client:
        assert ask(client).startswith(b"HTTP/1.1 200 ")


def test_a_running_server_of_a_test_has_an_https_url(secure: Secure) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.url_scheme"].encode()]

    with forkserve.running(app, certfile=str(secure.certificate), keyfile=str(secure.key), workers=2) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        answer = requests.get(server.url, verify=str(secure.authority.certificate), timeout=DEADLINE_S)
        assert answer.text == "https"


def test_a_running_server_with_a_wrong_certificate_says_so(secure: Secure, tmp_path: Path) -> None:
    refused = pytest.raises(SettingsError, match="there is no certificate in PEM form in it")
    with refused, forkserve.running("app:app", certfile=str(secure.key)):
        pass


def test_who_does_not_speak_tls_does_not_load_it() -> None:
    script = (
        "import sys, forkserve.master, forkserve.embedding, forkserve.workers.base, forkserve.supervisor.zygote\n"
        "print('ssl' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ------------------------------------------------------------------------------------------- what stands in the way


def test_a_certificate_that_cannot_be_used_ends_the_start_with_one_line(
    start: Start, write_app: WriteApp, secure: Secure
) -> None:
    write_app()
    secure.put(secure.authority.issue("second.test"), key=False)
    server = start("app:app", *secure.words, ready=False)
    assert server.wait_exit() == 2
    assert f"certfile = '{secure.certificate}': the certificate does not belong to the private key" in server.log()
    assert len(server.log().splitlines()) == 1
    assert server.urls == []


@pytest.mark.parametrize("preload", ["--preload-auto", "--no-preload"])
def test_a_hook_that_fails_ends_the_first_start_with_its_traceback(serve: Start, tmp_path: Path, preload: str) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        f"preload_app = {preload == '--preload-auto'}\n"
        "def ssl_context(config, default_ssl_context_factory):\n    raise LookupError('no such vault')\n"
    )
    server = serve(ready=False)
    assert server.wait_exit() == 3
    assert "hook ssl_context failed: LookupError: no such vault" in server.log()
    assert "gunicorn.conf.py" in server.log()


def test_the_hook_may_narrow_what_is_spoken(serve: Start, secure: Secure, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        "def ssl_context(config, default_ssl_context_factory):\n"
        "    import ssl\n"
        "    context = default_ssl_context_factory()\n"
        "    context.minimum_version = ssl.TLSVersion.TLSv1_3\n"
        "    return context\n"
    )
    server = serve()
    context = secure.authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="ALERT"):
        context.wrap_socket(server.raw(), server_hostname="localhost")
    assert server.get().text.startswith("https TLSv1.3")


@pytest.mark.parametrize(("words", "code"), [((), 0), (("--ciphers", "nonsense"), 2)])
def test_a_check_of_the_configuration_tries_the_certificate(
    write_app: WriteApp, secure: Secure, tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
    write_app()
    command = [sys.executable, "-m", "forkserve", "app:app", *secure.words, *words, "--check-config"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert f"certificate    {secure.certificate}" in done.stdout if code == 0 else "ciphers" in done.stderr


def test_an_idle_client_hears_of_the_end_of_its_connection(serve: Start, secure: Secure) -> None:
    server = serve()
    with secure.connect(server, suppress_ragged_eofs=False) as client:
        ask(client)
        server.term()
        assert select.select([client], [], [], DEADLINE_S)[0]
        assert client.recv(1000) == b""
