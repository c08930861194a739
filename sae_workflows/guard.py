"""Keeps other web pages, other users and other machines from using the web UI.

Dagster's web server asks nobody who they are. `Guard` wraps its ASGI application, in the same
process, so that no second, open port exists. It answers a request itself when

- the `Host` is a name nobody gave us: a foreign name that resolves to this machine (DNS rebinding);
- a page of another origin sent it (`Origin`, `Sec-Fetch-Site`), websockets included;
- it would change something and carries no token, or came by GET, or not as JSON;
- it only reads, but does not come from this machine, and carries no token.

docs/security.md says who is kept out by this and who is not.
"""

import hmac
import html
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sae_workflows._requests import (
    READS,
    Refused,
    body_of,
    check_host,
    check_json,
    check_origin,
    check_url,
    is_graphql,
    is_visit,
    name_of,
    only_listening,
    operations_of_body,
    replay,
)

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Names that no name server can point elsewhere; the port does not matter (`ssh -L`)."""

HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer, in place of what the application says there."""

FRAMES = "frame-ancestors 'none'"

OPEN_THE_LINK = "Open the link that `sae ui` printed when it started, or send its token."


class Policy(NamedTuple):
    """What one running UI lets through."""

    token: str
    """Secret of this run; ASCII."""

    names: frozenset[str] = LOOPBACK
    """Names, without a port, that a `Host` header may have."""

    is_loopback: bool = True
    """Whether only this machine can connect."""

    is_private: bool = False
    """Whether reading needs the token even on this machine."""

    is_read_only: bool = False
    """Whether nothing may be changed, with or without a token."""

    cookie: str = "sae-ui"
    """Name of the cookie; cookies are shared by all ports of a host, so it names the UI."""


class Guard:
    """ASGI middleware: ``app`` sees only what ``policy`` lets through."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send))

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            check_host(headers, self.policy.names)
            check_origin(headers, is_page=is_visit(scope, headers))
            page = self._page_that_sets_the_cookie(scope, headers)
            if page is None:
                receive = await self._admit(scope, headers, receive)
        except Refused as refused:
            page = _refusal(refused, scope, headers)
        if page is None:
            await self.app(scope, receive, send)
        else:
            await page(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            check_host(headers, self.policy.names)
            check_origin(headers, is_page=False)
            knows_token = self._knows_token(headers)
            if not (knows_token or self._is_local(headers)):
                raise Refused(HTTPStatus.FORBIDDEN, f"This needs a token. {OPEN_THE_LINK}")
        except Refused:
            await receive()  # the server wants its "connect" to be taken first
            await send({"type": "websocket.close", "code": 1008})
            return
        if not knows_token or self.policy.is_read_only:
            receive = only_listening(receive, send)
        await self.app(scope, receive, send)

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """What the application may receive from, when the request may pass at all."""
        knows_token = self._knows_token(headers)
        if not (knows_token or self._is_local(headers)):
            raise Refused(HTTPStatus.FORBIDDEN, f"This needs a token. {OPEN_THE_LINK}")
        asks_graphql = is_graphql(scope)
        if scope["method"] in ("GET", "HEAD"):
            if asks_graphql:
                check_url(scope)
            return receive
        if asks_graphql and scope["method"] == "POST":
            check_json(headers)
        elif self.policy.is_read_only or not knows_token:
            raise self._no_change()
        if knows_token and not self.policy.is_read_only:
            self._check_sender(headers)
            return receive
        body = await body_of(receive)
        if not operations_of_body(body) <= READS:
            raise self._no_change()
        return replay(body, receive)

    def _no_change(self) -> Refused:
        reason = f"Changes need a token. {OPEN_THE_LINK}"
        if self.policy.is_read_only:
            reason = "This UI is read-only."
        return Refused(HTTPStatus.FORBIDDEN, reason)

    def _page_that_sets_the_cookie(self, scope: Scope, headers: Headers) -> Response | None:
        """Answers the printed link: a cookie, and on to the same address without the token."""
        parts = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for key, value in parts if key == "token"]
        if scope["method"] != "GET" or not given or is_graphql(scope):
            return None
        if not any(self._is_token(value) for value in given):
            raise Refused(HTTPStatus.FORBIDDEN, f"This token is of another run. {OPEN_THE_LINK}")
        rest = urlencode([(key, value) for key, value in parts if key != "token"])
        # one slash: two would lead to another host
        path = "/" + quote(scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
        # a page, not a redirect: a browser that came from elsewhere, such as a web terminal, sends
        # no strict cookie along a redirect, but does when a page of ours leads on
        url = html.escape(path)
        answer = HTMLResponse(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={url}">'
            f'<p><a href="{url}">Open the UI</a></p>'
        )
        answer.set_cookie(
            self.policy.cookie,
            self.policy.token,
            httponly=True,
            samesite="strict",
            secure=headers.get("x-forwarded-proto") == "https" or scope.get("scheme") == "https",
        )
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8"), self.policy.token.encode("ascii"))

    def _in_header(self, headers: Headers) -> bool:
        given = headers.getlist("x-sae-token")
        for value in headers.getlist("authorization"):
            scheme, _, credentials = value.partition(" ")
            if scheme.lower() == "bearer":
                given.append(credentials.strip())
        return any(self._is_token(value) for value in given)

    def _in_cookie(self, headers: Headers) -> bool:
        pairs = [
            one.strip().partition("=")
            for all_ in headers.getlist("cookie")
            for one in all_.split(";")
        ]
        return any(self._is_token(value) for name, _, value in pairs if name == self.policy.cookie)

    def _knows_token(self, headers: Headers) -> bool:
        return self._in_header(headers) or self._in_cookie(headers)

    def _is_local(self, headers: Headers) -> bool:
        """Whether reading is free: asked on this machine, by its own name, through no proxy."""
        return (
            self.policy.is_loopback
            and not self.policy.is_private
            and name_of(headers["host"]) in LOOPBACK
            and not any(name in headers for name in ("forwarded", "x-forwarded-for", "via"))
        )

    def _check_sender(self, headers: Headers) -> None:
        """A cookie comes by itself, so it counts only when the browser says which page sent it."""
        says = "origin" in headers or headers.get("sec-fetch-site") == "same-origin"
        if not says and not self._in_header(headers):
            raise Refused(
                HTTPStatus.FORBIDDEN,
                "The cookie counts from a page only; send X-SAE-Token instead.",
            )


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in {key for key in headers if key.startswith("access-control-")}:
                del headers[name]
            for name, value in HEADERS.items():
                headers[name] = value
            headers.append("Content-Security-Policy", FRAMES)  # the stricter of several counts
        await send(message)

    return sending


def _refusal(refused: Refused, scope: Scope, headers: Headers) -> Response:
    if is_graphql(scope):
        return JSONResponse({"errors": [{"message": refused.reason}]}, refused.status)
    if "text/html" in headers.get("accept", ""):
        return HTMLResponse(f"<!doctype html><p>{html.escape(refused.reason)}</p>", refused.status)
    return PlainTextResponse(refused.reason, refused.status)
