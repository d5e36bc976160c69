"""Pairs of a pass and a fail: what is never compared, which tokens count, how lengths are kept alike; and what is planned with them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sharpen.chat.masks import OVER_LENGTH
from sharpen.errors import ModelError, Refused, SettingsError, Unsettled
from sharpen.models import load_model
from sharpen.pairs import ALONE, DUPLICATE, NO_FAIL, SAME_PASSED, SEVERAL, SURPLUS, PairSettings, pair
from sharpen.policies.scripted import scripted_model
from sharpen.records import Lineage, Model, Pairing, PreferencePair, Stop, Task, Trajectory, Verdict
from sharpen.sampling import Pool
from sharpen.selection import SelectionSettings, build_rows, select
from sharpen.terms import EXPERT
from sharpen.training.load import preference_trainer_for
from sharpen.training.preference import Preference, plan_pairs, train_preference
from test_selection import TEMPLATE, said

Try = tuple[str, Trajectory]


def played(outcome: str, *answers: str, task: str = "t", stop: Stop = "done", actions: tuple[str, ...] | None = None, **how: Any) -> Try:
    """A try that said ``answers`` and, unless told otherwise, did them."""
    return outcome, replace(said(task, *answers, **how), stop=stop, actions=answers if actions is None else actions)


def pool(*tries: Try) -> Pool:
    keys = [replace(one.key, index=index) for index, (_, one) in enumerate(tries)]
    return Pool(
        {key.task: Task(key=key.task, family=key.task) for key in keys},
        tuple(keys),
        {key: replace(one, key=key) for key, (_, one) in zip(keys, tries, strict=True)},
        {key: Verdict(key=key, outcome=outcome) for key, (outcome, _) in zip(keys, tries, strict=True)},  # type: ignore[arg-type]
    )


def paired(
    tries: Pool, *, per_task: int = 4, seed: int = 0, max_length: int = 300, **settings: Any
) -> tuple[list[tuple[int, int]], Pairing]:
    """(chosen, rejected) as the places of the tries, all passes being kept."""
    pairs, pairing = pair(tries, tries.wanted, TEMPLATE, max_length, PairSettings(per_task=per_task, **settings), seed)
    assert pairing.pairs == tuple((one.chosen.key, one.rejected.key) for one in pairs)
    assert pairing.counts["pairs"] == len(pairs)
    return [(good.index, bad.index) for good, bad in pairing.pairs], pairing


def reasons(pairing: Pairing) -> dict[int, str]:
    return {item.key.index: item.reason for item in pairing.left_out}


def test_what_only_passes_or_only_fails_gives_no_pair() -> None:
    pairs, pairing = paired(
        pool(played("pass", "up"), played("pass", "down"), played("fail", "up", task="u"), played("error", "x", task="u"))
    )
    assert not pairs and math.isnan(pairing.chosen_tokens)
    assert reasons(pairing) == {0: ALONE, 1: ALONE, 2: ALONE, 3: NO_FAIL}
    with pytest.raises(Refused, match=r"there is no pair to learn from.*make more tries"):
        plan_pairs((), 1, 8)


def test_an_error_is_never_rejected_whatever_broke() -> None:
    tries = pool(
        played("pass", "up"),
        played("error", "left"),  # the verifier broke
        played("error", "right", stop="error"),
        played("fail", "down", stop="error"),  # a verdict that should not be
        played("fail", "back", stop="cancelled"),
    )
    pairs, pairing = paired(tries)
    assert not pairs and reasons(pairing) == {0: ALONE, **dict.fromkeys((1, 2, 3, 4), NO_FAIL)}


def test_what_passes_and_fails_alike_is_no_contrast() -> None:
    tries = pool(
        played("pass", "up"),
        played("pass", "north"),  # not kept, yet it passed
        played("fail", "up"),
        played("fail", "north"),
        played("fail", "down"),
        played("fail", "down"),
    )
    pairs, pairing = pair(tries, tries.wanted[:1], TEMPLATE, 300, PairSettings(), 0)
    assert [(one.chosen.key.index, one.rejected.key.index) for one in pairs] == [(0, 4)]
    assert reasons(pairing) == {2: SAME_PASSED, 3: SAME_PASSED, 5: DUPLICATE}
    # What the environment did not understand is told by what was said.
    silent = pool(played("pass", "up", actions=()), *(played("fail", word, actions=()) for word in ("up", "hm", "hm", "ha")))
    pairs_, pairing = paired(silent)
    assert sorted(pairs_) == [(0, 2), (0, 4)] and reasons(pairing) == {1: SURPLUS, 3: DUPLICATE}


def test_a_fail_that_was_cut_off_is_rejected_only_where_that_is_set() -> None:
    cut: list[Stop] = ["token_limit", "overflow", "filtered"]
    whole: list[Stop] = ["turn_limit", "crashed"]
    tries = pool(played("pass", "up"), *(played("fail", stop, stop=stop) for stop in (*cut, *whole)))
    pairs, pairing = paired(tries, per_task=9)
    assert sorted(pairs) == [(0, 4), (0, 5)]
    assert [reasons(pairing)[index] for index in (1, 2, 3)] == ["cut off: token limit", "cut off: overflow", "cut off: filtered"]
    assert len(paired(tries, per_task=9, cut_off=True)[0]) == 5


def test_rows_that_cannot_be_compared_are_left_out_with_their_reason() -> None:
    tries = pool(
        played("pass", "up " * 200),
        played("pass", "on", "up", drops_history=True),
        played("fail", "down"),
        played("fail", "down " * 200),
        played("fail", "on", "down", drops_history=True),
    )
    pairs, pairing = paired(tries)
    assert not pairs and reasons(pairing) == {0: OVER_LENGTH, 1: SEVERAL, 2: ALONE, 3: OVER_LENGTH, 4: SEVERAL}
    # Another opening is another prompt.
    outcome, other = played("fail", "down")
    moved = replace(other, turns=(replace(other.turns[0], prompt=(1, *(other.turns[0].prompt or ()))),))
    assert not paired(pool(played("pass", "up"), (outcome, moved)))[0]


def test_chosen_is_a_pass_that_is_kept() -> None:
    tries = pool(played("pass", "up"), played("pass", "north"), played("fail", "down"))
    for kept in range(2):
        pairs, _ = pair(tries, [tries.wanted[kept], tries.wanted[2]], TEMPLATE, 300, PairSettings(), 0)  # a control keeps fails too
        assert [(one.chosen.key.index, one.rejected.key.index) for one in pairs] == [(kept, 2)]


def test_rows_are_those_that_selection_makes_and_the_environment_has_no_label() -> None:
    tries = pool(played("pass", "north", "up"), played("fail", "south", "down"))
    ((made,), _) = pair(tries, tries.wanted, TEMPLATE, 300, PairSettings(), 0)
    chosen = select(tries, SelectionSettings(), 0)
    rows, _ = build_rows(chosen, [("sampled", tries.trajectories[key]) for key in chosen.kept], TEMPLATE, 300)
    assert (made.chosen,) == rows
    for row, words in ((made.chosen, ("north", "up")), (made.rejected, ("south", "down"))):
        assert row.origin == "sampled" and len(row.labels) == len(row.input_ids)
        learnt = [at for at, label in enumerate(row.labels) if label != -100]
        assert TEMPLATE.decode([row.input_ids[at] for at in learnt]) == "<|end|>".join((*words, ""))
        between = row.input_ids[learnt[len(words[0]) + 1] - len("<|user|>\non<|end|>\n<|assistant|>\n") : learnt[len(words[0]) + 1]]
        assert TEMPLATE.decode(between).endswith("<|user|>\non<|end|>\n<|assistant|>\n")  # read, never learnt


def test_few_shot_examples_are_taken_out() -> None:
    shots = said("t", "west").messages
    tries = pool(played("pass", "up"), played("fail", "down"))
    for key, one in list(tries.trajectories.items()):
        tries.trajectories[key] = replace(one, messages=(*shots, *one.messages))  # type: ignore[index]
    ((made,), _) = pair(tries, tries.wanted, TEMPLATE, 300, PairSettings(), 0, shots)
    assert made.chosen.origin == "rendered" and "west" not in TEMPLATE.decode(made.chosen.input_ids)


def test_lengths_are_alike_every_try_is_used_and_no_task_floods() -> None:
    tries = pool(
        *(played("pass", "x" * length) for length in (10, 40)),
        *(played("fail", "y" * length) for length in (9, 41, 80, 160)),
        *(played("pass", "u" * length, task="u") for length in (3, 4, 5)),
        *(played("fail", "d" * length, task="u") for length in (3, 4, 5)),
    )
    pairs, pairing = paired(tries, per_task=2)
    assert sorted(pairs)[:2] == [(0, 2), (1, 3)] and len(pairs) == 4 and pairing.counts["tasks"] == 2
    assert reasons(pairing)[5] == SURPLUS
    assert pairing.chosen_tokens == pytest.approx(pairing.rejected_tokens, rel=0.1)
    more, _ = paired(tries, per_task=4)
    used = Counter(bad for _, bad in more)
    assert all(used[place] == 1 for place in (2, 3, 4, 5))  # each fresh fail before any again
    assert len(paired(tries, per_task=99)[0]) == len(set(paired(tries, per_task=99)[0])) == 2 * 4 + 9


def test_the_choice_follows_the_seed_and_not_the_order_of_arrival() -> None:
    tries = pool(*(played("pass", f"up{n}") for n in range(5)), *(played("fail", f"down{n}") for n in range(5)))
    backwards = Pool(tries.tasks, tries.wanted[::-1], tries.trajectories, tries.verdicts)
    assert paired(tries, seed=1) == paired(backwards, seed=1)
    assert paired(tries, seed=1)[0] != paired(tries, seed=2)[0]


# ---------------------------------------------------------------- settings, plan, the fake


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"beta": 0.0}, "beta is 0"),
        ({"nll": -1.0}, "nll is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range_are_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        Preference(**given)
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="per_task is 0"):
        PairSettings(per_task=0)


def some_pairs() -> tuple[PreferencePair, ...]:
    tries = pool(*(played("pass", f"up{n}") for n in range(3)), *(played("fail", f"downs{n}") for n in range(3)))
    return pair(tries, tries.wanted, TEMPLATE, 300, PairSettings(per_task=3), 0)[0]


def test_pairs_are_planned_once_each_in_one_order() -> None:
    pairs = some_pairs()
    plan = plan_pairs((*pairs, *pairs[::-1]), epochs=2, batch_size=2)
    assert plan == plan_pairs(pairs, epochs=2, batch_size=2)
    assert len(plan.pairs) == 3 and plan.steps == 4
    assert plan.trained_tokens == 2 * 3 * (len("up0") + 1 + len("downs0") + 1)
    assert plan.tokens == 2 * sum(len(row.input_ids) for one in pairs for row in (one.chosen, one.rejected))
    blank = replace(pairs[0].rejected, labels=(0, *[-100] * (len(pairs[0].rejected.labels) - 1)))
    with pytest.raises(SettingsError, match="a row of a pair has no token with a label"):
        plan_pairs((replace(pairs[0], rejected=blank),), 1, 8)


def test_the_terms_of_what_is_rejected_are_settled_too(tmp_path: Path) -> None:
    base = Model(name="base", path=str(tmp_path / "base"), fingerprint="m", lineage=Lineage(base="base"))
    theirs = replace(
        some_pairs()[0], rejected=replace(some_pairs()[0].rejected, key=replace(some_pairs()[0].rejected.key, model="stranger"))
    )
    with pytest.raises(Unsettled, match="stranger"):
        train_preference([theirs], base, Preference(), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_fake_learns_what_is_chosen_and_an_endpoint_cannot(tmp_path: Path) -> None:
    scripted_model(tmp_path / "base", skill=0.5)
    base = load_model(str(tmp_path / "base"))
    pairs = [PreferencePair(**{side: replace(getattr(one, side), maker=EXPERT) for side in ("chosen", "rejected")}) for one in some_pairs()]
    seen: list[int] = []
    model, report = preference_trainer_for(base)(
        pairs, base, Preference(batch_size=2), tmp_path / "001" / "model", on_progress=lambda at: seen.append(at.steps)
    )
    assert model.kind == "scripted" and model.fingerprint != base.fingerprint and model.lineage.parent == base.fingerprint
    assert model.lineage.settings["preference"]["beta"] == 0.1 and model.lineage.settings["preference"]["trained_on"] == 3
    assert seen == [2] and report.steps == 2 and report.tokens > report.trained_tokens > 0
    with pytest.raises(ModelError, match="cannot be trained here"):
        preference_trainer_for(replace(base, kind="endpoint"))
