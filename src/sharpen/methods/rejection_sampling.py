"""Rejection sampling: let the model write its own training set. This file is the algorithm.

Sample n tries of every training task, keep only those that the verifier passes, and train on them with the demonstrations and
earlier rounds' best mixed back in. Beside it the control: as many tries of the same tasks, the verdict ignored, the same number of trained
tokens. What the control gains is what more text of one's own is worth; what the real arm gains over it is what the verifier was worth.
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpen.agents.base import without_shots
from sharpen.chat.load import load_template
from sharpen.methods.base import Attempt, Bench, Prompted
from sharpen.methods.sft import demonstrations
from sharpen.records import Selection, Trajectory
from sharpen.selection import build_rows, ignore_verdicts, merge, select

Sourced = tuple[str, Trajectory]


def rejection_sampling(bench: Bench, rung: str, standing: Prompted, earlier: Sequence[Sourced] = (), *, control: bool = False) -> Attempt:
    """One round from the ``standing`` model: sample, keep what passes, train.

    ``earlier`` are survivors of rounds before, mixed back in. Training starts from the base over everything (``training.start: base``, same gain
    in domain and better transfer: ReST-EM) or goes on from the standing model over the new survivors and the demonstrations (``current``).
    """
    tasks = bench.tasks.split("train").tasks
    known = solutions(earlier)
    cands = bench.sample(f"{rung}/sampling", standing, tasks, bench.sampling, known=known)
    good = select(cands, bench.selection, bench.seed, known)

    taught, demos = demonstrations(bench, bench.demonstrations())
    start, mixed = bench.start(standing), [*demos, *mixed_back(bench, earlier)]

    def imitate(name: str, chosen: Selection, token_budget: int | None = None) -> Attempt:
        own = [("sampled", without_shots(cands.trajectories[key], standing.shots)) for key in chosen.kept]
        rows, selection = build_rows(merge([taught, chosen]), [*mixed, *own], load_template(bench.base), bench.training.max_length)
        model, report = bench.train(name, start, rows, selection, token_budget=token_budget)
        return Attempt(Prompted(model), selection, report, cands, survivors=tuple(own))

    attempt = imitate(rung, good)
    if not control or attempt.training is None:
        return attempt
    indifferent = ignore_verdicts(cands, good, bench.seed)
    beside = imitate(f"{rung}-control", indifferent, attempt.training.trained_tokens)
    return Attempt(attempt.proposal, attempt.selection, attempt.training, attempt.pool, attempt.survivors, beside)


def mixed_back(bench: Bench, earlier: Sequence[Sourced]) -> Sequence[Sourced]:
    """The ``earlier`` survivors that train again: all of them where training starts from the base, none where it goes on."""
    return earlier if bench.training.start == "base" else ()


def solutions(earlier: Sequence[Sourced]) -> frozenset[tuple[str, tuple[str, ...]]]:
    """(task, actions) of what trains already."""
    return frozenset((trajectory.key.task, trajectory.actions) for _, trajectory in earlier)
