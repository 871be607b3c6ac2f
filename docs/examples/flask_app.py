"""A Flask application: ``forkserve --pythonpath docs/examples flask_app:app``."""

from __future__ import annotations

import os
from collections.abc import Iterator

from flask import Flask, Response, jsonify, request

app = Flask(__name__)


@app.get("/")
def index() -> str:
    """Say hello."""
    return "Hello from Flask!"


@app.get("/whoami")
def whoami() -> Response:
    """The process that answers."""
    return jsonify(pid=os.getpid(), server=request.environ.get("SERVER_SOFTWARE"), scheme=request.scheme)


@app.post("/echo")
def echo() -> Response:
    """Give the JSON of the request back."""
    return jsonify(request.get_json())


@app.post("/form")
def form() -> Response:
    """The fields and files of a form, as Flask understood them."""
    files = {name: len(upload.read()) for name, upload in request.files.items()}
    return jsonify(fields=request.form.to_dict(), files=files)


@app.get("/stream")
def stream() -> Response:
    """Three lines, one at a time."""

    def lines() -> Iterator[str]:
        for number in range(3):
            yield f"line {number}\n"

    return Response(lines(), mimetype="text/plain")


@app.get("/error")
def error() -> str:
    """A view with a bug."""
    raise RuntimeError("a bug in a view")


def create_app(greeting: str = "Hello") -> Flask:
    """A factory: ``forkserve "flask_app:create_app('Good morning')"``."""
    made = Flask("made")
    made.add_url_rule("/", view_func=lambda: f"{greeting} from a factory!")
    return made
