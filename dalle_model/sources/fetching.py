"""Bytes behind URLs of unknown origin, politely and safely, in the order of the list.

Each hop of each fetch is checked by itself: the scheme, the address that is connected to (``addresses``), and what the
owner of the site allows (``permissions``). Redirects are followed by hand, at most three. A failure has a class, which
says whether another try could help: transient, permanent, or refused (by the owner or by our own rules).
"""

import asyncio
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dalle_model.decoding import Reason, Refused
from dalle_model.sources.addresses import AddressPolicy, literal
from dalle_model.sources.failures import FAILURES, TRANSIENT
from dalle_model.sources.fetch_failures import Failed, failure_of
from dalle_model.sources.hosts import LEFT_ALONE_S, MAX_PAUSE_S, Host, retry_after_s
from dalle_model.sources.permissions import AGENT, SiteRules, header_reserves, tag_refuses, training_preference
from dalle_model.sources.room import NoRoom, Room
from dalle_model.sources.web_urls import parse_url

_T = TypeVar("_T")

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_ROBOTS_REDIRECTS = 5  # RFC 9309, section 2.3.1.2
_ROBOTS_BYTES = 500 * 1024  # RFC 9309, section 2.5: at least this much is parsed
_HELD_BYTES = 200_000_000  # pictures under way, and those that wait for a slower one before them
_AHEAD, _MOST_AHEAD = 4, 64  # URLs under way or waiting, per request at once: at first, and when all goes well
_HOSTS = 4096  # whose rules and pace are remembered at once


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How to fetch. ``per_host_per_s`` also counts robots.txt and redirects."""

    concurrency: int = 32
    per_host_per_s: float = 5.0
    timeout_s: float = 30.0
    retries: int = 2
    max_bytes: int = 20_000_000
    obey_opt_out: bool = True
    contact: str = ""
    addresses: AddressPolicy = field(default_factory=AddressPolicy)


@dataclass(frozen=True, slots=True)
class Fetched:
    """The body, and in words what was asked of whom before it was taken."""

    data: bytes
    decision: str


class _Resolver(AbstractResolver):
    """The system's resolver; a host with one address that is refused is refused altogether."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._system = aiohttp.ThreadedResolver()
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._system.resolve(host, port, family)
        for answer in found:
            self._policy.check(answer["host"])
        return found

    async def close(self) -> None:
        await self._system.close()


class _Site(Host):
    """A host, and the rules of its sites (by origin) with the time they were asked for."""

    def __init__(self, name: str, rate: float) -> None:
        super().__init__(name, rate)
        self.rules: dict[str, tuple[asyncio.Task[SiteRules | Refused], float]] = {}


