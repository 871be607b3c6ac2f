"""The pages of pages.py by Django, in one module."""

from __future__ import annotations

import django.conf
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.conformance.apps import pages

django.conf.settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not one",
    USE_TZ=True,
)


def hello(_request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello", content_type="text/plain")


def echo(request: HttpRequest, **_rest: str) -> HttpResponse:
    return JsonResponse(
        {
            "method": request.method,
            "path": request.path,
            "arguments": dict(request.GET.lists()),
            "host": request.get_host(),
            "cookies": request.COOKIES,
            **pages.seen(request.META),
            **pages.measured(request.read),
        }
    )


def form(request: HttpRequest) -> HttpResponse:
    files = {name: {"name": file.name, **pages.measured(file.read)} for name, file in request.FILES.items()}
    return JsonResponse({"fields": request.POST.dict(), "files": files})


def stream(_request: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(iter(pages.LINES), content_type="text/plain")


def gate(_request: HttpRequest, name: str) -> HttpResponseBase:
    return StreamingHttpResponse(pages.gated(pages.path_of(name)), content_type="text/plain")


def file(_request: HttpRequest, name: str) -> HttpResponseBase:
    return FileResponse(pages.path_of(name).open("rb"), content_type="application/octet-stream")


def large(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(pages.LARGE, content_type="application/octet-stream")


def header(_request: HttpRequest, size: int) -> HttpResponse:
    return HttpResponse("hello", headers={"X-Long": "x" * size})


def cookies(_request: HttpRequest) -> HttpResponse:
    response = HttpResponse("hello")
    for name, value in pages.COOKIES.items():
        response.set_cookie(name, value)
    return response


def redirected(_request: HttpRequest, code: int) -> HttpResponse:
    return HttpResponse(status=code, headers={"Location": "/echo/redirected"})


def status(_request: HttpRequest, code: int) -> HttpResponse:
    return HttpResponse(status=code)


def fail(_request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a bug in a view")


urlpatterns = [
    path("hello", hello),
    path("echo/<path:rest>", echo),
    path("form", form),
    path("stream", stream),
    path("gate/<name>", gate),
    path("file/<name>", file),
    path("large", large),
    path("header/<int:size>", header),
    path("cookies", cookies),
    path("redirect/<int:code>", redirected),
    path("status/<int:code>", status),
    path("fail", fail),
]

application = get_wsgi_application()
