"""The page and the terminal table from hand-made views: hostile text, undefined intervals, nothing at all, one rung, a whole ladder."""

from __future__ import annotations

import io
import itertools
import math
import re
from html.parser import HTMLParser

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console, RenderableType

from sharpen.behaviour import as_pool, compare, faults
from sharpen.records import (
    Agreement,
    Audit,
    Behaviour,
    Confusion,
    Cost,
    Decision,
    Evaluation,
    Gain,
    Interval,
    LeftOut,
    Message,
    Probe,
    Purity,
    SampleKey,
    Selection,
    TaskResult,
    Thread,
    ToolCall,
    TrainingReport,
    Trajectory,
    Use,
    Verdict,
    Worked,
)
from sharpen.report.page import (
    RungView,
    RunView,
    SampleView,
    beside,
    count,
    heat_map,
    minutes,
    numbers,
    outcome,
    plot,
    rate,
    render,
    takes,
)
from sharpen.report.terminal import audit_text, ladder_table, trajectory_text
from sharpen.sampling import Pool
from sharpen.stats import clopper_pearson, paired_gain, pass_interval

NAN = math.nan
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> [bold]\x1b[2J\u202e"


def evaluation(rate: float, split: str = "dev", seed: int = 0, tasks: int = 60, k: int = 4) -> Evaluation:

    def passes(i: int) -> int:
        return min(8, max(0, round(8 * rate + (i * 7 + seed) % 9 - 4)))

    counts = tuple(TaskResult(task=f"quest-{i:03d}", family=f"map-{i % 30}", samples=8, passes=passes(i)) for i in range(tasks))
    pass_at = {j: pass_interval(counts, j) for j in (1, k)}
    return Evaluation(model="m", split=split, sampling={"temperature": 0.7}, tasks=counts, pass_at=pass_at, cost=Cost())


def sample(text: str = "go north", key: str = "quest-001", why: str = "kept: shortest pass") -> SampleView:
    sample_key = SampleKey(model="m", task=key, environment="e", sampling="s", index=2)
    call = ToolCall(name="walk", arguments=f'{{"to": "{text}"}}')
    messages = (
        Message(role="system", content="You are in a maze."),
        Message(role="user", content="A door leads north."),
        Message(role="assistant", content=text, reasoning="North, then.", tool_calls=(call,)),
        Message(role="tool", content=text, name="walk"),
    )
    cost = Cost(sampled_tokens=120, turns=1, seconds=1.5)
    trajectory = Trajectory(key=sample_key, agent="001-sft", messages=messages, stop="done", cost=cost, error=text)
    verdict = Verdict(key=sample_key, outcome="pass", reason=text, verifier="exact")
    return SampleView(trajectory=trajectory, verdict=verdict, why=why, pieces=(("<|user|>A door leads north.", False), (text, True)))


def ladder() -> RunView:
    evaluations = [evaluation(rate, seed=i) for i, rate in enumerate((0.06, 0.32, 0.48, 0.36, 0.5))]
    rungs_only = evaluations[:3] + evaluations[4:]  # the control stands aside
    gains = [paired_gain(a.tasks, b.tasks, level=0.96, names=("before", "after")) for a, b in itertools.pairwise(rungs_only)]
    key = sample().trajectory.key
    selection = Selection(
        kept=(key,) * 152,
        left_out=tuple(LeftOut(key=key, reason="failed") for _ in range(300)),
        counts={"kept": 152, "failed": 300, "same actions as a kept one": 96, "over the cap of 2": 71, "verifier error": 3},
    )
    training = TrainingReport(steps=96, tokens=410_000, trained_tokens=52_000, seconds=900, losses=(1.2, 0.4, 0.31))

    def decision(what: str, gain: Gain, action: str) -> Decision:
        return Decision(outcome=what, action=action, reasons=("The gate is 3 points.",), gain=gain)  # type: ignore[arg-type]

    rungs = (
        RungView(
            name="000-base",
            method="prompt",
            dev=evaluations[0],
            test=evaluation(0.05, "test", 3),
            sampled_tokens=210_000,
            minutes=3.1,
            decision=Decision(outcome="baseline", action="Measured as it is.", reasons=()),
        ),
        RungView(
            name="001-sft",
            method="SFT on demonstrations",
            dev=evaluations[1],
            gain=gains[0],
            decision=decision("keep", gains[0], "Kept: surely better than the base."),
            training=training,
            sampled_tokens=198_000,
            trained_tokens=31_000,
            minutes=11.4,
        ),
        RungView(
            name="002-rejection-sampling",
            method="rejection sampling",
            dev=evaluations[2],
            test=evaluation(0.47, "test", 5),
            gain=gains[1],
            decision=decision("keep", gains[1], "Kept: surely better than 001-sft."),
            selection=selection,
            training=training,
            sampled_tokens=1_240_000,
            trained_tokens=52_000,
            minutes=24.9,
            shipped=True,
            samples=(sample(), sample("take the brass key", "quest-017", "left out: over the cap")),
        ),
        RungView(
            name="002-control",
            method="verdict ignored",
            dev=evaluations[3],
            training=training,
            sampled_tokens=201_000,
            trained_tokens=52_000,
            minutes=14.0,
            control=True,
        ),
        RungView(
            name="003-expert-iteration",
            method="expert iteration",
            dev=evaluations[4],
            gain=gains[2],
            decision=decision("undecided", gains[2], "Rolled back: more evaluation would decide."),
            training=training,
            sampled_tokens=1_190_000,
            trained_tokens=68_000,
            minutes=26.0,
        ),
    )
    return RunView(
        name="textworld-small",
        settings_yaml="tasks: textworld\nseed: 0\n",
        rungs=rungs,
        banners=("The test split was opened once, at the end.",),
        hardware="2 CPU cores",
        commit="683b054",
        engine="openvino-genai 2026.1",
        date="2026-03-01",
        seconds_in_engine=2100,
        seconds_in_training=2400,
        seconds_total=4900,
    )


def text_of(renderable: RenderableType, width: int = 100, **console: object) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **console).print(renderable)  # type: ignore[arg-type]
    return out.getvalue()


