"""Many tries at once: concurrency, resume, and the one boundary where broken infrastructure becomes data."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from sharpen.agents.base import Agent
from sharpen.budget import LEVEL, Adaptive, Budget, SetAside, Terms, Try, Uniform, next_wave
from sharpen.errors import EnvironmentFault, PolicyError, RunError, SettingsError, SharpenError, Stopped, TooManyErrors
from sharpen.policies.base import Sampling
from sharpen.policies.choose import Engine, batch_of
from sharpen.policies.meter import Account, Meter
from sharpen.policies.meter import total as add
from sharpen.records import Cost, Record, SampleKey, Spent, Task, Trajectory, Verdict
from sharpen.stats import level_text
from sharpen.store.files import digest, read_json, write_blob
from sharpen.store.segments import Segments
from sharpen.verifiers.base import Verifier, stands
from sharpen.verifiers.run import judge

ATTEMPTS = 2  # a try is made again once where infrastructure broke, then recorded as an error
WAVES = "waves.json"
HINTS = "hints"  # the folder, beside sampling, of tries with the reference shown: in no rate
BESIDE = 256  # tries at most that are written and judged while others run
BROKEN = 8  # tries in a row that end in an error before the whole stage is called broken


class SamplingSettings(Record, frozen=True, kw_only=True):
    """How tries are made for training. ``n`` tries of every task, at most ``concurrency`` episodes at once.

    With ``budget: adaptive`` as many tries in all, but more of them where they bring something (``budget.Adaptive``).
    Where more than the share ``max_errors`` of a stage's tries, or of its verdicts, ends in an error, the stage stops (``Tolerance``).
    METHODS: n of 8 to 32 and a temperature of 0.7 to 1.0 are where to start.
    """

    n: int = 8
    budget: Budget = Uniform()
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    concurrency: int = 64
    episode_timeout_s: float = 600.0
    verifier_timeout_s: float = 60.0
    max_errors: float = 0.05

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SettingsError(f"n is {self.n}, but must be at least 1")
        if self.temperature == 0 and self.n > 1:
            raise SettingsError(f"temperature 0 gives the same try {self.n} times; set n: 1 or raise temperature")
        if not 0 <= self.max_errors <= 1:
            raise SettingsError(f"max_errors is {self.max_errors}, but must be between 0 and 1")
        if self.concurrency < 1:
            raise SettingsError(f"concurrency is {self.concurrency}, but must be at least 1")
        if isinstance(self.budget, Adaptive) and self.budget.tokens is None and self.budget.first > self.n:
            raise SettingsError(
                f"budget.first is {self.budget.first}, but n: {self.n} tries of each task are all there is; raise n, or lower first"
            )
        self.turn(0)

    @property
    def limits(self) -> dict[str, Any]:
        """What holds for one episode, wherever it is played."""
        return {name: getattr(self, name) for name in ("concurrency", "verifier_timeout_s", "episode_timeout_s")}

    def waiting_for(self, *engines: Engine) -> SamplingSettings:
        """The same, except that where an engine asks in batches as many tries as one holds are made at once, and each may wait as long as it says."""
        batches = [batch for engine in engines if (batch := batch_of(engine)) is not None]
        return (
            replace(
                self,
                concurrency=max(self.concurrency, *(batch.size for batch in batches)),
                episode_timeout_s=max(self.episode_timeout_s, *(batch.wait_s for batch in batches)),
            )
            if batches
            else self
        )

    def limits_of(self, tries: int) -> dict[str, Any]:
        """What ``collect`` is held to where one try is up to ``tries`` episodes, each with its own time, as well as the time to judge it."""
        longer = (self.episode_timeout_s + self.verifier_timeout_s) * tries if tries > 1 else self.episode_timeout_s
        return {**self.limits, "episode_timeout_s": longer, "max_errors": self.max_errors}

    def turn(self, seed: int) -> Sampling:
        """What the policy is told, with the run's seed."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens, seed=seed)


