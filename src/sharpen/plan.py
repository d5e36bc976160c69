"""What a run will cost, before it is paid for: ``sharpen run SETTINGS --plan``.

Counted exactly: stages and tries. Going by tries that were made (of this run, and kept for it): what one takes, and how fast the engine is. Where none is,
by openings of the tasks (``lengths``), every turn to its last token. At most: by openings and stated limits. Assumed: the rest, and said.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sharpen import loop
from sharpen.advisor import ROUNDS
from sharpen.agents.choose import load_members, most_turns, playing
from sharpen.audit import gate_tries
from sharpen.budget import Adaptive
from sharpen.ladder import too_small
from sharpen.lengths import Lengths
from sharpen.lengths import measure as measure_lengths
from sharpen.measurements import FIRST, open_bench
from sharpen.methods.base import CHECKS, Prompted
from sharpen.methods.distillation import copies_tries, uncontrolled
from sharpen.methods.sft import demonstrated
from sharpen.models import load_model
from sharpen.policies.meter import CHARACTERS, JUDGE, SPENT, Bill, Meter, total
from sharpen.policies.prices import FREE, Price, price_of
from sharpen.records import Model, Spent, Trajectory, Verdict
from sharpen.report.live import Live
from sharpen.report.page import count, dollars, minutes
from sharpen.settings import RunSettings, resolved, to_yaml
from sharpen.store.files import read_if_there
from sharpen.store.run import MANIFEST, Manifest, Run
from sharpen.store.rungs import BASE, CONTROL, RungName
from sharpen.store.segments import Segments
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.base import Asking, asking

MEASURED = 16  # tries of the run's first stage that a plan makes where they cost nothing


@dataclass(frozen=True)
class Typical:
    """What one try takes: calls, tokens, and tokens of the training row it would make. ``passes`` is the share that does; ``rate`` counts sampled
    tokens a second, NaN where nothing was measured. ``tries`` are those that this rests on."""

    tries: int
    calls: float
    prompt: float
    sampled: float
    row: float
    passes: float
    rate: float


@dataclass(frozen=True)
class Ahead:
    """One stage: ``tries`` of tasks that are sure, ``more`` that later looks may add, or training on ``rows``. ``done`` is what it took, where it is.

    ``taught``: the tries are the teacher's. ``more_rows`` train only where a round is made again. ``judged``: it is what a verifier asks beside a stage, for
    so many verdicts as expected, and at most."""

    name: str
    tries: int = 0
    more: int = 0
    rows: float = 0.0
    more_rows: float = 0.0
    shots: int = 0
    taught: bool = False
    judged: tuple[float, float] | None = None
    done: Manifest | None = None


@dataclass(frozen=True)
class Plan:
    """For each stage in order what it is expected to take, and with its tokens of rows; ``bounds``, at most, for those ahead; what both rest on."""

    stages: tuple[tuple[Ahead, Spent, float], ...]
    bounds: tuple[tuple[Ahead, Spent, float], ...]
    priced: bool
    said: tuple[str, ...] = ()

    @property
    def most(self) -> Spent:
        """All that is still ahead, at most."""
        return total(*(spent for _, spent, _ in self.bounds))

    @property
    def most_trained(self) -> float:
        """Tokens of rows, at most."""
        return sum(trained for _, _, trained in self.bounds)

    @property
    def expected(self) -> Spent:
        """All that is still ahead."""
        return total(*(spent for ahead, spent, _ in self.stages if ahead.done is None))

    @property
    def whole(self) -> Spent:
        """The whole run, with what is done of it."""
        return total(*(spent for _, spent, _ in self.stages))


def plan(settings: RunSettings, runs: Path, measure: int | None = None, given: tuple[TaskSet, Model] | None = None) -> Plan:
    """What the run that ``settings`` describe will cost. ``measure`` tries of its first stage are made, and kept for it (default: 16 where a token has
    no price, else none). A verifier that asks a server is not asked. ``given`` are the tasks and the model, where they are loaded already."""
    tasks = given[0] if given is not None else load_tasks(settings.tasks, settings.demonstrations)
    panel = load_tasks(settings.ladder.panel) if settings.ladder.panel is not None else None
    model = given[1] if given is not None else load_model(settings.model, settings.template)
    price, source = price_of(model, settings.engine, settings.spending.prices)
    folder = runs / settings.name
    if measure is None:
        measure = MEASURED if price == FREE and model.kind != "endpoint" else 0
    judging = _Judging.of(settings, tasks)
    if judging.remote and settings.agent is not None and settings.agent.by == "verifier":
        measure = 0  # to choose among tries is to judge them
    lengths, typical = _measured(settings, tasks, model, folder, measure, judged=not judging.remote)
    aside = measure_lengths(panel, model, settings.harness, _longest_turn(settings)) if panel is not None else None
    judging = judging.seen(folder)
    taught, whence = _teachers_price(settings, price)
    prices = {False: price, True: taught}
    turns = {False: most_turns(tasks.environment, settings.harness)}
    turns[True] = turns[False] if settings.teacher is None else most_turns(tasks.environment, settings.teacher.harness or settings.harness)
    beside = [(aside, most_turns(panel.environment, settings.harness))] if panel is not None and aside is not None else []

    def staged(typical: Typical) -> Iterator[Ahead]:
        stages = (
            replace(one, done=read_if_there(folder / one.name / MANIFEST, Manifest)) for one in ahead(settings, tasks, panel, typical)
        )
        return judging.beside(list(stages), settings, tasks)

    def expected(stage: Ahead) -> tuple[Spent, float]:
        if stage.judged is None:
            return _takes(stage, typical, lengths, prices[stage.taught], settings)
        return (stage.done.judging if stage.done is not None else judging.takes(stage, typical)[0]), 0.0

    def at_most(stage: Ahead) -> tuple[Spent, float]:
        places = [] if stage.name.endswith("/panel") else [(lengths, turns[stage.taught])]
        if not places or not stage.tries or stage.judged is not None:  # what is only at most, and verdicts, may be of either
            places += beside
        if stage.judged is None:
            found = (_at_most(stage, *place, typical.rate, prices[stage.taught], settings) for place in places)
            return max(found, key=lambda one: one[0].tokens + one[1])
        row = max(_longest_row(*place, settings) for place in places)
        return judging.takes(stage, replace(typical, row=row))[1], 0.0

    told = tuple((stage, *expected(stage)) for stage in staged(typical))
    bounds = tuple((stage, *at_most(stage)) for stage in staged(replace(typical, passes=1.0)) if stage.done is None)
    found = Plan(told, bounds, None not in prices.values() and judging.priced)
    said = [
        *_said(typical, source, price, settings),
        *lengths.said,
        *(f"panel: {line}" for line in (aside.said if aside is not None else ())),
        whence,
        *judging.said(typical),
        too_small(settings.ladder, settings.evaluation, tasks),
    ]
    spent = Meter(settings.spending, folder / SPENT).bill.total if (folder / SPENT).exists() else Spent()
    if cap := settings.spending.over(total(spent, found.expected)):
        said.append(f"{cap}: the run will stop there, with what is finished kept")
    return replace(found, said=tuple(line for line in said if line))


def ahead(settings: RunSettings, tasks: TaskSet, panel: TaskSet | None, typical: Typical) -> Iterator[Ahead]:
    """Every stage that the ladder may come to, in its order. Rungs that are refused or rolled back make it shorter."""
    sizes = {split: len(tasks.split(split).tasks) for split in ("demo", "train", "dev", "test")}
    looks, sampling = settings.evaluation.looks, settings.sampling
    demonstrations = sizes["demo"] if tasks.recorded is None else len(tasks.recorded.trajectories)
    copied = demonstrated(tasks) * settings.ladder.demo_tries
    earlier = 0.0

    def evaluated(name: str, split: str, shots: int = 0) -> Iterator[Ahead]:
        first = sizes[split] * looks[0]
        most = max(looks[-1], settings.ladder.collapse_n)
        yield Ahead(f"{name}/{split}", first, (sizes[split] * most - first) if split == "dev" else 0, shots=shots)
        if split == "dev" and panel is not None:
            yield Ahead(f"{name}/panel", len(panel.tasks) * looks[0], shots=shots)

    def taught(name: str) -> Iterator[Ahead]:
        nonlocal earlier
        yield Ahead(f"{name}/teacher/dev", sizes["dev"] * looks[0], taught=True)
        how, on_policy = settings.distillation, settings.distillation.on_policy
        if how.way == "on_policy":
            if copies_tries(how):
                yield Ahead(f"{name}/sampling", how.n * sizes["train"], taught=True)
            yield Ahead(name, rows=on_policy.steps * on_policy.batch_size / settings.training.epochs)
            return
        yield Ahead(f"{name}/sampling", how.n * sizes["train"], taught=True)
        earlier += sizes["train"] * min(how.n, settings.selection.limit or how.n)
        yield Ahead(name, rows=demonstrations + earlier)

    yield from evaluated(BASE, "dev")
    for number, method in enumerate(settings.ladder.climbs, 1):
        name = RungName(number, method).stage
        if method == "distillation":
            yield from taught(name)
        if method in ("rejection-sampling", "expert-iteration"):
            yield Ahead(f"{name}/sampling", sampling.n * sizes["train"])
            passing = sampling.n * typical.passes
            earlier += sizes["train"] * min(passing, settings.selection.limit or passing)
        if method == "sft" and copied and method not in settings.ladder.climbs[: number - 1]:
            yield Ahead(f"{BASE}/demo", copied)
        if method not in ("few-shot", "distillation"):
            yield Ahead(name, rows=demonstrations + (0.0 if method == "sft" else earlier))
        yield from evaluated(name, "dev", settings.few_shot.shots if method == "few-shot" else 0)
        if method == "sft" and copied:
            yield Ahead(f"{name}/demo", copied)
        beside = settings.ladder.control and (
            method == "rejection-sampling" or (method == "distillation" and not uncontrolled(settings.teacher, settings.distillation))
        )
        if beside and method == "distillation":
            yield Ahead(f"{name}{CONTROL}/sampling", sampling.n * sizes["train"])
        if beside:
            yield Ahead(f"{name}{CONTROL}", rows=demonstrations + earlier)
            yield from (stage for stage in evaluated(f"{name}{CONTROL}", "dev") if not stage.name.endswith("panel"))
    if again := settings.ladder.again:
        yield Ahead("rounds made again/sampling", more=again * max(sampling.n, settings.hints.n) * sizes["train"])
        dev = sizes["dev"] * max(looks[-1], settings.ladder.collapse_n) + (len(panel.tasks) * looks[0] if panel is not None else 0)
        yield Ahead("rounds made again/dev", more=again * dev, more_rows=_made_again(settings, sizes["train"], demonstrations + earlier))
    if sizes["test"]:
        yield from evaluated(BASE, "test")
        yield from evaluated("what ships", "test")


def _made_again(settings: RunSettings, tasks: int, survivors: float) -> float:
    """Rows, at most, of all rounds that are made again, each in every way once: ``survivors``, with what more tries and hints may add, or pairs of them."""
    ladder, limit = settings.ladder, settings.selection.limit
    sampling, budget = settings.sampling, settings.sampling.budget
    tries = budget.max_tries if isinstance(budget, Adaptive) else sampling.n
    pairs = tasks * min(settings.preference.pairs.per_task, tries * tries // 4)  # passes times fails, of so many tries
    rows = dict.fromkeys(ladder.ways, survivors) | {
        "hints": survivors + tasks,
        "more-samples": survivors + tasks * min(sampling.n, limit or sampling.n),
        "negatives": 2 * pairs * settings.preference.epochs / settings.training.epochs,
    }
    rounds = sum(method in ROUNDS for method in ladder.climbs)
    return sum(heapq.nlargest(ladder.again, [rows[way] for way in set(ladder.ways) for _ in range(rounds)]))


def _teachers_price(settings: RunSettings, own: Price | None) -> tuple[Price | None, str]:
    """What a teacher's token costs, the mean over its models, and what is assumed of it, in words."""
    teacher = settings.teacher
    if teacher is None:
        return own, ""
    if teacher.recorded is not None:
        return FREE, "the teacher's tries are recorded, and cost nothing"
    models = [(load_model(teacher.model, teacher.template), teacher.engine)] if teacher.model else []
    found = [price_of(model, engine, settings.spending.prices) for model, engine in [*models, *load_members(teacher.agent)]]
    each = [price for price, _ in found] + ([] if models else [own])
    known = [price for price in each if price is not None]
    price = Price(prompt=sum(p.prompt for p in known) / len(each), sampled=sum(p.sampled for p in known) / len(each))
    why = "; ".join(dict.fromkeys(why for _, why in found)) or "as the student's own"
    said = f"the teacher: a try is taken to be {teacher.tries} times what the student's is, at its own price ({why})"
    return (price if len(known) == len(each) else None), said


