"""Addresses and views of the example project."""

from __future__ import annotations

import os
from collections.abc import Iterator

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path


def index(_request: HttpRequest) -> HttpResponse:
    """Say hello."""
    return HttpResponse("Hello from Django!")


def whoami(request: HttpRequest) -> JsonResponse:
    """The process that answers."""
    return JsonResponse({"pid": os.getpid(), "server": request.META.get("SERVER_SOFTWARE"), "scheme": request.scheme})


def upload(request: HttpRequest) -> JsonResponse:
    """How many bytes came."""
    return JsonResponse({"bytes": len(request.body)})


def rows(_request: HttpRequest) -> StreamingHttpResponse:
    """Rows of a database cursor that stays open while the answer is sent."""

    def lines() -> Iterator[str]:
        with connection.cursor() as cursor:
            cursor.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT i FROM n"
            )
            while (row := cursor.fetchone()) is not None:
                yield f"{row[0]}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def error(_request: HttpRequest) -> HttpResponse:
    """A view with a bug."""
    raise RuntimeError("a bug in a view")


urlpatterns = [
    path("", index),
    path("whoami", whoami),
    path("upload", upload),
    path("rows", rows),
    path("error", error),
]
