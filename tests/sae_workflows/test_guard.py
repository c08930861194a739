"""The guard of the web UI at the level of ASGI, around an application that notes its calls."""

import asyncio
import json
from typing import NamedTuple
from urllib.parse import urlencode

import pytest

pytest.importorskip("graphql")

from sae_workflows.guard import LOOPBACK, Guard, Policy

TOKEN = "t0ken"
OPEN = Policy(TOKEN)
HOST = "127.0.0.1:3000"
OURS = {"host": HOST, "origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
JSON = {"content-type": "application/json"}
KNOWN = {"x-sae-token": TOKEN}
COOKIE = {"cookie": f"other=1; sae-ui={TOKEN}"}
MUTATION = "mutation { setNuxSeen }"


class Answer(NamedTuple):
    status: int
    headers: dict[str, list[str]]
    body: bytes
    received: bytes | None
    """What the application read; None when it was never called."""


def raw(headers):
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [(key.lower().encode(), value.encode("utf-8")) for key, value in pairs]


def ask(policy=OPEN, method="GET", path="/", query="", headers=None, body=b"", chunks=1) -> Answer:
    """One request; ``headers`` replaces the plain ones of a program on this machine."""
    headers = {"host": HOST} if headers is None else headers
    headers = {"host": HOST, **headers} if isinstance(headers, dict) else headers
    size = -(-len(body) // chunks) or 1
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    coming = [
        {"type": "http.request", "body": part, "more_body": number + 1 < len(parts)}
        for number, part in enumerate(parts)
    ]
    sent, seen = [], []

    async def app(scope, receive, send):
        taken, more = b"", True
        while more:
            message = await receive()
            taken, more = taken + message["body"], message["more_body"]
        seen.append(taken)
        start = [(b"access-control-allow-origin", b"*"), (b"x-frame-options", b"ALLOWALL")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": b"done"})

    async def receive():
        return coming.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode() if isinstance(query, str) else urlencode(query).encode(),
        "headers": raw(headers),
        "scheme": "http",
    }
    asyncio.run(Guard(app, policy)(scope, receive, send))
    answered: dict[str, list[str]] = {}
    for key, value in sent[0]["headers"]:
        answered.setdefault(key.decode().lower(), []).append(value.decode())
    body = b"".join(part.get("body", b"") for part in sent[1:])
    return Answer(sent[0]["status"], answered, body, seen[0] if seen else None)


def listen(policy=OPEN, headers=None, messages=()):
    """One websocket; what the application was told, and what the browser was."""
    coming = [{"type": "websocket.connect"}]
    coming += [{"type": "websocket.receive", "text": text} for text in messages]
    coming += [{"type": "websocket.disconnect", "code": 1000}]
    told, sent = [], []

    async def app(scope, receive, send):
        while True:
            message = await receive()
            told.append(message)
            if message["type"] == "websocket.disconnect":
                return

    async def receive():
        return coming.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/graphql",
        "query_string": b"",
        "headers": raw({"host": HOST, **(headers or {})}),
    }
    asyncio.run(Guard(app, policy)(scope, receive, send))
    return told, sent


def graphql(query, policy=OPEN, headers=None, **more) -> Answer:
    body = json.dumps({"query": query, **more}).encode()
    return ask(policy, "POST", "/graphql", headers={**JSON, **(headers or {})}, body=body)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:3000", "localhost:3000", "LOCALHOST", "[::1]:3000", "localhost:8080"]
)
def test_the_names_of_this_machine_are_served_at_any_port(host):
    assert ask(headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:3000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1:3000/../",
        "127.0.0.1 evil.example",
        "localhost.",
        "0.0.0.0:3000",
        "127.0.0.2",
        "",
    ],
)
def test_no_other_name_is(host):
    answer = ask(headers={"host": host, **KNOWN})
    assert (answer.status, answer.received) == (421, None)


def test_one_host_header_is_needed():
    assert ask(headers=[("host", HOST), ("host", "evil.example")]).status == 421
    assert ask(headers=[("accept", "*/*")]).status == 421


