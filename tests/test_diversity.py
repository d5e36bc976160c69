"""Rounds that buy pass@1 with other ways to succeed: tries that cannot tell, a model that learns one answer by heart, intervals beside a known truth."""

from __future__ import annotations

import html
import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from sharpen.advisor import judge_collapse, judge_gain, too_lossy
from sharpen.diversity import NEVER, ONCE, Drops, diversity
from sharpen.errors import SettingsError
from sharpen.evaluation import EvaluationSettings, count
from sharpen.ladder import LadderSettings
from sharpen.policies.scripted import scripted_model
from sharpen.records import Change, Choice, Considered, Decision, Diversity, SampleKey, Task, Trajectory, TurnTokens, Verdict
from sharpen.report.page import RungView, RunView, facets, render
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.sampling import Pool
from sharpen.settings import load_settings
from sharpen.stats import expected_distinct, expected_entropy, paired_gain
from sharpen.store.files import read_json, write_json

SETTINGS = EvaluationSettings(temperature=0.7)
Said = Callable[[int, int], str]  # what try ``index`` at ``task`` says: "!..." fails, "?..." broke, anything else passes


def pool(tasks: int, tries: int | Sequence[int], says: Said, logprob: float | None = None, families: int = 10_000) -> Pool:
    """Tries of two tokens each, whose log-probability is ``logprob`` at every fourth task and up to 1.75 times that at the others."""
    found, trajectories, verdicts = {}, {}, {}
    for number in range(tasks):
        task = Task(key=f"t{number}", family=f"f{number % families}")
        found[task.key] = task
        for index in range(tries if isinstance(tries, int) else tries[number]):
            key = SampleKey(model="m", task=task.key, environment="e", sampling="s", index=index)
            said = says(number, index)
            turns = (TurnTokens(output=(1, 2), logprob=None if logprob is None else 2 * logprob * (1 + number % 4 / 4)),)
            stop = "error" if said[0] == "?" else "done"
            trajectories[key] = Trajectory(key=key, agent="m", messages=(), actions=("look", said), stop=stop, turns=turns)  # type: ignore[arg-type]
            verdicts[key] = Verdict(key=key, outcome={"!": "fail", "?": "error"}.get(said[0], "pass"))  # type: ignore[arg-type]
    return Pool(found, tuple(trajectories), trajectories, verdicts)


def seen(before: Pool, after: Pool, level: float = 0.95, drops: Drops | None = None) -> Diversity:
    return diversity(before, after, ("rungs/000-base", "rungs/001-sft"), SETTINGS, level, drops)


def by_facet(found: Diversity) -> dict[str, Change]:
    return {change.facet: change for change in found.changes}


def judged(before: Pool, after: Pool, found: Diversity, refuse: bool = False) -> Decision:
    gain = paired_gain(*(count(one, list(one.tasks.values())) for one in (before, after)))
    return judge_collapse(judge_gain(gain, 0.03), found, refuse)


def diverse(task: int, index: int) -> str:
    """Passes every other time, each time otherwise."""
    return f"way {index}" if index % 2 else f"!miss {index}"


def by_heart(task: int, index: int) -> str:
    """Knows one way to two tasks in three, and none to the others."""
    return "the way" if task % 3 else "!no way"


# ---------------------------------------------------------------- what cannot tell


@pytest.mark.parametrize(
    ("tries", "says", "whys"),
    [
        (1, lambda task, index: "way", ("one try of a task: pass@k is pass@1", ONCE, ONCE)),
        (4, lambda task, index: "!way", ("", ONCE, ONCE)),
        (0, lambda task, index: "way", (NEVER, NEVER, NEVER)),
        (4, lambda task, index: "?broke", (NEVER, NEVER, NEVER)),
    ],
    ids=["one try", "none solved", "no tries", "nothing but errors"],
)
def test_what_cannot_be_told_is_undefined_and_says_why(tries: int, says: Said, whys: tuple[str, ...], tmp_path: Path) -> None:
    found = seen(one := pool(12, tries, says), one)
    assert tuple(change.why for change in found.changes[:3]) == whys
    for change in found.changes:
        assert math.isnan(change.printed.value) == math.isnan(change.before.value) == bool(change.why)
        assert math.isnan(change.spare.value) == bool(change.why)
    assert judged(one, one, found).reasons == judge_gain(paired_gain(*[count(one, list(one.tasks.values()))] * 2), 0.03).reasons
    write_json(tmp_path / "diversity.json", found)
    again = read_json(tmp_path / "diversity.json", Diversity)
    assert facets(again) == facets(found) and not any(row.tag for row in facets(again))