# ---------------------------------------------------------------- what verdicts take


@dataclass(frozen=True)
class _Judging:
    """The verifiers that ask a policy or a server, with what they cost, and what a verdict of theirs took where some are made (calls and all per verdict)."""

    asked: tuple[tuple[Asking, Price | None, str], ...]
    made: Spent
    verdicts: int

    @classmethod
    def of(cls, settings: RunSettings, tasks: TaskSet) -> _Judging:
        asked = tuple((one, *one.price(settings.spending.prices)) for one in asking(tasks.verifier))
        return cls(asked, Spent(), 0)

    def seen(self, folder: Path) -> _Judging:
        """The same, going by the first stage's verdicts."""
        if not self.asked:
            return self
        bill = read_if_there(folder / SPENT, Bill) or Bill()
        verdicts = Segments(folder / FIRST / "verdicts", Verdict).records
        return replace(self, made=bill.stages.get(f"{FIRST}/{JUDGE}", Spent()), verdicts=len(verdicts))

    @property
    def remote(self) -> bool:
        return any(one.remote for one, _, _ in self.asked)

    @property
    def priced(self) -> bool:
        return all(price is not None for _, price, _ in self.asked)

    def beside(self, stages: Sequence[Ahead], settings: RunSettings, tasks: TaskSet) -> Iterator[Ahead]:
        """``stages``, and before or behind each that is judged what that takes."""
        if not self.asked:
            yield from stages
            return
        demo = tasks.split("demo").tasks
        shown = len(demo) if tasks.recorded is None else len(tasks.recorded.trajectories)
        yield Ahead(f"demonstrations/{JUDGE}", judged=(shown, shown))
        checks = gate_tries(tasks, settings.ladder.keeps)
        yield Ahead(f"{CHECKS}/{JUDGE}", judged=(checks, checks))
        for stage in stages:
            yield stage
            if stage.tries or stage.more:
                several = settings.teacher.agent if stage.taught and settings.teacher is not None else settings.agent
                chosen = playing(several, "sampling" if stage.name.endswith("/sampling") else "evaluation")
                each = chosen.tries if chosen is not None and chosen.by == "verifier" else 1  # what it chose it has judged
                yield Ahead(f"{stage.name}/{JUDGE}", judged=(stage.tries * each, (stage.tries + stage.more) * each), done=stage.done)

    def takes(self, stage: Ahead, typical: Typical) -> tuple[Spent, Spent]:
        """A stage's verdicts, as expected and at most."""
        assert stage.judged is not None
        few, many = stage.judged
        guessed = [(price, one.takes(typical.row)) for one, price, _ in self.asked]
        expected = total(*(_priced(spent, price, few) for price, (spent, _) in guessed))
        if self.made.calls and self.verdicts:
            expected = _scaled(self.made, few / self.verdicts)
        return expected, total(*(_priced(spent, price, many) for price, (_, spent) in guessed))

    def said(self, typical: Typical) -> Iterator[str]:
        for one, price, whence in self.asked:
            spent, _ = one.takes(typical.row)
            each = (
                f"; {price.prompt:g} and {price.sampled:g} dollars for a million prompt and sampled tokens"
                if price and price.dollars(1, 1)
                else ""
            )
            if self.made.calls and self.verdicts:
                how = f"a verdict takes what each of {self.verdicts} took"
            else:
                tokens = f"{count(spent.prompt_tokens)} prompt and {count(spent.sampled_tokens)} sampled tokens"
                how = f"a verdict takes {spent.calls} calls, {tokens}, each vote to its last"
            yield f"{one.name}: {how}; at most, each is asked twice; every try is taken to be judged; price: {whence}{each}"
        if self.remote:
            yield "a verifier on a server was not asked for this plan" + ("" if self.verdicts else ", so every try is taken to pass")


