"""The ladder and a trajectory for the terminal. Text from outside is shown as text: never as rich markup, never as control codes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from sharpen.advisor import purity_line
from sharpen.records import Agreement, Audit, Distilled, Diversity, Interval, Message, Task, Trajectory, Verdict
from sharpen.report.page import (
    RungView,
    RunView,
    SampleView,
    chosen,
    copied,
    count,
    error_range,
    facets,
    largest,
    many_tries,
    minutes,
    numbers,
    outcome,
    rate,
    takes,
)
from sharpen.store.rungs import RungName

# C0 and C1 controls but newline and tab, and the bidirectional overrides: each can rewrite what the reader sees.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_VERDICT_STYLE = {"pass": "bold green", "fail": "bold red", "error": "bold yellow"}


def ladder_table(view: RunView) -> RenderableType:
    """One row a rung. Rates in percent and gains in points, each over its 95 % interval; the test columns appear once test was opened.

    Where the terminal is too narrow for it, what does not fit beside the rungs comes in a table of its own below.
    """
    return _Ladder(view)


@dataclass(frozen=True)
class _Column:
    header: str
    cells: list[Text]
    justify: Literal["left", "right"] = "right"
    min_width: int | None = None


@dataclass(frozen=True)
class _Ladder:
    view: RunView

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        together: list[_Column] = []
        for block in _blocks(self.view):
            if (
                together
                and self._table([*together, *block]).__rich_measure__(console, options.update(width=1000)).minimum > options.max_width
            ):
                yield self._table(together)
                yield Text()
                together = []
            together += block
        yield self._table(together)
        yield _caption(self.view)

    def _table(self, columns: Sequence[_Column]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("rung", no_wrap=True)
        for column in columns:
            table.add_column(column.header, justify=column.justify, no_wrap=column.min_width is None, min_width=column.min_width)
        for at, rung in enumerate(self.view.rungs):
            style = "dim" if rung.control else "bold" if rung.shipped else ""
            table.add_row(_name(rung), *(column.cells[at] for column in columns), style=style)
        return table


def _blocks(view: RunView) -> Iterator[list[_Column]]:
    """The columns that stand together."""
    many = many_tries(view.rungs)
    for split in ("dev", "test") if any(rung.test for rung in view.rungs) else ("dev",):
        once, often = [], []
        for rung in view.rungs:
            evaluation, k = rung.dev if split == "dev" else rung.test, largest(rung)
            once.append(_rate(evaluation.pass_at.get(1) if evaluation else None))
            text = _rate(evaluation.pass_at.get(k) if evaluation and k > 1 else None)
            often.append(text if many != "pass@k" or text.plain == "-" else Text(f"k {k}: ") + text)
        yield [_Column(f"pass@1\n{split} 95 %", once), _Column(f"{many}\n{split} 95 %", often)]
    if any(rung.panel for rung in view.rungs):
        yield [_Column("off-task\n95 %", [_rate(rung.panel.pass_at.get(1) if rung.panel else None) for rung in view.rungs])]
    yield [
        _Column("gain over\nbefore 95 %", [_gain(rung.gain.printed if rung.gain else None) for rung in view.rungs]),
        _Column("outcome", [_plain(outcome(rung) + (", shipped" if rung.shipped else "")) for rung in view.rungs], "left", 9),
    ]
    yield [
        _Column("tokens\nsampled", [Text(count(rung.sampled_tokens)) for rung in view.rungs]),
        _Column("tokens\ntrained", [Text(count(rung.trained_tokens)) for rung in view.rungs]),
        _Column("min", [Text(minutes(rung.minutes)) for rung in view.rungs]),
    ]


def _name(rung: RungView) -> Text:
    """A rung's name on short lines that end where a word does; what a round was made again with is dim. A control stands under its rung."""
    if rung.control:
        return Text("  its control")
    called = RungName.of(rung.name)
    name = rung.name if called is None else rung.name.removesuffix(f"-{called.again}")
    said = _plain("\n".join(_filled(re.findall(r"[^-]*-|[^-]+", name))))
    if called is not None and called.variant:
        way = called.variant.replace("-", " ")
        said.append("\n" + "\n".join(_filled(re.findall(r"\S+ ?", _clean(f"retry {called.retry}: {way}")))), style="dim")
    return said


