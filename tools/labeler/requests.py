"""Parts of the HTTP servers of the label page and the 2AFC page: JSON requests of their own scripts only, and static files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response

LARGEST_BODY = 65536  # bytes


def same_origin(handler: Callable[[Mapping[str, Any]], Any]) -> Callable[[Request], Any]:
    """Reject cross-site requests: accept only JSON, which other sites can't send without a CORS preflight, and only from this origin."""

    @functools.wraps(handler)
    async def checked(request: Request) -> Response:
        origin = request.headers.get("origin")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return JSONResponse({"error": "The request must be JSON."}, status_code=415)
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return JSONResponse({"error": "Requests from other sites are not allowed."}, status_code=403)
        response: Response = await handler(await _body(request))
        return response

    return checked


async def _body(request: Request) -> dict[str, Any]:
    data = b""
    try:
        async for part in request.stream():
            data += part
            if len(data) > LARGEST_BODY:
                raise ValueError("the request is too large")
        body = json.loads(data)
    except (ClientDisconnect, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the request is not JSON: {type(error).__name__}") from error
    if not isinstance(body, dict):
        raise ValueError("the request is not a JSON object")
    return body


def static_file(path: Path) -> Callable[[Request], Response]:
    """Return a handler that sends a file."""

    def send(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return send