def _priced(spent: Spent, price: Price | None, times: float) -> Spent:
    many = _scaled(spent, times)
    if price is None:
        return msgspec.structs.replace(many, unpriced=many.calls)
    return msgspec.structs.replace(many, dollars=price.dollars(many.prompt_tokens, many.sampled_tokens))


def _scaled(spent: Spent, times: float) -> Spent:
    whole = {name: round(times * getattr(spent, name)) for name in ("calls", "prompt_tokens", "sampled_tokens", "unpriced", "unsized")}
    return Spent(**whole, dollars=times * spent.dollars)


# ---------------------------------------------------------------- what one try takes


def _measured(settings: RunSettings, tasks: TaskSet, model: Model, folder: Path, measure: int, judged: bool) -> tuple[Lengths, Typical]:
    """From the tries of the run's first stage that are there, after ``measure`` were made where it is not done; else from how tasks open."""
    place = folder / FIRST
    if (done := read_if_there(place / MANIFEST, Manifest)) is not None:
        rate = done.sampled_tokens / done.inside_s if done.inside_s else math.nan
    else:
        rate = next((note["rate"] for note in reversed(Run(folder).ledger()) if note.get("event") == "measured"), math.nan)
        if measure and math.isnan(rate):
            rate = _make(settings, tasks, model, folder, measure, judged)
    made = list(Segments(place / "trajectories", Trajectory).records.values())
    lengths = measure_lengths(tasks, model, settings.harness, _longest_turn(settings), made)
    if not made:
        turns, longest = most_turns(tasks.environment, settings.harness), settings.evaluation.max_tokens
        calls, row = turns * _several(Ahead(FIRST), settings), lengths.opening + turns * longest + (turns - 1) * lengths.answer
        prompt = min(lengths.opening + (turns - 1) / 2 * (longest + lengths.answer), lengths.window)
        return lengths, Typical(0, calls, calls * prompt, calls * longest, min(row, lengths.window), 1.0, math.nan)
    verdicts = Segments(place / "verdicts", Verdict).records.values()
    mean = 1 / len(made)
    return lengths, Typical(
        tries=len(made),
        calls=mean * sum(one.cost.turns for one in made),
        prompt=mean * sum(one.cost.prompt_tokens for one in made),
        sampled=mean * sum(one.cost.sampled_tokens for one in made),
        row=mean * sum(map(_row, made)),
        passes=sum(map(bool, verdicts)) / len(verdicts) if verdicts else 1.0,
        rate=rate,
    )