def test_a_name_can_be_allowed_and_then_needs_the_token():
    policy = OPEN._replace(names=LOOPBACK | {"sae.example.org"})
    there = {"host": "sae.example.org"}
    assert ask(policy, headers=there).status == 403
    assert ask(policy, headers={**there, **KNOWN}).status == 200
    assert ask(policy).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1:8888",
        "http://127.0.0.1",
        "http://localhost:3000",
        "null",
        "",
        "file://",
        f"http://{HOST}@evil.example",
        f"http://{HOST}/",
        f"chrome-extension://{HOST}",
    ],
)
@pytest.mark.parametrize("extra", [KNOWN, COOKIE], ids=["header", "cookie"])
def test_no_other_origin_may_ask_or_change_anything_whatever_it_knows(origin, extra):
    asked = ask(path="/graphql", query={"query": "{version}"}, headers={"origin": origin, **extra})
    assert (asked.status, asked.received) == (403, None)
    changed = graphql(MUTATION, headers={"origin": origin, **extra})
    assert (changed.status, changed.received) == (403, None)


def test_our_own_origin_may():
    assert graphql("{version}", headers=OURS).status == 200
    assert graphql(MUTATION, headers={**OURS, **COOKIE}).status == 200


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("sae.example", "https://sae.example", 200),
        ("sae.example:443", "https://sae.example", 200),
        ("sae.example", "http://sae.example:80", 200),
        ("sae.example", "https://sae.example:8443", 403),
        ("sae.example:80", "https://sae.example", 403),
    ],
)
def test_the_usual_port_of_a_scheme_may_be_left_out(host, origin, status):
    policy = OPEN._replace(names=frozenset({"sae.example"}))
    assert graphql("{a}", policy, {"host": host, "origin": origin, **KNOWN}).status == status


@pytest.mark.parametrize("site", ["cross-site", "same-site", "surprise"])
def test_what_the_browser_says_of_the_sender_counts(site):
    says = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert ask(path="/graphql", query={"query": "{a}"}, headers=says).status == 403
    assert ask(path="/logs/x.out", headers=says).status == 403
    frame = {**says, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    assert ask(headers=frame).status == 403


def test_a_person_may_follow_a_link_to_a_page_but_not_to_an_answer():
    visit = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert ask(path="/runs", headers=visit).status == 200
    assert ask(path="/graphql", query={"query": "{a}"}, headers=visit).status == 403
    assert ask(method="POST", path="/runs", headers={**visit, **COOKIE}).status == 403


CHANGES = {
    "plain": {"query": MUTATION},
    "named": {"query": "mutation A { setNuxSeen }", "operationName": "A"},
    "one of several": {"query": f"query Q {{ a }} {MUTATION}", "operationName": "Q"},
    "the second": {"query": "query Q { a } mutation M { b }", "operationName": "M"},
    "fragments": {"query": "mutation { ...F } fragment F on M { setNuxSeen }"},
    "comments": {"query": "# query { a }\n\ufeff,,mutation\n{ a }"},
    "subscription": {"query": "subscription { a }"},
    "subscription among queries": {"query": "query Q { a } subscription { a }"},
    "no document": {"query": "mutation {"},
    "no query": {"query": ""},
}


@pytest.mark.parametrize("params", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("extra", [{}, KNOWN, {**OURS, **COOKIE}, {"accept": "text/html"}])
def test_nothing_is_changed_by_get_with_or_without_a_token(params, extra):
    for path in ("/graphql", "/graphql/"):
        answer = ask(path=path, query=params, headers=extra)
        assert answer.status in (400, 405)
        assert answer.received is None


def test_of_several_queries_in_a_url_none_may_change_anything():
    for order in ([("query", "{a}"), ("query", MUTATION)], [("query", MUTATION), ("query", "{a}")]):
        assert ask(path="/graphql", query=urlencode(order)).status == 405
    assert ask(path="/graphql", query="qu%65ry=mutation%7Ba%7D").status == 405


def test_queries_are_answered_by_get_and_by_post_without_a_token_on_this_machine():
    query = "query Q { a ...F } fragment F on Query { b }"
    assert ask(path="/graphql", query={"query": query}).received == b""
    body = json.dumps({"query": query}).encode()
    answer = ask(method="POST", path="/graphql", headers=JSON, body=body, chunks=4)
    assert answer.received == body  # all of it, although the guard read it first


@pytest.mark.parametrize("params", CHANGES.values(), ids=CHANGES)
def test_without_a_token_post_only_asks(params):
    answer = graphql(**params)
    assert answer.status in (400, 403)
    assert answer.received is None
    assert "errors" in json.loads(answer.body)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps([{"query": "{a}"}, {"query": MUTATION}]).encode(),
        json.dumps({"query": "{a}"})[:-1].encode() + f', "query": "{MUTATION}"}}'.encode(),
        json.dumps({"query": MUTATION}).encode("utf-16"),
        json.dumps({"query": [MUTATION]}).encode(),
        b"[" * 100_000,
        json.dumps({"query": "{a" * 5_000 + "}" * 5_000}).encode(),
        json.dumps({"query": "{" + "a " * 200_000 + "}"}).encode(),
        json.dumps({"query": "{a}", "more": "x" * (1 << 20)}).encode(),
        b"",
    ],
    ids=["batch", "twice", "utf-16", "list", "deep", "nested", "wide", "long", "empty"],
)
def test_what_is_not_understood_is_not_passed_on(body):
    answer = ask(method="POST", path="/graphql", headers=JSON, body=body)
    assert answer.status in (400, 403, 413)
    assert answer.received is None


