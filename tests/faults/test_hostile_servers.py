"""Servers that mean harm: whatever they send, each row of a list ends in time, as a pair or with its reason."""

import asyncio
import contextlib
import gzip
import socket
import socketserver
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bad_images import encoded, photo
from support.data_steps import Data
from support.web_sites import Page, site

from dalle_model.config import FetchConfig, IngestConfig
from dalle_model.decoding import Refused
from dalle_model.sources import fetching, hosts
from dalle_model.sources.addresses import AddressPolicy
from dalle_model.sources.fetching import Fetched, Fetcher, FetchSettings

PNG = encoded(photo(40, 30), "PNG")
LOOPBACK = AddressPolicy.parse("127.0.0.1")
LIMIT = 100_000


def answer(body: bytes = PNG, status: str = "200 OK", **headers: str) -> bytes:
    lines = {"Connection": "close", "Content-Length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body


def moved(place: str) -> bytes:
    return answer(b"", "302 Found", Location=place)


CHUNKED = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(30_000_000))
HEAD = answer()[: -len(PNG)]
# What is sent at once, what is then sent for ever, seconds between, and the reason ("kept" for a pair).
TRAPS: dict[str, tuple[bytes, bytes, float, str]] = {
    "plain": (answer(), b"", 0, "kept"),
    "no-length": (b"HTTP/1.1 200 OK\r\n\r\n" + PNG, b"", 0, "kept"),
    "packed": (answer(gzip.compress(PNG), Content_Encoding="gzip"), b"", 0, "kept"),
    "lf-only": (HEAD.replace(b"\r\n", b"\n") + PNG, b"", 0, "kept"),
    "no-picture": (answer(b"<html>" * 100, Content_Type="image/png"), b"", 0, "unknown_format"),
    "nothing-in-it": (answer(b""), b"", 0, "empty_file"),
    "drip-head": (b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.05, "fetch_timeout"),
    "drip-body": (HEAD, b"x", 0.05, "fetch_timeout"),
    "silent": (b"", b"", 1e9, "fetch_timeout"),
    "flood-of-100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.01, "fetch_timeout"),
    "endless-chunks": (CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n", 0, "too_many_bytes"),
    "endless-body": (b"HTTP/1.1 200 OK\r\n\r\n", bytes(4096), 0, "too_many_bytes"),
    "announced": (answer(Content_Length="999999999"), b"", 0, "too_many_bytes"),
    "bomb": (answer(BOMB, Content_Encoding="gzip"), b"", 0, "too_many_bytes"),
    "bomb-deflate": (answer(zlib.compress(bytes(30_000_000)), Content_Encoding="deflate"), b"", 0, "too_many_bytes"),
    "endless-header": (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 4096, 0, "bad_response"),
    "endless-headers": (b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n" * 500, 0, "bad_response"),
    "endless-status": (b"HTTP/1.1 200 ", b"y" * 4096, 0, "bad_response"),
    "chunk-of-2-to-80": (CHUNKED + b"ffffffffffffffffffff\r\nxx", b"", 0, "bad_response"),
    "two-lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", b"", 0, "bad_response"),
    "less-than-none": (answer(Content_Length="-5"), b"", 0, "bad_response"),
    "length-of-30-digits": (answer(Content_Length="9" * 30), b"", 0, "bad_response"),
    "not-packed": (answer(Content_Encoding="gzip"), b"", 0, "bad_response"),
    "unknown-packing": (answer(Content_Encoding="br"), b"", 0, "bad_response"),
    "http-0.9": (PNG, b"", 0, "bad_response"),
    "ssh": (b"SSH-2.0-OpenSSH_9.9\r\n", b"", 0, "bad_response"),
    "short": (answer(Content_Length=str(len(PNG) + 99)), b"", 0, "cut_off"),
    "closed": (b"", b"", 0, "unreachable"),
    "204": (answer(b"", "204 No Content"), b"", 0, "http_status"),
    "206": (answer(status="206 Partial Content"), b"", 0, "http_status"),
    "to-file": (moved("file:///etc/passwd"), b"", 0, "bad_url"),
    "to-credentials": (moved("http://a:b@127.0.0.1/"), b"", 0, "bad_url"),
    "to-nowhere": (moved(""), b"", 0, "bad_url"),
    "to-no-name": (moved("http://..../"), b"", 0, "bad_url"),
    "to-a-long-label": (moved(f"http://{'a' * 300}.invalid/"), b"", 0, "bad_url"),
    "to-10.0.0.1": (moved("http://0xa000001/"), b"", 0, "address_refused"),
    "to-wide-10.0.0.1": (moved("http://%EF%BC%91%EF%BC%90.0.0.1/"), b"", 0, "host_unknown"),
    "to-mapped": (moved("http://[::ffff:10.0.0.1]/"), b"", 0, "address_refused"),
    "busy": (answer(b"", "503 Busy", Retry_After="-5"), b"", 0, "server_busy"),
}  # fmt: skip


@contextlib.contextmanager
def hostile() -> Iterator[str]:
    """The address of a server that sends what TRAPS says."""
    over = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = self.rfile.readline(9999).split(b" ")[1].decode()
            while self.rfile.readline(9999).strip():
                continue
            start, piece, every_s, _ = TRAPS.get(path[1:], (answer(b"", "404 Not Found"), b"", 0.0, ""))
            with contextlib.suppress(OSError):
                self.wfile.write(start)
                while piece and not over.wait(every_s):
                    self.wfile.write(piece)
                if every_s > 1:
                    over.wait(20)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 64

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


def test_each_trap_costs_its_own_row_and_no_more(tmp_path: Path) -> None:
    traps = {name: reason for name, (*_, reason) in TRAPS.items() if reason != "fetch_timeout"}
    fetch = FetchConfig(allow_addresses="127.0.0.1", per_host_per_s=1000, retries=0, min_success=0)
    with hostile() as url:
        (tmp_path / "a.tsv").write_text("".join(f"{url}/{name}\tpicture {name}\n" for name in traps))
        config = IngestConfig(source=f"urls:{tmp_path / 'a.tsv'}", image_px=32, max_image_bytes=LIMIT, fetch=fetch)
        data = Data(tmp_path)
        manifest = data.ingest(config)
    assert {key.rpartition("/")[2]: outcome for key, outcome in data.outcomes(manifest).items()} == traps
    assert manifest.stats["rows_in"] == manifest.stats["kept"] + manifest.stats["rejected"] == len(traps)


def test_no_server_holds_a_request_longer_than_the_limit() -> None:
    with hostile() as url:
        urls = [f"{url}/{name}" for name, (*_, reason) in TRAPS.items() if reason == "fetch_timeout"]
        results = fetched(urls, timeout_s=0.5, obey_opt_out=False)
    assert [result.reason for result in results if isinstance(result, Refused)] == ["fetch_timeout"] * 4


def fetched(urls: list[str], **settings: Any) -> list[Fetched | Refused]:
    usual = FetchSettings(**{"per_host_per_s": 1000, "timeout_s": 20, "retries": 0, "addresses": LOOPBACK} | settings)
    with Fetcher(usual) as fetcher:
        return [result for _, result in fetcher.map(enumerate(urls))]


def test_a_site_that_asks_for_years_is_asked_no_more_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, sleep = [0.0], asyncio.sleep

    async def noted(seconds: float, *args: Any) -> Any:
        waited.append(seconds)
        return await sleep(seconds, *args)

    monkeypatch.setattr(asyncio, "sleep", noted)
    with site({"/a": Page(status=503, headers={"Retry-After": "1000000000"})}) as web:
        results = fetched([web.url + "/a"] * 30, retries=2, concurrency=2)
        assert max(waited) < 15, "half a minute was waited for each before"
        assert web.asked.count("/a") <= 2
    details = {result.detail for result in results if isinstance(result, Refused)}
    assert "HTTP status 503; the site asks for a pause of 86400 s" in details
    assert "127.0.0.1 is left alone for now: it asks for a pause of 86400 s" in details


def test_pictures_that_wait_for_a_slow_one_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_HELD_BYTES", 4 * len(PNG))
    asked_meanwhile = []

    def slow(_: int) -> Page:
        time.sleep(0.5)
        asked_meanwhile.append(len([path for path in web.asked if path != "/slow"]) - 2)  # the files of the site
        return Page(PNG)

    pages: dict[str, Page | Callable[[int], Page]] = {"/slow": slow}
    with site(pages | {f"/{n}": Page(PNG) for n in range(60)}) as web:
        results = fetched([web.url + "/slow", *(f"{web.url}/{n}" for n in range(60))], concurrency=4)
    assert all(isinstance(result, Fetched) for result in results)
    assert asked_meanwhile[0] <= 4 + 1 + 4, "what is held, what passes it, and what is under way"


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "without a length"])
def test_large_pictures_under_way_count_as_those_that_wait(monkeypatch: pytest.MonkeyPatch, announced: bool) -> None:
    """Of 24 requests at once none knew of the others: each brought what it had."""
    body = bytes(2_000_000)
    monkeypatch.setattr(fetching, "_HELD_BYTES", 2 * len(body))
    monkeypatch.setattr(hosts, "_PER_HOST", 64)
    large = answer(body) if announced else b"HTTP/1.1 200 OK\r\n\r\n" + body
    monkeypatch.setitem(TRAPS, "large", (large, b"", 0, "kept"))
    monkeypatch.setitem(TRAPS, "slow", (HEAD, PNG, 1.0, "kept"))
    with hostile() as url:
        settings = FetchSettings(
            per_host_per_s=1000, timeout_s=20, concurrency=32, obey_opt_out=False, addresses=LOOPBACK
        )
        tracemalloc.start()
        try:
            with Fetcher(settings) as fetcher:
                sizes = [
                    len(result.data) if isinstance(result, Fetched) else result
                    for _, result in fetcher.map(enumerate([f"{url}/slow"] + [f"{url}/large"] * 24))
                ]
            peak = tracemalloc.get_traced_memory()[1] / len(body)
        finally:
            tracemalloc.stop()
    assert sizes == [len(PNG)] + [len(body)] * 24
    assert peak < 9, f"memory of {peak:.1f} pictures where there is room for two, and a few for those that come and go"


def test_silent_name_servers_hold_up_only_their_own_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = threading.Event(), socket.getaddrinfo
    heard: list[bool] = []

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if str(host).startswith("silent"):
            heard.append(asked.wait(60))
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        asked.set()
        return real("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with site({"/a": Page(PNG)}) as web:
        port = web.url.rpartition(":")[2]
        urls = [f"http://silent{n}.example/" for n in range(40)] + [f"http://loud.example:{port}/a"]
        *silent, loud = fetched(urls, concurrency=64, timeout_s=90)
    assert heard == [True] * 40, "asyncio's own threads are fewer than 40: the last waited for the first to give up"
    assert isinstance(loud, Fetched)
    assert {result.detail for result in silent if isinstance(result, Refused)} == {
        f"asking for robots.txt: silent{n}.example: its name cannot be looked up now" for n in range(40)
    }


def test_a_url_of_a_megabyte_is_no_request() -> None:
    with site({}) as web:
        (result,) = fetched([web.url + "/" + "a" * 1_000_000])
        assert isinstance(result, Refused)
        assert result.reason == "bad_url"
        assert not web.asked
