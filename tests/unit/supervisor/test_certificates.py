"""The master's care for certificate and key: what it hands out, when, and what it says."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkserve.errors import SettingsError
from forkserve.posix.key_material import FILE_BYTES_MAX, KeyMaterial
from forkserve.settings import Settings
from forkserve.supervisor.certificates import Certificates, check
from tests.certificates import Authority, Pair


@pytest.fixture(scope="module")
def pairs(authority: Authority) -> tuple[Pair, Pair]:
    return authority.issue("first.test"), authority.issue("second.test")


@pytest.fixture
def settings(tmp_path: Path, pairs: tuple[Pair, Pair], authority: Authority) -> Settings:
    """Files of their own, with the first pair in them."""
    found = Settings(
        certfile=str(tmp_path / "c.pem"), keyfile=str(tmp_path / "k.pem"), ca_certs=str(tmp_path / "ca.pem")
    )
    put(found.certfile, pairs[0].certificate.read_bytes())
    put(found.keyfile, pairs[0].key.read_bytes())
    put(found.ca_certs, authority.certificate.read_bytes())
    return found


@pytest.fixture
def certificates(settings: Settings) -> Iterator[Certificates]:
    made = Certificates(settings)
    yield made
    os.close(made.region.fd)


def put(path: str | None, content: bytes) -> None:
    """Replace a file at once, as tools that renew certificates do."""
    assert path is not None
    fresh = Path(path + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record.msg, "code", "") for record in caplog.records]


def in_use(certificates: Certificates) -> bytes:
    return certificates.region.read()[1].certificate


def test_what_the_files_hold_is_handed_out(certificates: Certificates, settings: Settings) -> None:
    assert settings.certfile and settings.keyfile and settings.ca_certs
    contents = [Path(path).read_bytes() for path in (settings.certfile, settings.keyfile, settings.ca_certs)]
    assert certificates.region.read() == (1, KeyMaterial(*contents))


def test_files_that_stay_are_not_read_again(
    certificates: Certificates, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkserve.supervisor.certificates.check", lambda _settings: pytest.fail("it was read"))
    certificates.look(settings)


@pytest.mark.parametrize("first", ["certfile", "keyfile"])
def test_a_pair_that_is_replaced_one_by_one_is_taken_when_it_fits(
    certificates: Certificates,
    settings: Settings,
    pairs: tuple[Pair, Pair],
    caplog: pytest.LogCaptureFixture,
    first: str,
) -> None:
    caplog.set_level(logging.INFO)
    new = {"certfile": pairs[1].certificate.read_bytes(), "keyfile": pairs[1].key.read_bytes()}
    put(getattr(settings, first), new.pop(first))
    certificates.look(settings)
    assert said(caplog) == []
    assert in_use(certificates) == pairs[0].certificate.read_bytes()
    ((other, content),) = new.items()
    put(getattr(settings, other), content)
    certificates.look(settings)
    assert said(caplog) == ["tls.renewed"]
    assert in_use(certificates) == pairs[1].certificate.read_bytes()
    certificates.look(settings)
    assert said(caplog) == ["tls.renewed"]


def test_a_pair_that_does_not_fit_in_the_end_is_said_once_and_the_old_one_stays(
    certificates: Certificates, settings: Settings, pairs: tuple[Pair, Pair], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put(settings.certfile, pairs[1].certificate.read_bytes())
    for _ in range(5):
        certificates.look(settings)
    assert said(caplog) == ["tls.refused"]
    message = caplog.records[0].getMessage()
    assert "does not belong to the private key" in message
    assert "going on with the certificate of before" in message
    assert certificates.region.read()[0] == 1
    put(settings.keyfile, pairs[1].key.read_bytes())
    certificates.look(settings)
    assert said(caplog) == ["tls.refused", "tls.renewed"]


def test_a_file_that_is_being_written_is_waited_for(
    certificates: Certificates, settings: Settings, pairs: tuple[Pair, Pair], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    content = pairs[1].certificate.read_bytes()
    assert settings.certfile is not None
    for end in (10, 300, len(content) - 5):
        Path(settings.certfile).write_bytes(content[:end])
        certificates.look(settings)
    assert said(caplog) == []
    assert in_use(certificates) == pairs[0].certificate.read_bytes()


def test_the_old_files_put_back_end_the_trouble(
    certificates: Certificates, settings: Settings, pairs: tuple[Pair, Pair], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put(settings.certfile, b"")
    certificates.look(settings)
    certificates.look(settings)
    put(settings.certfile, pairs[0].certificate.read_bytes())
    certificates.look(settings)
    assert said(caplog) == ["tls.refused", "tls.renewed"]
    assert in_use(certificates) == pairs[0].certificate.read_bytes()


def test_a_file_that_is_gone_is_said_and_taken_when_it_is_back(
    certificates: Certificates, settings: Settings, pairs: tuple[Pair, Pair], caplog: pytest.LogCaptureFixture
) -> None:
    assert settings.ca_certs is not None
    os.unlink(settings.ca_certs)
    certificates.look(settings)
    certificates.look(settings)
    (record,) = caplog.records
    assert f"ca_certs = {settings.ca_certs!r} cannot be read (no such file or directory)" in record.getMessage()
    put(settings.ca_certs, pairs[0].certificate.read_bytes())
    certificates.look(settings)
    assert certificates.region.read()[1].authorities == pairs[0].certificate.read_bytes()


def test_who_asks_is_answered_at_once_and_each_time(
    certificates: Certificates, settings: Settings, pairs: tuple[Pair, Pair], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    certificates.take_anew(settings)
    assert said(caplog) == []  # nothing new
    put(settings.certfile, pairs[1].certificate.read_bytes())
    certificates.take_anew(settings)
    certificates.look(settings)
    certificates.take_anew(settings)
    assert said(caplog) == ["tls.refused", "tls.refused"]
    put(settings.keyfile, pairs[1].key.read_bytes())
    certificates.take_anew(settings)
    assert said(caplog)[2:] == ["tls.renewed"]


def test_other_files_may_be_named_by_a_reload(
    certificates: Certificates, settings: Settings, pairs: tuple[Pair, Pair]
) -> None:
    other = Settings(certfile=str(pairs[1].certificate), keyfile=str(pairs[1].key))
    certificates.take_anew(other)
    assert certificates.region.read() == (
        2,
        KeyMaterial(pairs[1].certificate.read_bytes(), pairs[1].key.read_bytes(), b""),
    )
    certificates.look(settings)  # the reload has failed: its settings are not in force any more
    assert in_use(certificates) == pairs[0].certificate.read_bytes()


def test_links_are_followed_to_what_they_name_now(settings: Settings, tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    """certbot and Kubernetes do not touch the files: they exchange links to them."""
    for number, pair in enumerate(pairs):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "c.pem").write_bytes(pair.certificate.read_bytes())
        (tmp_path / str(number) / "k.pem").write_bytes(pair.key.read_bytes())
    (tmp_path / "live").symlink_to("0")
    linked = Settings(certfile=f"{tmp_path}/live/c.pem", keyfile=f"{tmp_path}/live/k.pem")
    certificates = Certificates(linked)
    (tmp_path / "fresh").symlink_to("1")
    (tmp_path / "fresh").replace(tmp_path / "live")
    certificates.look(linked)
    assert in_use(certificates) == pairs[1].certificate.read_bytes()
    os.close(certificates.region.fd)


# ------------------------------------------------------------------------------------------- the start


def a_directory(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def too_long(path: Path) -> None:
    path.write_bytes(b"x" * (FILE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("setting", "make", "says"),
    [
        ("certfile", lambda path: path.write_bytes(b"nothing"), "there is no certificate in PEM form in it"),
        ("keyfile", lambda path: path.write_bytes(b"nothing"), "there is no private key in PEM form in it"),
        ("certfile", lambda path: None, "cannot be read (no such file or directory): correct it, or its rights"),
        ("keyfile", a_directory, "cannot be read (is a directory)"),
        ("keyfile", a_pipe, "it is no file"),
        ("ca_certs", too_long, "it is longer than 1048576 bytes"),
    ],
)
def test_what_cannot_be_used_is_refused_by_the_name_of_its_setting(
    settings: Settings, tmp_path: Path, setting: str, make: Callable[[Path], None], says: str
) -> None:
    path = Path(getattr(settings, setting))
    path.unlink()
    make(path)
    with pytest.raises(SettingsError) as caught:
        Certificates(settings)
    assert str(caught.value).startswith(f"{setting} = {str(path)!r}")
    assert says in str(caught.value)


def test_a_certificate_without_a_key_asks_for_keyfile(pairs: tuple[Pair, Pair]) -> None:
    with pytest.raises(SettingsError, match="there is no private key in PEM form in it: set keyfile"):
        check(Settings(certfile=str(pairs[0].certificate)))


def test_the_hook_is_tried_where_it_is_given(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="the hook ssl_context returned 7"):
        check(settings, lambda _config, _factory: 7)