class Progress(Record, frozen=True, kw_only=True):
    """What is running, for whoever watches. ``rate`` counts sampled tokens a second since the stage began; ``note`` is free text (a loss).

    ``spent`` is what the stage cost so far, for ``passes`` and ``solved`` tasks.
    """

    what: str
    done: int
    total: int
    passes: int = 0
    judged: int = 0
    solved: int = 0
    errors: int = 0
    spent: Spent = Spent()
    rate: float = 0.0
    note: str = ""


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Watch nothing."""


@dataclass
class Pool:
    """Tries of some tasks and what was said of them. ``wanted`` fixes which tries count, in order; the mappings may hold others, and may read from disk.

    ``waves`` are there where an adaptive budget decided how many; then only ``first_wave`` says how often a task is solved.
    """

    tasks: dict[str, Task]
    wanted: tuple[SampleKey, ...]
    trajectories: Mapping[SampleKey, Trajectory] = field(default_factory=dict)
    verdicts: Mapping[SampleKey, Verdict] = field(default_factory=dict)
    waves: Waves | None = None

    @cached_property
    def _tries(self) -> dict[str, list[SampleKey]]:
        by_task: dict[str, list[SampleKey]] = defaultdict(list)
        for key in self.wanted:
            by_task[key.task].append(key)
        return by_task

    def tries(self, task: str) -> list[SampleKey]:
        """The wanted tries of one task, in order."""
        return self._tries.get(task, [])

    @property
    def first_wave(self) -> Pool:
        """The tries that were fixed before any was made, as many of each task: all of them, unless the budget is adaptive."""
        if self.waves is None:
            return self
        return Pool(self.tasks, self.wanted[: self.waves.budget.first * len(self.tasks)], self.trajectories, self.verdicts)

    @property
    def sampled_tokens(self) -> int:
        return sum(self.trajectories[key].cost.sampled_tokens for key in self.wanted)

    @property
    def solved(self) -> int:
        """Tasks with at least one pass."""
        return len({key.task for key in self.wanted if self.verdicts[key].outcome == "pass"})


class Goal(Record, frozen=True, kw_only=True):
    """What counts as a survivor, as the selection will have it: at most ``cap`` a task (None: any number), with ``dedup`` told apart by their
    actions, and none of ``known``, which are (task, actions) that train already."""

    cap: int | None = None
    dedup: bool = True
    known: frozenset[tuple[str, tuple[str, ...]]] = frozenset()


class Waves(Record, frozen=True, kw_only=True):
    """``waves.json``: what an adaptive budget decided, wave by wave, written before each is made.

    ``of`` names what was sampled (agent, tasks, environment), ``budget`` and ``terms`` what it was planned under. ``waves`` holds the task of each
    try in launch order; a task's tries are numbered as they come. ``ended`` says why there are no more, "" while there may be.
    """

    of: str
    budget: Adaptive
    terms: Terms
    waves: tuple[tuple[str, ...], ...] = ()
    ended: str = ""
    set_aside: tuple[SetAside, ...] = ()

    @property
    def says(self) -> str:
        """What became of the budget, in a sentence or two."""
        made = sum(map(len, self.waves))
        said = f"{made} tries in {len(self.waves)} waves, the first {self.budget.first} of every task; {self.ended or 'not ended yet'}"
        if self.set_aside:
            tries, bound = min(item.tries for item in self.set_aside), max(item.bound for item in self.set_aside)
            said += f"; set aside: {len(self.set_aside)} tasks, none of which passed in {tries} tries, so each passes at most {bound:.1%} of the time"
            said += f" ({level_text(LEVEL)}%, one-sided)"
        return said

    @property
    def tries(self) -> list[tuple[str, int]]:
        """(task, index) of every try, in launch order."""
        count: dict[str, int] = defaultdict(int)
        found = []
        for wave in self.waves:
            for task in wave:
                found.append((task, count[task]))
                count[task] += 1
        return found


async def collect(
    agent: Agent,
    wanted: Iterable[tuple[Task, int]],
    verifier: Verifier | None,
    trajectories: Segments[Trajectory],
    verdicts: Segments[Verdict],
    *,
    concurrency: int,
    verifier_timeout_s: float = 60.0,
    episode_timeout_s: float = 600.0,
    account: Account | None = None,
    judging: Account | None = None,
    max_errors: float = 1.0,
    what: str = "sampling",
    listen: Listener = silent,
) -> AsyncIterator[tuple[Trajectory, Verdict | None]]:
    """Make the ``wanted`` tries (task, index) that are not on disk yet, judge each, and yield them as they finish, the stored ones first.

    A sample is on disk before it is yielded. At most ``concurrency`` run at once, launched in the order given. Beside them as many, at most
    ``BESIDE``, are written and judged, or as many as the verifier wants (``at_once``), so that the engine need not wait. Closing the iterator
    cancels what is in flight. PolicyError or EnvironmentFault become ``stop="error"`` after a second attempt; where that happens to ``BROKEN``
    tries in a row the stage stops with that error instead, and those tries stay unmade. TooManyErrors where more than the share ``max_errors`` of
    all tries, or of all verdicts, ends in an error. Stored errors are no results: given again, those tries and verdicts are made again.

    Where the meter of ``account`` has no room for another try, or for a verdict, none is begun; those under way end and are yielded, then Stopped is
    raised. ``judging`` is where the verifier's own calls are counted.
    """
    wanted = list(wanted)
    account = account or Meter().account(what)
    watch = _Watch(what, len(wanted), listen, account, judging)
    queue: asyncio.Queue[tuple[Trajectory, Verdict | None] | Exception | None] = asyncio.Queue(maxsize=max(concurrency, 1))
    streak, launches, tolerance = _Streak(BROKEN), _Launches(account), Tolerance(what, len(wanted), max_errors)
    at_once = getattr(verifier, "at_once", 0)
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="verdicts") if at_once else None  # None: the loop's own
    slots = asyncio.Semaphore(concurrency)

    async def judged(task: Task, trajectory: Trajectory, fresh: bool) -> Verdict | None:
        if verifier is None:
            return None
        if stands(known := verdicts.records.get(trajectory.key), verifier):
            return known
        if judging is not None and not fresh:
            judging.meter.check()
        loop = asyncio.get_running_loop()
        with verdicts.coming:
            verdict = await loop.run_in_executor(threads, judge, task, trajectory, verifier, verifier_timeout_s)
        await verdicts.add(verdict)
        return verdict

    async def one(task: Task, index: int) -> tuple[Trajectory, Verdict | None]:
        stored = trajectories.records.get(agent.key(task, index))
        if stored is None or stored.stop == "error":
            async with slots, launches.room() as ended:
                with trajectories.coming:
                    trajectory = await _attempt(agent, task, index, episode_timeout_s, streak)
                ended(trajectory.cost)
            await trajectories.add(trajectory)
        else:
            trajectory = stored
        verdict = await judged(task, trajectory, trajectory is not stored)
        watch.saw(trajectory, verdict, fresh=trajectory is not stored)
        tolerance.saw(trajectory, verdict)
        return trajectory, verdict

    jobs = iter(wanted)
    stopped: Stopped | None = None

    async def worker() -> None:
        try:
            for task, index in jobs:
                if stopped is not None:
                    break
                await queue.put(await one(task, index))
        except Exception as error:  # carried to whoever reads, who raises it
            await queue.put(error)
        await queue.put(None)

    most = max(concurrency + min(concurrency, BESIDE), at_once)
    workers = [asyncio.create_task(worker()) for _ in range(min(most, len(wanted)))]
    at_work = len(workers)
    try:
        while at_work:
            item = await queue.get()
            if item is None:
                at_work -= 1
            elif isinstance(item, Stopped):
                stopped = item
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
        if stopped is not None:
            raise stopped
    finally:
        for job in workers:
            job.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


async def _attempt(agent: Agent, task: Task, index: int, timeout_s: float, streak: _Streak) -> Trajectory:
    """One try, made again where infrastructure broke. The boundary between broken infrastructure and a failing policy."""
    error: SharpenError | None = None
    started = time.monotonic()
    for _ in range(ATTEMPTS):
        try:
            async with asyncio.timeout(timeout_s):
                trajectory = await agent.run(task, index)
        except (PolicyError, EnvironmentFault) as fault:
            error = fault
            if isinstance(fault, PolicyError) and fault.failure == "content_filter":  # it will say the same again, and of this task only
                break
        except TimeoutError:
            error = EnvironmentFault(f"task {task.key}: no end after {timeout_s:g} s")
            error.__cause__ = TimeoutError()
        else:
            streak.reset()
            return trajectory
    assert error is not None
    streak.count(error)
    return broken(agent.key(task, index), agent.name, task, error, time.monotonic() - started)


def broken(key: SampleKey, agent: str, task: Task, error: SharpenError, seconds: float = 0.0) -> Trajectory:
    """The trajectory of a try that infrastructure broke."""
    cost = Cost(seconds=round(seconds, 3))
    return Trajectory(key=key, agent=agent, messages=task.prompt, stop="error", error=str(error), fault=_fault(error), cost=cost)


def _fault(error: SharpenError) -> str:
    """The class that a broken try is counted under."""
    if isinstance(error, PolicyError):
        return error.failure or "policy"
    return "timeout" if isinstance(error.__cause__, TimeoutError) else "environment"


class Tolerance:
    """Counts the tries and the verdicts of a stage that end in an error, by class, and stops it where they are over a share of ``total``.

    One error is always let pass: it is no share of anything. The two are counted apart: a try that broke was never judged.
    """

    def __init__(self, what: str, total: int, limit: float) -> None:
        self.what, self.total, self.limit = what, total, limit
        self.tries, self.verdicts = Counter[str](), Counter[str]()

    def saw(self, trajectory: Trajectory, verdict: Verdict | None) -> None:
        """Count one try. TooManyErrors where there are too many."""
        if trajectory.stop == "error":
            self.tries[trajectory.fault or "unknown"] += 1
            self._check(self.tries, "tries", trajectory.error or "no reason given")
        elif verdict is not None and verdict.outcome == "error":
            self.verdicts[verdict.reason.partition(":")[0] or "no reason given"] += 1
            self._check(self.verdicts, "verdicts", verdict.reason)

    def _check(self, classes: Counter[str], of: str, last: str) -> None:
        if (count := classes.total()) > max(self.limit * self.total, 1):
            by_class = ", ".join(f"{n} {name}" for name, n in classes.most_common())
            raise TooManyErrors(
                f"{self.what}: {count} of {self.total} {of} ended in an error ({by_class}), over sampling.max_errors {self.limit:g}; "
                f"the last: {' '.join(last.split())[:200]}; mend the cause, or raise the setting, "
                "and give the same command again: errors are made again, the rest is kept"
            )


class _Streak:
    """Counts tries in a row that ended in an error. One bad task is data; a dead engine is not worth a thousand errors."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.length = 0

    def reset(self) -> None:
        self.length = 0

    def count(self, error: SharpenError) -> None:
        if isinstance(error, PolicyError) and error.failure == "content_filter":
            return
        self.length += 1
        if self.length >= self.limit:
            raise type(error)(f"{self.length} tries in a row broke, the last with: {error}")


