"""HTTP routes and pages of the labeler. Access control is in `tools.explorer.auth`.

Every answer is fsynced before its request is confirmed. The CSV files are written a few seconds later, and on shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema
from tools.explorer.auth import guarded
from tools.labeler import agreement
from tools.labeler.consensus import Writer
from tools.labeler.queue import Queue
from tools.labeler.ratings import LONGEST_COMMENT, LONGEST_NAME, Conflict, Ratings
from tools.labeler.requests import same_origin, static_file
from tools.labeler.tiles import Tiles, picture

FOLDER = Path(__file__).parent
STYLE = FOLDER.parent / "explorer" / "static" / "explorer.css"  # shared with the explorer
TEMPLATES = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined)
DIGITS = "0123456789"
KEYS = f"{DIGITS}qwertyiopdfghjkl"  # keys of the levels; c, n, s and u have other functions
WRITE_S = 2.0  # minimum seconds between two writes of the CSV files


def title(name: str) -> str:
    """Return the display name of an attribute."""
    return name.replace("_", " ").capitalize()


def choices(attribute: Attribute) -> list[dict[str, Any]]:
    """Return level, name and key of each button of an attribute; "not assessable" is last, as -1 if the attribute has no such level."""
    not_assessable = UNKNOWN if attribute.not_assessable is None else attribute.not_assessable
    name = "not assessable" if attribute.not_assessable is None else attribute.levels[not_assessable]
    key_of = _level_keys(attribute)
    levels = [{"level": level, "name": attribute.levels[level], "key": key_of.get(level, "")} for level in attribute.assessable]
    return [*levels, {"level": not_assessable, "name": name, "key": "n"}]


def _level_keys(attribute: Attribute) -> dict[int, str]:
    """Return the key of each assessable level: its index as a digit or letter; where names are numbers, a digit is the name."""
    if not attribute.numbered:
        return {level: KEYS[level] for level in attribute.assessable if level < len(KEYS)}
    digits = {level: attribute.levels[level] for level in attribute.assessable if attribute.levels[level] in tuple(DIGITS)}
    return digits | dict(zip((level for level in attribute.assessable if level not in digits), KEYS[len(DIGITS) :], strict=False))


def level_name(attribute: Attribute, level: float) -> str:
    """Return the name of the level nearest to a number."""
    if level == UNKNOWN:
        return "not assessable"
    return attribute.levels[min(range(len(attribute.levels)), key=lambda other: abs(other - level))]


class Pages:
    """Renders the pages as HTML; Jinja escapes all texts."""

    def __init__(self, schema: AttributeSchema, name: str) -> None:
        self.schema, self.name = schema, name

    def enter(self, wrong: bool) -> str:
        """Render the token form, which shows nothing of the tiles."""
        return TEMPLATES.get_template("enter.html").render(wrong=wrong)

    def page(self, template: str, **context: Any) -> str:
        """Render a template."""
        attributes = [
            {"name": one.name, "title": title(one.name), "choices": choices(one), "numbered": one.numbered}
            for one in self.schema.attributes
        ]
        common = {"folder": self.name, "attributes": attributes, "title": title, "longest_name": LONGEST_NAME, "longest": LONGEST_COMMENT}
        return TEMPLATES.get_template(template).render(**common, **context)


@dataclass
class Labeler:
    """Request handlers for one folder of tiles.

    Args:
        predicted: predicted level of each attribute by file; shown after the answer.
        write_error: why the CSV files could not be written; "" if they were.
    """

    tiles: Tiles
    ratings: Ratings
    queue: Queue
    writer: Writer
    predicted: Mapping[str, list[float]]
    write_error: str = ""

    def __post_init__(self) -> None:
        self.schema = self.ratings.schema
        self.pages = Pages(self.schema, self.tiles.root.resolve().name)
        self.files = frozenset(self.tiles.files)
        self.changed = asyncio.Event()

    def routes(self) -> list[Route]:
        """Return all routes."""
        static = [Route(f"/static/{path.name}", static_file(path)) for path in [STYLE, *sorted((FOLDER / "static").iterdir())]]
        posts = [("/answer", self.answer), ("/skip", self.skip), ("/undo", self.undo), ("/again", self.again)]
        return [
            Route("/", self.label),
            Route("/agreement", self.agreement),
            Route("/image", self.image),
            Route("/next", self.next),
            *(Route(path, same_origin(handler), methods=["POST"]) for path, handler in posts),
            *static,
        ]

    async def label(self, request: Request) -> Response:
        """Return the label page of a rater, or the page that asks for the rater's name."""
        name, problem = request.query_params.get("rater", ""), ""
        if name:
            try:
                rater = self.ratings.rater(name)
                if rater != name:
                    return RedirectResponse(f"/?{urlencode({'rater': rater})}", status_code=303)
                return HTMLResponse(self.pages.page("label.html", rater=rater, page="label", has_predictions=bool(self.predicted)))
            except ValueError as error:
                problem = str(error)
        state = self.ratings.state
        raters = [(rater, len(state.history.get(rater, ()))) for rater in sorted(state.raters.values())]
        return HTMLResponse(self.pages.page("rater.html", rater="", page="rater", raters=raters, problem=problem, count=len(self.files)))

    async def agreement(self, request: Request) -> Response:
        """Return the page with the agreement of the raters."""
        rated = await run_in_threadpool(self.ratings.rated)
        found = await run_in_threadpool(agreement.pairs, self.schema, rated)
        pairs_of = {one: [pair for pair in found if pair.attribute == one] for one in self.schema.attributes}
        summary = [
            (one, agreement.mean_kappa(pairs), max((pair.tiles for pair in pairs), default=0), pairs) for one, pairs in pairs_of.items()
        ]
        by_rater = {rater: len(self.ratings.state.history.get(rater, ())) for rater in sorted(self.ratings.state.raters.values())}
        both = sum(len(ratings) > 1 for ratings in rated.values())
        rater = request.query_params.get("rater", "")
        return HTMLResponse(
            self.pages.page(
                "agreement.html",
                rater=rater,
                page="agreement",
                summary=summary,
                by_rater=by_rater,
                rated=len(rated),
                both=both,
                shared=len(self.queue.shared),
                total=len(self.files),
            )
        )

    async def image(self, request: Request) -> Response:
        """Return the picture of a tile."""
        file = self._tile(request.query_params.get("file"))
        data, media = await run_in_threadpool(picture, self.tiles.root / file)
        return Response(data, media_type=media, headers={"Cache-Control": "private, max-age=600"})

    async def next(self, request: Request) -> Response:
        """Return the next tile of a rater."""
        return JSONResponse(self._shown(self.ratings.rater(request.query_params.get("rater", ""))))

    async def answer(self, body: Mapping[str, Any]) -> Response:
        """Save the levels of a tile and return the next one."""
        rater, file, revision = self._target(body)
        levels, comment = self._levels(body.get("levels")), body.get("comment", "")
        if not isinstance(comment, str):
            raise ValueError("comment: not a string")
        await self._save(lambda: self.ratings.answer(rater, file, levels, comment, revision))
        return JSONResponse(self._shown(rater) | {"last": self._last(file, levels)})

    async def skip(self, body: Mapping[str, Any]) -> Response:
        """Skip a tile and return the next one."""
        rater, file, revision = self._target(body)
        await self._save(lambda: self.ratings.skip(rater, file, revision))
        return JSONResponse(self._shown(rater))

    async def undo(self, body: Mapping[str, Any]) -> Response:
        """Undo the rater's last answer or skip, and return that tile with its answer."""
        rater = self.ratings.rater(str(body.get("rater", "")))
        undone = await self._save(lambda: self.ratings.undo(rater))
        if undone is None or undone[0] not in self.files:
            return JSONResponse(self._shown(rater))
        file, last = undone
        before = {"levels": dict(zip(self.schema.names, last.levels, strict=True)), "comment": last.comment} if last else {}
        return JSONResponse(self._shown(rater, file) | before)

    async def again(self, body: Mapping[str, Any]) -> Response:
        """Put the rater's skipped tiles back into the queue, and return the next tile."""
        rater = self.ratings.rater(str(body.get("rater", "")))
        await self._save(lambda: self.ratings.show_skipped(rater))
        return JSONResponse(self._shown(rater))

    async def _save(self, work: Callable[[], Any]) -> Any:
        result = await run_in_threadpool(work)
        self.changed.set()
        return result

    def _shown(self, rater: str, file: str | None = None) -> dict[str, Any]:
        """Return the state of the page for ``file``, or for the rater's next tile."""
        found, progress = self.queue.next(rater, 2)
        if file is None:
            found = [one for one in found if (self.tiles.root / one).is_file()] or self._next_existing(rater)
            file = found[0] if found else None
        else:
            self.queue.hold(rater, file)
        preload = next((one for one in found if one != file), None)
        return {
            "file": file,
            "image": file and _address(file),
            "preload": preload and _address(preload),
            "revision": self.ratings.revision(rater, file) if file else 0,
            "levels": None,
            "comment": "",
            "done": progress.done,
            "left": progress.left,
            "skipped": progress.skipped,
            "write_error": self.write_error,
            "can_undo": bool(self.ratings.state.actions.get(rater)),
        }

    def _next_existing(self, rater: str) -> list[str]:
        """Return the rater's first tile that is still in the folder, after the next ones were deleted; [] if there is none."""
        found, _ = self.queue.next(rater, len(self.files))
        existing = next((file for file in found if (self.tiles.root / file).is_file()), None)
        if existing is None:
            return []
        self.queue.hold(rater, existing)
        return [existing]

    def _target(self, body: Mapping[str, Any]) -> tuple[str, str, int]:
        """Return the rater, the file and the revision of a request.

        Raises:
            ValueError: names the field that is invalid.
        """
        revision = body.get("revision")
        if type(revision) is not int:
            raise ValueError("revision: not an integer")
        return self.ratings.rater(str(body.get("rater", ""))), self._tile(body.get("file")), revision

    def _tile(self, file: Any) -> str:
        if not isinstance(file, str) or file not in self.files:
            raise ValueError("file: not one of the tiles; reload the page")
        return file

    def _levels(self, given: Any) -> list[int]:
        if not isinstance(given, dict) or set(given) != set(self.schema.names):
            raise ValueError(f"levels: give one for each of {', '.join(self.schema.names)}; reload the page")
        levels = [given[name] for name in self.schema.names]
        if any(type(level) is not int for level in levels):
            raise ValueError("levels: not all are integers")
        if wrong := self.schema.check(levels):
            raise ValueError(f"levels: {wrong}")
        return levels

    def _last(self, file: str, levels: list[int]) -> dict[str, Any]:
        """Return the saved answer and the predicted levels."""
        predicted = self.predicted.get(file)
        rows = []
        for column, attribute in enumerate(self.schema.attributes):
            row = {"title": title(attribute.name), "given": level_name(attribute, levels[column])}
            if predicted:
                row["predicted"] = f"{predicted[column]:.1f} · {level_name(attribute, predicted[column])}"
            rows.append(row)
        return {"file": file, "rows": rows}

    def write(self) -> None:
        """Update the CSV files; errors go to stderr and to the page."""
        try:
            self.writer.write()
            self.write_error = ""
        except (ValueError, OSError) as error:
            if self.write_error != str(error):
                print(f"warning: {error}", file=sys.stderr, flush=True)
            self.write_error = str(error)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Write the CSV files while the server runs, and on shutdown."""
        writing = asyncio.create_task(self._keep_writing())
        try:
            yield
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
            self.write()

    async def _keep_writing(self) -> None:
        pause = WRITE_S
        while True:
            await self.changed.wait()
            await asyncio.sleep(pause)
            self.changed.clear()
            started = time.monotonic()
            await asyncio.shield(run_in_threadpool(self.write))
            pause = max(WRITE_S, 10 * (time.monotonic() - started))  # at most a tenth of the time is spent writing


def application(labeler: Labeler, host: str, token: str, port: int) -> ASGIApp:
    """Return the labeler as an ASGI application with access control."""

    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    async def conflict(request: Request, error: Exception) -> Response:
        text = "This tile was already answered or skipped in another window; that answer is kept. Here is the next tile."
        return JSONResponse({"error": text, "reload": True}, status_code=409)

    async def unsaved(request: Request, error: Exception) -> Response:
        text = f"Not saved: {getattr(error, 'strerror', None) or error}. Fix this and save again; your answer is still on this page."
        return JSONResponse({"error": text}, status_code=507)

    async def missing(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "Page not found."}, status_code=404)

    handlers: dict[Any, Any] = {ValueError: refuse, Conflict: conflict, OSError: unsaved, 404: missing}
    app = Starlette(routes=labeler.routes(), exception_handlers=handlers, lifespan=labeler.lifespan)
    return guarded(app, labeler.pages, host, token, port)


def _address(file: str) -> str:
    return f"/image?file={quote(file, safe='')}"