def _make(settings: RunSettings, tasks: TaskSet, model: Model, folder: Path, measure: int, judged: bool) -> float:
    """One try, which opens the engine, and then ``measure`` more at once: how many tokens these sample a second."""
    run = Run.open(folder, to_yaml(settings), resolved)
    try:
        with Live() as live, loop.interruptible(live.say) as asked, open_bench(settings, run, tasks, model, live, asked) as bench:
            dev = tasks.split("dev").tasks
            bench.sample(FIRST, Prompted(model), dev, settings.evaluation, first=1, judged=judged)
            started = time.monotonic()
            pool = bench.sample(FIRST, Prompted(model), dev, settings.evaluation, first=measure + 1, judged=judged)
            rate = sum(pool.trajectories[key].cost.sampled_tokens for key in pool.wanted[1:]) / (time.monotonic() - started)
            run.note({"event": "measured", "rate": rate, "tries": measure})
    finally:
        run.close()
    return rate


def _row(trajectory: Trajectory) -> float:
    """Tokens of the row that it would make: all that was read and said."""
    last = trajectory.turns[-1] if trajectory.turns else None
    if last is not None and last.prompt is not None and last.output is not None:
        return len(last.prompt) + len(last.output)
    return sum(len(message.content) for message in trajectory.messages) / CHARACTERS