def _filled(words: Iterable[str], width: int = 14) -> list[str]:
    """``words``, with what stands behind each, in lines of at most ``width`` where none is longer."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def distillation_table(name: str, made: Distilled) -> RenderableType:
    """Teacher, student before, student after: pass@1 on dev, and what one try takes; under it what share of the one came for what share of the other."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(name, overflow="fold")
    for header in ("pass@1\ndev 95 %", "turns\na try", "prompt\ntokens", "sampled\ntokens", "seconds", "dollars"):
        table.add_column(header, justify="right", no_wrap=True)
    for who, one in (("teacher", made.teacher), ("student before", made.before), ("student after", made.after)):
        table.add_row(_plain(f"{who}: {one.who}"), _rate(one.rate), *map(Text, takes(one)), style="bold" if one is made.after else "")
    return Group(table, *(_plain(line) for line in copied(made)), Text())


def diversity_table(name: str, seen: Diversity) -> RenderableType:
    """What a round did to how many ways there are: before, after, the difference, and what is lost."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(name, overflow="fold")
    for header in ("before\n95 %", "after\n95 %", "difference\n95 %"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("")
    for row in facets(seen):
        cells = (Text(said.replace(" [", "\n[", 1)) for said in (row.before, row.after, row.difference))
        table.add_row(_plain(row.what), *cells, _plain(row.says), style="bold" if row.tag == "worse" else "")
    return Group(table, *(_plain(note) for note in seen.notes), Text())


def trajectory_text(sample: SampleView) -> RenderableType:
    """The verdict, the conversation, and the training row: trained text is coloured and, for pipes, stands between ``«`` and ``»``."""
    trajectory, verdict = sample.trajectory, sample.verdict
    judged = verdict.outcome if verdict is not None else "not judged"
    head = Text.assemble((judged, _VERDICT_STYLE.get(judged, "bold")), "  ", (_clean(trajectory.key.task), "bold"))
    head.append(f"  try {trajectory.key.index} by {_clean(trajectory.agent)}, stopped: {trajectory.stop}")
    parts: list[RenderableType] = [head, _plain(sample.why)]
    if verdict is not None and verdict.reason:
        parts.append(_plain(f"verdict: {verdict.reason}"))
    if trajectory.error:
        parts.append(_plain(f"error: {trajectory.error}"))
    if trajectory.choice:
        parts.append(_plain(chosen(trajectory.choice)))
    if trajectory.hint is not None:
        parts += [Text("\nhint: it stood behind the task and trains nothing", style="bold cyan"), _plain(trajectory.hint)]
    for message in trajectory.messages:
        parts += _message(message)
    for thread in trajectory.threads:
        parts.append(Text("\nanother conversation of the same try", style="bold cyan"))
        for message in thread.messages:
            parts += _message(message)
    if sample.pieces:
        parts.append(Text("\ntraining row, trained text in «»", style="bold cyan"))
        row = Text()
        for text, trained in sample.pieces:
            row.append(f"«{_clean(text)}»" if trained else _clean(text), style="green" if trained else "dim")
        parts.append(row)
    return Group(*parts)


def audit_text(audit: Audit) -> RenderableType:
    """What an audit found: a line for each kind of made-up answer, then error rates, purity, and what could not be looked at."""
    exact = "exact: it is the definition of success" if audit.exact else "not exact: what it keeps must be shown to be pure"
    parts: list[RenderableType] = [Text.assemble((_clean(audit.verifier), "bold"), f"  {exact}")]
    if audit.gameable:
        parts.append(Text(_clean(f"gameable: {audit.gameable}, whatever is caught below"), style="bold red"))
    if audit.sandboxed is False:
        parts.append(Text("not sandboxed: what it judges runs with your files, your network and your rights", style="bold red"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for header in ("made-up answer", "must", "tasks", "right", "errors"):
        table.add_column(header, justify="left" if header in ("made-up answer", "must") else "right")
    for probe in audit.probes:
        style = "" if probe.right == probe.tried else "bold red"
        table.add_row(_plain(probe.kind), probe.must, str(probe.tried), str(probe.right), str(probe.errors), style=style)
    parts.append(table)
    parts += [_plain(f"wrong: {probe.kind}: {probe.example}") for probe in audit.probes if probe.example]
    same = f"asked twice: {audit.repeated - audit.unstable} of {audit.repeated} inputs got the same verdict again"
    parts.append(_plain(f"{same}; {audit.unstable_example}" if audit.unstable else same))
    for found in audit.confusions:
        shares = (
            ("passes", found.false_passes, "is not good"),
            ("is good", found.false_fails, "fails"),
            ("is not good", found.bad_passes, "passes"),
        )
        said = [f"of what {of} {rate(share)} {what}" for of, share, what in shares if share.n] or ["nothing can be said"]
        said += [f"{found.unused} not used: errors, or nobody is sure"] if found.unused else []
        parts.append(_plain(f"by {found.truth} ({found.n} tries, 95 %): {'; '.join(said)}"))
    if audit.forecast == audit.forecast:
        parts.append(
            _plain(f"forecast: {audit.forecast:.1%} of what passes will be good, and less of what is kept where duplicates are left out")
        )
    if (agreed := audit.agreement) is not None and len(agreed.labellers) > 1:
        parts.append(_plain(agreement_line(agreed)))
    if audit.purity is not None:
        parts.append(_plain(f"purity: {purity_line(audit.purity)}"))
    parts += [_plain(f"not looked at: {limit}") for limit in audit.limits]
    parts += [_plain(f"note: {note}") for note in audit.notes]
    return Group(*parts)


def question_text(trajectory: Trajectory, task: Task | None, left: int) -> RenderableType:
    """A trajectory to be labelled: its task, the reference beside it, the conversation. Nothing of what a verifier said, nor who made it."""
    head = Text.assemble(
        ("\n" + "-" * 60 + "\n", "dim"), (_clean(trajectory.key.task), "bold"), f"  try {trajectory.key.index}, stopped: {trajectory.stop}"
    )
    head.append(f"  {left} to go" if left else "")
    parts: list[RenderableType] = [head]
    for message in trajectory.messages:
        parts += _message(message)
    for thread in trajectory.threads:
        parts.append(Text("\nanother conversation of the same try", style="bold cyan"))
        for message in thread.messages:
            parts += _message(message)
    if task is not None:
        reference = task.reference if isinstance(task.reference, str) else msgspec.json.encode(task.reference).decode()
        parts += [Text("\nreference", style="bold cyan"), _plain(reference if task.reference is not None else "none")]
    return Group(*parts, Text())


def said_text(verdict: Verdict | None) -> Text:
    """What the verifier said, for after the answer."""
    if verdict is None:
        return Text("the verifier has not judged it")
    reason = f": {_clean(verdict.reason)}" if verdict.reason else ""
    return Text.assemble("the verifier said ", (verdict.outcome, _VERDICT_STYLE[verdict.outcome]), reason)


def agreement_line(agreed: Agreement) -> str:
    """How far labellers agree, in a line."""
    if not agreed.n:
        return f"labellers {', '.join(agreed.labellers)}: no trajectory has two sure labels, so nothing says how far they agree"
    alpha = "undefined, since all labels are the same" if math.isnan(agreed.alpha) else f"{agreed.alpha:.2f}"
    return f"labellers {', '.join(agreed.labellers)} agree on {agreed.raw:.1%} of pairs, Krippendorff's alpha {alpha}, n {agreed.n} trajectories"


def why_line(sample: SampleView) -> Text:
    """A try in one line: its task and number, the verdict, and why it trains or does not."""
    verdict = sample.verdict.outcome if sample.verdict is not None else "not judged"
    return Text.assemble(
        f"{_clean(sample.trajectory.key.task)} try {sample.trajectory.key.index}  ",
        (verdict, _VERDICT_STYLE.get(verdict, "")),
        f"  {_clean(sample.why)}",
    )


def _message(message: Message) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(f"\n{message.role}", style="bold cyan")]
    if message.reasoning:
        parts.append(Text(_clean(message.reasoning), style="italic dim"))
    if message.content:
        parts.append(_plain(message.content))
    return [*parts, *(_plain(f"-> {call.name}({call.arguments})") for call in message.tool_calls)]


def _clean(text: str) -> str:
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def _plain(text: str) -> Text:
    return Text(_clean(text))


def _rate(interval: Interval | None) -> Text:
    value, low, high = numbers(interval)
    if interval is None:
        return Text("-")
    return Text(f"{value}\n{low if low == high == 'undefined' else f'{low}-{high}'}")


def _gain(interval: Interval | None) -> Text:
    value, low, high = numbers(interval, signed=True)
    if interval is None:
        return Text("-")
    return Text(f"{value}\n{'undefined' if low == high == 'undefined' else f'[{low},{high}]'}")


def _caption(view: RunView) -> Text:
    """The n behind the numbers, as a range where rungs differ."""
    said = []
    for split in ("dev", "test"):
        evaluations = [rung.dev if split == "dev" else rung.test for rung in view.rungs]
        ns = {i.n for e in evaluations if e for i in e.pass_at.values()}
        if ns:
            said.append(f"{split} n = {min(ns) if len(ns) == 1 else f'{min(ns)} to {max(ns)}'} families")
    for rung in view.rungs:
        for e in (rung.dev, rung.test, rung.panel):
            if e and e.errors:
                said.append(
                    f"{rung.name}, {e.split}: {e.errors} errors, in no rate; pass@1 is {error_range(e)} with them as fails, then as passes"
                )
    return Text("; ".join([*said, *(_clean(banner) for banner in view.banners)]), style="table.caption")
