"""What a request says about who sent it and what it would do; see `sae_workflows.guard`."""

import json
import re
from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from graphql import GraphQLError, OperationDefinitionNode, parse
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

READS = frozenset({"query"})
LISTENS = frozenset({"query", "subscription"})

MAX_BODY = 1 << 20
"""Bytes of a query that the guard has to understand; what is larger is refused unread."""

MAX_TOKENS = 20_000
"""Lexical tokens of a query that the guard has to understand."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"(https?)://([^/?#@\s]+)")
_DEFAULT_PORT = {"http": ":80", "https": ":443"}


class Refused(Exception):
    """The guard's own answer to a request."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)


def check_host(headers: Headers, names: frozenset[str]) -> None:
    """Raise unless the one `Host` header has one of ``names``."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or name_of(hosts[0]) not in names:
        raise Refused(
            HTTPStatus.MISDIRECTED_REQUEST,
            f"Nothing is served for {', '.join(hosts) or 'no host'}; served are "
            f"{', '.join(sorted(names))}. `sae ui --allow-host NAME` adds one.",
        )


def check_origin(headers: Headers, *, is_page: bool) -> None:
    """Raise when a browser says that a page of another origin than ours sent the request.

    ``is_page`` - a person follows a link to a page of ours - is the one thing that they may do.
    """
    for origin in headers.getlist("origin"):
        match = _ORIGIN.fullmatch(origin.lower())
        port = _DEFAULT_PORT[match[1]] if match else ""
        host = headers["host"].lower().removesuffix(port)
        if match is None or match[2].removesuffix(port) != host:
            raise Refused(HTTPStatus.FORBIDDEN, f"Pages of {origin} may not use this UI.")
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_page:
        raise Refused(HTTPStatus.FORBIDDEN, "Pages of other origins may not use this UI.")


def operations(text: object) -> frozenset[str]:
    """Kinds of all operations in a GraphQL document, whichever of them a request names.

    Raises `Refused` for what is no document: nothing is let through that was not understood.
    """
    try:
        if not isinstance(text, str):
            raise TypeError
        document = parse(text, no_location=True, max_tokens=MAX_TOKENS)
    except (GraphQLError, TypeError, RecursionError):
        raise Refused(HTTPStatus.BAD_REQUEST, "This is no GraphQL document.") from None
    return frozenset(
        node.operation.value
        for node in document.definitions
        if isinstance(node, OperationDefinitionNode)
    )


def name_of(host: str) -> str | None:
    """The name in a `Host` header, without the port; None when it is none."""
    match = _HOST.fullmatch(host.strip().lower())
    return match[1] if match else None


def is_graphql(scope: Scope) -> bool:
    return scope["path"].rstrip("/").endswith("/graphql")


def is_visit(scope: Scope, headers: Headers) -> bool:
    """Whether a person follows a link to a page: not a frame, a picture, a script or a fetch."""
    return (
        scope["method"] == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and not is_graphql(scope)
    )


def check_url(scope: Scope) -> None:
    """GET may ask, never change: it needs no permission of any page to be sent."""
    parts = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    for key, value in parts:
        if key == "query" and not operations(value) <= READS:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "GET is for queries only.")


def check_json(headers: Headers) -> None:
    """A form of any page can send text and forms without asking, but not JSON."""
    types = headers.getlist("content-type")
    media = [one.partition(";")[0].strip().lower() for one in types]
    if media != ["application/json"]:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Send GraphQL as JSON: content-type application/json.",
        )


def operations_of_body(body: bytes) -> frozenset[str]:
    """Kinds of all operations of a GraphQL request in JSON; a batch of requests is refused."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        sent = None
    if not isinstance(sent, Mapping):
        raise Refused(HTTPStatus.BAD_REQUEST, "The body is no JSON object with a query.")
    return operations(sent.get("query"))


async def body_of(receive: Receive) -> bytes:
    """The whole body, which has to be short."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(HTTPStatus.BAD_REQUEST, "The request ended before its body did.")
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "This is too long for a query.")
    return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """Hands out a body that was read already, then whatever comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def only_listening(receive: Receive, send: Send) -> Receive:
    """Messages of a websocket, up to the first that asks for a change or is not understood."""

    async def checked() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive" and not _only_listens(message):
            await send({"type": "websocket.close", "code": 1008})
            return {"type": "websocket.disconnect", "code": 1008}
        return message

    return checked


def _only_listens(message: MutableMapping[str, Any]) -> bool:
    try:
        sent = json.loads(message.get("text") or message.get("bytes") or b"")
        payload = sent.get("payload") or {}
        if sent.get("type") == "start" or "query" in payload:
            return operations(payload["query"]) <= LISTENS
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, Refused):
        return False
    return True