def _takes(stage: Ahead, typical: Typical, lengths: Lengths, price: Price | None, settings: RunSettings) -> tuple[Spent, float]:
    """What a stage is expected to take, or took; and how many tokens of rows it trains on."""
    if stage.done is not None:
        return msgspec.structs.replace(stage.done.spent, seconds=stage.done.seconds), 0.0
    trained = stage.rows * typical.row * settings.training.epochs
    tries = stage.tries * _several(stage, settings) / _several(Ahead(FIRST), settings)  # of as many models' tries as those measured
    example = min(typical.row, lengths.demonstration or math.inf)
    prompt = tries * (typical.prompt + typical.calls * stage.shots * example)
    sampled = tries * typical.sampled
    return _spent(tries * typical.calls, prompt, sampled, (sampled + trained) / typical.rate, price, settings), trained


def _several(stage: Ahead, settings: RunSettings) -> int:
    """How many tries of models one try of the stage is."""
    if stage.taught and settings.teacher is not None:
        return 0 if settings.teacher.recorded is not None else settings.teacher.tries
    several = playing(settings.agent, "sampling" if stage.name.endswith("/sampling") else "evaluation")
    return several.tries if several is not None else 1


def _at_most(stage: Ahead, lengths: Lengths, turns: int, rate: float, price: Price | None, settings: RunSettings) -> tuple[Spent, float]:
    """Every try to its last turn, every turn to its last token and answered at length, every prompt as the longest that was opened, every look; and
    tokens of rows."""
    longest = settings.sampling.max_tokens if stage.name.endswith("/sampling") else settings.evaluation.max_tokens
    if stage.taught and settings.teacher is not None and settings.teacher.max_tokens is not None:
        longest = settings.teacher.max_tokens
    tries = stage.tries + stage.more
    calls = tries * turns * _several(stage, settings)
    row = _longest_row(lengths, turns, settings)
    example, shots, hint = lengths.demonstration or row, stage.shots, 0.0
    sampled = stage.name.endswith("/sampling")
    stands = not stage.name.startswith(BASE) and (stage.taught or sampled or stage.name.endswith("/test"))
    if stands and "few-shot" in settings.ladder.climbs:
        shots = settings.few_shot.shots  # what stands then may be a prompt with examples
    if sampled and not stage.tries and "hints" in settings.ladder.ways:
        hint = len(settings.hints.wording) + example
    each = lengths.longest + shots * example + hint + (turns - 1) / 2 * (longest + lengths.answered)
    each = each if stage.taught else min(each, lengths.window)
    trained = (stage.rows + stage.more_rows) * row * settings.training.epochs
    return _spent(calls, calls * each, calls * longest, (calls * longest + trained) / rate, price, settings), trained


