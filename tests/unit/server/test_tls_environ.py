"""Distinguished names as text."""

from __future__ import annotations

import pytest

from forkserve.server.tls_environ import Name, distinguished_name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ((), ""),
        (((("countryName", "GB"),), (("commonName", "Ada"),)), "CN=Ada,C=GB"),
        (((("commonName", "Ada"), ("userId", "7")),), "CN=Ada+UID=7"),
        (((("commonName", 'a,b+c"d\\e<f>g;h=i'),),), 'CN=a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h=i'),
        (((("commonName", " a b "),),), "CN=\\ a b\\ "),
        (((("commonName", "#a#"),),), "CN=\\#a#"),
        (((("commonName", "Zoë\n"),),), "CN=Zo\\C3\\AB\\0A"),
        (((("emailAddress", "a@b.example"),), (("1.2.3.4", "x"),)), "1.2.3.4=x,emailAddress=a@b.example"),
    ],
)
def test_distinguished_names_are_written_as_rfc_4514_says(name: Name, text: str) -> None:
    assert distinguished_name(name) == text
