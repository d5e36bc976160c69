"""Prompt it before you train it: the base model with a few demonstrations before the task."""

from __future__ import annotations

import random

from sharpen.errors import Refused
from sharpen.methods.base import Attempt, Bench, Prompted, shots_of


def few_shot(bench: Bench, rung: str, standing: Prompted) -> Attempt:
    """``bench.few_shot.shots`` passing demonstrations, drawn with the run's seed, as examples before every task."""
    if bench.harness is not None:
        raise Refused(
            f"{rung}: an outside program writes its own prompts, so no examples can be put before the task; leave few-shot out of ladder.rungs"
        )
    pool = bench.demonstrations()
    passing = [pool.trajectories[key] for key in pool.wanted if pool.verdicts[key]]
    if not passing:
        raise Refused(
            f"{rung}: no passing demonstration to show; add demonstrations to the demo split, or leave few-shot out of ladder.rungs"
        )
    drawn = random.Random(bench.seed).sample(passing, min(bench.few_shot.shots, len(passing)))
    return Attempt(Prompted(standing.model, shots_of(drawn)))
