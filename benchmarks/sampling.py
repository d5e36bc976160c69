"""Sampling speed, arms side by side on the same requests: OpenVinoPolicy, openvino_genai driven raw, transformers ``generate``.

    python benchmarks/sampling.py --out sampling.json             # about 5 minutes on two cores
    python benchmarks/sampling.py --games textworld --episodes 128

A request list is a set of multi-turn episodes whose observations are fixed beforehand, so that every arm reads the same text at the same
turn; only the sampled words between differ. The single-turn list is the first turn of each episode. Arms alternate within a repeat, and
ratios are taken within a repeat, so that another load on the machine hits all of them. Tokens per second are sampled tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpen import loop
from sharpen.chat.template import ChatTemplate
from sharpen.models import load_model
from sharpen.policies.base import Conversation, Policy, Sampling, turn_seed
from sharpen.policies.gguf_file import write_gguf
from sharpen.policies.openvino import OpenVino, OpenVinoPolicy, pipeline_settings
from sharpen.records import Message, Model, TurnTokens

SYSTEM = "You are playing a text game. Each turn you read what you see, and answer with one short command, such as: go north, open fridge, take key."
PLACES = ("kitchen", "cellar", "attic", "garden", "workshop", "pantry", "library", "bedroom")
THINGS = ("a brass key", "a loaf of bread", "a lantern", "an old coat", "a wooden chest", "a glass jar", "a rusty knife", "a map")


@dataclass(frozen=True)
class Episode:
    """What is read: the opening messages, then one observation a turn."""

    opening: tuple[Message, ...]
    observations: tuple[str, ...]


@dataclass
class Count:
    """What one arm did in one repeat."""

    seconds: float = 0.0
    requests: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0

    def add(self, prompt: int, sampled: int) -> None:
        self.requests, self.prompt_tokens, self.sampled_tokens = (
            self.requests + 1,
            self.prompt_tokens + prompt,
            self.sampled_tokens + sampled,
        )


def synthetic(episodes: int, turns: int, seed: int) -> list[Episode]:
    """Openings of about 150 tokens and observations of about 40."""
    rng = random.Random(seed)

    def room(things: int) -> str:
        seen = ", ".join(rng.sample(THINGS, things))
        return f"You are in the {rng.choice(PLACES)}. You see {seen}. Exits: {rng.choice(('north, east', 'south', 'west, south'))}."

    def opening() -> str:
        goal = f"Your task is to find {rng.choice(THINGS)} in the {rng.choice(PLACES)} and bring it to the {rng.choice(PLACES)}."
        return f"{goal}\n{room(6)} The door to the {rng.choice(PLACES)} is closed. {room(3)}"

    return [
        Episode((Message(role="system", content=SYSTEM), Message(role="user", content=opening())), tuple(room(3) for _ in range(turns - 1)))
        for _ in range(episodes)
    ]


async def textworld(episodes: int, turns: int, seed: int) -> list[Episode]:
    """What the expert sees in real games, cut after ``turns`` turns."""
    from sharpen.tasks.base import Splits
    from sharpen.tasks.load import load_tasks
    from sharpen.tasks.textworld import TextWorld

    tasks = load_tasks(TextWorld(splits=Splits(train=episodes), seed=seed, shortest=min(4, turns), longest=max(4, turns)))
    found = []
    for bound in tasks:
        game, opening = await tasks.environment.start(bound.task)
        seen: list[str] = []
        for command in (tasks.environment.expert(bound.task) or ())[: turns - 1]:
            step = await game.step(Message(role="assistant", content=command))
            seen += [message.content for message in step.messages]
        found.append(Episode(opening, tuple(seen)))
    return found


# ---------------------------------------------------------------- the arms


def conversation(episode: Episode, answers: list[str], turns: list[TurnTokens]) -> Conversation:
    messages = list(episode.opening)
    for answer, seen in zip(answers, episode.observations, strict=False):
        messages += [Message(role="assistant", content=answer), Message(role="user", content=seen)]
    return Conversation(messages=tuple(messages), turns=tuple(turns))


def ours(policy: Policy, episodes: list[Episode], sampling: Sampling) -> Count:
    """As the rollout loop does it: every episode a task, all at once."""
    count = Count()

    async def play(index: int, episode: Episode) -> None:
        answers: list[str] = []
        turns: list[TurnTokens] = []
        for _ in range(len(episode.observations) + 1):
            turn = await policy.complete(conversation(episode, answers, turns), seeded(sampling, index))
            answers.append(turn.message.content)
            turns.append(turn.tokens)
            count.add(turn.prompt_tokens, turn.sampled_tokens)

    async def everything() -> None:
        await asyncio.gather(*(play(i, episode) for i, episode in enumerate(episodes)))

    began = time.perf_counter()
    loop.run(everything())
    count.seconds = time.perf_counter() - began
    return count


def raw(pipeline: Any, template: ChatTemplate, episodes: list[Episode], sampling: Sampling) -> Count:
    """``add_request`` and ``step`` in one loop, nothing between: the engine's own speed."""
    import numpy
    import openvino
    import openvino_genai

    count = Count()
    states: list[tuple[list[str], list[TurnTokens]]] = [([], []) for _ in episodes]
    running: dict[int, tuple[Any, list[int]]] = {}

    def ask(index: int) -> None:
        talk = conversation(episodes[index], *states[index])
        prompt = template.prompt(talk.messages, talk.turns)
        settings = openvino_genai.GenerationConfig(max_new_tokens=sampling.max_tokens)
        settings.stop_token_ids = set(template.end_ids)
        settings.set_eos_token_id(min(template.end_ids))
        settings.do_sample, settings.temperature, settings.top_p = True, sampling.temperature, sampling.top_p
        settings.rng_seed = turn_seed(seeded(sampling, index).seed, prompt) & 0xFFFFFFFF
        running[index] = pipeline.add_request(index, openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)), settings), prompt

    began = time.perf_counter()
    for index in range(len(episodes)):
        ask(index)
    while running:
        pipeline.step()
        for index, (handle, prompt) in list(running.items()):
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                output = list(handle.read_all()[0].generated_ids)
                answers, turns = states[index]
                answers.append(template.answer(output))
                turns.append(TurnTokens(prompt=tuple(prompt), output=tuple(output)))
                count.add(len(prompt), len(output))
                del running[index]
                if len(turns) <= len(episodes[index].observations):
                    ask(index)
    count.seconds = time.perf_counter() - began
    return count


