"""The pages of pages.py by Flask."""

from __future__ import annotations

from flask import Flask, Response, jsonify, redirect, request, send_file
from werkzeug.wrappers import Response as BaseResponse

from tests.conformance.apps import pages

app = Flask(__name__)


@app.get("/hello")
def hello() -> Response:
    return Response("hello", mimetype="text/plain")


@app.route("/echo/<path:_rest>", methods=pages.METHODS)
def echo(_rest: str) -> Response:
    return jsonify(
        method=request.method,
        path=request.path,
        arguments=dict(request.args.lists()),
        host=request.host,
        cookies=request.cookies.to_dict(),
        **pages.seen(request.environ),
        **pages.measured(request.stream.read),
    )


@app.post("/form")
def form() -> Response:
    files = {name: {"name": file.filename, **pages.measured(file.read)} for name, file in request.files.items()}
    return jsonify(fields=request.form.to_dict(), files=files)


@app.get("/stream")
def stream() -> Response:
    return Response(iter(pages.LINES), mimetype="text/plain")


@app.get("/gate/<name>")
def gate(name: str) -> Response:
    return Response(pages.gated(pages.path_of(name)), mimetype="text/plain")


@app.get("/file/<name>")
def file(name: str) -> Response:
    return send_file(pages.path_of(name), mimetype="application/octet-stream", conditional=True)


@app.get("/large")
def large() -> Response:
    return Response(pages.LARGE, mimetype="application/octet-stream")


@app.get("/header/<int:size>")
def header(size: int) -> Response:
    return Response("hello", headers={"X-Long": "x" * size})


@app.get("/cookies")
def cookies() -> Response:
    response = Response("hello")
    for name, value in pages.COOKIES.items():
        response.set_cookie(name, value)
    return response


@app.route("/redirect/<int:code>", methods=["GET", "POST"])
def redirected(code: int) -> BaseResponse:
    return redirect("/echo/redirected", code)


@app.get("/status/<int:code>")
def status(code: int) -> Response:
    return Response(status=code)


@app.get("/fail")
def fail() -> Response:
    raise RuntimeError("a bug in a view")
