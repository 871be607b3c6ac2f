"""Certificates for tests, made by the openssl command: an authority, and what it issues.

    authority = Authority(directory)
    pair = authority.issue("localhost")        pair.certificate, pair.key: paths of PEM files
    authority.client_context(pair)             a client that trusts the authority, and shows a certificate if it has one
"""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

NEW_KEY: Sequence[str] = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

AUTHORITY_EXTENSIONS = """\
[req]
distinguished_name = name
x509_extensions = authority
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""

ISSUED_EXTENSIONS = """\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1, DNS:{name}
"""


def openssl(*words: str | Path, data: bytes = b"") -> str:
    """Run the command; what it printed."""
    done = subprocess.run(["openssl", *map(str, words)], input=data, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as files."""

    certificate: Path
    key: Path


class Authority:
    """One that tests trust.

    Attributes:
        certificate: its own, as a file.
    """

    def __init__(self, directory: Path, name: str = "Authority of the tests") -> None:
        self._directory = directory
        self._number = count(1)
        self.certificate = directory / "authority.pem"
        self._key = directory / "authority.key"
        config = directory / "authority.cnf"
        config.write_text(AUTHORITY_EXTENSIONS)
        place = ("-keyout", self._key, "-out", self.certificate)
        openssl("req", "-x509", *NEW_KEY, "-config", config, "-subj", f"/CN={name}", "-days", "30", *place)

    def issue(self, name: str = "server.test", *, subject: str | None = None) -> Pair:
        """A new certificate for localhost, 127.0.0.1 and a name; its subject is openssl's /CN=…/O=…"""
        stem = self._directory / f"issued-{next(self._number)}"
        pair = Pair(stem.with_suffix(".pem"), stem.with_suffix(".key"))
        request, extensions = stem.with_suffix(".csr"), stem.with_suffix(".ext")
        extensions.write_text(ISSUED_EXTENSIONS.format(name=name))
        wanted = ("-subj", subject or f"/CN={name}", "-multivalue-rdn", "-utf8")
        config = self._directory / "authority.cnf"
        openssl("req", "-new", *NEW_KEY, "-config", config, *wanted, "-keyout", pair.key, "-out", request)
        by = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-extfile", extensions)
        openssl("x509", "-req", "-in", request, *by, "-days", "30", "-out", pair.certificate)
        return pair

    def client_context(self, pair: Pair | None = None) -> ssl.SSLContext:
        """How a client speaks that trusts this authority, with a certificate of its own if it has one."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context


def common_name(connection: ssl.SSLSocket) -> str:
    """Of the certificate that the peer has shown."""
    peer = connection.getpeercert()
    assert peer, "the peer has shown no certificate"
    subject: object = peer["subject"]
    assert isinstance(subject, tuple)
    return str(subject[-1][0][1])
