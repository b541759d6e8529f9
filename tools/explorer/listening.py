"""A port to listen on, and answering on it. Knows no page, so that every page of the tools can use it."""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes visitors.

    Raises:
        ValueError: no such host here, or a port that is taken.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else the end of an answer waits 40 ms for a sign of the visitor
        return listening
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: can't listen there: {error.strerror or error}; give others") from error


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answer until stopped."""
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)).run([listening])