class _Launches:
    """Begins a try where, going by those that ended, it fits under the caps beside those under way; else waits for these, and stops when there are none."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.running = self.ended = self.calls = self.prompt = self.sampled = 0
        self.freed = asyncio.Event()

    @asynccontextmanager
    async def room(self) -> AsyncIterator[Callable[[Cost], None]]:
        """Around one try; gives what is told its cost."""
        meter = self.account.meter
        while why := meter.why_stop(self._expected(self.running + 1) if meter.capped else None):
            if not self.running:
                meter.stop(why)
            self.freed.clear()
            await self.freed.wait()
        self.running += 1
        try:
            yield self._count
        finally:
            self.running -= 1
            self.freed.set()

    def _count(self, cost: Cost) -> None:
        self.ended += 1
        self.calls += cost.turns
        self.prompt += cost.prompt_tokens
        self.sampled += cost.sampled_tokens

    def _expected(self, tries: int) -> Spent:
        share, spent = tries / max(self.ended, 1), self.account.spent
        tokens = (self.prompt + self.sampled) * share
        return Spent(
            calls=max(tries, round(self.calls * share)),
            prompt_tokens=round(self.prompt * share),
            sampled_tokens=round(self.sampled * share),
            dollars=spent.dollars / spent.tokens * tokens if spent.tokens else 0.0,
        )


class _Watch:
    """Turns finished tries into progress."""

    def __init__(self, what: str, total: int, listen: Listener, account: Account, judging: Account | None) -> None:
        self.what, self.total, self.listen = what, total, listen
        self.accounts = [one for one in (account, judging) if one is not None]
        self.started = time.monotonic()
        self.done = self.passes = self.judged = self.errors = self.fresh = 0
        self.solved: set[str] = set()
        listen(Progress(what=what, done=0, total=total))

    def saw(self, trajectory: Trajectory, verdict: Verdict | None, *, fresh: bool) -> None:
        self.done += 1
        self.errors += trajectory.stop == "error"
        if verdict is not None and verdict.outcome != "error":
            self.judged += 1
            self.passes += verdict.outcome == "pass"
            if verdict:
                self.solved.add(verdict.key.task)
        self.fresh += trajectory.cost.sampled_tokens * fresh
        seconds = time.monotonic() - self.started
        self.listen(
            Progress(
                what=self.what,
                done=self.done,
                total=self.total,
                passes=self.passes,
                judged=self.judged,
                solved=len(self.solved),
                errors=self.errors,
                spent=add(*(one.spent for one in self.accounts)),
                rate=self.fresh / seconds if seconds > 0 else 0.0,
            )
        )


async def fill(
    agent: Agent,
    tasks: Sequence[Task],
    indices: Iterable[int],
    verifier: Verifier | None,
    trajectories: Segments[Trajectory],
    verdicts: Segments[Verdict],
    **options: Any,
) -> Pool:
    """The tries ``indices`` of every task. Launched by index, then task: a task's first try warms the prefix cache."""
    return await fill_these(
        agent, tasks, [(task, index) for index in indices for task in tasks], verifier, trajectories, verdicts, **options
    )