def _longest_row(lengths: Lengths, turns: int, settings: RunSettings) -> float:
    """Tokens of the row that a try or a demonstration would make, at most."""
    return max(lengths.demonstration, lengths.longest + turns * _longest_turn(settings) + (turns - 1) * lengths.answered)


def _longest_turn(settings: RunSettings) -> int:
    """Tokens of a turn, at most, whoever takes it."""
    taught = settings.teacher.max_tokens if settings.teacher is not None else None
    return max(settings.evaluation.max_tokens, settings.sampling.max_tokens, taught or 0)


def _spent(calls: float, prompt: float, sampled: float, seconds: float, price: Price | None, settings: RunSettings) -> Spent:
    paid = price.dollars(round(prompt), round(sampled)) if price is not None else 0.0
    machine = seconds * settings.spending.dollars_per_hour / 3600 if seconds == seconds else 0.0
    return Spent(
        calls=round(calls), prompt_tokens=round(prompt), sampled_tokens=round(sampled), dollars=paid + machine, seconds=seconds,
        unpriced=0 if price is not None else round(calls),
    )  # fmt: skip


def _said(typical: Typical, source: str, price: Price | None, settings: RunSettings) -> Iterator[str]:
    if typical.tries:
        yield (
            f"measured: what a try takes, the mean of {typical.tries} tries of the base, kept for the run; trained rungs and another temperature may differ"
        )
    else:
        yield (
            f"nothing is measured yet, so every try is taken to its last turn and token, and minutes are unknown: --measure {MEASURED} makes so many "
            "of the run's first tries, which it then finds made"
        )
    yield (
        "at most: every try goes to its last turn, every turn to its last token, every prompt opens like the longest that was opened, and every try "
        "passes and trains; tries that broke and are made again are in no figure"
    )
    if typical.rate == typical.rate:
        yield (
            f"minutes: {typical.rate:.0f} sampled tokens a second, as measured on its first tries; training is taken to pass as many "
            "tokens of rows; loading engines is not in them"
        )
    if typical.tries:
        yield f"kept: as many of the tries pass as of those measured, {typical.passes:.0%}; sampling from a better rung keeps more"
    else:
        yield "kept: every try is taken to pass"
    by_token = (
        f"; {price.prompt:g} and {price.sampled:g} dollars for a million prompt and sampled tokens" if price and price.dollars(1, 1) else ""
    )
    yield f"price: {source}{by_token}"
    yield (
        "every rung is taken to be tried; a refused one costs nothing more, and an undecided one may look again, or a round rolled back be made "
        f"again, {settings.ladder.again} times in all (at most)"
    )
    if settings.engine.__struct_config__.tag == "endpoint":
        yield "retries that a server bills, and its discounts for cached prompts, are not in it"


