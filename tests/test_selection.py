"""Selection: passes only, never argmax; cap, duplicates and controls; everything left out has its reason."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from sharpen.chat.scripted import ScriptedTemplate
from sharpen.records import Message, SampleKey, Selection, Stop, Task, Trajectory, TurnTokens, Verdict
from sharpen.sampling import Pool
from sharpen.selection import ONLY_TEXT, OTHER_IDS, WITHOUT_SHOTS, SelectionSettings, build_rows, ignore_verdicts, select


def pool(tries: dict[str, list[tuple[str, str]]], stops: dict[str, Stop] | None = None) -> Pool:
    """``{task: [(verdict, action), ...]}``."""
    made = Pool({task: Task(key=task, family=task) for task in tries}, ())
    wanted = []
    for task, results in tries.items():
        for index, (outcome, action) in enumerate(results):
            key = SampleKey(model="m", task=task, environment="e", sampling="s", index=index)
            stop: Stop = "error" if outcome == "error" else (stops or {}).get(outcome, "done")
            made.trajectories[key] = Trajectory(
                key=key,
                agent="m",
                messages=(),
                actions=(action,),
                stop=stop,
                turns=() if outcome == "error" else (TurnTokens(output=(1,)),),
            )
            made.verdicts[key] = Verdict(key=key, outcome=outcome, score=0.1)  # type: ignore[arg-type]
            wanted.append(key)
    return Pool(made.tasks, tuple(wanted), made.trajectories, made.verdicts)


def kept(selection: Selection) -> Counter[str]:
    return Counter(key.task for key in selection.kept)


def test_a_low_score_is_no_pass_and_all_failed_keeps_nothing() -> None:
    selection = select(pool({"a": [("fail", "x"), ("fail", "y")], "b": [("error", "x"), ("pass", "y")]}), SelectionSettings(), 0)
    assert kept(selection) == {"b": 1}
    assert selection.counts == {"kept": 1, "fail: judged wrong": 2, "error: the policy's server or the environment broke": 1}


def test_easy_tasks_cannot_flood_the_set() -> None:
    tries = pool({"easy": [("pass", str(i)) for i in range(20)], "hard": [("pass", "x"), *[("fail", "y")] * 19]})
    selection = select(tries, SelectionSettings(cap=2), 0)
    assert kept(selection) == {"easy": 2, "hard": 1}
    assert selection.counts["over the cap"] == 18


def test_duplicates_are_told_by_their_actions() -> None:
    selection = select(pool({"a": [("pass", "x"), ("pass", "x"), ("pass", "y")]}), SelectionSettings(cap=5), 0)
    assert kept(selection) == {"a": 2}
    assert selection.counts["duplicate"] == 1
    again = select(pool({"a": [("pass", "x")]}), SelectionSettings(), 0, {("a", ("x",))})
    assert again.counts == {"kept": 0, "known from an earlier round": 1}


@pytest.mark.parametrize(("weighting", "expected"), [("log_pass_rate", 1), ("capped", 2), ("mean_pass_rate", 4)])
def test_each_weighting_keeps_what_its_objective_says(weighting: str, expected: int) -> None:
    tries = pool({"a": [("pass", str(i)) for i in range(4)]})
    assert kept(select(tries, SelectionSettings(weighting=weighting), 0)) == {"a": expected}  # type: ignore[arg-type]


def test_log_pass_rate_draws_every_success_alike() -> None:
    tries = pool({"a": [("pass", str(i)) for i in range(4)]})
    drawn = Counter(select(tries, SelectionSettings(weighting="log_pass_rate"), seed).kept[0].index for seed in range(2000))
    assert all(400 < drawn[index] < 600 for index in range(4))


def test_the_choice_does_not_depend_on_order_of_arrival() -> None:
    tries = pool({"a": [("pass", str(i)) for i in range(9)]})
    backwards = Pool(tries.tasks, tries.wanted[::-1], tries.trajectories, tries.verdicts)
    assert select(tries, SelectionSettings(), 4) == select(backwards, SelectionSettings(), 4)


def test_the_control_takes_as_many_tries_per_task_and_ignores_verdicts() -> None:
    tries = pool({"a": [("pass", "x"), ("pass", "z"), ("fail", "y"), ("error", "w")], "b": [("fail", "x"), ("fail", "y")]})
    real = select(tries, SelectionSettings(), 0)
    seen: Counter[str] = Counter()
    for seed in range(200):
        control = ignore_verdicts(tries, real, seed)
        assert kept(control) == kept(real)
        seen.update(tries.verdicts[key].outcome for key in control.kept)
    assert seen["error"] == 0
    assert 1.5 < seen["pass"] / seen["fail"] < 2.7  # two passes to one fail among the tries that can be drawn


def test_turn_limits_are_fails_with_their_reason() -> None:
    tries = pool({"a": [("fail", "x")]}, stops={"fail": "turn_limit"})
    assert select(tries, SelectionSettings(), 0).counts == {"kept": 0, "fail: turn limit": 1}


USER_SAYS = (Message(role="user", content="go"),)
TEMPLATE = ScriptedTemplate()


def said(task: str, *answers: str, ids: bool = True, drops_history: bool = False) -> Trajectory:
    """A conversation of ``answers``; with ``drops_history`` the second turn's prompt no longer holds the first."""
    messages: tuple[Message, ...] = USER_SAYS
    turns: list[TurnTokens] = []
    for answer in answers:
        prompt = TEMPLATE.prompt(USER_SAYS if drops_history else messages, () if drops_history else turns)
        if drops_history and turns:
            prompt = TEMPLATE.prompt((*USER_SAYS, *messages[-1:]))
        turns.append(TurnTokens(prompt=tuple(prompt), output=(*TEMPLATE.encode(answer), *TEMPLATE.end_ids)))
        messages = (*messages, Message(role="assistant", content=answer), Message(role="user", content="on"))
    key = SampleKey(model="m", task=task, environment="e", sampling="s", index=0)
    return Trajectory(key=key, agent="m", messages=messages[:-1], turns=tuple(turns) if ids else (), stop="done")


def test_how_rows_came_about_is_counted() -> None:
    foreign = replace(said("foreign", "north"), turns=(TurnTokens(prompt=(900,), output=(901, 902)),))
    chosen = [
        ("sampled", said("own", "north", "up")),
        ("demonstration", said("text", "north", ids=False)),
        ("sampled", said("shots", "north", ids=False)),
        ("sampled", foreign),
        ("sampled", said("split", "north", "up", drops_history=True)),
        ("sampled", said("long", "north " * 100)),
    ]
    selection = Selection(kept=tuple(t.key for _, t in chosen), left_out=(), counts={})
    rows, proved = build_rows(selection, chosen, TEMPLATE, max_length=300)
    counts = proved.rows
    assert counts is not None
    assert (counts.sampled, counts.rendered, counts.split, counts.dropped) == (3, 3, 1, 1)
    assert counts.rendered_because == {ONLY_TEXT: 1, WITHOUT_SHOTS: 1, OTHER_IDS: 1}
    assert counts.sampled + counts.rendered == len(rows) and counts.tokens == sum(len(row.input_ids) for row in rows)
    second = [row for row in rows if row.key.task == "split"][1]
    assert counts.read_again == len(second.input_ids) - len("up") - 1  # what splitting makes the trainer read once more
    foreign_row = next(row for row in rows if row.key.task == "foreign")
    assert not {900, 901, 902} & set(foreign_row.input_ids)  # trained as they stand they would be noise