class Fetcher:
    """Fetches in a thread of its own. A context manager; leaving it ends what is under way."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._hosts: OrderedDict[str, _Site] = OrderedDict()
        self._ahead = _AHEAD * settings.concurrency
        self._room = Room(_HELD_BYTES)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def map(self, items: Iterable[tuple[_T, str | Refused]]) -> Iterator[tuple[_T, Fetched | Refused]]:
        """(tag, result) for each (tag, URL) in order; a Refused instead of a URL passes through.

        Looks ahead by a bounded number of URLs and bytes, so memory does not grow with the list: far, as a list may name
        many of one host in a row, but not before some were fetched, as one that leads nowhere should end soon.
        """
        waiting: deque[tuple[_T, Future[Fetched | Refused] | Refused]] = deque()
        number = 0
        for tag, url in items:
            while len(waiting) >= self._ahead:
                yield self._finished(*waiting.popleft())
            if isinstance(url, Refused):
                waiting.append((tag, url))
            else:
                waiting.append((tag, asyncio.run_coroutine_threadsafe(self._fetch(url, number), self._loop)))
                number += 1
        while waiting:
            yield self._finished(*waiting.popleft())

    def _finished(self, tag: _T, result: Future[Fetched | Refused] | Refused) -> tuple[_T, Fetched | Refused]:
        if isinstance(result, Refused):
            return tag, result
        found = result.result()
        self._loop.call_soon_threadsafe(self._room.handed_on)
        if isinstance(found, Fetched):
            self._ahead = min(self._ahead + 1, _MOST_AHEAD * self._settings.concurrency)
        return tag, found

    async def _open(self) -> None:
        s = self._settings
        # Names are looked up in threads. With the few of asyncio's own, silent name servers would hold up all other hosts.
        self._loop.set_default_executor(ThreadPoolExecutor(s.concurrency, "names"))
        self._slots = asyncio.Semaphore(s.concurrency)
        connector = aiohttp.TCPConnector(
            limit=0,  # our own semaphores: time in aiohttp's queue would count as the server's
            resolver=_Resolver(s.addresses),
            ttl_dns_cache=300,
            socket_factory=_socket_factory(s.addresses),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": user_agent(s.contact), "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=s.timeout_s, connect=min(10.0, s.timeout_s)),
            trust_env=False,  # through a proxy, the address that is connected to could not be judged
        )

    async def _close(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    async def _fetch(self, text: str, number: int) -> Fetched | Refused:
        while True:
            try:
                return await self._tried(lambda: self._follow(text, number))
            except NoRoom:  # it is asked for again when there is
                continue

    async def _tried(self, fetch: Callable[[], Awaitable[_T]]) -> _T | Refused:
        """What ``fetch`` brings, tried again where that may help."""
        for attempt in range(self._settings.retries + 1):
            if attempt:
                await asyncio.sleep(2.0 ** (attempt - 2))
            try:
                return await fetch()
            except Failed as failed:
                result = failed.refused
                if not failed.again:
                    break
            except NoRoom:
                raise
            except Exception as error:  # a URL costs its own row and never the run
                return Refused(Reason.BAD_RESPONSE, f"{type(error).__name__} while it was fetched")
        return result

    async def _follow(self, text: str, number: int) -> Fetched:
        """The picture behind a URL: every hop judged anew."""
        url = parse_url(text)
        decisions: list[str] = []
        for _ in range(MAX_REDIRECTS + 1):
            rules = await self._rules(url)
            words = self._judge_before(url, rules)
            async with self._answer(url, number) as response:
                if response.status in _REDIRECTS:
                    url = _target(response, url)
                    decisions.append(f"redirected to {url.host}")
                    continue
                words += self._judge_headers(url, response, rules)
                data = await self._body(response, number)
            return Fetched(data, "; ".join([*decisions, *words]))
        raise Failed(Reason.TOO_MANY_REDIRECTS, f"more than {MAX_REDIRECTS} redirects")

    def _judge_before(self, url: URL, rules: SiteRules) -> list[str]:
        """What robots.txt says, in words. Raises when it says no and is obeyed."""
        if not self._settings.obey_opt_out:
            return ["opt-outs not asked for"]
        if not rules.allows(str(url)):
            raise Failed(Reason.ROBOTS_TXT, f"robots.txt of {url.host} disallows this path for {AGENT}")
        if line := rules.usage.refuses(url.raw_path_qs):
            raise Failed(Reason.TDM_RESERVED, f"robots.txt of {url.host} says {line}")
        return ["robots.txt allows" if rules.robots is not None else "no robots.txt"]

    def _judge_headers(self, url: URL, response: aiohttp.ClientResponse, rules: SiteRules) -> list[str]:
        _judge_status(response)
        if not self._settings.obey_opt_out:
            return []
        if directive := tag_refuses(response.headers.getall("X-Robots-Tag", [])):
            raise Failed(Reason.X_ROBOTS_TAG, f"X-Robots-Tag: {directive}")
        usage = (v for name in ("Content-Usage", "Content-Signal") for v in response.headers.getall(name, []))
        if (preference := training_preference(usage)) and not preference[0]:
            raise Failed(Reason.TDM_RESERVED, f"a header says {preference[1]}")
        said = header_reserves(response.headers.getall("TDM-Reservation", []))
        if said or (said is None and rules.tdm.reserves(url.raw_path_qs)):
            where = "header TDM-Reservation: 1" if said else "/.well-known/tdmrep.json"
            raise Failed(Reason.TDM_RESERVED, f"reserved by {where}")
        return ["no X-Robots-Tag against it", "TDM-Reservation: 0" if said is False else "no TDM reservation"]

    async def _rules(self, url: URL) -> SiteRules:
        """The rules of a URL's site, asked for once. Raises as a fetch does when the site does not answer."""
        if not self._settings.obey_opt_out:
            return SiteRules()
        host, origin, now = self._host(url), str(url.origin()), self._loop.time()
        asked, at = host.rules.get(origin, (None, 0.0))
        failed = asked is not None and asked.done() and isinstance(asked.result(), Refused)
        if asked is None or (failed and now - at > LEFT_ALONE_S):
            asked = asyncio.create_task(self._ask(url.origin()))
            host.rules[origin] = (asked, now)
        rules = await asyncio.shield(asked)
        if isinstance(rules, Refused):  # it was asked as often as a picture is
            raise Failed(rules.reason, rules.detail, rules.score, again=False)
        host.pace.ask(rules.delay_s())
        return rules

    async def _ask(self, origin: URL) -> SiteRules | Refused:
        robots = await self._tried(lambda: self._file(origin / "robots.txt"))
        if isinstance(robots, Refused):
            return Refused(robots.reason, f"asking for robots.txt: {robots.detail}", robots.score)
        try:
            reserved = await self._file(origin / ".well-known" / "tdmrep.json")
        except Failed:
            reserved = None  # the protocol knows no "unavailable": a reservation that cannot be read is none
        return SiteRules.parse(robots, reserved)

    async def _file(self, url: URL) -> bytes | None:
        """A small file of a site, None when there is none. RFC 9309: 4xx means none, no answer means nothing is allowed."""
        for _ in range(_ROBOTS_REDIRECTS + 1):
            async with self._answer(url) as response:
                if response.status in _REDIRECTS:
                    url = _target(response, url)
                    continue
                if response.status in _BUSY or response.status >= 500:
                    raise _busy(response)
                return await _read(response, _ROBOTS_BYTES) if response.status == 200 else None
        return None

    @asynccontextmanager
    async def _answer(self, url: URL, number: int = -1) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request at the host's pace, for the picture of that number of the list or, -1, a file of the site.

        Raises Failed for whatever goes wrong on the way and while the body is read.
        """
        self._judge_address(url)
        host = self._host(url)
        host.check()
        await host.pace.wait()
        async with self._place(host, number):
            host.check()  # it may have failed others meanwhile
            try:
                async with self._session.get(url, allow_redirects=False) as response:
                    yield response
            except Failed as failed:
                _note(host, failed)
                raise
            except (aiohttp.ClientError, OSError, TimeoutError, UnicodeError) as error:
                meant = failure_of(error, url, self._settings.timeout_s)
                _note(host, meant)
                raise meant from error
            host.worked()

    @asynccontextmanager
    async def _place(self, host: Host, number: int) -> AsyncIterator[None]:
        """A place among the requests of the host and of all, when there is room for what it brings."""
        while True:
            await self._room.wait(number)
            async with host.slots, self._slots:
                if self._room.enter(number):
                    try:
                        yield
                    finally:
                        self._room.leave(number)
                    return

    def _judge_address(self, url: URL) -> None:
        address, host = literal(url.host or ""), (url.host or "")
        if address and not self._settings.addresses.permits(address):
            raise Failed(Reason.ADDRESS_REFUSED, f"{host} is {address}, which is not a global address")
        if address and address != host.partition("%")[0]:
            raise Failed(Reason.BAD_URL, f"{host} is an unusual spelling of {address}")

    async def _body(self, response: aiohttp.ClientResponse, number: int) -> bytes:
        limit = self._settings.max_bytes
        if (response.content_length or 0) > limit:
            size = response.content_length or 0
            raise Failed(Reason.TOO_MANY_BYTES, f"{size} bytes are announced, the limit is {limit}", size)
        self._room.need(number, response.content_length or 0)
        data = bytearray()
        async for piece in response.content.iter_chunked(1 << 16):
            self._room.need(number, len(data) + len(piece), whole=False)
            data += piece
            if len(data) > limit:
                raise Failed(Reason.TOO_MANY_BYTES, f"more than {limit} bytes were sent", limit + 1)
        self._room.keep(number, len(data))
        return bytes(data)

    def _host(self, url: URL) -> _Site:
        key = url.host or ""
        if key not in self._hosts:
            while len(self._hosts) >= _HOSTS:
                self._hosts.popitem(last=False)
            self._hosts[key] = _Site(key, self._settings.per_host_per_s)
        self._hosts.move_to_end(key)
        return self._hosts[key]


def user_agent(contact: str = "") -> str:
    """Who we are, in every request."""
    try:
        release = version("dalle-prefect")
    except PackageNotFoundError:
        release = "0"
    return f"{AGENT}/{release} (reads captioned pictures to train an image model{'; ' if contact else ''}{contact})"


def _target(response: aiohttp.ClientResponse, url: URL) -> URL:
    """Where a redirect leads."""
    location = response.headers.get("Location", "")
    if not location.strip():
        raise Failed(Reason.BAD_URL, f"{url.host} redirects to nowhere (no Location)")
    try:
        return parse_url(location, url)
    except Failed as failed:
        raise Failed(failed.refused.reason, f"redirected to what is not fetched: {failed}") from failed


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body up to ``limit`` bytes."""
    data = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        data += piece
        if len(data) > limit:
            break
    return bytes(data[:limit])


def _judge_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in _BUSY:
        raise _busy(response)
    if status not in (200, 203):
        raise Failed(Reason.HTTP_STATUS, f"HTTP status {status}", status)


def _busy(response: aiohttp.ClientResponse) -> Failed:
    status, pause_s = response.status, retry_after_s(response.headers.get("Retry-After", ""))
    words = f"; the site asks for a pause of {pause_s:.0f} s" if pause_s > 1 else ""
    again = pause_s <= MAX_PAUSE_S
    return Failed(Reason.SERVER_BUSY, f"HTTP status {status}{words}", status, pause_s=pause_s, again=again)


def _note(host: Host, failed: Failed) -> None:
    """What a failure says of the host; a refusal of ours and a missing picture say that it is well."""
    if failed.pause_s:
        host.asks_for(failed.pause_s)
    if FAILURES.get(failed.refused.reason) == TRANSIENT:
        host.failed(failed.refused.reason)
    else:
        host.worked()


def _socket_factory(policy: AddressPolicy) -> Callable[[Any], socket.socket]:
    """The last look, at the address that is connected to itself: nothing between a check and its use."""

    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        policy.check(address[0])
        return socket.socket(family, kind, protocol)

    return make
