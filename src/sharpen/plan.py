"""What a run will cost, before it is paid for: ``sharpen run SETTINGS --plan``.

Counted exactly: stages and tries. Going by tries that were made (of this run, and kept for it): what one takes, and how fast the engine is. Assumed:
the rest, and said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sharpen import loop
from sharpen.agents.choose import load_members, most_turns, playing
from sharpen.ladder import too_small
from sharpen.measurements import FIRST, open_bench
from sharpen.methods.base import Prompted
from sharpen.methods.distillation import uncontrolled
from sharpen.models import load_model
from sharpen.policies.meter import SPENT, Meter, total
from sharpen.policies.prices import FREE, Price, price_of
from sharpen.records import Model, Spent, Trajectory, Verdict
from sharpen.report.live import Live
from sharpen.report.page import count, dollars, minutes
from sharpen.settings import RunSettings, to_yaml
from sharpen.store.files import read_if_there
from sharpen.store.run import MANIFEST, Manifest, Run
from sharpen.store.segments import Segments
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks

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

    ``taught``: the tries are the teacher's. ``more_rows`` train only where a round is made again."""

    name: str
    tries: int = 0
    more: int = 0
    rows: float = 0.0
    more_rows: float = 0.0
    shots: int = 0
    taught: bool = False
    done: Manifest | None = None


@dataclass(frozen=True)
class Plan:
    """``expected`` for each stage in order, ``most`` for all, and what both rest on."""

    stages: tuple[tuple[Ahead, Spent, float], ...]
    most: Spent
    priced: bool
    said: tuple[str, ...] = ()

    @property
    def expected(self) -> Spent:
        """All that is still ahead."""
        return total(*(spent for ahead, spent, _ in self.stages if ahead.done is None))


def plan(settings: RunSettings, runs: Path, measure: int | None = None) -> Plan:
    """What the run that ``settings`` describe will cost. ``measure`` tries of its first stage are made, and kept for it (default: 16 where a token has
    no price, else none)."""
    tasks = load_tasks(settings.tasks, settings.demonstrations)
    panel = load_tasks(settings.ladder.panel) if settings.ladder.panel is not None else None
    model = load_model(settings.model, settings.template)
    price, source = price_of(model, settings.engine, settings.spending.prices)
    folder = runs / settings.name
    if measure is None:
        measure = MEASURED if price == FREE and model.kind != "endpoint" else 0
    typical = _measured(settings, tasks, model, folder, measure)
    stages = [
        replace(stage, done=read_if_there(folder / stage.name / MANIFEST, Manifest)) for stage in ahead(settings, tasks, panel, typical)
    ]
    taught, whence = _teachers_price(settings, price)
    prices = {False: price, True: taught}
    turns = {False: most_turns(tasks.environment, settings.harness)}
    turns[True] = turns[False] if settings.teacher is None else most_turns(tasks.environment, settings.teacher.harness or settings.harness)
    told = tuple((stage, *_takes(stage, typical, prices[stage.taught], settings)) for stage in stages)
    most = total(*(_at_most(stage, typical, prices[stage.taught], settings, turns[stage.taught]) for stage in stages if stage.done is None))
    found = Plan(told, most, None not in prices.values())
    said = [*_said(typical, source, price, settings), whence, too_small(settings.ladder, settings.evaluation, tasks)]
    spent = Meter(settings.spending, folder / SPENT).bill.total if (folder / SPENT).exists() else Spent()
    if cap := settings.spending.over(total(spent, found.expected)):
        said.append(f"{cap}: the run will stop there, with what is finished kept")
    return replace(found, said=tuple(line for line in said if line))


