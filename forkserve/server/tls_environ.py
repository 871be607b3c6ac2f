"""What an application is told of a TLS connection: variables of the environ, by Apache's names (mod_ssl, StdEnvVars).

    HTTPS SSL_PROTOCOL SSL_CIPHER                           always
    SSL_CLIENT_VERIFY                                       NONE, or SUCCESS with a certificate
    SSL_CLIENT_S_DN SSL_CLIENT_S_DN_CN SSL_CLIENT_I_DN      of the client's certificate: its subject, its issuer,
    SSL_CLIENT_M_SERIAL SSL_CLIENT_CERT                     its number, all of it in PEM form
    forkserve.peercert                                      what ssl.SSLSocket.getpeercert() says of it

No request can forge them: what a client sends comes as ``HTTP_…``.
"""

from __future__ import annotations

import re
import ssl
from typing import Any, Final

_SHORT_NAMES: Final = {
    "businessCategory": "businessCategory",
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "givenName": "GN",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "surname": "SN",
    "userId": "UID",
}
"""OpenSSL's short names of what stands in distinguished names; others are shown by their long ones."""

_SPECIAL: Final = re.compile(r'[,+"\\<>;]|^[# ]| $')
"""RFC 4514 section 2.4: escaped by a backslash; what is not printable ASCII by its bytes."""

Name = tuple[tuple[tuple[str, str], ...], ...]
"""A distinguished name as the ssl module gives it: its parts in the certificate's order."""


def variables(connection: ssl.SSLSocket) -> dict[str, Any]:
    """The variables of one connection, after its handshake."""
    cipher = connection.cipher()
    found: dict[str, Any] = {
        "HTTPS": "on",
        "SSL_PROTOCOL": connection.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_CLIENT_VERIFY": "NONE",
    }
    peer: Any = connection.getpeercert()
    certificate = connection.getpeercert(binary_form=True)
    if peer and certificate:  # empty where it was not asked for, and so not checked
        found |= {
            "SSL_CLIENT_VERIFY": "SUCCESS",
            "SSL_CLIENT_S_DN": distinguished_name(peer["subject"]),
            "SSL_CLIENT_S_DN_CN": _common_name(peer["subject"]),
            "SSL_CLIENT_I_DN": distinguished_name(peer["issuer"]),
            "SSL_CLIENT_M_SERIAL": peer["serialNumber"],
            "SSL_CLIENT_CERT": ssl.DER_cert_to_PEM_cert(certificate),
            "forkserve.peercert": peer,
        }
    return found


def distinguished_name(name: Name) -> str:
    """A distinguished name as text (RFC 4514): ``CN=Ada,O=Engines,C=GB``, the last part first."""
    parts = ("+".join(f"{_SHORT_NAMES.get(key, key)}={_escaped(value)}" for key, value in part) for part in name[::-1])
    return ",".join(parts)


def _common_name(name: Name) -> str:
    """The last common name, as bytes of UTF-8 in the way of PEP 3333; empty if there is none."""
    found = [value for part in name for key, value in part if key == "commonName"]
    return found[-1].encode().decode("latin-1") if found else ""


def _escaped(value: str) -> str:
    quoted = _SPECIAL.sub(lambda match: "\\" + match[0], value)
    return "".join(
        char if " " <= char <= "~" else "".join(f"\\{byte:02X}" for byte in char.encode()) for char in quoted
    )
