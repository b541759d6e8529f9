"""Opens a port and serves an ASGI application on it; shared by the explorer and the labeler."""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ValueError: not an address of this machine, or a port in use.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Nagle's algorithm delays the end of a response by 40 ms
        return listening
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: can't listen: {error.strerror or error}; choose another --host or --port"
        ) from error


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until interrupted."""
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)).run([listening])