def test_without_log_probabilities_entropy_is_undefined_and_with_them_it_is_that_of_the_tokens() -> None:
    silent, told = pool(12, 4, diverse), pool(12, 4, diverse, logprob=-1.5)
    for before, after in ((silent, silent), (told, silent), (silent, told)):
        change = by_facet(seen(before, after))["tokens"]
        assert change.why == "the engine reports no log-probabilities" and math.isnan(change.after.value)
    change = by_facet(seen(told, pool(12, 4, diverse, logprob=-0.5)))["tokens"]
    assert (change.before.value, change.after.value, change.printed.value, change.why) == pytest.approx(
        (1.5 * 1.375, 0.5 * 1.375, -1.375, "")
    )
    assert change.words == "entropy a token at temperature 0.7"
    one = Considered(agent="m", model="m", index=0, stop="done")
    chosen = {key: replace(t, choice=Choice(by="vote", wanted=2, chosen=0, tries=(one, one))) for key, t in told.trajectories.items()}
    picked = Pool(told.tasks, told.wanted, chosen, told.verdicts)
    assert by_facet(seen(picked, picked))["tokens"].why.startswith("each try is one of several")


def test_one_family_has_values_and_no_bounds_and_is_never_lost() -> None:
    found = seen(before := pool(6, 8, diverse, families=1), after := pool(6, 8, by_heart, families=1))
    assert by_facet(found)["distinct"].printed.value < -1 and math.isnan(by_facet(found)["distinct"].deciding.high)
    assert len(judged(before, after, found).reasons) == 1
    assert {row.says for row in facets(found) if row.before != "undefined"} == {"too few families to tell"}


def test_the_same_tries_on_both_sides_are_no_change() -> None:
    for says in (diverse, by_heart, lambda task, index: "one way"):
        found = seen(one := pool(30, 8, says), one)
        assert {change.printed.value for change in found.changes if not change.why} == {0.0}
        assert not any(row.tag for row in facets(found))


# ---------------------------------------------------------------- unequal tries


def test_k_is_what_nine_tasks_in_ten_have_on_both_sides() -> None:
    def broken(task: int, index: int) -> str:
        return "?broke" if index >= 7 - task % 2 and task < 3 else diverse(task, index)

    assert by_facet(seen(pool(40, 8, broken), pool(40, 16, diverse)))["pass@k"].words == "pass@8"
    assert by_facet(seen(pool(40, 8, broken), pool(40, [16] * 35 + [4] * 5, diverse)))["pass@k"].words == "pass@4"


def test_more_tries_on_one_side_alone_change_no_pass_at_k() -> None:
    """Once seen in a simulation: 16 tries beside 8 at the same rate gave intervals of a hair's breadth that left 0 out."""
    many, few = pool(24, 16, diverse), pool(24, 8, diverse)
    for before, after in ((many, few), (few, many)):
        change = by_facet(seen(before, after))["pass@k"]
        assert (change.words, change.printed.value) == ("pass@8", 0.0) and change.printed.low < 0 < change.printed.high


def test_more_passes_of_the_same_ways_are_not_more_diverse() -> None:
    """Four ways, equally likely; one side passes always, the other one time in four, with twice the tries."""
    draw = random.Random(5)

    def often(task: int, index: int) -> str:
        return f"way {draw.randrange(4)}"

    def rarely(task: int, index: int) -> str:
        return often(task, index) if draw.random() < 0.25 else "!miss"

    found = by_facet(seen(pool(120, 16, rarely), pool(120, 8, often)))
    for facet in ("distinct", "solutions"):
        assert found[facet].printed.low < 0 < found[facet].printed.high and abs(found[facet].printed.value) < 0.15
    raw = [len({said for i in range(8) if (said := says(0, i))[0] != "!"}) for says in (rarely, often)]
    assert raw[0] < raw[1]  # what a plain count would have said


@pytest.mark.parametrize("counts", [[1], [5], [1, 1, 1], [4, 2, 1, 1], [7, 1]])
def test_rarefaction_is_the_mean_over_all_subsets(counts: list[int]) -> None:
    things = [kind for kind, many in enumerate(counts) for _ in range(many)]
    for m in range(1, len(things) + 1):
        subsets = [len(set(subset)) for subset in itertools.combinations(things, m)]
        assert expected_distinct(counts, m) == pytest.approx(sum(subsets) / len(subsets))
    assert expected_distinct([1] * 5, 3) == 3 and expected_distinct([5], 3) == 1


