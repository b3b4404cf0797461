"""Bytes behind URLs of unknown origin, politely and safely, in the order of the list.

Each hop of each fetch is checked by itself: the scheme, the address that is connected to (``addresses``), and what the
owner of the site allows (``permissions``). Redirects are followed by hand, at most three. A failure has a class, which
says whether another try could help: transient, permanent, or refused (by the owner or by our own rules).
"""

import asyncio
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dalle_model.decoding import Reason, Refused
from dalle_model.sources.addresses import AddressPolicy, AddressRefused, literal
from dalle_model.sources.failures import FAILURES, TRANSIENT
from dalle_model.sources.permissions import AGENT, SiteRules, header_reserves, tag_refuses

_T = TypeVar("_T")

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_ROBOTS_BYTES = 500 * 1024  # RFC 9309, section 2.5: at least this much is parsed
_HELD_BYTES = 200_000_000  # pictures that wait for a slower one before them
_PER_HOST = 8  # requests to one host at once
_HOSTS = 4096  # whose rules and pace are remembered at once
_MAX_PAUSE_S = 30.0  # that a site may ask for between two requests
_SITE_RETRY_S = 60.0  # after which a site that did not answer is asked again


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


class _Failed(Exception):
    """Carries a verdict out of nested calls."""

    def __init__(self, reason: Reason, detail: str, score: float | None = None, *, pause_s: float = 0.0) -> None:
        super().__init__(detail)
        self.refused = Refused(reason, detail, score)
        self.pause_s = pause_s


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


class _Pace:
    """A token bucket per host: ``rate`` requests a second, and as many at once after a rest."""

    def __init__(self, rate: float) -> None:
        self._interval_s = 1 / rate
        self._burst_s = max(0.0, 1.0 - self._interval_s)
        self._due = 0.0

    def ask(self, delay_s: float) -> None:
        """The site wants this much time between requests (Crawl-delay)."""
        if delay_s > self._interval_s:
            self._interval_s, self._burst_s = min(delay_s, _MAX_PAUSE_S), 0.0

    def hold(self, pause_s: float) -> None:
        """Nothing for a while (Retry-After)."""
        self._due = max(self._due, asyncio.get_running_loop().time() + min(pause_s, _MAX_PAUSE_S) + self._burst_s)

    async def wait(self) -> None:
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now - self._burst_s)
        wait_s = self._due - now
        self._due += self._interval_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)


class _Host:
    """What is remembered of a host: its pace, and the rules of its sites (by origin) with the time they were asked for."""

    def __init__(self, rate: float) -> None:
        self.pace = _Pace(rate)
        self.slots = asyncio.Semaphore(_PER_HOST)
        self.rules: dict[str, tuple[asyncio.Task[SiteRules], float]] = {}


