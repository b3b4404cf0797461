"""A web server on loopback whose every answer a test writes, and which records every request."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """One answer. ``cut`` sends fewer bytes than announced; ``slow_s`` waits before the body."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    slow_s: float = 0.0


Pages = dict[str, "Page | Callable[[int], Page]"]


@dataclass
class Site:
    """A running server: what it answers (by path; a function gets the number of earlier requests), and what it was asked."""

    url: str
    pages: Pages
    asked: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)


@contextlib.contextmanager
def site(pages: Pages, address: str = "127.0.0.1") -> Iterator[Site]:
    """A server on a free port. Paths it does not know are 404, robots.txt too."""
    found = Site("", pages)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                before = found.asked.count(self.path)
                found.asked.append(self.path)
                found.agents.add(self.headers.get("User-Agent", ""))
            page = found.pages.get(self.path, Page(status=404))
            page = page if isinstance(page, Page) else page(before)
            self.send_response(page.status)
            for name, value in page.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in page.headers:
                self.send_header("Content-Length", str(len(page.body) + (1000 if page.cut else 0)))
            self.end_headers()
            time.sleep(page.slow_s)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(page.body)
                self.wfile.flush()
            if page.cut:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    found.url = f"http://{address}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
