"""Access control of the web pages: host check, token, security headers.

On a loopback address, only requests with this machine's own host names are accepted, which prevents DNS rebinding. With a token, only
clients that send it, by link, form or cookie.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
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
    "Cache-Control": "no-store",  # unless a response sets its own
}


class Pages(Protocol):
    """The page that asks for the token."""

    def enter(self, wrong: bool) -> str:
        """Return the page as HTML; ``wrong``: after a wrong token."""
        ...


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def in_address(host: str) -> str:
    """Return a host as part of a URL, with IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def host_to_open(host: str) -> str:
    """Return the host of the address to open: `in_address`, but this machine's name for all interfaces (0.0.0.0 and ::)."""
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    return socket.gethostname() if everywhere else in_address(host)


def guarded(app: ASGIApp, pages: Pages, host: str, token: str, port: int) -> ASGIApp:
    """Return ``app`` behind the checks.

    Args:
        host: address that the server listens on.
        token: access token; "" for none.
        port: part of the cookie's name, since browsers share cookies between ports of a host.
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
        if scope["type"] != "http":  # lifespan events
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        if self._is_token(request.cookies.get(self.cookie, "")):
            return await self.app(scope, receive, send)
        await (await self._enter(request))(scope, receive, send)

    async def _enter(self, request: Request) -> Response:
        """Redirect to the requested page and set the cookie if the request has the token; else return the token form."""
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
    """Read the body of a form; b"" if it exceeds `LARGEST_FORM` (regardless of its Content-Length) or the client disconnects."""
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