def test_a_request_that_breaks_off_ends():
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/graphql", "query_string": b""}
    asyncio.run(Guard(None, OPEN)({**scope, "headers": raw({"host": HOST, **JSON})}, receive, send))
    assert sent[0]["status"] == 400


FORMS = {
    "urlencoded": "application/x-www-form-urlencoded",
    "text": "text/plain",
    "multipart": "multipart/form-data; boundary=x",
    "graphql": "application/graphql",
    "text that mentions it": "text/plain; application/json",
    "two": "application/json, text/plain",
}


@pytest.mark.parametrize("kind", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("extra", [{}, KNOWN, {**OURS, **COOKIE}], ids=["none", "header", "cookie"])
def test_forms_change_nothing_with_or_without_a_token(kind, extra):
    body = json.dumps({"query": MUTATION}).encode()
    headers = {"content-type": kind, **extra}
    for query in ({}, {"query": MUTATION}):
        answer = ask(method="POST", path="/graphql", query=query, headers=headers, body=body)
        assert (answer.status, answer.received) == (415, None)


def test_there_is_one_content_type():
    headers = [("host", HOST), ("content-type", "application/json"), ("content-type", "text/plain")]
    assert ask(method="POST", path="/graphql", headers=headers, body=b"{}").status == 415
    assert ask(method="POST", path="/graphql", body=b"{}").status == 415


@pytest.mark.parametrize(
    "extra",
    [
        KNOWN,
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN}"},
        {**COOKIE, "origin": f"http://{HOST}"},
        {**COOKIE, "sec-fetch-site": "same-origin"},
    ],
)
def test_the_token_lets_changes_through(extra):
    assert graphql(MUTATION, headers=extra).status == 200
    assert ask(method="POST", path="/report_asset_materialization/a", headers=extra).status == 200


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"x-sae-token": "t0keN"},
        {"x-sae-token": ""},
        {"x-sae-token": "ü"},
        {"authorization": f"Basic {TOKEN}"},
        {"cookie": f"sae-ui2={TOKEN}", "origin": f"http://{HOST}"},
        {"cookie": "sae-ui=", "origin": f"http://{HOST}"},
        {**COOKIE},  # a browser says where the page comes from; who does not is no page
        {**COOKIE, "sec-fetch-site": "none"},
    ],
)
def test_nothing_else_does(extra):
    assert graphql(MUTATION, headers=extra).status == 403
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"):
        answer = ask(method=method, path="/report_asset_materialization/a", headers=extra)
        assert (answer.status, answer.received) == (403, None)
    assert ask(method="PUT", path="/graphql", headers={**JSON, **extra}).status == 403


def test_a_preflight_gets_no_permission():
    asks = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = ask(method="OPTIONS", path="/graphql", headers=asks)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_printed_link_sets_a_strict_cookie_and_leads_on_without_the_token():
    answer = ask(path="/runs", query=f"a=1&token={TOKEN}&b=%22x")
    assert answer.status == 200
    assert answer.received is None
    (cookie,) = answer.headers["set-cookie"]
    assert cookie == f"sae-ui={TOKEN}; HttpOnly; Path=/; SameSite=strict"
    assert b'content="0;url=/runs?a=1&amp;b=%22x"' in answer.body
    assert TOKEN.encode() not in answer.body
    assert answer.headers["cache-control"] == ["no-store"]
    assert answer.headers["referrer-policy"] == ["no-referrer"]


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "///evil.example"])
def test_the_link_leads_nowhere_else(path):
    assert b"url=/evil.example" in ask(path=path, query=f"token={TOKEN}").body
    script = ask(path='/"><script>', query=f"token={TOKEN}").body
    assert b"<script" not in script


