"""A web server on loopback that serves a folder and injects faults."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from time_limits import seconds


@dataclass
class Web:
    """Serves file NAME of ``folder`` at ``/…/NAME``; ``faults[NAME]`` lists the fault of each request in turn."""

    folder: Path
    url: str = ""
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    asked: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)  # ends stalled responses

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = unquote(urlsplit(request.path).path.rsplit("/", 1)[1])
        self.asked[name] += 1
        self.headers.append({"path": request.path, **{key.lower(): value for key, value in request.headers.items()}})
        fault = self.faults[name].pop(0) if self.faults[name] else ""
        if fault.isdigit() or not (self.folder / name).is_file():
            request.send_error(int(fault or 404))
            return
        if fault.startswith("http"):
            request.send_response(302)
            request.send_header("Location", f"{fault}/{name}")
            request.end_headers()
            return
        data = (self.folder / name).read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if fault == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        request.wfile.write(data[: len(data) // 2] if fault in ("cut", "stall") else data)
        if fault == "stall":
            request.wfile.flush()
            self.released.wait(seconds(30))


@contextmanager
def web(folder: Path) -> Iterator[Web]:
    """Serve ``folder`` while the block runs."""
    site = Web(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        site.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def wait_until(condition: Any, limit: float = 20) -> None:
    until = time.monotonic() + seconds(limit)
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)
