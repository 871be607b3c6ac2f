"""What trusted proxies say of the client, through the parser as a connection drives it."""

from __future__ import annotations

from typing import Any

import pytest

from forkserve.http.errors import RefusedRequest
from forkserve.http.forwarded import HOPS_MAX, Forwarding, client_of
from forkserve.http.request import HeadLimits, HeadParser
from forkserve.networks import Networks
from forkserve.settings import SECURE_SCHEME_HEADERS

BASE = {"SCRIPT_NAME": "", "wsgi.url_scheme": "http", "REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "4711"}
OURS = Networks(["10.0.0.0/8", "2001:db8::/32"])


def parser(**policy: Any) -> HeadParser:
    return HeadParser(HeadLimits(), Forwarding(scheme_headers=SECURE_SCHEME_HEADERS, proxies=OURS, **policy))


def parsed(subject: HeadParser, *fields: str, target: str = "/", is_trusted: bool = True) -> dict[str, Any]:
    head = "\r\n".join([f"GET {target} HTTP/1.1", "Host: a", *fields]).encode("latin-1")
    return subject.parse(head, BASE, is_trusted)[0]


def refused(subject: HeadParser, *fields: str, target: str = "/") -> RefusedRequest:
    with pytest.raises(RefusedRequest) as caught:
        parsed(subject, *fields, target=target)
    return caught.value


# ---------------------------------------------------------------------------------------------- the scheme


@pytest.mark.parametrize(
    ("fields", "scheme"),
    [
        ([], "http"),
        (["X-Forwarded-Proto: https"], "https"),
        (["x-forwarded-proto:https"], "https"),
        (["X-Forwarded-Proto: http"], "http"),
        (["X-Forwarded-Proto: HTTPS"], "http"),
        (["X-Forwarded-Proto:"], "http"),
        (["X-Forwarded-Protocol: ssl"], "https"),
        (["X-Forwarded-Protocol: https"], "http"),
        (["X-Forwarded-Ssl: on"], "https"),
        (["X-Forwarded-Ssl: on", "X-Forwarded-Proto: https"], "https"),
        (["X-Forwarded-Ssl: off", "X-Forwarded-Proto: http"], "http"),
        (["X-Forwarded-Proto: https", "X-Forwarded-Proto: https"], "https"),
        (["X-Forwarded-Proto: https,\t https"], "https"),
        (["X-Forwarded-Proto: http, wss"], "http"),
        (["X_Forwarded_Proto: https"], "http"),
    ],
)
def test_scheme_is_taken_from_a_trusted_proxy(fields: list[str], scheme: str) -> None:
    subject = parser()
    for _ in range(3):  # the first time, the second (a name that is known), from the lines that are remembered
        assert parsed(subject, *fields)["wsgi.url_scheme"] == scheme


@pytest.mark.parametrize(
    "fields",
    [
        ["X-Forwarded-Ssl: on", "X-Forwarded-Proto: http"],
        ["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"],
        ["X-Forwarded-Proto: http, https"],
        ["X-Forwarded-Proto: https", "X-Forwarded-Protocol: https"],
    ],
)
def test_fields_that_contradict_each_other_are_refused_from_a_trusted_proxy_alone(fields: list[str]) -> None:
    subject = parser()
    for _ in range(3):
        assert refused(subject, *fields).status == 400
        assert parsed(subject, *fields, is_trusted=False)["wsgi.url_scheme"] == "http"


def test_fields_of_others_are_text_and_no_more() -> None:
    subject = parser(forwarded_for=True, forwarder_headers=["SCRIPT_NAME"])
    fields = "X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.7", "SCRIPT_NAME: /a"
    for is_trusted in (False, True, False):  # what is remembered of one peer's lines does not count for another
        environ = parsed(subject, *fields, target="/a/b", is_trusted=is_trusted)
        assert environ["wsgi.url_scheme"] == ("https" if is_trusted else "http")
        assert environ["REMOTE_ADDR"] == ("192.0.2.7" if is_trusted else "10.0.0.1")
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (("/a", "/b") if is_trusted else ("", "/a/b"))
        assert environ["HTTP_X_FORWARDED_PROTO"] == "https"
        assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.7"
        assert environ.get("HTTP_SCRIPT_NAME") == ("/a" if is_trusted else None)


def test_scheme_of_a_tls_listener_can_be_told_otherwise() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: http"
    assert parser().parse(head, BASE | {"wsgi.url_scheme": "https"}, True)[0]["wsgi.url_scheme"] == "http"


def test_a_policy_without_fields_does_nothing() -> None:
    subject = HeadParser(HeadLimits(), Forwarding())
    assert parsed(subject, "X-Forwarded-Proto: https", "SCRIPT_NAME: /a")["wsgi.url_scheme"] == "http"


# ---------------------------------------------------------------------------------------------- names with underscores


def test_names_with_underscores_are_dropped_unless_they_are_named() -> None:
    environ = parsed(parser(), "SCRIPT_NAME: /a", "PATH_INFO: /b", "REMOTE_USER: c", target="/a/b")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/a/b")
    assert not {"HTTP_SCRIPT_NAME", "HTTP_PATH_INFO", "HTTP_REMOTE_USER"} & set(environ)


def test_named_ones_arrive_as_http_variables_whatever_their_case() -> None:
    subject = parser(forwarder_headers=["remote_user", "PATH_INFO"])
    environ = parsed(subject, "REMOTE_USER: joe", "Path_Info: /b")
    assert (environ["HTTP_REMOTE_USER"], environ["HTTP_PATH_INFO"], environ["PATH_INFO"]) == ("joe", "/b", "/")


def test_a_client_cannot_send_them_by_another_spelling() -> None:
    subject = parser(forwarder_headers=["REMOTE_USER", "A_B_C"])
    for _ in range(2):
        assert "HTTP_REMOTE_USER" not in parsed(subject, "Remote-User: admin")
        environ = parsed(subject, "Remote-User: admin", "REMOTE_USER: joe", "A-B_C: 1", "A-B-C: 2")
        assert environ["HTTP_REMOTE_USER"] == "joe"
        assert "HTTP_A_B_C" not in environ


def test_a_second_one_is_refused() -> None:
    subject = parser(forwarder_headers=["REMOTE_USER"])
    assert refused(subject, "REMOTE_USER: admin", "REMOTE_USER: joe").status == 400
    assert "HTTP_REMOTE_USER" not in parsed(subject, "REMOTE_USER: a", "REMOTE_USER: b", is_trusted=False)


@pytest.mark.parametrize(
    ("script_name", "target", "mounted"),
    [
        ("/shop", "/shop/cart?x", ("/shop", "/cart")),
        ("/shop", "/shop", ("/shop", "")),
        ("/shop/", "/shop/cart", ("/shop", "/cart")),
        ("/shop", "/shop/", ("/shop", "/")),
        ("/a/b", "/a/b/c", ("/a/b", "/c")),
        ("", "/cart", ("", "/cart")),
        ("/", "/cart", ("", "/cart")),
        ("/a b", "/a%20b/c", ("/a b", "/c")),
        ("/\xc3\xa9", "/%C3%A9/c", ("/\xc3\xa9", "/c")),
        ("/shop", "http://a/shop/cart", ("/shop", "/cart")),
    ],
)
def test_script_name_is_cut_from_the_path(script_name: str, target: str, mounted: tuple[str, str]) -> None:
    environ = parsed(parser(forwarder_headers=["SCRIPT_NAME"]), f"SCRIPT_NAME: {script_name}", target=target)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == mounted
    assert environ["RAW_URI"] == target


@pytest.mark.parametrize("target", ["/", "/shops", "/Shop/cart", "/cart"])
def test_a_path_outside_of_script_name_is_not_found(target: str) -> None:
    assert refused(parser(forwarder_headers=["SCRIPT_NAME"]), "SCRIPT_NAME: /shop", target=target).status == 404


def test_a_script_name_that_is_no_path_is_refused() -> None:
    assert refused(parser(forwarder_headers=["SCRIPT_NAME"]), "SCRIPT_NAME: shop", target="/shop").status == 400


def test_the_asterisk_has_no_prefix() -> None:
    subject = parser(forwarder_headers=["SCRIPT_NAME"])
    environ = subject.parse(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /a", BASE, True)[0]
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "")


# ---------------------------------------------------------------------------------------------- the client's address


@pytest.mark.parametrize(
    ("hops", "client"),
    [
        ("192.0.2.7", ("192.0.2.7", "")),
        ("192.0.2.7, 10.0.0.9", ("192.0.2.7", "")),
        ("203.0.113.1, 192.0.2.7,10.0.0.9 ,\t10.0.0.8", ("192.0.2.7", "")),
        ("10.0.0.7, 10.0.0.8", ("10.0.0.7", "")),
        ("192.0.2.7:4321", ("192.0.2.7", "4321")),
        ("[2001:db9::1]:4321, 2001:db8::2", ("2001:db9::1", "4321")),
        ("[2001:db9::1]", ("2001:db9::1", "")),
        ("2001:DB9:0::1", ("2001:db9::1", "")),
        ("::ffff:192.0.2.7", ("192.0.2.7", "")),
        ("192.0.2.7, ::ffff:10.0.0.3", ("192.0.2.7", "")),
        ("192.0.2.7,", ("192.0.2.7", "")),
        (",, 192.0.2.7,,10.0.0.1", ("192.0.2.7", "")),
        ("192.0.2.7, unknown, 10.0.0.9", ("10.0.0.9", "")),
        ("192.0.2.7, _hidden", None),
        ("", None),
        ("  ,", None),
        ("garbage", None),
        ("192.0.2.7:99999", None),
        ("192.0.2.7:", None),
        ("192.0.2.07", None),
        ("192.0.2", None),
        ("fe80::1%eth0", None),
        ("[192.0.2.7]", ("192.0.2.7", "")),
        ("[2001:db9::1", None),
        ("2001:db9::1]:1", None),
        ("192.0.2.7 192.0.2.8", None),
        ('"192.0.2.7"', None),
        ("\xb2.0.2.7", None),
    ],
)
def test_client_is_the_right_most_address_that_is_no_proxy_of_ours(hops: str, client: tuple[str, str] | None) -> None:
    assert client_of("10.0.0.1", hops, OURS) == client
    environ = parsed(parser(forwarded_for=True), f"X-Forwarded-For: {hops}")
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (client or ("10.0.0.1", "4711"))


def test_several_fields_are_one_list() -> None:
    fields = "X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 10.0.0.9"
    assert parsed(parser(forwarded_for=True), *fields)["REMOTE_ADDR"] == "192.0.2.7"


def test_address_stays_the_proxys_unless_it_is_asked_for() -> None:
    environ = parsed(parser(), "X-Forwarded-For: 192.0.2.7")
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("10.0.0.1", "4711")


def test_peer_that_is_no_proxy_of_ours_says_nothing_of_its_client() -> None:
    assert client_of("192.0.2.1", "192.0.2.7", OURS) is None  # told by the PROXY protocol, say
    assert client_of("", "192.0.2.7", OURS) == ("192.0.2.7", "")  # a unix socket


def test_where_everybody_is_trusted_the_nearest_address_counts() -> None:
    assert client_of("192.0.2.1", "203.0.113.1, 198.51.100.7, 10.0.0.9", Networks(["*"])) == ("10.0.0.9", "")


def test_a_long_chain_is_read_to_its_limit() -> None:
    chain = ["10.0.1.2"] * (HOPS_MAX - 1)
    assert client_of("10.0.0.1", ",".join(["192.0.2.7", *chain]), OURS) == ("192.0.2.7", "")
    assert client_of("10.0.0.1", ",".join(["192.0.2.7", "10.0.9.9", *chain, "10.0.0.8"]), OURS) == ("10.0.1.2", "")