class Tags(HTMLParser):
    """Every tag and attribute of a page, and whether all that opens also closes."""

    void = frozenset({"meta", "path", "circle", "line", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.void or self.open.pop() == tag


# ---------------------------------------------------------------- the page


def test_the_page_needs_nothing_from_outside() -> None:
    page = render(ladder())
    tags = Tags(page)
    assert tags.open == []
    assert not tags.names & {"script", "link", "img", "iframe", "object", "form"}
    assert not tags.attributes & {"src", "href", "srcset"}
    assert "http://" not in page and "https://" not in page and "url(" not in page


def test_the_page_says_what_was_measured() -> None:
    page = render(ladder())
    gain = ladder().rungs[2].gain
    assert gain is not None
    assert f"{100 * gain.printed.value:+.1f} [" in page
    for words in ("002-rejection-sampling", "shipped", "n 30 at 96 %", "n 30", "same actions as a kept one", "1.2M", "26.0", "seed: 0"):
        assert words in page
    assert "<mark>go north</mark>" in page


@pytest.mark.parametrize("place", ["trajectory", "task key", "reason", "names"])
def test_hostile_text_stays_text(place: str) -> None:
    rung = ladder().rungs[2]
    if place == "trajectory":
        rung = msgspec.structs.replace(rung, samples=(sample(HOSTILE),))
    if place == "task key":
        dev = evaluation(0.5)
        task = msgspec.structs.replace(dev.tasks[0], task=HOSTILE, family=HOSTILE)
        rung = msgspec.structs.replace(rung, dev=msgspec.structs.replace(dev, tasks=(task,)), samples=(sample(key=HOSTILE),))
    if place == "reason":
        decision = Decision(outcome="keep", action=HOSTILE, reasons=(HOSTILE,))
        selection = Selection(kept=(), left_out=(), counts={HOSTILE: 1})
        rung = msgspec.structs.replace(rung, decision=decision, selection=selection, samples=(sample(why=HOSTILE),))
    if place == "names":
        rung = msgspec.structs.replace(rung, name=HOSTILE, method=HOSTILE)
    view = RunView(name=HOSTILE, settings_yaml=HOSTILE, rungs=(rung,), banners=(HOSTILE,), hardware=HOSTILE, commit=HOSTILE)

    page = render(view)
    assert "&lt;script&gt;" in page
    tags = Tags(page)
    assert tags.open == []
    assert not tags.names & {"script", "img"}
    assert "onerror" not in tags.attributes

    shown = text_of(ladder_table(view)) + "".join(text_of(trajectory_text(s)) for s in rung.samples)
    assert "\x1b" not in shown and "\u202e" not in shown
    assert "[bold]" in shown  # not read as markup


def audited(text: str) -> Audit:
    rate = clopper_pearson(3, 40)
    share = clopper_pearson(27, 29, sided="lower")
    purity = Purity(rows=300, good=27, bad=1, unsure=1, share=share, bar=0.9, outcome="open", missing=42, notes=(text,))
    return Audit(
        verifier=text, exact=False, repeated=40, unstable=2, unstable_example=text, purity=purity, forecast=0.93, limits=(text,), notes=(text,),
        probes=(Probe(kind=text, must="fail", tried=20, right=19, errors=0, example=text),),
        confusions=(Confusion(truth=text, n=60, passes=40, good=50, false_passes=rate, false_fails=rate, bad_passes=rate, unused=2),),
        agreement=Agreement(labellers=(text, "bea"), n=12, raw=0.9, alpha=0.7),
    )  # fmt: skip


def test_an_audit_is_on_the_page_and_in_the_terminal_and_its_text_stays_text() -> None:
    for text in ("every answer listed", HOSTILE):
        view = RunView(
            name="r",
            settings_yaml="",
            rungs=(RungView(name="003-rs", method="rs", dev=None, purity=audited(text).purity),),
            audit=audited(text),
        )
        page, shown = render(view), text_of(audit_text(audited(text)), width=200)
        for words in (
            "The verifier",
            "27 of 29 labelled rows are good, 1 unsure",
            "42 more of these 300 rows, all good",
            "7.5 % [1.6, 20.4], n 40",
            "93.0 %",
        ):
            assert words in page, words
        assert "27 of 29" in shown and "agree on 90.0% of pairs, Krippendorff's alpha 0.70, n 12" in shown and "forecast: 93.0%" in shown
        tags = Tags(page)
        assert tags.open == [] and not tags.names & {"script", "img"} and "onerror" not in tags.attributes
        assert "\x1b" not in shown and "\u202e" not in shown
    assert "[bold]" in shown


def test_what_a_verifier_declares_of_itself_stands_over_its_audit() -> None:
    said = replace(audited("v"), gameable="code and tests share", sandboxed=False)
    page, shown = render(RunView(name="r", settings_yaml="", rungs=(), audit=said)), text_of(audit_text(said), width=200)
    assert '<p class="banner">Gameable: code and tests share' in page and '<p class="banner">Not sandboxed: ' in page
    assert "\ngameable: code and tests share" in shown and "\nnot sandboxed: " in shown
    for sandboxed in (True, None):
        plain = replace(said, gameable="", sandboxed=sandboxed)
        both = render(RunView(name="r", settings_yaml="", rungs=(), audit=plain)) + text_of(audit_text(plain), width=200)
        assert "ameable" not in both and "ot sandboxed" not in both


def test_rates_are_shown_with_errors_counted_both_ways_where_there_are_any() -> None:
    counts = (TaskResult(task="a", family="a", samples=10, passes=4, errors=2), TaskResult(task="b", family="b", samples=10, passes=6))
    dev = Evaluation(model="m", split="dev", sampling={}, tasks=counts, pass_at={1: pass_interval(counts, 1)}, cost=Cost(), errors=2)
    rung = RungView(name="000-base", method="base", dev=dev)
    view = RunView(name="r", settings_yaml="", rungs=(rung,))
    said = "2 tries ended in an error and are in no rate; pass@1 is 50.0 to 60.0 % with all of them counted as fails, then as passes"
    assert said in render(view) and "2 errors, in no rate; pass@1 is 50.0 to 60.0 %" in " ".join(text_of(ladder_table(view)).split())
    clean = replace(rung, dev=replace(dev, errors=0))
    assert "counted as fails" not in render(replace(view, rungs=(clean,)))


def test_no_rungs() -> None:
    page = render(RunView(name="empty", settings_yaml="", rungs=()))
    assert "No rung has been measured yet" in page
    assert "rung" in text_of(ladder_table(RunView(name="empty", settings_yaml="", rungs=())))


def test_one_rung_that_failed_to_be_measured() -> None:
    view = RunView(name="one", settings_yaml="", rungs=(RungView(name="000-base", method="prompt", dev=None),))
    assert Tags(render(view)).open == []
    cells = next(line.split() for line in text_of(ladder_table(view)).splitlines() if "000-base" in line)
    assert cells == ["000-base", "-", "-", "-", "-", "0", "0", "0.0"]  # no rate is known; that nothing was sampled is


def test_undefined_is_never_zero() -> None:
    undefined = Interval(value=NAN, low=NAN, high=NAN, n=0)
    one_family = Interval(value=0.25, low=NAN, high=NAN, n=1)
    dev = Evaluation(model="m", split="dev", sampling={}, tasks=(), pass_at={1: one_family, 8: undefined}, cost=Cost())
    gain = Gain(base="a", other="b", printed=undefined, deciding=undefined, smallest_visible=NAN)
    decision = Decision(outcome="undecided", action="Undecided.", reasons=(), gain=gain)
    rung = RungView(name="001", method="sft", dev=dev, gain=gain, decision=decision, shipped=True)
    view = RunView(name="nan", settings_yaml="", rungs=(rung,))

    page, table = render(view), text_of(ladder_table(view))
    assert "pass@1 25.0 % [undefined], n 1" in page
    assert "four times in five: undefined" in page
    assert "nan" not in re.sub(r"<title>.*?</title>|<h1>.*?</h1>", "", page).lower()
    assert table.count("undefined") == 5 and "nan" not in table.lower()
    assert numbers(undefined) == ("undefined",) * 3 and numbers(None) == ("-",) * 3


def test_a_measured_zero_is_a_zero_and_what_nobody_recorded_is_a_dash() -> None:
    assert (count(0), count(950), minutes(0.0), minutes(120.0)) == ("0", "950", "0.0", "120")
    free = Worked(who="s", rate=clopper_pearson(0, 4), tries=4, turns=1.0, prompt_tokens=9.0, sampled_tokens=0.0, seconds=0.0, dollars=0.0)
    assert takes(free) == ("1", "9", "0", "0", "$0.00")
    assert takes(replace(free, seconds=NAN, dollars=NAN)) == ("1", "9", "0", "-", "unknown")
    assert takes(replace(free, prompt_tokens=0.0, seconds=NAN)) == ("1", "-", "-", "-", "-")  # from a file that says nothing of them

    look = Use(name="look", share=clopper_pearson(4, 4))
    busy = Behaviour(agent="a", tries=4, errors=0, tasks=2, pass_rate=clopper_pearson(2, 4), measures={}, uses=(look,))
    idle = replace(busy, uses=())
    assert beside([busy, idle])[0] == ("look", [rate(look.share), "0 %"])
    assert [beside([busy, one])[0][1][1] for one in (replace(idle, others=3), replace(idle, tasks=0))] == ["-", "-"]


def test_an_untried_task_is_not_a_failed_one() -> None:
    first = evaluation(0.5, tasks=2)
    errored = TaskResult(task="quest-000", family="map-0", samples=8, passes=0, errors=8)
    second = msgspec.structs.replace(first, tasks=(errored,))
    heat = heat_map((RungView(name="0", method="", dev=first), RungView(name="1", method="", dev=second)))
    assert {task.task: cells[1].says for task, cells in heat} == {"quest-000": "error", "quest-001": "-"}
    assert all(cells[1].percent is None for _, cells in heat)


def test_the_plot_keeps_controls_off_the_spine() -> None:
    drawn = plot(ladder().rungs)
    assert len(drawn.rows) == 5 and len(drawn.steps) == 3
    marks = [mark for _, _, marks in drawn.rows for mark in marks]
    assert all(0 <= m.low <= m.x <= m.high <= 100 for m in marks if m.low is not None and m.high is not None)
    assert {m.kind for m in marks} == {"pass1", "passk", "test1", "testk"}


# ---------------------------------------------------------------- the terminal


def test_long_names_break_between_words_and_no_number_is_cut_off_on_a_narrow_terminal() -> None:
    view = ladder()
    again = replace(view.rungs[2], name="004-rejection-sampling-retry-1-more-samples", panel=evaluation(0.2))
    view = replace(view, rungs=(*view.rungs, again))
    for width, tables in ((80, 2), (120, 1)):
        lines = text_of(ladder_table(view), width).splitlines()
        assert max(map(len, lines)) <= width and sum(line.startswith("rung ") for line in lines) == tables
        assert not [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line]
        at = next(number for number, line in enumerate(lines) if line.startswith("004-"))
        assert [line[:14].rstrip() for line in lines[at : at + 4]] == ["004-rejection-", "sampling", "retry 1: more", "samples"]
        assert all(f" {said}" in "\n".join(lines) for said in ("48.8", "+10.4", "1.2M", "52k", "24.9", "[+1.0,+18.5]"))


@pytest.mark.parametrize("width", [100, 140])
def test_the_table_fits_and_has_no_colour_in_a_pipe(width: int) -> None:
    table = text_of(ladder_table(ladder()), width)
    assert "\x1b" not in table and max(map(len, table.splitlines())) <= width
    for words in ("pass@1", "pass@4", "kept", "control", "undecided", "baseline", "shipped", "1.2M", "dev n = 30 families"):
        assert words in table
    value, low, high = numbers(ladder().rungs[1].dev.pass_at[1])  # type: ignore[union-attr]
    assert value in table and f"{low}-{high}" in table and "26.0" in table  # neither broken nor cut


def test_the_test_columns_wait_for_the_test_split() -> None:
    view = ladder()
    unopened = msgspec.structs.replace(view, rungs=tuple(msgspec.structs.replace(r, test=None) for r in view.rungs))
    assert "test 95 %" in text_of(ladder_table(view)) and "test 95 %" not in text_of(ladder_table(unopened))


@pytest.mark.parametrize(
    ("decided", "words"), [("worse", "rolled back"), ("plateau", "plateau, rolled back"), ("refuse", "refused"), ("proceed", "proceed")]
)
def test_outcomes_in_words(decided: str, words: str) -> None:
    decision = Decision(outcome=decided, action="", reasons=())  # type: ignore[arg-type]
    assert outcome(RungView(name="1", method="", dev=None, decision=decision)) == words


def test_trained_text_is_marked_with_and_without_colour() -> None:
    piped = text_of(trajectory_text(sample()))
    assert "«go north»" in piped and "<|user|>A door" in piped and "\x1b" not in piped
    coloured = text_of(trajectory_text(sample()), force_terminal=True, color_system="standard")
    assert "\x1b[32m«go north»" in coloured


def test_every_conversation_of_a_try_is_shown() -> None:
    view = sample()
    aside = Thread(messages=(Message(role="user", content="look \x1b[31mthis up"), Message(role="assistant", content="it is [bold]so")))
    view = replace(view, trajectory=replace(view.trajectory, threads=(aside,)))
    rung = RungView(name="000-base", method="base", dev=None, samples=(view,))
    for shown in (text_of(trajectory_text(view)), render(RunView(name="r", settings_yaml="", rungs=(rung,)))):
        assert shown.index("You are in a maze.") < shown.index("nother conversation") < shown.index("it is [bold]so")
    assert "\x1b" not in text_of(trajectory_text(view))


@pytest.mark.parametrize("outcome", ["pass", "fail", "error"])
def test_each_verdict_is_shown_as_what_it_is(outcome: str) -> None:
    """A Verdict is true for a pass only, so a bare truth test would show a fail as not judged."""
    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
    trajectory = Trajectory(key=key, agent="a", messages=(Message(role="user", content="u"),), stop="done")
    verdict = Verdict(key=key, outcome=outcome, reason="because")  # type: ignore[arg-type]
    sample = SampleView(trajectory=trajectory, verdict=verdict, why="w")
    rung = RungView(name="000-base", method="base", dev=None, samples=(sample,))
    page = render(RunView(name="r", settings_yaml="", rungs=(rung,)))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(trajectory_text(sample))
    for shown in (page, console.export_text()):
        assert "because" in shown and outcome in shown and "not judged" not in shown


# ---------------------------------------------------------------- behaviour


def taught(above: bool = False, word: str = "go", task: str = "t") -> RungView:
    """A rung with a teacher: 24 tasks, two tries each; the student goes in circles after training."""

    def pool(agent: str, said: list[str], passes: int) -> Pool:
        tries, verdicts = [], []
        for at in range(24):
            for index in range(2):
                key = SampleKey(model=agent, task=f"{task}{at}", environment="e", sampling="s", index=index)
                messages = [Message(role="user", content="a room")]
                for one in said:
                    messages += [Message(role="assistant", content=one), Message(role="user", content="a room")]
                passed = (at + index) % 4 < passes
                outcome = {"won": passed, "out_of_turns": not passed}
                tries.append(Trajectory(key=key, agent=agent, messages=tuple(messages), stop="done", outcome=outcome))
                verdicts.append(Verdict(key=key, outcome="pass" if passed else "fail"))
        return as_pool(tries, verdicts)

    teacher, before = pool(f"teacher {word}", [word, "take"], 1 if above else 3), pool("student", ["look"], 1)
    after, control = pool("student", [word, word, word], 3), pool("student", ["eat"], 2)
    return RungView(
        name="001-distillation", method="distillation", dev=None,
        transfer=compare(teacher, before, after), faults=faults(teacher, before, after, control),
    )  # fmt: skip


def test_what_was_transferred_is_shown_with_intervals_and_the_teachers_line() -> None:
    rung = taught()
    page = render(RunView(name="r", settings_yaml="", rungs=(replace(rung, dev=evaluation(0.4)),), habits=rung.transfer.teacher))  # type: ignore[union-attr]
    for words in ("What was transferred", "student before", "student after", "turns a try", "acts done before, same state", "Jensen-Shannon",
                  "unlike the teacher", "What faults came along", "self-trained", "half of its acts repeated", "teacher 0 of 2, before 0 of 2"):  # fmt: skip
        assert words in page, words
    assert page.count('<line class="ceiling" x1=') == 2 and "teacher teacher go, pass@1: 75.0 %" in page
    assert page.count('<div class="aside">') == min(8, rung.faults.many) > 0  # type: ignore[union-attr]
    assert "acts that end in a tool" not in page  # nobody called one


def test_a_student_above_its_teacher_is_said_to_be_with_its_interval() -> None:
    page = render(RunView(name="r", settings_yaml="", rungs=(taught(above=True),)))
    assert "The student passes more often than its teacher: +50.0 points of pass rate [+" in page and ": above its teacher" in page


def test_without_teachers_there_is_no_such_section() -> None:
    page = render(ladder())
    assert "What was transferred" not in page and "What faults came along" not in page and '<line class="ceiling"' not in page


def test_hostile_names_of_tools_and_tasks_are_text() -> None:
    page = render(RunView(name="r", settings_yaml="", rungs=(taught(word=HOSTILE.replace(" ", "-"), task=HOSTILE),)))
    assert "<script>" not in page and "<img" not in page and "&lt;script&gt;" in page
