"""What the exceptions of an HTTP client mean for a row: its reason, in words a person can use."""

import socket
from collections.abc import Iterator

import aiohttp
from yarl import URL

from dalle_model.decoding import Reason, Refused
from dalle_model.sources.addresses import AddressRefused
from dalle_model.sources.failures import FAILURES, TRANSIENT

DETAIL_CHARS = 200  # of a host in words: names come from strangers


class Failed(Exception):
    """Carries a verdict out of nested calls.

    ``pause_s`` is what the site asks for; ``again`` whether another try in this run may help.
    """

    def __init__(
        self, reason: Reason, detail: str, score: float | None = None, *, pause_s: float = 0.0, again: bool = True
    ) -> None:
        super().__init__(detail)
        self.refused = Refused(reason, detail, score)
        self.pause_s = pause_s
        self.again = again and FAILURES.get(reason) == TRANSIENT


def failure_of(error: BaseException, url: URL, timeout_s: float) -> Failed:
    """The verdict for an exception that a request raised."""
    causes = list(_causes(error))
    host = (url.host or "")[:DETAIL_CHARS]
    if any(isinstance(cause, AddressRefused) for cause in causes):
        words = next(str(cause) for cause in causes if isinstance(cause, AddressRefused))
        return Failed(Reason.ADDRESS_REFUSED, f"{host}: {words}")
    if isinstance(error, TimeoutError):
        return Failed(Reason.FETCH_TIMEOUT, f"{host} was too slow: the limit is {timeout_s:g} s")
    names = [cause for cause in causes if isinstance(cause, socket.gaierror)]
    if names and names[0].errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
        return Failed(Reason.HOST_UNKNOWN, f"no address is known for {host}")
    if isinstance(error, aiohttp.ClientSSLError):
        return Failed(Reason.TLS_FAILED, f"{host}: {type(error).__name__}")
    if any(isinstance(cause, aiohttp.http_exceptions.ContentEncodingError) for cause in causes):
        # Nobody asked for an encoding, and another try would get the same bytes.
        return Failed(Reason.BAD_RESPONSE, f"{host} sends something else than its Content-Encoding says")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failed(Reason.CUT_OFF, f"{host} stopped before the end")
    if isinstance(error, aiohttp.InvalidURL | ValueError):  # a UnicodeError too: a label of more than 63 characters
        return Failed(Reason.BAD_URL, f"{host!r} is no name of a host ({type(error).__name__})")
    if isinstance(error, aiohttp.ClientResponseError):
        return Failed(Reason.BAD_RESPONSE, f"{host} does not speak HTTP as it should")
    words = "its name cannot be looked up now" if names else "no connection, or it was closed"
    return Failed(Reason.UNREACHABLE, f"{host}: {words}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    look: list[BaseException | None] = [error]
    while look:
        cause = look.pop()
        if cause is not None and cause not in seen:
            seen.append(cause)
            look += [cause.__cause__, cause.__context__, getattr(cause, "os_error", None)]
            look += list(getattr(cause, "exceptions", ()))
    yield from seen