def test_entropy_is_estimated_without_bias_and_grows_to_the_whole_of_it() -> None:
    p, m, draw = (0.6, 0.3, 0.1), 5, random.Random(1)
    truth = sum(q * (1 - q) ** k / k for q in p for k in range(1, m))
    found = [expected_entropy(list(Counter(draw.choices(range(3), p, k=n)).values()), m) for n in (5, 9) for _ in range(3000)]
    for half in (found[:3000], found[3000:]):
        assert sum(half) / 3000 == pytest.approx(truth, abs=0.03)
    whole = -sum(q * math.log(q) for q in p)
    assert truth < whole and expected_entropy([600, 300, 100], 400) == pytest.approx(whole, abs=0.01)
    assert expected_entropy([9], 9) == 0 and expected_entropy([1] * 4, 4) == pytest.approx(1 + 1 / 2 + 1 / 3)


@pytest.mark.parametrize(("of", "m"), [(expected_distinct, 0), (expected_entropy, 1)])
def test_what_was_not_drawn_is_refused(of: Callable[[Sequence[int], int], float], m: int) -> None:
    for counts, draws in (([2, 1], m), ([2, 1], 4), ([], 2), ([3, -1], 2)):
        with pytest.raises(ValueError, match="draws need"):
            of(counts, draws)


