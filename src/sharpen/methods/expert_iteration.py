"""Expert iteration: do it again. Each round samples from the better prior that the round before left.

One call is one round; the ladder repeats it until the plateau or the round budget, and rolls back a round that is not better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sharpen.methods.base import Attempt, Bench, Prompted, Sourced
from sharpen.methods.rejection_sampling import Gathered, Round, rejection_sampling


def expert_iteration(
    bench: Bench, rung: str, standing: Prompted, earlier: Sequence[Sourced], how: Round | None = None, found: Gathered | None = None
) -> Attempt:
    """One more round of rejection sampling over all rounds' survivors: ``earlier`` are kept, so that a round cannot forget what one before it knew."""
    attempt = rejection_sampling(bench, rung, standing, earlier, how, found)
    kept = tuple(("earlier round", trajectory) for _, trajectory in (*earlier, *attempt.survivors))
    return replace(attempt, survivors=kept)
