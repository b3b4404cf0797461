"""A proxy between a store and its S3 server that makes what networks and servers do wrong.

    with FaultProxy(server.port) as proxy:
        rule = proxy.add("503", method="PUT", key="manifests/", seconds=3)
        ...
        assert rule.hits > 1

Modes, applied in the order added, while a rule lasts:
    503, 500         answer so, without asking the server
    reset            cut the connection without asking the server
    slow             wait ``delay_s`` first
    drop-answer      ask the server, then cut the connection: done, but nobody knows
    cut              send half of the answer's body
    flip             change one bit of the answer's body
    flip-upload      change one bit of the request's body
    strip-header     forget If-Match and If-None-Match, as some servers do
    check-checksum   refuse a body that differs from its x-amz-checksum-sha256, as Amazon does and moto does not
"""

import base64
import hashlib
import http.client
import random
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_ERRORS = {"503": (503, "SlowDown"), "500": (500, "InternalError"), "bad-digest": (400, "BadDigest")}
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


@dataclass
class Rule:
    """One fault: what, for which requests, how often. ``hits`` counts the requests it struck."""

    mode: str
    method: str = ""  # "" = any
    key: str = ""  # regular expression searched in the path
    times: int = -1  # requests to strike, -1 = all
    seconds: float = 0.0  # from its first hit, 0 = for ever
    share: float = 1.0  # of matching requests
    delay_s: float = 1.0
    hits: int = 0
    first_hit: float = 0.0


@dataclass
class Seen:
    """One request as it passed."""

    at: float
    method: str
    path: str
    status: int  # 0 = the connection was cut


@dataclass
class FaultProxy:
    """The proxy on a free port of this machine; see the module's head."""

    upstream_port: int
    seed: int = 0
    rules: list[Rule] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(self.seed)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Endpoint to give to the store under test."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, mode: str, **conditions: str | float) -> Rule:
        """Start a fault; ``conditions`` are the fields of Rule."""
        rule = Rule(mode, **conditions)  # type: ignore[arg-type]
        with self._lock:
            self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            self.rules.clear()

    def strikes(self, method: str, path: str) -> list[Rule]:
        """The rules that strike this request."""
        found = []
        with self._lock:
            for rule in self.rules:
                if rule.method not in ("", method) or not re.search(rule.key, path) or rule.hits == rule.times:
                    continue
                now = time.monotonic()
                if rule.hits and rule.seconds and now - rule.first_hit > rule.seconds:
                    continue
                if self._random.random() >= rule.share:
                    continue
                rule.first_hit = rule.first_hit or now
                rule.hits += 1
                found.append(rule)
        return found

    def record(self, method: str, path: str, status: int) -> None:
        """Note a request for ``seen``."""
        with self._lock:
            self.seen.append(Seen(time.monotonic(), method, path, status))

    def flip(self, body: bytes) -> bytes:
        """The body with one bit changed."""
        if not body:
            return body
        place = self._random.randrange(len(body))
        return body[:place] + bytes([body[place] ^ 1 << self._random.randrange(8)]) + body[place + 1 :]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        proxy = self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rules = proxy.strikes(self.command, self.path)
        modes = {rule.mode for rule in rules}
        for rule in rules:
            if rule.mode == "slow":
                time.sleep(rule.delay_s)
            elif rule.mode in ("503", "500"):
                return self._refuse(rule.mode)
            elif rule.mode == "reset":
                return self._reset()
            elif rule.mode == "flip-upload":
                body = proxy.flip(body)
        sent = self.headers.get("x-amz-checksum-sha256")
        if "check-checksum" in modes and sent and sent != base64.b64encode(hashlib.sha256(body).digest()).decode():
            return self._refuse("bad-digest")
        dropped = {"if-match", "if-none-match"} if "strip-header" in modes else set()
        headers = {k: v for k, v in self.headers.items() if k.lower() not in {"connection", "expect", *dropped}}
        try:
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=60)
            upstream.request(self.command, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            content = answer.read()
        except OSError:
            return self._reset()
        finally:
            upstream.close()
        if "drop-answer" in modes:
            return self._reset()
        if "flip" in modes:
            content = proxy.flip(content)
        self._answer(answer, content, cut="cut" in modes)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _answer(self, answer: http.client.HTTPResponse, content: bytes, cut: bool) -> None:
        self.owner.record(self.command, self.path, answer.status)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if length is not None and answer.status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if cut and len(content) > 1:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self._reset(record=False)
        self.wfile.write(content)

    def _refuse(self, what: str) -> None:
        status, code = _ERRORS[what]
        self.owner.record(self.command, self.path, status)
        content = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>made by the test</Message></Error>'.encode()
        if self.command == "HEAD":
            content = b""
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reset(self, record: bool = True) -> None:
        if record:
            self.owner.record(self.command, self.path, 0)
        self.close_connection = True
        # linger of 0 s: the other side sees a reset, not an orderly end
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()
