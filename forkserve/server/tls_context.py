"""From key material and settings to a context of TLS: certificate, rules, and the user's last word.

    material, settings ─ make_context ─▶ ssl.SSLContext           TLS 1.2 and newer, ALPN http/1.1
                          └ hook ssl_context(settings, factory)   may change it, or make another one

Promises: what is wrong is one clear line; nobody is asked for a passphrase; nothing is written to a disk.

Importing this imports ssl; only those who speak TLS do.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from forkserve import tracebacks
from forkserve.errors import BootError, SettingsError
from forkserve.posix.key_material import KeyMaterial
from forkserve.settings import Hook

PROTOCOLS: Final = ("http/1.1",)
"""What we say by ALPN (RFC 7301): a client that could speak HTTP/2 learns that we do not."""


class TlsSettings(Protocol):
    """The settings that TLS reads; ``forkserve.settings.Settings`` has them."""

    @property
    def certfile(self) -> str | None: ...
    @property
    def keyfile(self) -> str | None: ...
    @property
    def ca_certs(self) -> str | None: ...
    @property
    def cert_reqs(self) -> int: ...
    @property
    def ciphers(self) -> str | None: ...
    @property
    def handshake_timeout(self) -> float: ...
    @property
    def suppress_ragged_eofs(self) -> bool: ...


def make_context(material: KeyMaterial, settings: TlsSettings, hook: Hook | None = None) -> ssl.SSLContext:
    """A context that serves with this material.

    Args:
        hook: the user's ``ssl_context``.

    Raises:
        SettingsError: certificate and key do not fit together, or a setting cannot be.
        BootError: the hook failed, with its traceback.
    """

    def default_ssl_context_factory() -> ssl.SSLContext:
        return _default_context(material, settings)

    if hook is None:
        return default_ssl_context_factory()
    try:
        context = hook(settings, default_ssl_context_factory)
    except SettingsError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise BootError(f"hook ssl_context failed: {text}", tracebacks.own_traceback(error, (__file__,))) from error
    if not isinstance(context, ssl.SSLContext):
        raise SettingsError(f"the hook ssl_context returned {context!r}: expected an ssl.SSLContext")
    return context


def _default_context(material: KeyMaterial, settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # costs the server more than the client; gone in TLS 1.3
    if settings.suppress_ragged_eofs:  # or OpenSSL 3 could not answer any more whoever ends its side like that
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.set_alpn_protocols(list(PROTOCOLS))
    if settings.ciphers is not None:
        try:
            context.set_ciphers(settings.ciphers)
        except ssl.SSLError as error:
            raise SettingsError(
                f"ciphers = {settings.ciphers!r}: OpenSSL finds no cipher in it; `openssl ciphers -v` lists them"
            ) from error
    _load_certificate(context, material, settings)
    if material.authorities:
        with _as_file(material.authorities) as path:
            try:
                context.load_verify_locations(path)
            except ssl.SSLError as error:
                raise SettingsError(f"ca_certs = {settings.ca_certs!r}: not usable: {_reason(error)}") from error
    context.verify_mode = ssl.VerifyMode(settings.cert_reqs)
    return context


def _load_certificate(context: ssl.SSLContext, material: KeyMaterial, settings: TlsSettings) -> None:
    key_setting = f"keyfile = {settings.keyfile!r}" if settings.keyfile else f"certfile = {settings.certfile!r}"

    def no_passphrase() -> str:
        raise SettingsError(
            f"{key_setting}: the private key is encrypted and nobody is there to type its passphrase: give it without "
            "one (openssl pkey -in KEY -out KEY.plain)"
        )

    with _as_file(material.certificate) as certificate, _as_file(material.key or material.certificate) as key:
        try:
            context.load_cert_chain(certificate, key, no_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                why = f"the certificate does not belong to the private key ({key_setting})"
            else:
                why = f"it, or its private key ({key_setting}), is not usable: {_reason(error)}"
            raise SettingsError(f"certfile = {settings.certfile!r}: {why}") from error


def _reason(error: ssl.SSLError) -> str:
    return error.reason.replace("_", " ").lower() if error.reason else "it is no PEM, or it is cut"


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path for bytes that stand on no disk: OpenSSL takes certificates and keys by their paths alone."""
    with open(os.memfd_create("forkserve-pem", os.MFD_CLOEXEC), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
