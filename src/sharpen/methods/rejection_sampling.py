"""Rejection sampling: let the model write its own training set. This file is the algorithm.

Sample n tries of every training task, keep only those that the verifier passes, and train on them with the demonstrations and
earlier rounds' best mixed back in. Beside it the control: as many tries of the same tasks, the verdict ignored, the same number of trained
tokens. What the control gains is what more text of one's own is worth; what the real arm gains over it is what the verifier was worth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from sharpen.agents.base import without_shots
from sharpen.budget import Adaptive
from sharpen.chat.load import load_template
from sharpen.errors import Refused
from sharpen.methods.base import Attempt, Bench, Prompted, Sourced
from sharpen.methods.hints import hinted
from sharpen.methods.sft import demonstrations
from sharpen.pairs import NO_PAIR, pair, preferred
from sharpen.records import Model, SampleKey, Selection, Trajectory
from sharpen.sampling import Pool, SamplingSettings
from sharpen.selection import SelectionSettings, build_rows, ignore_verdicts, merge, select
from sharpen.store.rungs import CONTROL


@dataclass(frozen=True)
class Round:
    """How one round is made: how it samples, and where its training starts (``training.start``). ``had`` are tries that need not be made again.

    ``hints``: tasks that nothing solves are tried with their solution shown. ``negatives``: the standing model learns from passes and fails, not the base
    from passes.
    """

    sampling: SamplingSettings
    start: Literal["base", "current"]
    had: Pool | None = None
    hints: bool = False
    negatives: bool = False

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
    """As many tries again, where they are likely to bring something new: an adaptive budget, whose first wave, or waves, are those made before."""
    usual, n = bench.sampling, bench.sampling.n
    budget = usual.budget
    if isinstance(budget, Adaptive):
        budget = replace(budget, max_tries=2 * budget.max_tries, tokens=2 * budget.tokens if budget.tokens else None)
    else:
        budget = Adaptive(first=n, max_tries=max(8 * n, Adaptive().max_tries))
    return Round(replace(usual, n=2 * n, budget=budget), bench.training.start, had)


def rejection_sampling(
    bench: Bench,
    rung: str,
    standing: Prompted,
    earlier: Sequence[Sourced] = (),
    how: Round | None = None,
    found: Gathered | None = None,
    *,
    control: bool = False,
) -> Attempt:
    """One round from the ``standing`` model, made as ``how`` says (default ``as_set``): sample, keep what passes, train.

    ``earlier`` are survivors of rounds before, mixed back in. Training starts from the base over everything (``training.start: base``, same gain
    in domain and better transfer: ReST-EM) or goes on from the standing model over the new survivors and the demonstrations (``current``). ``found`` is
    what ``gather`` gave for it, where that was looked at before.
    """
    how = how or as_set(bench)
    found = found or gather(bench, rung, standing, earlier, how)
    if how.negatives:
        return _prefer(bench, rung, standing, found)
    taught, demos = demonstrations(bench, bench.demonstrations())
    start, mixed = how.begins(bench, standing), [*demos, *how.mixed_back(earlier)]

    def imitate(name: str, chosen: Selection, own: Sequence[Sourced], token_budget: int | None = None) -> Attempt:
        trains = (*mixed, *own)
        rows, selection = build_rows(merge([taught, chosen]), trains, load_template(bench.base), bench.training.max_length)
        model, report = bench.train(name, start, rows, selection, token_budget=token_budget)
        return Attempt(Prompted(model), selection, report, found.pool, survivors=tuple(own), trains=trains)

    attempt = imitate(rung, found.selection, found.survivors)
    if not control or attempt.training is None:
        return attempt
    indifferent = ignore_verdicts(found.pool, found.selection, bench.seed)
    drawn = _sourced(found.pool, indifferent, standing)
    return dataclasses.replace(attempt, control=imitate(f"{rung}{CONTROL}", indifferent, drawn, attempt.training.trained_tokens))


@dataclass(frozen=True)
class Gathered:
    """What a round has to train on: its tries, and which of them are kept, without few-shot examples (``survivors``) and as they were made (``tries``)."""

    pool: Pool
    selection: Selection
    survivors: tuple[Sourced, ...]
    tries: Mapping[SampleKey, Trajectory]


def gather(bench: Bench, rung: str, standing: Prompted, earlier: Sequence[Sourced], how: Round) -> Gathered:
    """A round's judged tries of every training task, and what is kept of them; with hints, of those that saw one too."""
    tasks = bench.tasks.split("train").tasks
    pool = bench.sample(f"{rung}/sampling", standing, tasks, how.sampling, known=_solutions(earlier), had=how.had)
    own = keep(bench, pool, standing, earlier)
    if not how.hints:
        return own
    more = hinted(bench, rung, standing, pool, [*own.survivors, *how.mixed_back(earlier)], bench.hints)
    tries = {**own.tries, **{key: more.pool.trajectories[key] for key in more.selection.kept}}
    return Gathered(pool, merge([own.selection, more.selection]), (*own.survivors, *more.survivors), tries)


def keep(
    bench: Bench, pool: Pool, standing: Prompted, earlier: Sequence[Sourced], source: str = "sampled", how: SelectionSettings | None = None
) -> Gathered:
    """What the bench's selection, or ``how``, keeps of ``pool``, tries from ``source``, beside ``earlier`` survivors."""
    chosen = select(pool, how or bench.selection, bench.seed, _solutions(earlier))
    return Gathered(pool, chosen, _sourced(pool, chosen, standing, source), {key: pool.trajectories[key] for key in chosen.kept})


def _sourced(pool: Pool, chosen: Selection, standing: Prompted, source: str = "sampled") -> tuple[Sourced, ...]:
    return tuple((source, without_shots(pool.trajectories[key], standing.shots)) for key in chosen.kept)


def _prefer(bench: Bench, rung: str, standing: Prompted, found: Gathered) -> Attempt:
    """Learn from passes and fails of the same tasks (Iterative RPO): the standing model goes on, and is held against itself."""
    template, shots = load_template(bench.base), standing.shots
    pairs, pairing = pair(found.pool, found.selection.kept, template, bench.training.max_length, bench.preference.pairs, bench.seed, shots)
    if not pairs:
        raise Refused(NO_PAIR)
    selection = preferred(found.selection, pairing)
    model, report = bench.prefer(rung, standing.model, pairs, pairing, selection)
    chosen = set(selection.kept)
    survivors = tuple(one for one in found.survivors if one[1].key in chosen)
    return Attempt(Prompted(model), selection, report, found.pool, survivors=survivors, trains=survivors)


def _solutions(earlier: Sequence[Sourced]) -> frozenset[tuple[str, tuple[str, ...]]]:
    """(task, actions) of what trains already."""
    return frozenset((trajectory.key.task, trajectory.actions) for _, trajectory in earlier)