def generate(model: Any, template: ChatTemplate, episodes: list[Episode], sampling: Sampling, rows: int) -> Count:
    """``generate`` on left-padded batches of ``rows``, turn by turn, nothing kept between turns: what one writes first."""
    import torch

    count, end = Count(), min(template.end_ids)
    torch.manual_seed(sampling.seed)
    states: list[tuple[list[str], list[TurnTokens]]] = [([], []) for _ in episodes]
    began = time.perf_counter()
    for turn in range(max(len(episode.observations) for episode in episodes) + 1):
        left = [i for i, episode in enumerate(episodes) if turn <= len(episode.observations)]
        for start in range(0, len(left), rows):
            batch = left[start : start + rows]
            talks = [conversation(episodes[i], *states[i]) for i in batch]
            prompts = [template.prompt(talk.messages, talk.turns) for talk in talks]
            width = max(map(len, prompts))
            with torch.inference_mode():
                out = model.generate(
                    input_ids=torch.tensor([[end] * (width - len(p)) + p for p in prompts]),
                    attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
                    max_new_tokens=sampling.max_tokens,
                    do_sample=True,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=0,
                    eos_token_id=sorted(template.end_ids),
                    pad_token_id=end,
                )
            for i, prompt, row in zip(batch, prompts, out[:, width:].tolist(), strict=True):
                stop = next((n + 1 for n, token in enumerate(row) if token in template.end_ids), len(row))
                answers, turns = states[i]
                answers.append(template.answer(row[:stop]))
                turns.append(TurnTokens(prompt=tuple(prompt), output=tuple(row[:stop])))
                count.add(len(prompt), stop)
    count.seconds = time.perf_counter() - began
    return count


def seeded(sampling: Sampling, index: int) -> Sampling:
    return Sampling(
        temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens, seed=sampling.seed * 100_000 + index
    )


