"""Answers to a browser. Nothing is kept of a visitor; no path or size of theirs reaches a file; one tile a request.

Owns the routes. Who may see them is `guard`'s, the port is `listening`'s.
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
from tools.explorer.predictions import Reader
from tools.explorer.state import LARGEST_SEED, State, query_of, read

STATIC = Path(__file__).parent / "static"
MOST_WAITING = 32  # requests that wait for a tile; further ones are told to come again

Answer = TypeVar("Answer")


class Busy(Exception):
    """More visitors than one machine can draw for."""


class Gone(Exception):
    """The visitor has stopped waiting, such as for the tile of a slider that moved on."""


class Explorer:
    """The answers about one model."""

    def __init__(self, model: Model, reader: Reader, precision: str = "fp32") -> None:
        self.model, self.reader = model, reader
        self.schema, self.image_size = model.generator.schema, model.generator.image_size
        self.painter, self.pages = Painter(model, precision), Pages(model, reader)
        self.thread, self.turn = ThreadPoolExecutor(1, "drawing"), asyncio.Lock()  # one tile at a time, since each uses every core
        self.waiting = 0
        self.painter.tile(read(self.schema, self.image_size, {})[0])  # the first tile takes longer than any other

    def routes(self) -> list[Route]:
        """Every address that there is."""
        files = [Route(f"/static/{path.name}", _file(path)) for path in sorted(STATIC.iterdir())]
        return [
            Route("/", self.explore),
            Route("/tile.png", self.tile),
            Route("/reading", self.reading),
            Route("/nearest", self.nearest),
            Route("/real/{row:int}.png", self.real),
            Route("/quiz", self.quiz),
            Route("/quiz/question", self.question),
            Route("/quiz/tile.png", self.quiz_tile),
            Route("/quiz/answer", self.answer),
            *files,
        ]

    async def explore(self, request: Request) -> Response:
        """The page of the sliders, as a link sets them, with what is wrong with the link."""
        state, problems = read(self.schema, self.image_size, request.query_params)
        if request.query_params.get("model", self.model.identity) != self.model.identity:
            problems.append("This link was made with another model, so the tile is not the one that was meant.")
        return HTMLResponse(self.pages.explore(state, problems))

    async def tile(self, request: Request) -> Response:
        """The tile of a state, as a PNG; to be kept as a file with ``download``."""
        state = self._state(request)
        data = await self._draw(request, lambda: self.painter.png(state))
        headers = {"Cache-Control": "private, max-age=3600"} if request.query_params.get("model") == self.model.identity else {}
        if "download" in request.query_params:
            headers["Content-Disposition"] = f'attachment; filename="synthetic-{self.model.identity}-{state.seed}.png"'
        return Response(data, media_type="image/png", headers=headers)

    async def reading(self, request: Request) -> Response:
        """The level of each attribute that the judge reads off the tile; null without a judge."""
        state = self._state(request)
        levels = await self._draw(request, lambda: self.reader.levels(self.painter.tile(state)))
        return JSONResponse({"levels": levels and dict(zip(self.schema.names, levels, strict=True)), "note": self.reader.predictor_note})

    async def nearest(self, request: Request) -> Response:
        """The real tiles nearest to the tile, by row, with their labels in words."""
        state = self._state(request)
        rows = await self._draw(request, lambda: self.reader.nearest(self.painter.tile(state)))
        return JSONResponse({"tiles": [{"row": row, "levels": self._names(row)} for row in rows]})

    async def real(self, request: Request) -> Response:
        """A real tile, by row."""
        row, tiles = request.path_params["row"], self.reader.tiles
        if tiles is None or row >= len(tiles.split):
            raise ValueError(f"there is no real tile {row}")
        tile_HWC = await self._draw(request, lambda: tiles.split.read(np.array([row]))[0])
        return Response(png(tile_HWC, 0, {"Disclaimer": "A real tile of the training data."}), media_type="image/png")

    async def quiz(self, request: Request) -> Response:
        """The page of the quiz."""
        return HTMLResponse(self.pages.quiz())

    async def question(self, request: Request) -> Response:
        """What a round asks for, and what may be answered."""
        number, column = self._round(request)
        attribute = self.schema.attributes[column]
        choices = [{"level": level, "name": attribute.levels[level]} for level in attribute.assessable]
        return JSONResponse({"attribute": attribute.name, "title": title(attribute.name), "choices": choices, "round": number})

    async def quiz_tile(self, request: Request) -> Response:
        """The tile of a round, which tells nothing of its levels."""
        state = quiz.state_of(self.schema, self._round(request)[0], max(self.image_size, 256))
        return Response(await self._draw(request, lambda: self.painter.png(state, told=False)), media_type="image/png")

    async def answer(self, request: Request) -> Response:
        """Whether an answer is right, what the level is, what the judge reads, and the link to the tile."""
        number, column = self._round(request)
        attribute, state = self.schema.attributes[column], quiz.state_of(self.schema, number, self.image_size)
        level, text = int(state.levels[column]), request.query_params.get("level", "")
        if text not in map(str, attribute.assessable):
            raise ValueError(f"level: choose one of {', '.join(attribute.levels[level] for level in attribute.assessable)}")
        seen = await self._draw(request, lambda: self.reader.levels(self.painter.tile(state)))
        return JSONResponse(
            {
                "right": level == int(text),
                "off": abs(level - int(text)),
                "level": level,
                "name": attribute.levels[level],
                "read": seen and seen[column],
                "link": query_of(self.schema, state, self.model.identity),
            }
        )

    async def _draw(self, request: Request, work: Callable[[], Answer]) -> Answer:
        """Run ``work`` in the thread of the networks, in turn, if its visitor still waits for it then."""
        if self.waiting >= MOST_WAITING:
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
            raise ValueError("Another model is on show by now; reload the page.")  # else it would be taken for the one on the page
        state, problems = read(self.schema, self.image_size, request.query_params)
        if problems:
            raise ValueError("; ".join(problems))
        return state

    def _round(self, request: Request) -> tuple[int, int]:
        """The number of a round, and the column of what it asks for."""
        text, name = request.query_params.get("round", ""), request.query_params.get("attribute", "")
        if not (text.isdecimal() and len(text) < 11 and int(text) <= LARGEST_SEED):
            raise ValueError(f"round: give a whole number from 0 to {LARGEST_SEED}")
        if name and name not in self.schema.names:
            raise ValueError(f"attribute: the model has {', '.join(self.schema.names)}")
        return int(text), self.schema.names.index(name) if name else quiz.attribute_of(self.schema, int(text))

    def _names(self, row: int) -> dict[str, str]:
        """The levels of a real tile in words."""
        assert self.reader.tiles is not None
        levels = self.reader.tiles.split.levels_NA[row].tolist()
        return {
            title(attribute.name): attribute.levels[level] if level >= 0 else "not known"
            for attribute, level in zip(self.schema.attributes, levels, strict=True)
        }


def application(explorer: Explorer, host: str, token: str, port: int) -> ASGIApp:
    """The explorer behind its guard."""

    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    async def busy(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "Too many visitors at once; try again in a moment."}, status_code=503)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def missing(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "There is no such page."}, status_code=404)

    app = Starlette(routes=explorer.routes(), exception_handlers={ValueError: refuse, Busy: busy, Gone: gone, 404: missing})
    return guarded(app, explorer.pages, host, token, port)


def _file(path: Path) -> Callable[[Request], Response]:
    def send(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return send
