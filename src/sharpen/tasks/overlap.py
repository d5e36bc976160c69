"""What teaches must not judge: equal questions and families, and near duplicates, found before anything is sampled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from sharpen.errors import SettingsError, TaskError
from sharpen.records import Record, Task
from sharpen.tasks.base import TaskSet

ROLE = {"demo": "teaching", "train": "teaching", "dev": "deciding", "test": "reporting"}
ORDER = ("teaching", "deciding", "reporting")  # what stands later judges what stands before

N = 8  # words
MAX_OVERLAP = 0.7
COMMON = 10  # families that may share an n-gram before it counts as a phrase of the template
WORD = re.compile(r"\w+|[^\w\s.,;:!?'\"]")  # operators and brackets are words: 2 + 3 is not 2 * 3


class Near(Record, frozen=True, kw_only=True):
    """Two questions that nearly say the same: ``share`` of ``judging``'s n-grams are also in ``teaching``, ``text`` the longest stretch."""

    teaching: Task
    judging: Task
    share: float
    text: str


def check_share(max_overlap: float | None) -> None:
    """SettingsError where ``max_overlap`` is no share over 0."""
    if max_overlap is not None and not 0 < max_overlap <= 1:
        raise SettingsError(f"max_overlap is {max_overlap}, but must be over 0 and at most 1")


def check_overlap(taskset: TaskSet, max_overlap: float | None = None) -> None:
    """TaskError, with the pairs, where teaching (demo, train), dev and test share anything.

    Always: a family, or the same question, which is the prompt's text, case and spacing aside; where there is no prompt, the
    environment's parameters. With ``max_overlap``: near duplicates too, as ``near_duplicates`` finds them.
    """
    seen: dict[str, Task] = {}
    for task in taskset.tasks:
        for mark in (f"family {task.family!r}", question(task)):
            other = seen.setdefault(mark, task)
            if ROLE.get(other.split) != ROLE.get(task.split):
                what = mark if mark.startswith("family") else f"the question {mark[:80]!r}"
                raise TaskError(
                    f"task set {taskset.name!r}: {other.key!r} ({other.split}) and {task.key!r} ({task.split}) share {what}; "
                    "give both one family or take one out"
                )
    if max_overlap is None or not (found := near_duplicates(taskset.tasks, max_overlap)):
        return
    shown = "; ".join(
        f"{near.teaching.key!r} ({near.teaching.split}) and {near.judging.key!r} ({near.judging.split}) share {near.share:.0%}: "
        f"{near.text if len(near.text) <= 120 else near.text[:120] + '...'!r}"
        for near in found[:3]
    )
    rest = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    raise TaskError(
        f"task set {taskset.name!r}: {len(found)} judging questions are nearly a teaching one: {shown}{rest}; "
        f"give such a pair one family, drop one of the two, or raise max_overlap (now {max_overlap:g})"
    )


def near_duplicates(tasks: Sequence[Task], max_overlap: float = MAX_OVERLAP) -> list[Near]:
    """The judging questions of which more than ``max_overlap`` is found in one question of a role before theirs, worst first.

    A question is the words of its messages, system messages aside, in lower case without sentence punctuation. The overlap is
    the share of the judging question's 8-grams that the other holds as well (n and the 70 % are those of PaLM, Chowdhery et al. 2022,
    section 8, there against the whole training set, here against one question, so that the pair can be shown). A question under
    8 words is one n-gram, so only equal ones meet. An n-gram in more than 10 families (GPT-3, Brown et al. 2020, appendix C; in
    small sets in more than a tenth of the families, and more than 3) is a phrase of the template and counts as not shared: questions
    made from one template differ in the little that the template leaves open. Each judging question is named once, with the one
    nearest to it. Linear in the words of all questions: only n-grams of judging questions are kept.
    """
    rank = {split: ORDER.index(role) for split, role in ROLE.items()}
    ranks = [rank.get(task.split, 0) for task in tasks]
    words = [_words(task) for task in tasks]
    judging = [index for index, place in enumerate(ranks) if place > 0]
    grams = {index: _grams(words[index]) for index in judging}
    holders: dict[tuple[str, ...], list[int]] = {gram: [] for index in judging for gram in grams[index]}
    for index in range(len(tasks)):
        for gram in grams[index] if index in grams else _grams(words[index]):
            if gram in holders:
                holders[gram].append(index)
    common = min(COMMON, max(3, len({task.family for task in tasks}) // 10))
    telling = {gram: held for gram, held in holders.items() if len(held) > 1 and len({tasks[index].family for index in held}) <= common}
    found = []
    for index in judging:
        own = grams[index]
        others = Counter(
            other
            for gram in own
            for other in telling.get(gram, ())
            if ranks[other] < ranks[index] and tasks[other].family != tasks[index].family
        )
        if not others:
            continue
        nearest, count = min(others.items(), key=lambda pair: (-pair[1], tasks[pair[0]].key))
        if count / len(own) > max_overlap:
            text = _shared(words[index], _grams(words[nearest]))
            found.append(Near(teaching=tasks[nearest], judging=tasks[index], share=count / len(own), text=text))
    return sorted(found, key=lambda near: (-near.share, near.judging.key))


def _words(task: Task) -> list[str]:
    return WORD.findall(" ".join(message.content for message in task.prompt if message.role != "system").casefold())


def _grams(words: list[str]) -> set[tuple[str, ...]]:
    if not words:
        return set()
    return {tuple(words)} if len(words) < N else set(zip(*(words[start:] for start in range(N)), strict=False))


def _shared(words: list[str], grams: set[tuple[str, ...]]) -> str:
    """The longest stretch of ``words`` whose every n-gram is among ``grams``."""
    if len(words) < N:
        return " ".join(words)
    breaks = [-1, *(start for start in range(len(words) - N + 1) if tuple(words[start : start + N]) not in grams), len(words) - N + 1]
    before, after = max(pairwise(breaks), key=lambda gap: gap[1] - gap[0])
    return " ".join(words[before + 1 : after - 1 + N])


def question(task: Task) -> str:
    """What a task asks, case and spacing aside; where it has no prompt, the parameters of its environment."""
    if not task.prompt:
        return msgspec.json.encode(task.params, order="deterministic").decode()
    return " ".join(" ".join(message.content for message in task.prompt).casefold().split())
