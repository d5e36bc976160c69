"""Which agent plays: the policy in its environment, or an outside program that the policy drives; once, or several times with one choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec.structs import replace

from sharpen.agents.base import Agent, PolicyAgent
from sharpen.agents.best_of_n import BestOfN, BestOfNAgent, make_chooser
from sharpen.agents.ensemble import Ensemble, InTurn
from sharpen.agents.harness import Harness, HarnessAgent
from sharpen.environments.base import Environment
from sharpen.errors import SettingsError
from sharpen.models import load_model
from sharpen.policies.base import Policy, Sampling
from sharpen.policies.choose import Engine, batch_of
from sharpen.records import Message, Model, Trajectory
from sharpen.store.segments import Segments
from sharpen.terms import EXPERT, maker_of, merged
from sharpen.verifiers.base import Verifier

Several = BestOfN | Ensemble
CONSIDERED = "considered"  # the folder, beside trajectories, of the tries that were chosen from


def playing(several: Several | None, what: Literal["sampling", "evaluation"]) -> Several | None:
    """``several`` where it is to play in ``what``."""
    return several if several is not None and several.plays in ("everything", what) else None


def most_turns(environment: Environment, harness: Harness | None, several: Several | None = None) -> int:
    """How often, at most, one try asks the policy."""
    return (environment.max_turns if harness is None else harness.max_calls) * (1 if several is None else several.tries)


def check_turns(engine: Engine, environment: Environment, harness: Harness | None) -> None:
    """SettingsError where ``engine`` asks in batches and a try may take more than one turn."""
    batch, turns = batch_of(engine), most_turns(environment, harness)
    if batch is not None and turns > 1:
        where = f"the harness {harness.command[0]}" if harness is not None else environment.name
        raise SettingsError(
            f"engine.batch: a try at {where} may take {turns} turns, and each would wait for a batch of its own, for up to {batch.window}; "
            "take batch out of the engine, or give tasks of a single turn"
        )


def make_agent(
    name: str,
    model: Model,
    policy: Policy,
    environment: Environment,
    sampling: Sampling,
    harness: Harness | None,
    shots: tuple[Message, ...] = (),
    hints: Mapping[str, str] | None = None,
) -> Agent:
    """The agent called ``name``. A ``harness`` writes its prompts itself, so it takes neither few-shot examples nor ``hints``.

    What is said after a hint may repeat it, so the terms of the tasks' solutions ride on it beside the model's own.
    """
    maker = maker_of(model)
    if harness is None:
        maker = replace(maker, terms=merged(maker.terms, EXPERT.terms)) if hints else maker
        return PolicyAgent(name, policy, model.fingerprint, environment, sampling, shots, maker, hints or {})
    assert not shots and not hints
    return HarnessAgent(name, policy, model.fingerprint, harness, sampling, maker)


def load_members(several: Several | None) -> list[tuple[Model, Engine]]:
    """The models of an ensemble beside the run's own, found and checked, with the engines that they are to run on."""
    members = several.members if isinstance(several, Ensemble) else ()
    return [(load_model(member.model, member.template), member.engine) for member in members]


def make_several(
    several: Several,
    members: Sequence[Agent],
    grader: Verifier | None,
    kept: Segments[Trajectory] | None,
    *,
    concurrency: int,
    episode_timeout_s: float,
    verifier_timeout_s: float,
) -> Agent:
    """What ``several`` makes of its ``members``, the run's own model first. ``grader`` is the tasks' verifier, ``kept`` where inner tries lie."""
    inner = members[0] if len(members) == 1 else InTurn(members)
    if several.by == "rotation":
        return inner
    return BestOfNAgent(
        inner,
        several.tries,
        make_chooser(several, grader, verifier_timeout_s),
        several.stop_at_pass,
        kept,
        episode_timeout_s,
        concurrency,
    )
