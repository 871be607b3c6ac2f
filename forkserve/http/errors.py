"""What can be wrong with a message: the client's request, or the application's response."""

from __future__ import annotations

from http import HTTPStatus


class RefusedRequest(Exception):
    """A request that is answered by the server itself, without the application, and ends its connection.

    Args:
        status: the status code of the answer, 400 to 599.
        reason: one line for the client and the log; never holds bytes of the request.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason

    @property
    def phrase(self) -> str:
        """The registered reason phrase of the status (RFC 9110 section 15)."""
        return HTTPStatus(self.status).phrase

    @property
    def page(self) -> bytes:
        """What the client is told."""
        return f"{self.status} {self.phrase}: {self.reason}\n".encode("latin-1", "replace")


class BadResponse(Exception):
    """The application's status or headers cannot be put on the wire (PEP 3333); nothing was sent of them."""
