"""Which agent plays: the policy in its environment, or an outside program that the policy drives."""

from __future__ import annotations

from sharpen.agents.base import Agent, PolicyAgent
from sharpen.agents.harness import Harness, HarnessAgent
from sharpen.environments.base import Environment
from sharpen.policies.base import Policy, Sampling
from sharpen.records import Message, Model


def most_turns(environment: Environment, harness: Harness | None) -> int:
    """How often, at most, one try asks the policy."""
    return environment.max_turns if harness is None else harness.max_calls


def make_agent(
    name: str,
    model: Model,
    policy: Policy,
    environment: Environment,
    sampling: Sampling,
    harness: Harness | None,
    shots: tuple[Message, ...] = (),
) -> Agent:
    """The agent called ``name``. A ``harness`` writes its prompts itself, so it takes no few-shot examples."""
    if harness is None:
        return PolicyAgent(name, policy, model.fingerprint, environment, sampling, shots)
    assert not shots
    return HarnessAgent(name, policy, model.fingerprint, harness, sampling)
