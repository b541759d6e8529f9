"""HTTP routes of the explorer. Stateless; requests contain no file paths, and each generates at most one tile.

Access control is in `auth`, the port in `listening`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tools.explorer import quiz
from tools.explorer.auth import guarded
from tools.explorer.drawing import Painter, png
from tools.explorer.listening import listen as listen
from tools.explorer.listening import serve as serve
from tools.explorer.model import Model
from tools.explorer.page import Pages, title
from tools.explorer.predictions import TileAnalyzer
from tools.explorer.state import LARGEST_SEED, State, query_of, read

STATIC = Path(__file__).parent / "static"
MAX_WAITING = 32  # queued requests; further ones get status 503

T = TypeVar("T")


class Busy(Exception):
    """Too many requests are queued."""


class Gone(Exception):
    """The client has disconnected, such as from the tile of a slider that has moved again."""


class Explorer:
    """Request handlers for one model."""

    def __init__(self, model: Model, analyzer: TileAnalyzer, precision: str = "fp32") -> None:
        self.model, self.analyzer = model, analyzer
        self.schema, self.image_size = model.generator.schema, model.generator.image_size
        self.painter, self.pages = Painter(model, precision), Pages(model, analyzer)
        self.thread, self.turn = ThreadPoolExecutor(1, "drawing"), asyncio.Lock()  # one tile at a time; each uses all cores
        self.waiting = 0
        self.painter.tile(read(self.schema, self.image_size, {})[0])  # warm-up: the first tile is slow

    def routes(self) -> list[Route]:
        """Return all routes."""
        files = [Route(f"/static/{path.name}", _file(path)) for path in sorted(STATIC.iterdir())]
        return [
            Route("/", self.explore),
            Route("/tile.png", self.tile),
            Route("/levels", self.levels),
            Route("/nearest", self.nearest),
            Route("/real/{row:int}.png", self.real),
            Route("/quiz", self.quiz),
            Route("/quiz/question", self.question),
            Route("/quiz/tile.png", self.quiz_tile),
            Route("/quiz/answer", self.answer),
            *files,
        ]

    async def explore(self, request: Request) -> Response:
        """Return the explorer page in the state of the link, with error messages about the link."""
        state, problems = read(self.schema, self.image_size, request.query_params)
        if request.query_params.get("model", self.model.identity) != self.model.identity:
            problems.append("This link was made with another model, so it shows a different tile.")
        return HTMLResponse(self.pages.explore(state, problems))

    async def tile(self, request: Request) -> Response:
        """Return the tile of a state as a PNG; as an attachment with ``download``."""
        state = self._state(request)
        data = await self._draw(request, lambda: self.painter.png(state))
        headers = {"Cache-Control": "private, max-age=3600"} if request.query_params.get("model") == self.model.identity else {}
        if "download" in request.query_params:
            headers["Content-Disposition"] = f'attachment; filename="synthetic-{self.model.identity}-{state.seed}.png"'
        return Response(data, media_type="image/png", headers=headers)

    async def levels(self, request: Request) -> Response:
        """Return the predicted level of each attribute; null without a predictor."""
        state = self._state(request)
        levels = await self._draw(request, lambda: self.analyzer.levels(self.painter.tile(state)))
        return JSONResponse({"levels": levels and dict(zip(self.schema.names, levels, strict=True)), "note": self.analyzer.predictor_note})

    async def nearest(self, request: Request) -> Response:
        """Return the nearest real tiles, by row, with their label names."""
        state = self._state(request)
        rows = await self._draw(request, lambda: self.analyzer.nearest(self.painter.tile(state)))
        return JSONResponse({"tiles": [{"row": row, "levels": self._names(row)} for row in rows]})

    async def real(self, request: Request) -> Response:
        """Return a real tile, by row."""
        row, tiles = request.path_params["row"], self.analyzer.tiles
        if tiles is None or row >= len(tiles.split):
            raise ValueError(f"real tile {row} does not exist")
        tile_HWC = await self._draw(request, lambda: tiles.split.read(np.array([row]))[0])
        return Response(png(tile_HWC, 0, {"Disclaimer": "A real tile of the training data."}), media_type="image/png")

    async def quiz(self, request: Request) -> Response:
        """Return the quiz page."""
        return HTMLResponse(self.pages.quiz())

    async def question(self, request: Request) -> Response:
        """Return the attribute that a round asks about, and the choices."""
        number, column = self._round(request)
        attribute = self.schema.attributes[column]
        choices = [{"level": level, "name": attribute.levels[level]} for level in attribute.assessable]
        return JSONResponse({"attribute": attribute.name, "title": title(attribute.name), "choices": choices, "round": number})

    async def quiz_tile(self, request: Request) -> Response:
        """Return the tile of a round, without metadata about its levels."""
        state = quiz.state_of(self.schema, self._round(request)[0], max(self.image_size, 256))
        return Response(await self._draw(request, lambda: self.painter.png(state, metadata=False)), media_type="image/png")

    async def answer(self, request: Request) -> Response:
        """Return whether an answer is right, the level, the predicted level, and the link to the tile."""
        number, column = self._round(request)
        attribute, state = self.schema.attributes[column], quiz.state_of(self.schema, number, self.image_size)
        level, text = int(state.levels[column]), request.query_params.get("level", "")
        if text not in map(str, attribute.assessable):
            raise ValueError(f"level: choose one of {', '.join(attribute.levels[level] for level in attribute.assessable)}")
        predicted = await self._draw(request, lambda: self.analyzer.levels(self.painter.tile(state)))
        return JSONResponse(
            {
                "right": level == int(text),
                "off": abs(level - int(text)),
                "level": level,
                "name": attribute.levels[level],
                "predicted": predicted and predicted[column],
                "link": query_of(self.schema, state, self.model.identity),
            }
        )

    async def _draw(self, request: Request, work: Callable[[], T]) -> T:
        """Run ``work`` in the thread of the networks, in turn.

        Raises:
            Busy: too many requests are queued.
            Gone: the client has disconnected before its turn.
        """
        if self.waiting >= MAX_WAITING:
            raise Busy
        self.waiting += 1
        try:
            async with self.turn:
                if await request.is_disconnected():
                    raise Gone
                return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        finally:
            self.waiting -= 1

    def _state(self, request: Request) -> State:
        if request.query_params.get("model", self.model.identity) != self.model.identity:
            raise ValueError("The server now shows another model; reload the page.")  # the page names the old one
        state, problems = read(self.schema, self.image_size, request.query_params)
        if problems:
            raise ValueError("; ".join(problems))
        return state

    def _round(self, request: Request) -> tuple[int, int]:
        """Return the number of a round and the column of the attribute that it asks about."""
        text, name = request.query_params.get("round", ""), request.query_params.get("attribute", "")
        if not (text.isdecimal() and len(text) < 11 and int(text) <= LARGEST_SEED):
            raise ValueError(f"round: give an integer from 0 to {LARGEST_SEED}")
        if name and name not in self.schema.names:
            raise ValueError(f"attribute: the model has {', '.join(self.schema.names)}")
        return int(text), self.schema.names.index(name) if name else quiz.attribute_of(self.schema, int(text))

    def _names(self, row: int) -> dict[str, str]:
        """Return the level names of a real tile by attribute."""
        assert self.analyzer.tiles is not None
        levels = self.analyzer.tiles.split.levels_NA[row].tolist()
        return {
            title(attribute.name): attribute.levels[level] if level >= 0 else "unknown"
            for attribute, level in zip(self.schema.attributes, levels, strict=True)
        }


def application(explorer: Explorer, host: str, token: str, port: int) -> ASGIApp:
    """Return the explorer as an ASGI application with access control."""

    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    async def busy(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "Too many requests; try again in a moment."}, status_code=503)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # the client has disconnected

    async def missing(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "Page not found."}, status_code=404)

    app = Starlette(routes=explorer.routes(), exception_handlers={ValueError: refuse, Busy: busy, Gone: gone, 404: missing})
    return guarded(app, explorer.pages, host, token, port)


def _file(path: Path) -> Callable[[Request], Response]:
    def send(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return send