async def fill_these(
    agent: Agent,
    tasks: Sequence[Task],
    wanted: Sequence[tuple[Task, int]],
    verifier: Verifier | None,
    trajectories: Segments[Trajectory],
    verdicts: Segments[Verdict],
    **options: Any,
) -> Pool:
    """The tries (task, index) that are ``wanted`` of some ``tasks``, launched in that order."""
    async for _ in collect(agent, wanted, verifier, trajectories, verdicts, **options):
        pass
    keys = tuple(agent.key(task, index) for task, index in wanted)
    return Pool({task.key: task for task in tasks}, keys, trajectories.records, verdicts.records)


async def fill_adaptively(
    agent: Agent,
    tasks: Sequence[Task],
    budget: Adaptive,
    terms: Terms,
    goal: Goal,
    seed: int,
    verifier: Verifier,
    trajectories: Segments[Trajectory],
    verdicts: Segments[Verdict],
    path: Path,
    *,
    what: str = "sampling",
    **options: Any,
) -> Pool:
    """Tries wave by wave, as ``budget.next_wave`` plans them from those before, within ``terms``. The plan is kept in ``path``.

    Given again it makes the waves in ``path`` first, of which only what is not on disk is made, and goes on from there. So a kill changes nothing, a
    changed verifier buys nothing once the plan has ended, and wider terms buy only the difference. Narrower terms plan anew.
    """
    by_key = {task.key: task for task in tasks}
    known: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for task, actions in goal.known if goal.dedup else ():
        known[task].add(actions)
    plan = _resumed(path, Waves(of=_what_is_sampled(agent, tasks, goal), budget=budget, terms=terms))
    made: dict[SampleKey, Try] = {}
    launched = 0
    while True:
        wanted = [(by_key[task], index) for task, index in plan.tries[launched:]]
        launched += len(wanted)
        name = f"{what}, wave {len(plan.waves)}"
        async for trajectory, verdict in collect(agent, wanted, verifier, trajectories, verdicts, what=name, **options):
            assert verdict is not None
            solution = trajectory.actions if goal.dedup else trajectory.key.index
            made[trajectory.key] = Try(verdict.outcome, solution, trajectory.cost.sampled_tokens)
        keys = tuple(agent.key(by_key[task], index) for task, index in plan.tries)
        pool = Pool(by_key, keys, trajectories.records, verdicts.records, plan)
        if plan.ended:
            return pool
        wave = next_wave({task: [made[key] for key in pool.tries(task)] for task in by_key}, budget, terms, seed, known)
        plan = replace(plan, waves=(*plan.waves, *((wave.tasks,) if wave.tasks else ())), ended=wave.ended, set_aside=wave.set_aside)
        write_blob(path, plan)


def _what_is_sampled(agent: Agent, tasks: Sequence[Task], goal: Goal) -> str:
    return digest([[agent.key(task, 0) for task in tasks], sorted(goal.known)])


def _resumed(path: Path, new: Waves) -> Waves:
    """The plan in ``path`` where ``new`` can go on from it, else ``new``."""
    try:
        old = read_json(path, Waves)
    except FileNotFoundError:
        return new
    except msgspec.MsgspecError as error:
        raise RunError(
            f"{path} cannot be read ({error}); delete it, and the waves are planned again from the tries that are there"
        ) from error
    if old.of != new.of or old.budget.first != new.budget.first:
        return new
    if (old.budget, old.terms) == (new.budget, new.terms):
        return old

    def wider(before: int | None, now: int | None) -> bool:
        return now is None or (before is not None and now >= before)

    grown = (
        wider(old.terms.tries, new.terms.tries)
        and wider(old.terms.tokens, new.terms.tokens)
        and wider(old.terms.cap, new.terms.cap)
        and new.budget.max_tries >= old.budget.max_tries
    )
    return replace(new, waves=old.waves) if grown else new
