"""Who may see the pages, and what a browser may do with them.

On loopback: requests for this machine's own names, so that no other site's name can be pointed here (DNS rebinding). With a token: those
who have it, by link, form or cookie.
"""

from __future__ import annotations

import ipaddress
import secrets
from typing import Protocol
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = ["127.0.0.1", "localhost", "[::1]"]
LARGEST_FORM = 4096  # bytes
POLICY = "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # unless an answer says otherwise
}


class Pages(Protocol):
    """The page that asks for the token."""

    def enter(self, wrong: bool) -> str: ...


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def in_address(host: str) -> str:
    """A host as addresses have it: ``::1`` in brackets."""
    return f"[{host}]" if ":" in host else host


def guarded(app: ASGIApp, pages: Pages, host: str, token: str, port: int) -> ASGIApp:
    """``app`` behind the checks.

    Args:
        host: where it listens; on loopback, its name there is one of this machine's own.
        token: "" for none.
        port: cookies know no ports, so that of each has its own name.
    """
    if token:
        app = _Token(app, pages, token, f"explorer-{port}")
    if is_loopback(host):
        app = TrustedHostMiddleware(app, allowed_hosts=[*LOOPBACK_NAMES, in_address(host)], www_redirect=False)
    return _Headers(app)


class _Token:
    def __init__(self, app: ASGIApp, pages: Pages, token: str, cookie: str) -> None:
        self.app, self.pages, self.token, self.cookie = app, pages, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the server
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        if self._is_token(request.cookies.get(self.cookie, "")):
            return await self.app(scope, receive, send)
        await (await self._enter(request))(scope, receive, send)

    async def _enter(self, request: Request) -> Response:
        """The page that was asked for, with a cookie, where the request brings the token; else a form for it."""
        given = request.query_params.get("token", "")
        if request.method == "POST":
            given = parse_qs((await _form(request)).decode("ascii", "replace")).get("token", [""])[0]
        if not self._is_token(given):
            return HTMLResponse(self.pages.enter(wrong=bool(given)), status_code=401)
        path = "/quiz" if request.url.path == "/quiz" else "/"
        rest = urlencode([(key, value) for key, value in request.query_params.multi_items() if key != "token"])
        response = RedirectResponse(f"{path}?{rest}" if rest else path, status_code=303)
        response.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
        return response

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())


async def _form(request: Request) -> bytes:
    """What a form sent; nothing where that is too much, whatever length was announced, or broken off."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_FORM:
                return b""
    except ClientDisconnect:
        return b""
    return body


class _Headers:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)
