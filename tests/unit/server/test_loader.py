"""Loading applications: what works, and what each failure says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkserve.errors import AppLoadError, PrivilegeError
from forkserve.server.loader import load_application, prepare_path

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into a fresh directory that is first on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = set(sys.modules)

    def write_module(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    yield write_module
    for name in set(sys.modules) - known:
        del sys.modules[name]


def failure(spec: str) -> AppLoadError:
    with pytest.raises(AppLoadError) as caught:
        load_application(spec)
    assert "\n" not in str(caught.value)
    return caught.value


APP = "def application(environ, start_response): return [b'x']\n"


def test_module_alone_means_its_attribute_application(write: Write) -> None:
    write("site_a.py", APP)
    assert load_application("site_a").__name__ == "application"


def test_attribute_may_be_dotted(write: Write) -> None:
    write("site_b.py", APP + "class container:\n    app = staticmethod(application)\n")
    assert load_application("site_b:container.app").__name__ == "application"


def test_factory_is_called_with_literal_arguments(write: Write) -> None:
    write("site_c.py", "def create(*a, **k):\n    return lambda environ, start: [repr((a, k)).encode()]\n")
    app = load_application("site_c:create('prod', -1, [1, {'x': None}], debug=False)")
    assert app({}, None) == [b"(('prod', -1, [1, {'x': None}]), {'debug': False})"]


def test_missing_module_is_named_with_a_near_name(write: Write) -> None:
    write("mysite.py", APP)
    error = failure("mysit:application")
    assert str(error) == "mysit:application: there is no module 'mysit'; did you mean mysite?"
    assert error.traceback_text == ""


def test_missing_module_without_a_near_name_says_where_it_was_looked_for(write: Write) -> None:
    assert f"there is no module 'qqqqq' in {os.getcwd()}" in str(failure("qqqqq:app"))


def test_missing_module_of_a_package_is_named_with_a_near_name(write: Write) -> None:
    write("pack/__init__.py", "")
    write("pack/wsgi.py", APP)
    assert "did you mean pack.wsgi?" in str(failure("pack.wsgy"))
    assert "there is no module 'pack.zzz' in pack" in str(failure("pack.zzz"))


def test_file_name_in_place_of_a_module_is_explained(write: Write) -> None:
    write("mysite.py", APP)
    assert "write 'mysite' without .py" in str(failure("mysite.py:application"))
    assert "for example pack.wsgi:app" in str(failure("./pack/wsgi.py:app"))


def test_missing_import_of_the_application_is_told_from_a_missing_application(write: Write) -> None:
    write("site_d.py", "import not_installed_at_all\n")
    error = failure("site_d:application")
    assert "site_d was found, but imports 'not_installed_at_all', which is not there" in str(error)
    assert error.traceback_text.splitlines()[1].startswith(f'  File "{os.getcwd()}/site_d.py", line 1')


def test_missing_submodule_imported_by_the_application_shows_its_traceback(write: Write) -> None:
    write("pack2/__init__.py", "import pack2.missing\n")
    error = failure("pack2.missing")
    assert "imports 'pack2.missing'" in str(error)
    assert "pack2/__init__.py" in error.traceback_text


def test_traceback_begins_at_the_applications_own_frame_and_has_no_machinery(write: Write) -> None:
    write("site_e.py", "import site_e_inner\n")
    write("site_e_inner.py", "def f():\n    raise RuntimeError('no  database\\nhere')\nf()\n")
    error = failure("site_e")
    assert str(error) == "site_e: importing site_e failed: RuntimeError: no database here"
    lines = error.traceback_text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "site_e.py" in lines[1]
    assert "importlib" not in error.traceback_text
    assert "loader.py" not in error.traceback_text
    assert "RuntimeError: no  database" in lines


def test_causes_are_shown_without_machinery(write: Write) -> None:
    write("site_f.py", "try:\n    import site_f_inner\nexcept Exception as e:\n    raise ValueError('outer') from e\n")
    write("site_f_inner.py", "1 / 0\n")
    text = failure("site_f").traceback_text
    assert "ZeroDivisionError" in text
    assert "direct cause" in text
    assert "importlib" not in text


def test_syntax_error_names_file_and_line(write: Write) -> None:
    write("site_g.py", "x = 1\ndef (:\n")
    error = failure("site_g")
    assert f"syntax error in {os.getcwd()}/site_g.py line 2" in str(error)
    assert "def (:" in error.traceback_text


def test_exit_during_import_is_an_error_of_the_application(write: Write) -> None:
    write("site_h.py", "import sys\nsys.exit(0)\n")
    assert "importing site_h left the interpreter with sys.exit(0)" in str(failure("site_h"))


def test_missing_attribute_offers_near_names(write: Write) -> None:
    write("site_i.py", APP)
    assert str(failure("site_i:aplication")) == (
        "site_i:aplication: site_i has no attribute 'aplication'; did you mean application?"
    )


def test_missing_attribute_offers_what_looks_like_an_application(write: Write) -> None:
    write("site_j.py", "def create_app(): ...\n")
    assert str(failure("site_j")).endswith("site_j has no attribute 'application'; it has create_app()")


def test_attribute_that_fails_to_be_read_is_the_applications_failure(write: Write) -> None:
    write("site_k.py", "class C:\n    @property\n    def app(self):\n        return 1 / 0\nc = C()\n")
    error = failure("site_k:c.app")
    assert "reading site_k.c failed" in str(error) or "reading site_k.c.app failed: ZeroDivisionError" in str(error)
    assert "site_k.py" in error.traceback_text


def test_not_callable_says_what_it_is(write: Write) -> None:
    write("site_l.py", "import os\nnumber = 3\nnothing = None\ndef make(): return None\n")
    assert str(failure("site_l:number")).endswith("number is an object of type int, not a WSGI callable")
    assert str(failure("site_l:nothing")).endswith("nothing is None, not a WSGI callable")
    assert str(failure("site_l:os")).endswith("os is a module, not a WSGI callable: write os:application")
    assert str(failure("site_l:make()")).endswith("make() returned None, which is not a WSGI callable")
    assert "leave out the ()" in str(failure("site_l:number()"))


def test_factory_without_its_parentheses_is_told_to_have_them(write: Write) -> None:
    write(
        "site_q.py",
        "from functools import wraps\n"
        "def make(): return make\n"
        "def make_named(name='x'): ...\n"
        "def with_request(view):\n"
        "    @wraps(view)\n"
        "    def application(*arguments): ...\n"
        "    return application\n"
        "@with_request\n"
        "def view(request): ...\n",
    )
    assert str(failure("site_q:make")) == (
        "site_q:make: make takes no arguments, but a WSGI application is called with two, environ and start_response: "
        "if it makes the application, write site_q:make()"
    )
    assert "make_named takes 1 argument, but" in str(failure("site_q:make_named"))
    assert "the function that make() returned takes no arguments" in str(failure("site_q:make()"))
    assert load_application("site_q:view").__name__ == "view"


def test_factory_that_raises_shows_its_traceback(write: Write) -> None:
    write("site_m.py", "def make(a=1):\n    raise KeyError('SECRET_KEY')\ndef leave(): raise SystemExit(4)\n")
    error = failure("site_m:make()")
    assert str(error) == "site_m:make(): make() failed: KeyError: 'SECRET_KEY'"
    assert "site_m.py" in error.traceback_text.splitlines()[1]
    assert "sys.exit(4)" in str(failure("site_m:leave()"))


def test_factory_with_wrong_arguments_says_so(write: Write) -> None:
    write("site_n.py", "def make(name): ...\n")
    assert "make cannot be called with these arguments: make() missing 1 required" in str(failure("site_n:make()"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("site_o:make(name)", "not all literals"),
        ("site_o:make(**{'a': 1})", "**arguments"),
        ("site_o:make(", "neither an attribute's name nor a call"),
        ("site_o:a[0]", "neither an attribute's name nor a call"),
        ("site_o:", "write module:attribute"),
        (":app", "write module:attribute"),
        ("a b:app", "write module:attribute"),
        ("", "write module:attribute"),
    ],
)
def test_malformed_specification_is_refused(write: Write, spec: str, words: str) -> None:
    write("site_o.py", "a = [1]\ndef make(**k): ...\n")
    assert words in str(failure(spec))


def test_path_is_prepared_like_gunicorns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", ["/usr/lib/x", str(tmp_path)])
    prepare_path(str(tmp_path), ("/one", "/two"))
    assert os.getcwd() == str(tmp_path)
    assert sys.path == ["/one", "/two", str(tmp_path), "/usr/lib/x"]


def test_missing_directory_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrivilegeError, match="chdir = '/not/there': cannot change to it"):
        prepare_path("/not/there")


def test_asgi_application_is_refused(write: Write) -> None:
    write(
        "site_p.py",
        "class App:\n    async def __call__(self, scope, receive, send): ...\napp = App()\nasync def f(s, r, d): ...\n",
    )
    assert str(failure("site_p:app")).endswith("app is an ASGI application; forkserve serves WSGI applications")
    assert "f is an ASGI application" in str(failure("site_p:f"))
