"""Rejection sampling: let the model write its own training set. This file is the algorithm.

Sample n tries of every training task, keep only those that the verifier passes, and train on them with the demonstrations and
earlier rounds' best mixed back in. Beside it the control: as many tries of the same tasks, the verdict ignored, the same number of trained
tokens. What the control gains is what more text of one's own is worth; what the real arm gains over it is what the verifier was worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from sharpen.agents.base import without_shots
from sharpen.budget import Adaptive
from sharpen.chat.load import load_template
from sharpen.methods.base import Attempt, Bench, Prompted
from sharpen.methods.sft import demonstrations
from sharpen.records import Model, Selection, Trajectory
from sharpen.sampling import Pool, SamplingSettings
from sharpen.selection import build_rows, ignore_verdicts, merge, select

Sourced = tuple[str, Trajectory]


@dataclass(frozen=True)
class Round:
    """How one round is made: how it samples, and where its training starts (``training.start``). ``had`` are tries that need not be made again."""

    sampling: SamplingSettings
    start: Literal["base", "current"]
    had: Pool | None = None

    def begins(self, bench: Bench, standing: Prompted) -> Model:
        """The model that training starts from."""
        return bench.base if self.start == "base" else standing.model

    def mixed_back(self, earlier: Sequence[Sourced]) -> Sequence[Sourced]:
        """The ``earlier`` survivors that train again: all of them where training starts from the base, none where it goes on."""
        return earlier if self.start == "base" else ()


def as_set(bench: Bench) -> Round:
    """A round as the settings say."""
    return Round(bench.sampling, bench.training.start)


def more_samples(bench: Bench, had: Pool | None) -> Round:
    """As many tries again, where they are likely to bring something new: an adaptive budget whose first wave are those made before."""
    usual, n = bench.sampling, bench.sampling.n
    budget = usual.budget
    if isinstance(budget, Adaptive):
        budget = replace(budget, max_tries=2 * budget.max_tries, tokens=2 * budget.tokens if budget.tokens else None)
    else:
        budget = Adaptive(first=n, max_tries=max(8 * n, Adaptive().max_tries))
    return Round(replace(usual, n=2 * n, budget=budget), bench.training.start, had)


def rejection_sampling(
    bench: Bench, rung: str, standing: Prompted, earlier: Sequence[Sourced] = (), how: Round | None = None, *, control: bool = False
) -> Attempt:
    """One round from the ``standing`` model, made as ``how`` says (default ``as_set``): sample, keep what passes, train.

    ``earlier`` are survivors of rounds before, mixed back in. Training starts from the base over everything (``training.start: base``, same gain
    in domain and better transfer: ReST-EM) or goes on from the standing model over the new survivors and the demonstrations (``current``).
    """
    how, known = how or as_set(bench), solutions(earlier)
    cands = sample(bench, rung, standing, earlier, how)
    good = select(cands, bench.selection, bench.seed, known)

    taught, demos = demonstrations(bench, bench.demonstrations())
    start, mixed = how.begins(bench, standing), [*demos, *how.mixed_back(earlier)]

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


def sample(bench: Bench, rung: str, standing: Prompted, earlier: Sequence[Sourced], how: Round) -> Pool:
    """A round's judged tries of every training task."""
    tasks = bench.tasks.split("train").tasks
    return bench.sample(f"{rung}/sampling", standing, tasks, how.sampling, known=solutions(earlier), had=how.had)


def solutions(earlier: Sequence[Sourced]) -> frozenset[tuple[str, tuple[str, ...]]]:
    """(task, actions) of what trains already."""
    return frozenset((trajectory.key.task, trajectory.actions) for _, trajectory in earlier)
