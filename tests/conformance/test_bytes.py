"""Each of the 256 bytes in each place of a request: accepted where the grammar of the standards has it, else refused.

The sets below are written from the standards, not taken from the parser.
"""

from __future__ import annotations

import string

import pytest

from tests.conformance.driver import first_request

ALPHA_DIGIT = frozenset((string.ascii_letters + string.digits).encode())
TOKEN = ALPHA_DIGIT | frozenset(b"!#$%&'*+-.^_`|~")
"""tchar of RFC 9110 section 5.6.2."""
VISIBLE = frozenset(range(0x21, 0x7F))
"""VCHAR of RFC 5234."""
TEXT = VISIBLE | frozenset(b"\t ") | frozenset(range(0x80, 0x100))
"""What field-value of RFC 9110 section 5.5 may hold inside."""
REG_NAME = ALPHA_DIGIT | frozenset(b"-._~!$&()*+;=:")
"""reg-name of RFC 3986 section 3.2.2 without its comma, its quote and a lone percent; the colon begins the port."""

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

PLACES = {
    "method": (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", TOKEN),
    "path": (b"GET /a@b HTTP/1.1\r\nHost: a\r\n\r\n", VISIBLE - frozenset(b"#")),
    "query": (b"GET /?a@b HTTP/1.1\r\nHost: a\r\n\r\n", VISIBLE - frozenset(b"#")),
    "first of the target": (b"GET @ HTTP/1.1\r\nHost: a\r\n\r\n", frozenset(b"/")),
    "authority": (b"GET http://a@/ HTTP/1.1\r\nHost: a\r\n\r\n", (REG_NAME | frozenset(b"/?"))),
    "major version": (b"GET / HTTP/@.1\r\nHost: a\r\n\r\n", frozenset(b"1")),
    "minor version": (b"GET / HTTP/1.@\r\nHost: a\r\n\r\n", frozenset(b"0123456789")),
    "after the version": (b"GET / HTTP/1.1@\r\nHost: a\r\n\r\n", frozenset()),
    "field name": (HEAD + b"X@: 1\r\n\r\n", TOKEN | frozenset(b":")),
    "first of a field name": (HEAD + b"@X: 1\r\n\r\n", TOKEN),
    "before the colon": (HEAD + b"X-A@: 1\r\n\r\n", TOKEN | frozenset(b":")),
    "after the colon": (HEAD + b"X-A:@1\r\n\r\n", TEXT),
    "field value": (HEAD + b"X-A: 1@2\r\n\r\n", TEXT),
    "end of a field": (HEAD + b"X-A: 1@\r\n\r\n", TEXT),
    "host": (b"GET / HTTP/1.1\r\nHost: a@\r\n\r\n", REG_NAME | frozenset(b"\t ")),
    "port": (b"GET / HTTP/1.1\r\nHost: a:1@2\r\n\r\n", frozenset(b"0123456789")),
    "IP literal": (b"GET / HTTP/1.1\r\nHost: [::1@]\r\n\r\n", frozenset(b"0123456789abcdefABCDEF:.")),
    "length": (HEAD + b"Content-Length: 0@0\r\n\r\n", frozenset(b"0")),
    "coding": (HEAD + b"Transfer-Encoding: chunked@\r\n\r\n0\r\n\r\n", frozenset(b"\t ")),
    "chunk size": (CHUNKED + b"0@0\r\n\r\n", frozenset(b"0;")),
    "after the chunk size": (CHUNKED + b"1@\r\na\r\n0\r\n\r\n", frozenset(b";")),
    "chunk extension": (CHUNKED + b"1;a@b\r\na\r\n0\r\n\r\n", TEXT),
    "end of chunk data": (CHUNKED + b"1\r\na@\n0\r\n\r\n", frozenset(b"\r")),
    "end of the chunk's end": (CHUNKED + b"1\r\na\r@0\r\n\r\n", frozenset(b"\n")),
    "trailer name": (CHUNKED + b"0\r\nX@A: 1\r\n\r\n", TOKEN | frozenset(b":")),
    "trailer value": (CHUNKED + b"0\r\nX-A: 1@2\r\n\r\n", TEXT),
}


@pytest.mark.parametrize(("data", "accepted"), PLACES.values(), ids=PLACES.keys())
def test_exactly_the_bytes_of_the_grammar_are_accepted(data: bytes, accepted: frozenset[int]) -> None:
    before, _, after = data.partition(b"@")
    found = {byte for byte in range(256) if first_request([before + bytes([byte]) + after]).status == 200}
    assert found == accepted, f"accepted {bytes(found - accepted)!r}, refused {bytes(accepted - found)!r}"
