"""From key material and settings to a context: what is in it, and what is refused with which words."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkserve.errors import BootError, ForkserveError, SettingsError
from forkserve.posix.key_material import KeyMaterial
from forkserve.server.tls_context import make_context
from forkserve.settings import Settings
from tests.certificates import Authority, Pair, openssl


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue()


def material_of(certificate: bytes, key: bytes = b"", authorities: bytes = b"") -> KeyMaterial:
    return KeyMaterial(certificate, key, authorities)


def settings(**more: Any) -> Settings:
    return Settings(certfile="/c.pem", keyfile="/k.pem", **more)


def good(pair: Pair) -> KeyMaterial:
    return material_of(pair.certificate.read_bytes(), pair.key.read_bytes())


def test_old_protocols_renegotiation_and_other_languages_are_off(pair: Pair) -> None:
    context = make_context(good(pair), settings())
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.verify_mode == ssl.CERT_NONE


def test_the_key_may_stand_beside_the_certificate(pair: Pair) -> None:
    both = pair.key.read_bytes() + pair.certificate.read_bytes()
    assert make_context(material_of(both), Settings(certfile="/c.pem"))


def test_authorities_and_demands_on_clients(pair: Pair, authority: Authority) -> None:
    bundle = "# Főtanúsítvány, as it stands in Debian's bundle\n".encode() + authority.certificate.read_bytes()
    material = material_of(pair.certificate.read_bytes(), pair.key.read_bytes(), bundle)
    context = make_context(material, settings(ca_certs="/ca.pem", cert_reqs=2))
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.cert_store_stats()["x509_ca"] == 1


def test_ciphers_are_those_that_are_set(pair: Pair) -> None:
    context = make_context(good(pair), settings(ciphers="ECDHE-ECDSA-AES128-GCM-SHA256"))
    older = [each["name"] for each in context.get_ciphers() if each["protocol"] != "TLSv1.3"]
    assert older == ["ECDHE-ECDSA-AES128-GCM-SHA256"]


def encrypted(pair: Pair) -> bytes:
    return openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:secret").encode()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda pair, other: (pair.certificate.read_bytes(), other.key.read_bytes()), "does not belong to the private"),
        (lambda pair, _: (pair.certificate.read_bytes(), encrypted(pair)), "nobody is there to type its passphrase"),
        (lambda pair, _: (pair.certificate.read_bytes()[:300], pair.key.read_bytes()), "it is no PEM, or it is cut"),
        (lambda pair, _: (pair.certificate.read_bytes() * 2 + b"-----BEGIN CERTIFICATE-----\nMII", b""), "not usable"),
        (lambda pair, _: (pair.certificate.read_bytes(), pair.key.read_bytes()[:100]), "it is no PEM, or it is cut"),
        (lambda pair, _: (b"", pair.key.read_bytes()), "it is no PEM, or it is cut"),
    ],
    ids=["mismatch", "encrypted", "cut certificate", "cut chain", "cut key", "empty"],
)
def test_a_pair_that_cannot_be_used_is_refused_with_the_reason(
    authority: Authority, pair: Pair, make: Callable[[Pair, Pair], tuple[bytes, bytes]], says: str
) -> None:
    certificate, key = make(pair, authority.issue())
    with pytest.raises(SettingsError) as caught:
        make_context(material_of(certificate, key), settings())
    message = str(caught.value)
    assert says in message
    assert "/k.pem" in message
    assert "\n" not in message


def test_the_file_is_named_that_holds_the_encrypted_key(pair: Pair) -> None:
    both = material_of(pair.certificate.read_bytes() + encrypted(pair))
    with pytest.raises(SettingsError, match=r"^certfile = '/c.pem': the private key is encrypted"):
        make_context(both, Settings(certfile="/c.pem"))


@pytest.mark.parametrize(
    ("more", "authorities", "says"),
    [
        ({"ciphers": "nonsense"}, b"", "ciphers = 'nonsense': OpenSSL finds no cipher in it"),
        ({"ca_certs": "/ca.pem"}, b"nothing", "ca_certs = '/ca.pem': not usable: no certificate or crl found"),
    ],
)
def test_other_settings_that_cannot_be_are_refused(
    pair: Pair, more: dict[str, Any], authorities: bytes, says: str
) -> None:
    material = material_of(pair.certificate.read_bytes(), pair.key.read_bytes(), authorities)
    with pytest.raises(SettingsError, match=says):
        make_context(material, settings(**more))


# ------------------------------------------------------------------------------------------- the hook


def test_the_hook_has_the_last_word(pair: Pair) -> None:
    seen = []

    def ssl_context(config: Settings, default_ssl_context_factory: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        seen.append(config)
        context = default_ssl_context_factory()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    context = make_context(good(pair), settings(), ssl_context)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert seen == [settings()]


def test_a_hook_that_returns_no_context_is_refused(pair: Pair) -> None:
    with pytest.raises(SettingsError, match="the hook ssl_context returned None: expected an ssl"):
        make_context(good(pair), settings(), lambda _config, _factory: None)


def test_a_hook_that_fails_shows_its_own_traceback(pair: Pair) -> None:
    def ssl_context(_config: Settings, _factory: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        raise LookupError("no such vault")

    with pytest.raises(BootError, match="hook ssl_context failed: LookupError: no such vault") as caught:
        make_context(good(pair), settings(), ssl_context)
    assert Path(__file__).name in caught.value.traceback_text
    assert "/tls_context.py" not in caught.value.traceback_text


def test_what_is_wrong_with_the_files_is_not_the_hooks_failure(pair: Pair) -> None:
    with pytest.raises(ForkserveError, match="it is no PEM"):
        make_context(material_of(b"", b""), settings(), lambda _config, factory: factory())
