"""How many bytes of pictures are in memory at once while one before them is slow.

Results are handed on in the order of the list, so a picture that is there waits for those before it. A request takes the
room that its picture needs before it begins, as far as anybody knows that: by what the server announced when it was asked before,
or by the size of others. One for which there is no room after all is given up as soon as that shows, and asked for again
when there is. The picture that all others wait for always has room.
"""

import asyncio

_WEIGHT = 0.1  # of the newest picture in what the next is expected to have


class NoRoom(Exception):
    """A picture turns out larger than what is left. It is asked for again when there is room."""


class Room:
    """Bytes that are taken, by the number of the picture in the list. Used in one thread; numbers below 0 need none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._first = 0  # the picture that is handed on next
        self._taken: dict[int, int] = {}
        self._held = 0
        self._here: set[int] = set()
        self._known: dict[int, int] = {}  # what those need that were given up
        self._usual = 0.0
        self._waiting: dict[int, asyncio.Event] = {}

    async def wait(self, number: int) -> None:
        """Wait until there is room for what the picture is expected to need, without taking it."""
        while not self._fits(number, self._expected(number)):
            await self._waiting.setdefault(number, asyncio.Event()).wait()

    def enter(self, number: int) -> bool:
        """Take what the picture is expected to need, if there is room for it."""
        if number < 0:
            return True
        expected = self._expected(number)
        if self._fits(number, expected):
            self._set(number, expected)
            return True
        return False

    def need(self, number: int, size: int, *, whole: bool = True) -> None:
        """The picture has ``size`` bytes, or so many so far. Raises NoRoom where these are too many now."""
        if size <= self._taken.get(number, 0):
            return
        if not self._fits(number, size):
            self._known[number] = size if whole else 2 * size  # it is fetched anew: not again for each piece
            raise NoRoom
        self._set(number, size)

    def keep(self, number: int, size: int) -> None:
        """The picture is here and has ``size`` bytes."""
        self._here.add(number)
        self._usual += (_WEIGHT if self._usual else 1.0) * (size - self._usual)
        self._set(number, size)
        self._wake()

    def leave(self, number: int) -> None:
        """The request is over: what it took is free, unless it brought the picture."""
        if number not in self._here:
            self._set(number, 0)
            self._wake()

    def handed_on(self) -> None:
        """The first is out of the way, with its picture."""
        self._set(self._first, 0)
        self._here.discard(self._first)
        self._known.pop(self._first, None)
        self._first += 1
        self._wake()

    def _expected(self, number: int) -> int:
        return self._known.get(number, int(self._usual))

    def _fits(self, number: int, size: int) -> bool:
        return number <= self._first or self._held - self._taken.get(number, 0) + size <= self._limit

    def _set(self, number: int, size: int) -> None:
        self._held += size - self._taken.pop(number, 0)
        if size:
            self._taken[number] = size

    def _wake(self) -> None:
        """Wake those for whom there is room, the earliest first; each looks again by itself."""
        room = self._limit - self._held
        for number in sorted(self._waiting):
            room -= self._expected(number)
            if room < 0 and number > self._first:
                return
            self._waiting.pop(number).set()
