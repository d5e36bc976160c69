"""Which server takes the next request, and how many each takes at once. No network here: answers and failures are told, the clock is given.

A server's own limit is found as TCP finds the width of a line (Jacobson 1988; RFC 5681): it doubles each round up to where it was last
refused, then grows by a tenth, and halves where the server refuses. Growth also stops where it no longer pays: see ``Limit``.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sharpen.errors import PolicyError

START = 16  # requests at once at a server that nobody knows yet
ROUND = 8  # answers that a round has at least
PAYS = 0.8  # n times as many at once may take up to 1 + PAYS * (n - 1) times as long
REST = 8  # rounds to wait before trying again to grow where it did not pay
LOST = 3  # requests lost in a row before a server is set aside
LONGEST = 60.0  # seconds a server is paused at most, unless it asks for more itself


class Limit:
    """How many requests one server takes at once: ``value``, from 1 to ``most``.

    A round is as many answers as the limit, to requests that began after it last changed. Rounds in which the limit was not used say
    nothing. The limit grows while latency holds: seconds per sampled token may rise, because a batch is slower than one request, but by less than
    the limit did since the last growth that paid. Else the server only lets the rest wait, and the limit goes back.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.value = float(min(START, most))
        self._threshold = float(most)
        self._paid = (self.value, 0.0)  # the last limit whose growth paid, and its seconds per token; 0 where not known yet
        self._rest = 0
        self._recovered = True  # an answer came since it last shrank
        self._changed = float("-inf")
        self._new_round()

    def answered(self, began: float, now: float, tokens: int, full: bool) -> None:
        """An answer of ``tokens`` sampled tokens to a request sent at ``began``; ``full`` where as many were out as the limit allows."""
        if began < self._changed:
            return
        self._recovered = True
        self._answers += 1
        self._full += full
        self._seconds += now - began
        self._tokens += max(tokens, 1)
        if self._answers >= max(self.value, ROUND):
            if 2 * self._full >= self._answers:
                self._judge(self._seconds / self._tokens, now)
            self._new_round()

    def refused(self, began: float, now: float, in_flight: int) -> None:
        """The server threw a request back. Once for all that were out at the time; in a row, only the first says where the limit lies."""
        if began >= self._changed:
            half = min(self.value, in_flight) / 2
            self._threshold = max(1.0, half) if self._recovered else self._threshold
            self._recovered = False
            self._set(half, now)

    def _judge(self, pace: float, now: float) -> None:
        before, best = self._paid
        ratio = self.value / before
        if ratio > 1 and pace > best * (1 + PAYS * (ratio - 1)):
            self._threshold = before
            self._rest = REST
            self._set(before, now)
            return
        if ratio <= 1 or ratio >= 1.5:
            self._paid = (self.value, pace)
        if self._rest > 0:
            self._rest -= 1
        elif self.value < self.most:
            self._set(self.value * 2 if self.value < self._threshold else self.value + max(1.0, self.value / 10), now)

    def _set(self, value: float, now: float) -> None:
        self.value = min(max(1.0, value), float(self.most))
        self._changed = now
        self._new_round()

    def _new_round(self) -> None:
        self._answers = self._full = self._tokens = 0
        self._seconds = 0.0


@dataclass(eq=False)
class Server:
    """One server as the balancer sees it. ``until`` is when it may be asked again; ``dead`` servers are asked one question at a time."""

    url: str
    limit: Limit
    in_flight: int = 0
    until: float = 0.0
    pauses: int = 0  # in a row, without an answer between
    lost: int = 0  # requests in a row that brought no answer at all
    dead: bool = False
    problem: PolicyError | None = None
    _paused: float = float("-inf")

    def room(self, now: float) -> float:
        """The share of its limit that is free, 0 for none."""
        limit = 1 if self.dead else int(self.limit.value)
        return 0.0 if now < self.until else max(0.0, (limit - self.in_flight) / limit)

    def pause(self, began: float, now: float, seconds: float, asked: float) -> None:
        """Ask nothing for as long as the server ``asked``, else for ``seconds``, doubled with each pause in a row. One pause for all that were out."""
        if began >= self._paused:
            self._paused = now
            if not asked:
                asked = min(LONGEST, seconds * 2**self.pauses)
            self.pauses += 1
        self.until = max(self.until, now + asked)


@dataclass(eq=False)
class _Waiting:
    opening: bytes
    avoid: Server | None
    began: float
    granted: asyncio.Future[Server]