def ahead(settings: RunSettings, tasks: TaskSet, panel: TaskSet | None, typical: Typical) -> Iterator[Ahead]:
    """Every stage that the ladder may come to, in its order. Rungs that are refused or rolled back make it shorter."""
    sizes = {split: len(tasks.split(split).tasks) for split in ("demo", "train", "dev", "test")}
    looks, sampling = settings.evaluation.looks, settings.sampling
    demonstrations = sizes["demo"] if tasks.recorded is None else len(tasks.recorded.trajectories)
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
            if on_policy.lmbda < 1:
                yield Ahead(f"{name}/sampling", how.n * sizes["train"], taught=True)
            yield Ahead(name, rows=on_policy.steps * on_policy.batch_size / settings.training.epochs)
            return
        yield Ahead(f"{name}/sampling", how.n * sizes["train"], taught=True)
        earlier += sizes["train"] * min(how.n, settings.selection.limit or how.n)
        yield Ahead(name, rows=demonstrations + earlier)

    yield from evaluated("rungs/000-base", "dev")
    for number, method in enumerate(settings.ladder.climbs, 1):
        name = f"rungs/{number:03d}-{method}"
        if method == "distillation":
            yield from taught(name)
        if method in ("rejection-sampling", "expert-iteration"):
            yield Ahead(f"{name}/sampling", sampling.n * sizes["train"])
            passing = sampling.n * typical.passes
            earlier += sizes["train"] * min(passing, settings.selection.limit or passing)
        if method not in ("few-shot", "distillation"):
            yield Ahead(name, rows=demonstrations + (0.0 if method == "sft" else earlier))
        yield from evaluated(name, "dev", settings.few_shot.shots if method == "few-shot" else 0)
        beside = settings.ladder.control and (
            method == "rejection-sampling" or (method == "distillation" and not uncontrolled(settings.teacher, settings.distillation))
        )
        if beside and method == "distillation":
            yield Ahead(f"{name}-control/sampling", sampling.n * sizes["train"])
        if beside:
            yield Ahead(f"{name}-control", rows=demonstrations + earlier)
            yield from (stage for stage in evaluated(f"{name}-control", "dev") if not stage.name.endswith("panel"))
    if again := settings.ladder.again:
        yield Ahead("rounds made again/sampling", more=again * max(sampling.n, settings.hints.n) * sizes["train"])
        dev = sizes["dev"] * max(looks[-1], settings.ladder.collapse_n) + (len(panel.tasks) * looks[0] if panel is not None else 0)
        yield Ahead("rounds made again/dev", more=again * dev, more_rows=again * (demonstrations + earlier))
    if sizes["test"]:
        yield from evaluated("rungs/000-base", "test")
        yield from evaluated("what ships", "test")


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


# ---------------------------------------------------------------- what one try takes


def _measured(settings: RunSettings, tasks: TaskSet, model: Model, folder: Path, measure: int) -> Typical:
    """From the tries of the run's first stage that are there, after ``measure`` were made where it is not done."""
    place = folder / FIRST
    if (done := read_if_there(place / MANIFEST, Manifest)) is not None:
        rate = done.sampled_tokens / done.inside_s if done.inside_s else math.nan
    else:
        rate = next((note["rate"] for note in reversed(Run(folder).ledger()) if note.get("event") == "measured"), math.nan)
        if measure and math.isnan(rate):
            rate = _make(settings, tasks, model, folder, measure)
    made = list(Segments(place / "trajectories", Trajectory).records.values())
    if not made:
        turns = most_turns(tasks.environment, settings.harness, playing(settings.agent, "evaluation"))
        opening = sum(len(message.content) for task in tasks.tasks for message in task.prompt) / 3 / len(tasks.tasks)
        longest = settings.evaluation.max_tokens
        return Typical(0, turns, turns * (opening + (turns - 1) / 2 * longest), turns * longest, opening + turns * longest, 1.0, math.nan)
    verdicts = Segments(place / "verdicts", Verdict).records.values()
    mean = 1 / len(made)
    return Typical(
        tries=len(made),
        calls=mean * sum(one.cost.turns for one in made),
        prompt=mean * sum(one.cost.prompt_tokens for one in made),
        sampled=mean * sum(one.cost.sampled_tokens for one in made),
        row=mean * sum(map(_row, made)),
        passes=sum(map(bool, verdicts)) / max(len(verdicts), 1),
        rate=rate,
    )


def _make(settings: RunSettings, tasks: TaskSet, model: Model, folder: Path, measure: int) -> float:
    """One try, which opens the engine, and then ``measure`` more at once: how many tokens these sample a second."""
    run = Run.open(folder, to_yaml(settings))
    try:
        with Live() as live, loop.interruptible(live.say) as asked, open_bench(settings, run, tasks, model, live, asked) as bench:
            dev = tasks.split("dev").tasks
            bench.sample(FIRST, Prompted(model), dev, settings.evaluation, first=1)
            started = time.monotonic()
            pool = bench.sample(FIRST, Prompted(model), dev, settings.evaluation, first=measure + 1)
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
    return sum(len(message.content) for message in trajectory.messages) / 3