def test_intervals_cover_the_truth() -> None:
    """Ways of a task are drawn with Zipf's weights, as many ways as its family has; after the round there are fewer. All pass, so that m is known."""
    rng, n, covered, worlds, families = random.Random(7), 4, Counter[str](), 60, 12
    kinds = (1, 2, 3, 4, 6)

    def expected(many: int, of: Callable[[list[float]], float]) -> float:
        weights = [1 / (j + 1) for j in range(many)]
        return of([w / sum(weights) for w in weights])

    def distinct(p: list[float]) -> float:
        return sum(1 - (1 - q) ** n for q in p)

    def entropy(p: list[float]) -> float:
        return sum(q * (1 - q) ** k / k for q in p for k in range(1, n))

    fewer = {many: max(1, many // 2) for many in kinds}
    truth = {
        facet: sum(expected(fewer[many], of) - expected(many, of) for many in kinds) / len(kinds)
        for facet, of in (("distinct", distinct), ("solutions", entropy))
    }
    for _ in range(worlds):
        ways = [rng.choice(kinds) for _ in range(families)]

        def says(task: int, index: int, ways: list[int] = ways) -> str:
            many = ways[task]
            return f"way {rng.choices(range(many), [1 / (j + 1) for j in range(many)])[0]}"

        def narrow(task: int, index: int, ways: list[int] = ways) -> str:
            return says(task, index, [fewer[many] for many in ways])

        found = by_facet(seen(pool(families, n, says), pool(families, n, narrow)))
        for facet, value in truth.items():
            covered[facet] += found[facet].printed.low <= value <= found[facet].printed.high
    for facet in truth:
        assert covered[facet] / worlds >= 0.87, facet  # 0.95 less three standard errors of so few worlds


# ---------------------------------------------------------------- a model that learns one answer by heart


def test_a_round_that_learns_by_heart_is_shown_and_refused_where_the_settings_say_so() -> None:
    before, after = pool(60, 8, diverse, logprob=-1.2), pool(60, 8, by_heart, logprob=-0.01)
    found = seen(before, after, level=0.99)
    shown, refused = (judged(before, after, found, refuse=refuse) for refuse in (False, True))
    assert shown.outcome == "keep" and shown.action == "keep it" and shown.gain is not None
    line = shown.reasons[-1]
    assert line.startswith("buys pass@1 +16.7% with pass@8 -33.3% [-")
    for lost in (
        "distinct solutions in 4.0 passing tries -3.00 [",
        "entropy of solutions, as far as 4.0 passing tries show it -1.833 nats [",
        "entropy a token at temperature 0.7 -1.636 nats [",
    ):
        assert lost in line
    assert (refused.outcome, refused.action) == ("worse", "roll it back: it collapses")
    assert refused.reasons == shown.reasons and refused.gain == shown.gain
    rung = RungView(name="001-sft", method="sft", dev=None, decision=shown, diversity=found)
    page = render(RunView(name="r", settings_yaml="", rungs=(rung,)))
    assert "Collapse" in page and page.count(">lost</span>") == 4 and "buys pass@1" in page
    assert "ladder.collapse_n: 64" in found.notes[0]


def test_what_is_let_pass_is_no_loss_and_what_was_not_to_be_kept_is_not_judged_again() -> None:
    before, after = pool(60, 8, diverse), pool(60, 8, by_heart)
    lenient = seen(before, after, drops=Drops(pass_k=0.6, distinct=0.99, entropy=0.99))
    assert not too_lossy(by_facet(lenient)["pass@k"]) and facets(lenient)[0].says == "less, as much as is let pass"
    worse = judge_collapse(Decision(outcome="plateau", action="roll it back", reasons=("so",)), seen(before, after), refuse=True)
    assert (worse.outcome, worse.action) == ("plateau", "roll it back") and worse.reasons[1].startswith("loses pass@8 -33.3%")


def test_an_honest_gain_with_all_its_ways_is_not_called_a_collapse() -> None:
    def better(task: int, index: int) -> str:
        return diverse(task, index) if index % 4 == 0 else f"way {index}"

    found = seen(before := pool(60, 8, diverse, logprob=-1.2), after := pool(60, 8, better, logprob=-0.6))
    decision = judged(before, after, found, refuse=True)
    assert decision.outcome == "keep" and len(decision.reasons) == 1


@pytest.mark.parametrize("setting", ["pass_k_drop", "distinct_drop", "entropy_drop"])
def test_settings_that_cannot_be(setting: str) -> None:
    for value in (-0.1, 1.0, math.nan):
        with pytest.raises(SettingsError, match=setting):
            LadderSettings(**{setting: value})
    with pytest.raises(SettingsError, match="collapse_n"):
        LadderSettings(collapse_n=-1)


def test_a_ladder_that_memorises_one_answer_is_shown_and_with_the_setting_rolled_back(tmp_path: Path) -> None:
    """Every room asks the same, and half of them want another answer than the right one: what is learned from the survivors is the commonest."""
    scripted_model(tmp_path / "base", skill=0.4)
    rows = []
    for room in range(70):
        answer = 7 if room % 2 else (4, 5, 6, 8, 9, 10)[room % 6]
        said = [{"role": "system", "content": f"Room {room}."}, {"role": "user", "content": "3 + 4"}]
        rows.append({"key": room, "messages": said, "reference": str(answer), "split": "train" if room < 30 else "dev"})
    (tmp_path / "rooms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "source": "jsonl",
        "path": str(tmp_path / "rooms.jsonl"),
        "verifier": {"verifier": "numeric", "exact": True},
        "max_overlap": 1.0,
    }
    written = {
        "name": "rooms", "model": str(tmp_path / "base"), "tasks": source, "sampling": {"n": 4, "max_tokens": 16},
        "evaluation": {"n": 8, "k": [1, 8], "max_tokens": 16}, "ladder": {"rungs": ["rejection-sampling"], "control": False, "retries": 0},
    }  # fmt: skip
    path, runs = tmp_path / "rooms.yaml", tmp_path / "runs"
    path.write_text(yaml.safe_dump(written))
    assert climb(load_settings(path, {}), runs).name == "rungs/001-rejection-sampling"
    (_, shown), page = read_run(runs / "rooms").rungs, (runs / "rooms" / "report.html").read_text()
    assert shown.decision is not None and shown.diversity is not None
    assert re.fullmatch(r"buys pass@1 \+\d\d\.\d% with pass@8 -\d\d\.\d% \[.*\] at 95% over 40 families", shown.decision.reasons[-1])
    assert shown.decision.reasons[-1] in html.unescape(page) and "Collapse" in page

    other = {"ladder.collapse": "refuse", "ladder.collapse_n": "16"}
    assert climb(load_settings(path, other), runs, "careful").name == "rungs/000-base"
    _, refused = read_run(runs / "careful").rungs
    assert refused.decision is not None and refused.diversity is not None and refused.dev is not None
    assert (refused.decision.outcome, refused.decision.action) == ("worse", "roll it back: it collapses")
    assert refused.diversity.changes[0].words == "pass@16" and refused.dev.tasks[0].samples == 8
    made = {path.parent.name: path.parent for path in (runs / "careful").rglob("stage.json") if path.parent.name.startswith("dev")}
    assert set(made) == {"dev", "dev-16"}