# ---------------------------------------------------------------- as text


def show(found: Plan) -> RenderableType:
    """A table of the stages, the totals, and the assumptions."""
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", overflow="fold")
    headers = ["tries", "calls", "prompt tokens", "sampled tokens", "tokens of rows", "dollars", "minutes"]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for stage, spent, trained in found.stages:
        if (stage.more and not stage.tries and not stage.rows) or (stage.judged is not None and not stage.judged[0]):
            continue  # only at most
        done = " (done)" if stage.done is not None else ""
        cells = _cells(spent, trained, found.priced)
        table.add_row(Text(stage.name.removeprefix("rungs/") + done), count(stage.tries), *cells, style="dim" if done else "")
    trained = sum(trained for _, _, trained in found.stages)
    tries = sum(stage.tries for stage, _, _ in found.stages if stage.done is None)
    table.add_row(Text("ahead, expected"), count(tries), *_cells(found.expected, trained, found.priced), style="bold")
    tries = sum(stage.tries + stage.more for stage, _, _ in found.stages if stage.done is None)
    table.add_row(Text("ahead, at most"), count(tries), *_cells(found.most, found.most_trained, found.priced))
    return Group(table, Text(), *(Text(f"- {line}") for line in found.said))


def _cells(spent: Spent, trained: float, priced: bool) -> list[Any]:
    known = spent.seconds == spent.seconds
    return [
        count(spent.calls), count(spent.prompt_tokens), count(spent.sampled_tokens), count(round(trained)),
        dollars(spent.dollars) if priced or spent.dollars else "unknown", minutes(spent.seconds / 60) if known else "unknown",
    ]  # fmt: skip
