"""What policies are asked, counted call by call, and held under the caps that the user set."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec

from sharpen.errors import CapError, RunError, Stopped
from sharpen.policies.base import Conversation, Policy, Sampling, Served, Turn, uncounted
from sharpen.policies.prices import Price
from sharpen.records import Cost, Record, Spent
from sharpen.store.files import read_json, write_json

SPENT = "spent.json"
_EVERY_S = 2.0  # between two writings: what a kill can make the count forget of calls whose tries had not ended
JUDGE = "judge"  # the last part of a stage's name where what its verifier asks is counted
ROOM_S = 600.0  # a verdict waits so long for room under the caps, while calls under way may use it up
CHARACTERS = 3.0  # to a token, where a prompt has not been counted yet: on the low side, so that a cap holds

_Dollars = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(gt=0)]


class Spending(Record, frozen=True, kw_only=True):
    """Caps on a whole run, whatever number of commands it takes, None for no cap. They are no part of what makes a run what it is: change them at will.

    ``max_tokens`` counts prompt and sampled tokens, ``max_calls`` answers of policies, ``max_minutes`` the time that the run was worked on. Where the
    next try would not fit, no more are begun; those under way end (a training too), and the same command goes on once the cap is raised.

    ``prices`` are in US dollars, by the name that a model is asked for; what is not there comes from ``genai-prices``, where a hosted endpoint is asked.
    ``dollars_per_hour`` is the price of the machine that this runs on.
    """

    max_dollars: _Dollars | None = None
    max_tokens: _Count | None = None
    max_calls: _Count | None = None
    max_minutes: _Dollars | None = None
    dollars_per_hour: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    prices: dict[str, Price] = {}

    @property
    def on_calls(self) -> bool:
        """Whether a call needs room under any of them."""
        return any(cap is not None for cap in (self.max_dollars, self.max_tokens, self.max_calls))

    def on_size(self, price: Price | None) -> str:
        """The cap that takes the number of tokens of a call at ``price`` to be known; "" where there is none."""
        if self.max_tokens is not None:
            return "spending.max_tokens"
        return "spending.max_dollars" if self.max_dollars is not None and price is not None and price.dollars(1, 1) else ""

    def over(self, spent: Spent) -> str:
        """Which cap ``spent`` is over, as its setting and value; "" where it is over none."""
        spent_of = {"dollars": spent.dollars, "tokens": spent.tokens, "calls": spent.calls, "minutes": spent.seconds / 60}
        for unit, amount in spent_of.items():
            cap = getattr(self, f"max_{unit}")
            if cap is not None and amount > cap:
                return f"spending.max_{unit} is {cap:g}"
        return ""


class Bill(Record, frozen=True, kw_only=True):
    """``spent.json``: what each stage has asked for, tries that broke or were cut short included, and beside it what its verifier asked (``STAGE/judge``);
    the seconds that the run was worked on, and the dollars that the machine took for them."""

    stages: dict[str, Spent] = {}
    seconds: float = 0.0
    machine: float = 0.0

    @property
    def total(self) -> Spent:
        return total(*self.stages.values(), Spent(seconds=self.seconds, dollars=self.machine))

    @property
    def judging(self) -> Spent:
        """What verifiers asked, of all that was asked."""
        return total(*(spent for name, spent in self.stages.items() if name.endswith(f"/{JUDGE}")))


def total(*parts: Spent) -> Spent:
    """All of them together."""
    return Spent(
        calls=sum(part.calls for part in parts),
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        sampled_tokens=sum(part.sampled_tokens for part in parts),
        dollars=sum(part.dollars for part in parts),
        unpriced=sum(part.unpriced for part in parts),
        unsized=sum(part.unsized for part in parts),
        seconds=sum(part.seconds for part in parts),
    )


def _timeless(spent: Spent) -> Spent:
    """A try under way may end, however late it is."""
    return msgspec.structs.replace(spent, seconds=0.0)


class Meter:
    """Counts what a run asks of policies, in the file ``path`` across commands. ``asked`` says why the user wants nothing more to be begun, or "".

    Safe from many threads: judges are asked on a loop of their own.
    """

    def __init__(self, caps: Spending | None = None, path: Path | None = None, asked: Callable[[], str] = lambda: "") -> None:
        self.caps = caps or Spending()
        self.capped = self.caps.on_calls or self.caps.max_minutes is not None
        self.asked = asked
        self._path = path
        self._started = self._wrote = time.monotonic()
        try:
            bill = read_json(path, Bill) if path is not None and path.exists() else Bill()
        except msgspec.MsgspecError as error:
            raise RunError(f"{path} cannot be read ({error}); restore it, or delete it: the caps then count from nothing") from error
        self._before = bill
        self._accounts = {name: Account(self, name, spent) for name, spent in bill.stages.items()}
        self.lock = threading.RLock()
        self._reserved: list[Spent] = []
        self._waiting: list[Future[None]] = []

    def account(self, stage: str) -> Account:
        """Where the calls of ``stage`` are counted."""
        with self.lock:
            return self._accounts.setdefault(stage, Account(self, stage, Spent()))

    def begun(self, stage: str) -> bool:
        """Whether an earlier command of this run counted for ``stage``; if none did, from here on there is a count that a kill leaves behind."""
        if stage in self._before.stages:
            return True
        self.account(stage)
        self.write()
        return False

    def machine(self, seconds: float) -> Spent:
        """So many seconds of this machine, and their price."""
        return Spent(seconds=seconds, dollars=self.caps.dollars_per_hour * seconds / 3600)

    @property
    def bill(self) -> Bill:
        """Of the whole run so far."""
        now = self.machine(time.monotonic() - self._started)
        with self.lock:
            stages = {name: account.spent for name, account in self._accounts.items()}
        return Bill(stages=stages, seconds=self._before.seconds + now.seconds, machine=self._before.machine + now.dollars)

    def why_stop(self, more: Spent | None = None) -> str:
        """Why nothing that takes ``more`` may be begun, "" where it may."""
        if (why := self.asked()) or not self.capped:
            return why
        spent = self.bill.total
        if not (cap := self.caps.over(total(spent, more or Spent()))):
            return ""
        return (
            f"{cap}, and {spent.calls} calls, {spent.tokens} tokens, {spent.dollars:.4g} dollars and {spent.seconds / 60:.1f} minutes are spent: "
            "what comes next may not fit"
        )

    def check(self) -> None:
        """Before something is begun. Stopped where it may not be."""
        if why := self.why_stop():
            self.stop(why)

    def stop(self, why: str) -> NoReturn:
        raise Stopped(f"{why}; what is finished is kept, and the same command goes on{'' if self.asked() else ' once the cap is raised'}",
                      asked=bool(self.asked()))  # fmt: skip

    def reserve(self, most: Spent, what: str) -> Future[None] | None:
        """Holds room for ``most`` under the caps, and gives None; or what ends as soon as there may be some, where calls under way may use it up.

        Stopped where there is none though nothing is under way, CapError where ``what`` would not even have fitted alone.
        """
        with self.lock:
            if not self.caps.over(_timeless(total(self.bill.total, *self._reserved, most))):
                self._reserved.append(most)
                return None
            if not self._reserved:
                if alone := self.caps.over(most):
                    raise CapError(f"{alone}, but {what} may take {_amount(most)}; raise it")
                self.stop(self.why_stop(most))
            freed: Future[None] = Future()
            self._waiting.append(freed)
            return freed

    def release(self, most: Spent) -> None:
        """Gives room back, and lets all who wait for some look again."""
        with self.lock:
            self._reserved.remove(most)
            waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if freed.set_running_or_notify_cancel():
                freed.set_result(None)

    def write(self) -> None:
        """What is counted is on disk before this returns."""
        with self.lock:
            self._wrote = time.monotonic()
            if self._path is not None:
                write_json(self._path, self.bill)

    def write_now_and_then(self) -> None:
        if time.monotonic() - self._wrote > _EVERY_S:
            self.write()


class Account:
    """What one stage asks, of one policy or several. ``busy_s`` are the seconds with work in any of them."""

    def __init__(self, meter: Meter, stage: str, spent: Spent) -> None:
        self.meter, self.stage = meter, stage
        self._calls, self._prompt, self._sampled = spent.calls, spent.prompt_tokens, spent.sampled_tokens
        self._dollars, self._unpriced, self._unsized = spent.dollars, spent.unpriced, spent.unsized
        self.busy_s = 0.0
        self._inside, self._since = 0, 0.0

    @property
    def spent(self) -> Spent:
        return Spent(
            calls=self._calls, prompt_tokens=self._prompt, sampled_tokens=self._sampled,
            dollars=self._dollars, unpriced=self._unpriced, unsized=self._unsized,
        )  # fmt: skip

    def at_least(self, costs: Iterable[Cost], price: Price | None) -> None:
        """``costs`` of tries that this run made and that lie on disk were paid, whatever a kill made the count forget of them."""
        known = list(costs)
        calls, prompt, sampled = (sum(getattr(one, name) for one in known) for name in ("turns", "prompt_tokens", "sampled_tokens"))
        fewer, prompt, sampled = (max(a - b, 0) for a, b in ((calls, self._calls), (prompt, self._prompt), (sampled, self._sampled)))
        self._calls, self._prompt, self._sampled = self._calls + fewer, self._prompt + prompt, self._sampled + sampled
        unsized = sum(one.turns for one in known if not one.prompt_tokens)  # no prompt is empty: nobody counted it
        self._unsized = max(self._unsized, unsized)
        if price is None:
            self._unpriced += fewer
        else:
            self._dollars += price.dollars(prompt, sampled)

    def count(self, prompt_tokens: int, sampled_tokens: int, price: Price | None, *, unsized: bool = False) -> None:
        """One call that was answered."""
        with self.meter.lock:
            self._calls += 1
            self._prompt += prompt_tokens
            self._sampled += sampled_tokens
            self._unsized += unsized
            if price is None:
                self._unpriced += 1
            else:
                self._dollars += price.dollars(prompt_tokens, sampled_tokens)
            self.meter.write_now_and_then()

    @contextmanager
    def busy(self) -> Iterator[None]:
        if self._inside == 0:
            self._since = time.monotonic()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self.busy_s += time.monotonic() - self._since

    @asynccontextmanager
    async def room(self, most: Spent, what: str = "one call", patience_s: float | None = None) -> AsyncIterator[None]:
        """Holds room under the caps for what takes ``most``: waits while calls under way may use it up. Raises what ``Meter.reserve`` does, and Stopped
        after ``patience_s`` seconds."""
        if not self.meter.caps.on_calls:
            yield
            return
        try:
            async with asyncio.timeout(patience_s):
                while (freed := self.meter.reserve(most, what)) is not None:
                    await asyncio.wrap_future(freed)
        except TimeoutError:
            self.meter.stop(f"for {patience_s:g} s calls under way left no room under the caps of spending for {what}")
        try:
            yield
        finally:
            self.meter.release(most)


def guessed(conversation: Conversation) -> int:
    """Tokens of a prompt that nobody has counted, from its length."""
    characters = sum(len(message.content) + sum(len(call.arguments) for call in message.tool_calls) for message in conversation.messages)
    return int((characters + len(str(conversation.tools or ""))) / CHARACTERS) + 8 * len(conversation.messages)


def most(conversation: Conversation, sampling: Sampling, price: Price | None) -> Spent:
    """What a call takes at worst, with its prompt guessed from its length."""
    prompt = guessed(conversation)
    dollars = price.dollars(prompt, sampling.max_tokens) if price is not None else 0.0
    return Spent(calls=1, prompt_tokens=prompt, sampled_tokens=sampling.max_tokens, dollars=dollars)


def _amount(spent: Spent) -> str:
    calls = f"{spent.calls} calls, " if spent.calls > 1 else ""
    return f"{calls}{spent.tokens} tokens and {spent.dollars:.2g} dollars"


def check_price(name: str, price: Price | None, caps: Spending) -> None:
    """CapError where dollars are capped and nobody knows what ``name`` costs."""
    if price is None and caps.max_dollars is not None:
        raise CapError(f"spending.max_dollars is set, but what {name} costs is unknown; give its price in spending.prices, or cap tokens")


class Metered:
    """A policy whose calls are counted in ``account`` at ``price`` (None: unknown; CapError where dollars are capped).

    Opened by its first turn: a stage whose tries are all on disk needs no engine. Whoever opened the policy closes it. CapError where tokens, or dollars
    that go by them, are capped and it does not say how many a call took.
    """

    gives_token_ids = True

    def __init__(self, name: str, open_: Callable[[], Policy], account: Account, price: Price | None) -> None:
        check_price(name, price, account.meter.caps)
        self.name = name
        self.account, self.price = account, price
        self._open = open_
        self._cap = account.meter.caps.on_size(price)

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        with self.account.busy():
            async with self.account.room(most(conversation, sampling, self.price)):
                return await self.ask(conversation, sampling)

    async def ask(self, conversation: Conversation, sampling: Sampling) -> Turn:
        """``complete`` for who holds room for it already."""
        policy = self._open()
        if self._cap and isinstance(policy, Served):
            policy.must_count = self._cap
        turn = await policy.complete(conversation, sampling)
        self.account.count(turn.prompt_tokens, turn.sampled_tokens, self.price, unsized=turn.unsized)
        if self._cap and turn.unsized:
            raise CapError(uncounted(self.name, self._cap))
        return turn

    async def close(self) -> None:
        """Left to whoever opened it."""