class Fetcher:
    """Fetches in a thread of its own. A context manager; leaving it ends what is under way."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._held = 0

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

        Looks ahead by a bounded number of URLs and bytes, so memory does not grow with the list.
        """
        waiting: deque[tuple[_T, Future[Fetched | Refused] | Refused]] = deque()
        for tag, url in items:
            while len(waiting) >= 4 * self._settings.concurrency or (waiting and self._held > _HELD_BYTES):
                yield self._finished(*waiting.popleft())
            waiting.append((tag, url if isinstance(url, Refused) else self._submit(url)))
        while waiting:
            yield self._finished(*waiting.popleft())

    def _submit(self, url: str) -> Future[Fetched | Refused]:
        return asyncio.run_coroutine_threadsafe(self._fetch(url), self._loop)

    def _finished(self, tag: _T, result: Future[Fetched | Refused] | Refused) -> tuple[_T, Fetched | Refused]:
        found = result if isinstance(result, Refused) else result.result()
        if isinstance(found, Fetched):
            self._held -= len(found.data)
        return tag, found

    async def _open(self) -> None:
        s = self._settings
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

    async def _fetch(self, text: str) -> Fetched | Refused:
        for attempt in range(self._settings.retries + 1):
            if attempt:
                await asyncio.sleep(2.0 ** (attempt - 2))
            try:
                fetched = await self._follow(text)
            except _Failed as failed:
                result = failed.refused
                if FAILURES.get(result.reason) != TRANSIENT:
                    break
            except Exception as error:  # a URL costs its own row and never the run
                return Refused(Reason.BAD_RESPONSE, f"{type(error).__name__} while it was fetched")
            else:
                self._held += len(fetched.data)
                return fetched
        return result

    async def _follow(self, text: str) -> Fetched:
        """The picture behind a URL: every hop judged anew."""
        url = _parse(text)
        decisions: list[str] = []
        for _ in range(MAX_REDIRECTS + 1):
            rules = await self._rules(url)
            words = self._judge_before(url, rules)
            async with self._answer(url) as response:
                if response.status in _REDIRECTS:
                    url = _parse(response.headers.get("Location", ""), url)
                    decisions.append(f"redirected to {url.host}")
                    continue
                words += self._judge_headers(url, response, rules)
                data = await self._body(response)
            return Fetched(data, "; ".join([*decisions, *words]))
        raise _Failed(Reason.TOO_MANY_REDIRECTS, f"more than {MAX_REDIRECTS} redirects")

    def _judge_before(self, url: URL, rules: SiteRules) -> list[str]:
        """What robots.txt says, in words. Raises when it says no and is obeyed."""
        if not self._settings.obey_opt_out:
            return ["opt-outs not asked for"]
        if not rules.allows(str(url)):
            raise _Failed(Reason.ROBOTS_TXT, f"robots.txt of {url.host} disallows this path for {AGENT}")
        return ["robots.txt allows" if rules.robots is not None else "no robots.txt"]

    def _judge_headers(self, url: URL, response: aiohttp.ClientResponse, rules: SiteRules) -> list[str]:
        _judge_status(response)
        if not self._settings.obey_opt_out:
            return []
        if directive := tag_refuses(response.headers.getall("X-Robots-Tag", [])):
            raise _Failed(Reason.X_ROBOTS_TAG, f"X-Robots-Tag: {directive}")
        said = header_reserves(response.headers.get("TDM-Reservation"))
        if said or (said is None and rules.tdm.reserves(url.raw_path_qs)):
            where = "header TDM-Reservation: 1" if said else "/.well-known/tdmrep.json"
            raise _Failed(Reason.TDM_RESERVED, f"reserved by {where}")
        return ["no X-Robots-Tag against it", "TDM-Reservation: 0" if said is False else "no TDM reservation"]

    async def _rules(self, url: URL) -> SiteRules:
        """The rules of a URL's site, asked for once. Raises as a fetch does when the site does not answer."""
        if not self._settings.obey_opt_out:
            return SiteRules()
        host, origin, now = self._host(url), str(url.origin()), self._loop.time()
        asked, at = host.rules.get(origin, (None, 0.0))
        failed = asked is not None and asked.done() and asked.exception() is not None
        if asked is None or (failed and now - at > _SITE_RETRY_S):
            asked = asyncio.create_task(self._ask(url.origin()))
            host.rules[origin] = (asked, now)
        rules = await asyncio.shield(asked)
        host.pace.ask(rules.delay_s())
        return rules

    async def _ask(self, origin: URL) -> SiteRules:
        robots = await self._file(origin / "robots.txt")
        try:
            reserved = await self._file(origin / ".well-known" / "tdmrep.json")
        except _Failed:
            reserved = None  # the protocol knows no "unavailable": a reservation that cannot be read is none
        return SiteRules.parse(robots, reserved)

    async def _file(self, url: URL) -> bytes | None:
        """A small file of a site, None when there is none. RFC 9309: 4xx means none, no answer means nothing is allowed."""
        for _ in range(MAX_REDIRECTS + 1):
            async with self._answer(url) as response:
                if response.status in _REDIRECTS:
                    url = _parse(response.headers.get("Location", ""), url)
                    continue
                if response.status in _BUSY or response.status >= 500:
                    raise _Failed(Reason.SERVER_BUSY, f"{url.host}{url.path} answers {response.status}")
                return (await _read(response, _ROBOTS_BYTES))[:_ROBOTS_BYTES] if response.status == 200 else None
        return None

    @asynccontextmanager
    async def _answer(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request at the host's pace. Raises _Failed for whatever goes wrong on the way and while the body is read."""
        if address := literal(url.host or ""):
            if not self._settings.addresses.permits(address):
                raise _Failed(Reason.ADDRESS_REFUSED, f"{url.host} is {address}, which is not a global address")
            if address != (url.host or "").partition("%")[0]:
                raise _Failed(Reason.BAD_URL, f"{url.host} is an unusual spelling of {address}")
        host = self._host(url)
        await host.pace.wait()
        try:
            async with host.slots, self._slots, self._session.get(url, allow_redirects=False) as response:
                yield response
        except _Failed as failed:
            if failed.pause_s:
                host.pace.hold(failed.pause_s)
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _failure(error, url, self._settings.timeout_s) from error

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._settings.max_bytes
        if (response.content_length or 0) > limit:
            size = response.content_length or 0
            raise _Failed(Reason.TOO_MANY_BYTES, f"{size} bytes are announced, the limit is {limit}", size)
        data = await _read(response, limit)
        if len(data) > limit:
            raise _Failed(Reason.TOO_MANY_BYTES, f"more than {limit} bytes were sent", len(data))
        return data

    def _host(self, url: URL) -> _Host:
        key = url.host or ""
        if key not in self._hosts:
            while len(self._hosts) >= _HOSTS:
                self._hosts.popitem(last=False)
            self._hosts[key] = _Host(self._settings.per_host_per_s)
        self._hosts.move_to_end(key)
        return self._hosts[key]


def user_agent(contact: str = "") -> str:
    """Who we are, in every request."""
    try:
        release = version("dalle-prefect")
    except PackageNotFoundError:
        release = "0"
    return f"{AGENT}/{release} (reads captioned pictures to train an image model{'; ' if contact else ''}{contact})"


def _parse(text: str, base: URL | None = None) -> URL:
    """An absolute http(s) URL without credentials; _Failed for anything else."""
    try:
        url = URL(text.strip()) if base is None else base.join(URL(text.strip()))
        bad = url.scheme not in ("http", "https") or not url.host
    except (ValueError, UnicodeError) as error:
        raise _Failed(Reason.BAD_URL, f"no URL ({type(error).__name__})") from error
    if bad or not text.strip():
        raise _Failed(Reason.BAD_URL, f"scheme {url.scheme or 'none'!r}; http and https are fetched")
    if url.user is not None or url.password is not None:
        raise _Failed(Reason.BAD_URL, "the URL holds credentials, which are not sent")
    return url.with_fragment(None)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, or a piece of it that is longer than ``limit``."""
    data = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        data += piece
        if len(data) > limit:
            break
    return bytes(data)


def _judge_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in _BUSY:
        asked = response.headers.get("Retry-After", "")
        pause_s = float(asked) if asked.isascii() and asked.isdigit() else 1.0
        raise _Failed(Reason.SERVER_BUSY, f"HTTP status {status}", status, pause_s=pause_s)
    if status not in (200, 203):
        raise _Failed(Reason.HTTP_STATUS, f"HTTP status {status}", status)


def _failure(error: BaseException, url: URL, timeout_s: float) -> _Failed:
    """What an exception of the client means."""
    causes: list[BaseException] = []
    look: list[BaseException | None] = [error]
    while look:
        cause = look.pop()
        if cause is not None and cause not in causes:
            causes.append(cause)
            look += [cause.__cause__, cause.__context__, getattr(cause, "os_error", None)]
            look += list(getattr(cause, "exceptions", ()))
    host = url.host or ""
    if any(isinstance(cause, AddressRefused) for cause in causes):
        words = next(str(cause) for cause in causes if isinstance(cause, AddressRefused))
        return _Failed(Reason.ADDRESS_REFUSED, f"{host}: {words}")
    if isinstance(error, TimeoutError):
        return _Failed(Reason.FETCH_TIMEOUT, f"{host} was too slow: the limit is {timeout_s:g} s")
    names = [cause for cause in causes if isinstance(cause, socket.gaierror)]
    if names and names[0].errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
        return _Failed(Reason.HOST_UNKNOWN, f"no address is known for {host}")
    if isinstance(error, aiohttp.ClientSSLError):
        return _Failed(Reason.TLS_FAILED, f"{host}: {type(error).__name__}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return _Failed(Reason.CUT_OFF, f"{host} stopped before the end")
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return _Failed(Reason.BAD_URL, f"{host}: {type(error).__name__}")
    if isinstance(error, aiohttp.ClientResponseError):
        return _Failed(Reason.BAD_RESPONSE, f"{host} does not speak HTTP as it should")
    words = "its name cannot be looked up now" if names else "no connection, or it was closed"
    return _Failed(Reason.UNREACHABLE, f"{host}: {words}")


def _socket_factory(policy: AddressPolicy) -> Callable[[Any], socket.socket]:
    """The last look, at the address that is connected to itself: nothing between a check and its use."""

    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        policy.check(address[0])
        return socket.socket(family, kind, protocol)

    return make