@dataclass(eq=False)
class Balancer:
    """Hands out places at servers, first come first served.

    A conversation goes to the server that its ``opening`` prefers (rendezvous hashing: the order of preference is fixed for each opening, and a
    server that goes or comes moves no other's), else to the one with the most room. ``backoff`` is the first pause, in seconds. Who waits is
    given up after ``patience`` seconds without an answer from any server, and where no server has ever answered, after ``retries`` pauses of each.
    """

    servers: Sequence[Server]
    backoff: float
    patience: float
    retries: int
    clock: Callable[[], float] = time.monotonic
    last_answer: float | None = None
    _waiting: deque[_Waiting] = field(default_factory=deque)
    _timer: asyncio.TimerHandle | None = None
    _due: float = 0.0

    def pick(self, opening: bytes, avoid: Server | None = None) -> Server | None:
        """The server for a conversation that begins with ``opening``, None where none has room. ``avoid`` only where there is no other."""
        now = self.clock()
        free = [server for server in self.servers if server.room(now) > 0]
        if avoid is not None and len(free) > 1:
            free = [server for server in free if server is not avoid]
        if len(free) < 2:
            return free[0] if free else None
        favourite = max(self.servers, key=lambda server: _weight(server.url, opening))
        return favourite if favourite in free else max(free, key=lambda server: server.room(now))

    async def take(self, opening: bytes, began: float, avoid: Server | None = None) -> Server:
        """A place, given back with ``answered``, ``refused``, ``lost`` or ``release``. The last PolicyError of a server where patience ends.

        ``began`` is when the request was first made: who has waited longest goes first.
        """
        if not self._waiting and (server := self.pick(opening, avoid)) is not None:
            server.in_flight += 1
            return server
        waiting = _Waiting(opening, avoid, began, asyncio.get_running_loop().create_future())
        at = len(self._waiting)
        while at and self._waiting[at - 1].began > began:
            at -= 1
        self._waiting.insert(at, waiting)
        if at == 0 or self._timer is None:  # else it changes nothing for those before it
            self._serve()
        try:
            return await waiting.granted
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.granted.done() and not waiting.granted.cancelled() and waiting.granted.exception() is None:
                self.release(waiting.granted.result())
            raise

    def release(self, server: Server) -> None:
        """Give a place back; nothing was learnt."""
        server.in_flight -= 1
        self._serve()

    def answered(self, server: Server, began: float, tokens: int) -> None:
        """The server answered a request sent at ``began``, with so many sampled tokens."""
        server.limit.answered(began, self.clock(), tokens, full=server.in_flight >= int(server.limit.value))
        self.alive(server)

    def alive(self, server: Server) -> None:
        """The server answered, if only to say that it will not do this."""
        server.pauses = server.lost = 0
        server.dead = False
        self.last_answer = self.clock()
        server.in_flight -= 1
        if self._timer is None:
            self._serve()
        else:  # patience begins anew, which the timer will see
            self._grant()

    def refused(self, server: Server, began: float, problem: PolicyError, *, pause: bool, retry_after: float = 0.0) -> None:
        """The server is there but has no room: its limit shrinks and, with ``pause``, it is left alone, for ``retry_after`` seconds where it said so."""
        now = self.clock()
        server.limit.refused(began, now, server.in_flight)
        server.problem, server.lost = problem, 0
        if pause:
            server.pause(began, now, self.backoff, retry_after)
        self.release(server)

    def lost(self, server: Server, began: float, problem: PolicyError, *, gone: bool) -> None:
        """No answer came. A server that is ``gone`` (it takes no connection), or has lost ``LOST`` requests in a row, is set aside for a growing span."""
        now = self.clock()
        server.problem = problem
        server.lost += 1
        if gone or server.dead or server.lost >= LOST:
            server.dead = True
            server.pause(began, now, self.backoff, 0.0)
        self.release(server)

    def close(self, error: PolicyError) -> None:
        """Whoever waits gets ``error``."""
        while self._waiting:
            _give(self._waiting.popleft().granted, error)
        if self._timer is not None:
            self._timer.cancel()

    def _serve(self) -> None:
        """Give places to who has waited longest, give up those whose patience is over, and come back when the next server may be asked."""
        if not self._waiting:
            return
        self._grant()
        now = self.clock()
        soonest = min(self.servers, key=lambda server: server.until)
        over = max(now, soonest.until)
        never = self.last_answer is None and all(server.dead and server.pauses > self.retries for server in self.servers)
        if any(server.in_flight for server in self.servers) and not never:
            over = now  # one of those may still bring good news
        while self._waiting and (never or over - max(self._waiting[0].began, self.last_answer or 0.0) > self.patience):
            _give(self._waiting.popleft().granted, self._given_up(soonest))
        if self._waiting:
            deadline = max(self._waiting[0].began, self.last_answer or 0.0) + self.patience
            wake = min([deadline, *(server.until for server in self.servers if server.until > now)])
            if self._timer is None or wake < self._due:
                if self._timer is not None:
                    self._timer.cancel()
                self._due = wake
                self._timer = asyncio.get_running_loop().call_later(max(0.0, wake - now) + 0.001, self._wake)

    def _grant(self) -> None:
        """Give places to who has waited longest, as many as there are."""
        while self._waiting and (server := self.pick(self._waiting[0].opening, self._waiting[0].avoid)) is not None:
            waiting = self._waiting.popleft()
            if not waiting.granted.done():
                server.in_flight += 1
                waiting.granted.set_result(server)

    def _wake(self) -> None:
        self._timer = None
        self._serve()

    def _given_up(self, server: Server) -> PolicyError:
        problem = server.problem or PolicyError(f"{server.url} gave no answer", "dead")
        if self.last_answer is None and server.dead:
            return PolicyError(f"{problem} (tried {server.pauses} times)", problem.failure)
        return PolicyError(f"{problem} (no server has answered within the patience of {self.patience:g} s)", problem.failure)


def _give(future: asyncio.Future[Server], error: PolicyError) -> None:
    if not future.done():
        future.set_exception(error)


def _weight(url: str, opening: bytes) -> bytes:
    return hashlib.blake2b(opening, key=hashlib.blake2b(url.encode(), digest_size=16).digest(), digest_size=8).digest()
