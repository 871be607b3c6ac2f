"""HTTP/1.1 as pure code: bytes in, requests out; responses in, bytes out.

    head bytes ── HeadParser.parse ──▶ environ, framing        request.py
    body bytes ── ChunkedDecoder ────▶ blocks, end, leftover   chunked.py
    status, headers ── HeadWriter.render ──▶ bytes, framing    response.py

Nothing here knows a socket, a clock, a thread or a log: time comes in as an argument, errors go out as exceptions
(errors.py).  The boundary is coarse on purpose, one call a head, so that a compiled twin can take its place.

What is accepted and refused, with the reasons, is told to people in docs/HTTP.md.
"""
