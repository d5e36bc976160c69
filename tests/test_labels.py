"""Labels: files that outlive runs, what is wrong in them, and what they say of purity."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from sharpen import stats
from sharpen.advisor import purity_line
from sharpen.errors import FormatError
from sharpen.labels import Shown, content, copy_of, draw, measure, read_labels, shuffled, write_label
from sharpen.records import Label, Message, SampleKey, Trajectory, TurnTokens
from sharpen.store.segments import order


def key(number: int, sampling: str = "s") -> SampleKey:
    return SampleKey(model="m", task=f"t{number:03}", environment="e", sampling=sampling, index=0)


def tried(number: int, text: str = "") -> Trajectory:
    messages = (Message(role="user", content=f"question {number}"), Message(role="assistant", content=text or f"answer {number}"))
    turns = (TurnTokens(prompt=(1, 2), output=(3,)),)
    return Trajectory(key=key(number), agent="m", messages=messages, turns=turns, stop="done")


def label(number: int, said: str = "good", by: str = "ann", shown: Shown | None = None, text: str = "") -> Label:
    made = tried(number, text)
    shown = shown or Shown(key=made.key, of=100, inclusion=0.29, population="p")
    return Label(
        key=made.key, digest=content(made), label=said, labeller=by, at="2026-01-01T00:00:00Z", seconds=1.5, why=shown.why,  # type: ignore[arg-type]
        stratum=shown.stratum, of=shown.of, inclusion=shown.inclusion, population=shown.population, trajectory=copy_of(made),
    )  # fmt: skip


def rows(count: int) -> dict[SampleKey, str]:
    return {key(number): content(tried(number)) for number in range(count)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels" / "mine.jsonl"


def test_a_label_holds_all_that_can_be_judged_again_and_no_token_ids(file: Path) -> None:
    write_label(file, label(1))
    (line,) = read_labels(file).lines
    assert line.trajectory.messages == tried(1).messages and not line.trajectory.turns
    assert content(line.trajectory) == line.digest  # the copy is the text that was labelled
    assert line == label(1)


def test_no_file_an_empty_one_and_a_folder_of_them(tmp_path: Path, file: Path) -> None:
    assert read_labels(file).lines == [] and read_labels(tmp_path).lines == []
    file.parent.mkdir()
    file.touch()
    assert read_labels(file).lines == []
    write_label(file, label(1))
    write_label(file.with_name("hers.jsonl"), label(1, by="bea"))
    assert len(read_labels(file.parent).lines) == 2


def test_a_torn_last_line_is_said_and_makes_room_for_the_next(file: Path) -> None:
    write_label(file, label(1))
    whole = file.read_bytes()
    for torn in (whole[: len(whole) // 2], b"\xff\xfe", whole[:-1]):
        file.write_bytes(whole + torn)
        found = read_labels(file)
        assert len(found.lines) == (2 if torn == whole[:-1] else 1)
        assert bool(found.notes) == (torn != whole[:-1])
        write_label(file, label(2))
        assert [line.key for line in read_labels(file).lines][-1] == key(2) and not read_labels(file).notes


@pytest.mark.parametrize("line", [b"{}", b"[1, 2]", b"nonsense", b'{"label": "maybe"}', b"\xff", b"1e999"])
def test_a_line_that_is_no_label_is_named_with_its_place(line: bytes, file: Path) -> None:
    write_label(file, label(1))
    file.write_bytes(line + b"\n" + file.read_bytes())
    with pytest.raises(FormatError, match=r"mine\.jsonl:1 is no label") as raised:
        read_labels(file)
    assert "\n" not in str(raised.value)


def test_a_label_that_says_something_twice_is_named_with_its_place(file: Path) -> None:
    write_label(file, label(1))
    file.write_bytes(file.read_bytes().replace(b"{", b'{"labeller": "x", ', 1))
    with pytest.raises(FormatError, match=r"mine\.jsonl:1 has the key 'labeller' twice; delete one"):
        read_labels(file)


def test_the_last_word_of_a_labeller_counts_and_it_is_said(file: Path) -> None:
    for said in ("good", "bad"):
        write_label(file, label(0, said))
    found = read_labels(file)
    assert next(iter(found.standing()[label(0).digest].values())).label == "bad"
    assert found.notes == ["1 trajectories were called both good and bad by the same labeller; the last word counts"]
    assert measure(rows(1), found).bad == 1


def test_what_is_withdrawn_is_gone_and_is_no_contradiction(file: Path) -> None:
    for said in ("good", "withdrawn", "bad", "withdrawn"):
        write_label(file, label(0, said))
    found = read_labels(file)
    assert found.standing() == {} and found.notes == []
    assert measure(rows(1), found).outcome == "open"


def test_labellers_who_disagree_are_reported_and_a_tie_is_not_good(file: Path) -> None:
    for by, said in {"ann": "good", "bea": "bad"}.items():
        write_label(file, label(0, said, by))
    found = read_labels(file)
    assert "labellers disagree on 1 trajectories" in found.notes[0]
    purity = measure(rows(1), found)
    assert (purity.good, purity.bad, purity.unsure) == (0, 0, 1) and purity.outcome == "below"
    write_label(file, label(0, "good", "cleo"))
    assert measure(rows(1), read_labels(file)).good == 1


def test_zero_labels_need_29_and_29_good_ones_settle_it(file: Path) -> None:
    none = measure(rows(4000), read_labels(file))
    assert (none.outcome, none.missing) == ("open", 29) and math.isnan(none.share.value)
    assert purity_line(none) == "no row is labelled; 29 more of these 4000 rows, all good, would clear the bar of 90%"
    for number in range(28):
        write_label(file, label(number))
    assert measure(rows(4000), read_labels(file)).missing == 1
    write_label(file, label(28))
    done = measure(rows(4000), read_labels(file))
    assert (done.outcome, done.missing, done.good) == ("clears", 0, 29)
    write_label(file, label(29, "bad"))
    assert measure(rows(4000), read_labels(file)).missing == 63  # one bad one: 93 in all


def test_unsure_never_makes_it_purer(file: Path) -> None:
    for number in range(29):
        write_label(file, label(number, "unsure" if number == 5 else "good"))
    purity = measure(rows(400), read_labels(file))
    assert purity.outcome == "open" and purity.unsure == 1 and purity.share.low == stats.purity_bound([(28, 29, 400)]).low < 0.9


def test_when_every_row_is_labelled_the_purity_is_known(file: Path) -> None:
    for number in range(9):
        write_label(file, label(number, "bad" if number == 3 else "good"))
    ten = measure(rows(10), read_labels(file))
    assert (ten.outcome, ten.missing) == ("open", 1)  # nine of ten is the bar itself
    write_label(file, label(9))
    known = measure(rows(10), read_labels(file))
    assert known.outcome == "clears" and known.share.low == known.share.value == 0.9 and known.share.method == "every row labelled"
    assert measure(rows(9), read_labels(file)).outcome == "below"  # eight of nine, and no row is left to label


def test_a_verifier_surely_under_the_bar_asks_for_no_more_labels(file: Path) -> None:
    for number in range(30):
        write_label(file, label(number, "bad" if number % 2 else "good"))
    purity = measure(rows(4000), read_labels(file))
    assert (purity.outcome, purity.missing) == ("below", 0) and "more labels would not help" in purity_line(purity)


def test_labels_on_other_texts_are_counted_and_not_used(file: Path) -> None:
    write_label(file, label(500))
    write_label(file, label(1, "bad", text="another text under the same key"))
    write_label(file, label(2))
    purity = measure(rows(100), read_labels(file))
    assert (purity.good, purity.bad) == (1, 0)
    assert purity.notes == (
        "2 labelled trajectories are not among these rows and say nothing of them, 1 of which were labelled under the same key with another text",
    )


def test_rows_are_drawn_the_same_way_whatever_order_they_come_in() -> None:
    keys = list(rows(50))
    assert shuffled(keys) == shuffled(keys[::-1]) != sorted(keys, key=order)
    shown = draw(shuffled(keys), 29)
    assert {one.inclusion for one in shown} == {29 / 50} and len(shown) == 50


def test_disagreements_come_first_and_are_weighed_down_again(file: Path) -> None:
    keys, suspects = rows(100), {key(number) for number in range(10)}
    shown = draw(shuffled(keys), 30, suspects)
    assert len(shown) == 100 and sum(one.key in suspects for one in shown[:20]) == 10
    assert {(one.stratum, one.of, round(one.inclusion, 3)) for one in shown} == {("disagreed", 10, 1.0), ("agreed", 90, 0.222)}
    for one in shown[:40]:  # all ten disagreements, and they are bad; thirty of the others, and they are good
        number = int(one.key.task[1:])
        write_label(file, label(number, "bad" if one.key in suspects else "good", shown=one))
    purity = measure(keys, read_labels(file))
    assert purity.share.value == pytest.approx(0.9)  # not 30 of 40
    assert purity.share.low == pytest.approx(0.9 * stats.bound_at_any_look(30, 30, 90, 1 - 0.05 * 0.9) / 90)
    assert measure(rows(90), read_labels(file)).share.n == 0  # drawn from other rows: no weights, no estimate


def test_the_bound_by_strata_holds_at_least_as_often_as_it_says() -> None:
    draw_, truth, covered, trials = random.Random(1), (0.5 * 20 + 0.95 * 180) / 200, 0, 400
    for _ in range(trials):
        strata = [
            ([True] * round(p * size) + [False] * (size - round(p * size)), size, n) for p, size, n in ((0.5, 20, 10), (0.95, 180, 25))
        ]
        seen = [(sum(draw_.sample(of, n)), n, size) for of, size, n in strata]
        covered += stats.purity_bound(seen).low <= truth
    assert covered / trials >= 0.95


def test_alpha_is_krippendorffs() -> None:
    """His own example (2011, section C): 12 units, 4 observers, nominal: 0.743."""
    a, b = "1 2 3 3 2 1 4 1 2 * * *", "1 2 3 3 2 2 4 1 2 5 * 3"
    c, d = "* 3 3 3 2 3 4 2 2 5 1 *", "1 2 3 3 2 4 4 1 2 5 1 *"
    units = [[one for one in column if one != "*"] for column in zip(*(line.split() for line in (a, b, c, d)), strict=True)]
    _, alpha, n = stats.krippendorff_alpha(units)
    assert round(alpha, 3) == 0.743 and n == 11
    raw, alpha, n = stats.krippendorff_alpha([["good", "good"], ["good", "good"]])
    assert (raw, n) == (1.0, 2) and math.isnan(alpha)  # chance would agree as well
    assert stats.krippendorff_alpha([["good"], []])[2] == 0


def test_agreement_of_labellers(file: Path) -> None:
    for number in range(10):
        write_label(file, label(number, "good" if number < 6 else "bad", "ann"))
        write_label(file, label(number, "good" if number < 5 else "bad", "bea"))
    write_label(file, label(0, "unsure", "cleo"))
    agreement = read_labels(file).agreement()
    assert (agreement.n, agreement.raw, agreement.labellers) == (10, 0.9, ("ann", "bea", "cleo"))
    assert 0.7 < agreement.alpha < 0.9


@pytest.mark.parametrize("change", [{"agent": "another"}, {"turns": ()}])
def test_content_is_what_is_said_and_not_who_or_in_which_tokens(change: dict[str, object]) -> None:
    assert content(replace(tried(1), **change)) == content(tried(1)) != content(tried(1, "else"))


def test_a_stratum_without_a_label_leaves_the_estimate_undefined_and_the_bound_honest(file: Path) -> None:
    keys, suspects = rows(100), {key(number) for number in range(10)}
    first = draw(shuffled(keys), 30, suspects)[0]  # a disagreement; nothing of the other ninety
    write_label(file, label(int(first.key.task[1:]), shown=first))
    purity = measure(keys, read_labels(file))
    assert math.isnan(purity.share.value) and 0 <= purity.share.low < 0.1 and purity.outcome == "open"
    assert "purity undefined, lower bound" in purity_line(purity) and "nan" not in purity_line(purity)


@pytest.mark.parametrize("strata", [[(0, 0, 5000)], [(28, 29, 5000)], [(5, 5, 5), (20, 20, 400)], [(3, 9, 12), (10, 10, 300)]])
def test_the_labels_needed_are_the_fewest_that_clear(strata: list[tuple[int, int, int]]) -> None:
    needed = stats.labels_needed(strata, 0.9)
    assert needed is not None

    def then(more: int) -> float:
        added, room = [0] * len(strata), [rows - labels for _, labels, rows in strata]
        for _ in range(more):
            at = min((at for at in range(len(strata)) if added[at] < room[at]), key=lambda at: (added[at], room[at]))
            added[at] += 1
        return stats.purity_bound([(good + m, n + m, rows) for (good, n, rows), m in zip(strata, added, strict=True)]).low

    assert then(needed) >= 0.9 and not then(needed - 1) >= 0.9


def test_no_number_of_labels_clears_what_is_known_to_be_impure() -> None:
    assert stats.labels_needed([(3, 10, 50)], 0.9) is None
    assert stats.labels_needed([(5, 5, 5)], 0.9) == 0
    for wrong in ([(2, 1, 5)], [(1, 6, 5)], [(-1, 1, 5)]):
        with pytest.raises(ValueError, match="each must be at most the next"):
            stats.purity_bound(wrong)
    for bar in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            stats.labels_needed([(1, 1, 5)], bar)


def test_a_weighted_share_with_equal_weights_is_clopper_pearson_and_unequal_ones_widen_it() -> None:
    hits = [True] * 7 + [False] * 33
    plain, weighted = stats.clopper_pearson(7, 40), stats.weighted_share(hits, [2.5] * 40)
    assert (weighted.value, weighted.low, weighted.high) == pytest.approx((plain.value, plain.low, plain.high))
    uneven = stats.weighted_share(hits, [1.0] * 7 + [1.0] * 20 + [4.0] * 13)
    assert uneven.value == pytest.approx(7 / 79) and uneven.low < uneven.value < uneven.high
    none, all_ = stats.weighted_share([False] * 5, [1.0, 9, 1, 1, 1]), stats.weighted_share([True] * 5, [1.0, 9, 1, 1, 1])
    assert (none.low, all_.high) == (0.0, 1.0) and none.high > 0.5 > all_.low  # no certainty from five, let alone from uneven ones
    assert math.isnan(stats.weighted_share([], []).low)