def _takes(stage: Ahead, typical: Typical, price: Price | None, settings: RunSettings) -> tuple[Spent, float]:
    """What a stage is expected to take, or took; and how many tokens of rows it trains on."""
    if stage.done is not None:
        return msgspec.structs.replace(stage.done.spent, seconds=stage.done.seconds), 0.0
    trained = stage.rows * typical.row * settings.training.epochs
    tries = stage.tries * _several(stage, settings) / _several(Ahead(FIRST), settings)  # of as many models' tries as those measured
    prompt = tries * (typical.prompt + typical.calls * stage.shots * typical.row)
    sampled = tries * typical.sampled
    return _spent(tries * typical.calls, prompt, sampled, (sampled + trained) / typical.rate, price, settings), trained


def _several(stage: Ahead, settings: RunSettings) -> int:
    """How many tries of models one try of the stage is."""
    if stage.taught and settings.teacher is not None:
        return 0 if settings.teacher.recorded is not None else settings.teacher.tries
    several = playing(settings.agent, "sampling" if stage.name.endswith("/sampling") else "evaluation")
    return several.tries if several is not None else 1


def _at_most(stage: Ahead, typical: Typical, price: Price | None, settings: RunSettings, turns: int) -> Spent:
    """Every try to its last turn, every turn to its last token, every look."""
    longest = settings.sampling.max_tokens if stage.name.endswith("/sampling") else settings.evaluation.max_tokens
    if stage.taught and settings.teacher is not None and settings.teacher.max_tokens is not None:
        longest = settings.teacher.max_tokens
    tries = stage.tries + stage.more
    calls = tries * turns * _several(stage, settings)
    each = typical.prompt / typical.calls + stage.shots * typical.row + (turns - 1) / 2 * longest
    trained = (stage.rows + stage.more_rows) * typical.row * settings.training.epochs
    return _spent(calls, calls * each, calls * longest, (calls * longest + trained) / typical.rate, price, settings)


def _spent(calls: float, prompt: float, sampled: float, seconds: float, price: Price | None, settings: RunSettings) -> Spent:
    paid = price.dollars(round(prompt), round(sampled)) if price is not None else 0.0
    machine = seconds * settings.spending.dollars_per_hour / 3600 if seconds == seconds else 0.0
    return Spent(
        calls=round(calls), prompt_tokens=round(prompt), sampled_tokens=round(sampled), dollars=paid + machine, seconds=seconds,
        unpriced=0 if price is not None else round(calls),
    )  # fmt: skip


def _said(typical: Typical, source: str, price: Price | None, settings: RunSettings) -> Iterator[str]:
    if typical.tries:
        yield f"what a try takes: the mean of {typical.tries} tries of the base, kept for the run; trained rungs and another temperature may differ"
    else:
        yield (
            f"nothing is measured yet, so every try is taken to its last turn and token, and minutes are unknown: --measure {MEASURED} makes so many "
            "of the run's first tries, which it then finds made"
        )
    if typical.rate == typical.rate:
        yield (
            f"minutes: {typical.rate:.0f} sampled tokens a second, as measured on its first tries; training is taken to pass as many "
            "tokens of rows; loading engines is not in them"
        )
    yield f"kept: as many of the tries pass as of those measured, {typical.passes:.0%}; sampling from a better rung keeps more"
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
        if stage.more and not stage.tries and not stage.rows:
            continue  # only at most
        done = " (done)" if stage.done is not None else ""
        cells = _cells(spent, trained, found.priced)
        table.add_row(Text(stage.name.removeprefix("rungs/") + done), count(stage.tries), *cells, style="dim" if done else "")
    trained = sum(trained for _, _, trained in found.stages)
    tries = sum(stage.tries for stage, _, _ in found.stages if stage.done is None)
    table.add_row(Text("ahead, expected"), count(tries), *_cells(found.expected, trained, found.priced), style="bold")
    tries = sum(stage.tries + stage.more for stage, _, _ in found.stages if stage.done is None)
    table.add_row(Text("ahead, at most"), count(tries), *_cells(found.most, trained, found.priced))
    return Group(table, Text(), *(Text(f"- {line}") for line in found.said))


def _cells(spent: Spent, trained: float, priced: bool) -> list[Any]:
    known = spent.seconds == spent.seconds
    return [
        count(spent.calls), count(spent.prompt_tokens), count(spent.sampled_tokens), count(round(trained)),
        dollars(spent.dollars) if priced or spent.dollars else "unknown", minutes(spent.seconds / 60) if known else "unknown",
    ]  # fmt: skip