def test_a_wrong_token_in_a_link_is_refused_even_where_reading_is_free():
    answer = ask(query="token=wrong", headers={"accept": "text/html"})
    assert answer.status == 403
    assert "set-cookie" not in answer.headers
    assert ask(query=f"token={TOKEN}", headers={"host": "evil.example"}).status == 421


def test_behind_https_the_cookie_is_for_https_only():
    policy = OPEN._replace(names=frozenset({"sae.example"}))
    headers = {"host": "sae.example", "x-forwarded-proto": "https"}
    (cookie,) = ask(policy, query=f"token={TOKEN}", headers=headers).headers["set-cookie"]
    assert "; Secure" in cookie


@pytest.mark.parametrize(
    ("policy", "extra"),
    [
        (OPEN._replace(is_loopback=False), {}),
        (OPEN._replace(is_private=True), {}),
        (OPEN, {"x-forwarded-for": "10.0.0.1"}),
        (OPEN, {"forwarded": "for=10.0.0.1"}),
        (OPEN, {"via": "1.1 proxy"}),
    ],
)
def test_elsewhere_everything_needs_the_token(policy, extra):
    for path in ("/", "/vendor/x.js", "/graphql", "/logs/x.out"):
        assert ask(policy, path=path, headers=extra).status == 403
        assert ask(policy, path=path, headers={**extra, **COOKIE}).status == 200
    assert graphql("{a}", policy, extra).status == 403
    assert graphql("{a}", policy, {**extra, **KNOWN}).status == 200
    assert ask(policy, query=f"token={TOKEN}", headers=extra).status == 200
    told, sent = listen(policy, extra)
    assert told == []
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert listen(policy, {**extra, **COOKIE})[0]


def test_read_only_holds_for_those_who_know_the_token_too():
    policy = OPEN._replace(is_read_only=True)
    assert graphql(MUTATION, policy, KNOWN).status == 403
    assert ask(policy, "POST", "/report_asset_check/a", headers=KNOWN).status == 403
    assert graphql("{a}", policy, KNOWN).status == 200
    assert graphql("{a}", policy).status == 200
    start = json.dumps({"type": "start", "id": "1", "payload": {"query": MUTATION}})
    told, _ = listen(policy, KNOWN, [start])
    assert [message["type"] for message in told] == ["websocket.connect", "websocket.disconnect"]


def test_websockets_of_other_origins_are_not_opened():
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "null", **COOKIE},
        {"origin": f"http://{HOST}", "host": "evil.example"},
        {"sec-fetch-site": "same-site"},
    ):
        told, sent = listen(headers=headers)
        assert told == []
        assert sent == [{"type": "websocket.close", "code": 1008}]
    assert listen(headers=OURS)[0]
    assert listen()[0]  # a program on this machine


@pytest.mark.parametrize(
    ("payload", "passes"),
    [
        ({"query": "subscription { a }"}, True),
        ({"query": "query { a }"}, True),
        ({"query": MUTATION}, False),
        ({"query": f"subscription S {{ a }} {MUTATION}", "operation_name": "S"}, False),
        ({"query": 3}, False),
        ([MUTATION], False),
    ],
)
def test_on_a_websocket_a_token_is_needed_for_more_than_listening(payload, passes):
    init = json.dumps({"type": "connection_init", "payload": {}})
    start = json.dumps({"type": "start", "id": "1", "payload": payload})
    told, sent = listen(messages=[init, start])
    assert len(told) == (4 if passes else 3)
    assert sent == ([] if passes else [{"type": "websocket.close", "code": 1008}])
    assert len(listen(headers=KNOWN, messages=[init, start])[0]) == 4
    assert len(listen(messages=["no json"])[0]) == 2


@pytest.mark.parametrize(
    "answer",
    [lambda: ask(), lambda: ask(headers={"host": "evil.example"}), lambda: graphql(MUTATION)],
)
def test_every_answer_keeps_the_page_out_of_frames_and_shares_nothing(answer):
    headers = answer().headers
    assert headers["x-frame-options"] == ["DENY"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == ["nosniff"]
    assert headers["referrer-policy"] == ["no-referrer"]
    assert headers["cross-origin-opener-policy"] == ["same-origin"]
    assert headers["cross-origin-resource-policy"] == ["same-origin"]
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_refusal_is_escaped():
    headers = {"origin": "<script>", "accept": "text/html"}
    assert b"<script>" not in ask(headers=headers).body