# ---------------------------------------------------------------- one run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--games", choices=("synthetic", "textworld"), default="synthetic")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto")
    parser.add_argument("--rows", type=int, default=32, help="rows of a transformers batch")
    parser.add_argument("--out", type=Path, default=Path("sampling.json"))
    args = parser.parse_args()

    import torch
    import transformers

    model = load_model(args.model)
    template = ChatTemplate.load(model.path)
    settings = OpenVino(precision=args.precision)
    began = time.perf_counter()
    policy = OpenVinoPolicy(model, settings)
    load_seconds = time.perf_counter() - began
    pipeline = raw_pipeline(model, settings)
    dtype = torch.bfloat16 if policy.precision == "bf16" else torch.float32
    weights: Any = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype).eval()

    multi: list[Episode] = (
        synthetic(args.episodes, args.turns, args.seed)
        if args.games == "synthetic"
        else asyncio.run(textworld(args.episodes, args.turns, args.seed))
    )
    lists = {"multi-turn": multi, "single-turn": [Episode(episode.opening, ()) for episode in multi]}
    arms: dict[str, Callable[[list[Episode], Sampling], Count]] = {
        "sharpen": lambda episodes, sampling: ours(policy, episodes, sampling),
        "openvino raw": lambda episodes, sampling: raw(pipeline, template, episodes, sampling),
        "transformers": lambda episodes, sampling: generate(weights, template, episodes, sampling, args.rows),
    }
    report: dict[str, Any] = {
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip(),
        "hardware": {"cpu": cpu(), "cores": os.cpu_count(), "memory_gb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30},
        "versions": {name: importlib.metadata.version(name) for name in ("openvino-genai", "torch", "transformers")},
        "settings": {key: str(value) for key, value in vars(args).items()} | {"computed_in": policy.precision},
        "load_seconds": load_seconds,
        "lists": {},
    }
    for name, episodes in lists.items():
        counts: dict[str, list[Count]] = {arm: [] for arm in arms}
        for repeat in range(args.repeats):
            sampling = Sampling(temperature=args.temperature, max_tokens=args.max_tokens, seed=args.seed + repeat)
            # Words of this repeat only, or the prefix caches would still hold the last one's.
            fresh = [Episode((*e.opening[:-1], marked(e.opening[-1], repeat, name)), e.observations) for e in episodes]
            for arm, run in arms.items():
                counts[arm].append(run(fresh, sampling))
                print(f"{name}, repeat {repeat + 1}: {arm} {counts[arm][-1].seconds:.1f} s", flush=True)
        report["lists"][name] = summary(counts)
        show(name, report["lists"][name])
    loop.run(policy.close())
    args.out.write_text(json.dumps(report, indent=1))


def raw_pipeline(model: Model, settings: OpenVino) -> Any:
    """openvino_genai with the policy's own settings."""
    import openvino_genai

    properties, values = pipeline_settings(settings)
    scheduler = openvino_genai.SchedulerConfig()
    for key, value in values.items():
        setattr(scheduler, key, value)
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(model.path, Path(folder) / "model.gguf")
        return openvino_genai.ContinuousBatchingPipeline(str(Path(folder) / "model.gguf"), scheduler, "CPU", properties)


def summary(counts: dict[str, list[Count]]) -> dict[str, Any]:
    """Each arm's numbers, and how much faster ours is, in turns per second, within each repeat."""
    speed = {arm: [count.requests / count.seconds for count in repeats] for arm, repeats in counts.items()}
    ratios = {arm: [a / b for a, b in zip(speed["sharpen"], values, strict=True)] for arm, values in speed.items() if arm != "sharpen"}
    return {
        "arms": {arm: [vars(count) for count in repeats] for arm, repeats in counts.items()},
        "ratios": {arm: {"median": statistics.median(r), "low": min(r), "high": max(r), "repeats": r} for arm, r in ratios.items()},
    }


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: {result['arms']['sharpen'][0]['requests']} turns a repeat")
    for arm, repeats in result["arms"].items():
        tokens = statistics.median(r["sampled_tokens"] / r["seconds"] for r in repeats)
        turns = statistics.median(r["requests"] / r["seconds"] for r in repeats)
        seconds = ", ".join(f"{r['seconds']:.1f}" for r in repeats)
        print(f"  {arm:<14}{turns:7.1f} turns/s {tokens:7.1f} tokens/s   seconds: {seconds}")
    for arm, ratio in result["ratios"].items():
        print(
            f"  sharpen / {arm}: {ratio['median']:.2f} (from {ratio['low']:.2f} to {ratio['high']:.2f} in {len(ratio['repeats'])} repeats)"
        )


def marked(message: Message, repeat: int, name: str) -> Message:
    return Message(role=message.role, content=f"Game {name}-{repeat}. {message.content}")


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
