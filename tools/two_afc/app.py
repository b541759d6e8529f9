"""HTTP routes and pages of a 2AFC study. Access control is in `tools.explorer.auth`.

Nothing that a reader can request before the last pair depends on which tile is real, except the pixels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tools.explorer.auth import guarded
from tools.labeler.ratings import LONGEST_NAME, Conflict
from tools.labeler.requests import same_origin, static_file
from tools.two_afc import results
from tools.two_afc.answers import Answers
from tools.two_afc.study import SIDES

FOLDER = Path(__file__).parent
STYLES = [FOLDER.parent / "explorer" / "static" / "explorer.css", FOLDER.parent / "labeler" / "static" / "label.css"]
TEMPLATES = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined)
LONGEST_S = 86400.0  # of a choice; longer ones are saved as this


class Pages:
    """Renders the pages as HTML; Jinja escapes all texts."""

    def enter(self, wrong: bool) -> str:
        """Render the token form, which shows nothing of the tiles."""
        return self.page("enter.html", wrong=wrong)

    def page(self, template: str, **context: Any) -> str:
        """Render a template."""
        return TEMPLATES.get_template(template).render(longest_name=LONGEST_NAME, **context)


class Reading:
    """Request handlers of one study."""

    def __init__(self, answers: Answers) -> None:
        self.answers, self.study, self.pages = answers, answers.study, Pages()

    def routes(self) -> list[Route]:
        """Return all routes."""
        static = [Route(f"/static/{path.name}", static_file(path)) for path in [*STYLES, *sorted((FOLDER / "static").iterdir())]]
        return [
            Route("/", self.read),
            Route("/result", self.result),
            Route("/image", self.image),
            Route("/next", self.next),
            Route("/answer", same_origin(self.answer), methods=["POST"]),
            *static,
        ]

    async def read(self, request: Request) -> Response:
        """Return the page with the pairs of a reader, or the page that asks for the reader's name."""
        name, problem = request.query_params.get("reader", ""), ""
        if name:
            try:
                reader = self.answers.reader(name)
                if reader != name or not self.answers.next(reader):
                    path = "/" if self.answers.next(reader) else "/result"
                    return RedirectResponse(f"{path}?{urlencode({'reader': reader})}", status_code=303)
                return HTMLResponse(self.pages.page("pair.html", reader=reader, page="pair"))
            except ValueError as error:
                problem = str(error)
        readers, count = self.answers.readers(), len(self.study)
        return HTMLResponse(self.pages.page("reader.html", reader="", page="rater", readers=readers, problem=problem, count=count))

    async def result(self, request: Request) -> Response:
        """Return the score of a reader who has answered all pairs; others are sent to the next pair."""
        reader = self.answers.reader(request.query_params.get("reader", ""))
        if self.answers.next(reader):
            return RedirectResponse(f"/?{urlencode({'reader': reader})}", status_code=303)
        found = await run_in_threadpool(results.summary, self.answers, reader)
        return HTMLResponse(self.pages.page("result.html", reader=reader, page="agreement", found=found, source=self.study.source))

    async def image(self, request: Request) -> Response:
        """Return the tile on one side of a pair."""
        reader = self.answers.reader(request.query_params.get("reader", ""))
        pair, side = request.query_params.get("pair", ""), request.query_params.get("side", "")
        if not (pair.isascii() and pair.isdigit() and int(pair) < len(self.study) and side in SIDES):
            raise ValueError("no such tile; reload the page")
        data = await run_in_threadpool(self.study.picture(reader, int(pair), side).read_bytes)
        return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=600"})

    async def next(self, request: Request) -> Response:
        """Return the next pair of a reader."""
        return JSONResponse(self._shown(self.answers.reader(request.query_params.get("reader", ""))))

    async def answer(self, body: Mapping[str, Any]) -> Response:
        """Save a choice and return the next pair."""
        reader, pair, chosen, seconds = (body.get(name) for name in ("reader", "pair", "chosen", "seconds"))
        name = self.answers.reader(str(reader or ""))
        if type(pair) is not int or chosen not in SIDES:
            raise ValueError("pair or chosen: not one of this study; reload the page")
        if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
            raise ValueError("seconds: not a number above 0")
        await run_in_threadpool(self.answers.answer, name, pair, str(chosen), min(float(seconds), LONGEST_S))
        await run_in_threadpool(self._write)
        return JSONResponse(self._shown(name))

    def _write(self) -> None:
        """Write the results; the choice itself is saved already, so that a failure only leaves them outdated until the next write."""
        try:
            results.write(self.answers)
        except OSError as error:
            print(f"warning: results not written: {error}", file=sys.stderr, flush=True)

    def _shown(self, reader: str) -> dict[str, Any]:
        """Return the state of the page for the reader's next pair, and the pictures of the pair after it."""
        found, total = self.answers.next(reader, len(self.study)), len(self.study)
        urls = [{side: f"/image?{urlencode({'reader': reader, 'pair': pair, 'side': side})}" for side in SIDES} for pair in found[:2]]
        return {
            "pair": found[0] if found else None,
            "images": urls[0] if urls else None,
            "preload": list(urls[1].values()) if len(urls) > 1 else [],
            "done": total - len(found),
            "total": total,
        }


def application(answers: Answers, host: str, token: str, port: int) -> ASGIApp:
    """Return the pages of a study as an ASGI application with access control."""

    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    async def conflict(request: Request, error: Exception) -> Response:
        text = "This pair was already answered in another window; that answer is kept. Here is the next pair."
        return JSONResponse({"error": text, "reload": True}, status_code=409)

    async def unsaved(request: Request, error: Exception) -> Response:
        return JSONResponse(
            {"error": f"Not saved: {getattr(error, 'strerror', None) or error}. Fix this and choose again."}, status_code=507
        )

    async def missing(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "Page not found."}, status_code=404)

    reading = Reading(answers)
    handlers: dict[Any, Any] = {ValueError: refuse, Conflict: conflict, OSError: unsaved, 404: missing}
    return guarded(Starlette(routes=reading.routes(), exception_handlers=handlers), reading.pages, host, token, port)
