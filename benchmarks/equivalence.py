"""Filtered SFT is a policy gradient: on a model small enough to enumerate every trajectory, the two gradients side by side.

    python benchmarks/equivalence.py --out equivalence.json       # a minute, no pretrained model

A Llama of two layers with random weights answers three tasks with up to three tokens out of four; each task takes some of the answers. All
trajectories are enumerated, so the exact mean pass rate, and autograd's gradient of it, are known. Against it stands what training does: for
every outcome of n samples a task, weighted by its probability, ``selection.select`` keeps and the loss is the cross-entropy of the labels, summed.

- ``mean_pass_rate`` without dedup: in expectation n times the tasks times the gradient of the mean pass rate.
- ``log_pass_rate`` without dedup: in expectation the gradient of the sum over tasks of pass@j / j, j from 1 to n.
- what bends it, for comparison: dedup, the cap of 2, another temperature. And ``mean_pass_rate`` by Monte Carlo, at growing numbers of samples.

Printed are the cosine between the two gradients, and the ratio of their lengths to the one predicted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from sharpen.records import SampleKey, Task, Trajectory, Verdict
from sharpen.sampling import Pool
from sharpen.selection import SelectionSettings, select

Answer = tuple[int, ...]  # without the end token; an answer of LONGEST tokens is cut and has none
END, LONGEST = 3, 3  # tokens 0 to 2 are words, each task is one token more
TASKS: dict[int, Callable[[Answer], bool]] = {  # hard, middling, easy for most random weights
    4: lambda answer: answer == (0, 1, 2),
    5: lambda answer: sum(answer) == 2,
    6: lambda answer: len(answer) > 1,
}
ANSWERS: list[Answer] = [answer for length in range(LONGEST + 1) for answer in itertools.product(range(END), repeat=length)]
Weights = Mapping[tuple[int, Answer], float]  # how often training sees an answer


def make_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=END + 1 + len(TASKS), initializer_range=0.3, **sizes)).double().eval()


def log_probabilities(model: LlamaForCausalLM, temperature: float = 1.0) -> dict[tuple[int, Answer], torch.Tensor]:
    """Of each answer to each task, summed over its tokens; together they are probabilities that sum to 1 per task."""
    found = {}
    for _, alike in itertools.groupby(sorted(itertools.product(TASKS, ANSWERS), key=_tokens), key=_tokens):
        which = list(alike)
        targets = torch.tensor([[*answer, END][:LONGEST] for _, answer in which])
        inputs = torch.cat([torch.tensor([[task] for task, _ in which]), targets[:, :-1]], dim=1)
        logits = model(input_ids=inputs).logits[..., : END + 1] / temperature
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)
        found.update(zip(which, -losses, strict=True))
    return found


def _tokens(which: tuple[int, Answer]) -> int:
    return min(len(which[1]) + 1, LONGEST)


def gradient(model: LlamaForCausalLM, objective: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(objective, list(model.parameters()), retain_graph=True)])


def kept(task: int, tries: Iterable[Answer], settings: SelectionSettings, seed: int) -> Iterator[Answer]:
    """What sharpen's own selection keeps of these tries."""
    keys = {SampleKey(model="m", task=str(task), environment="e", sampling="s", index=index): answer for index, answer in enumerate(tries)}
    pool = Pool(
        {str(task): Task(key=str(task), family=str(task))},
        tuple(keys),
        {key: Trajectory(key=key, agent="m", messages=(), actions=tuple(map(str, answer)), stop="done") for key, answer in keys.items()},
        {key: Verdict(key=key, outcome="pass" if TASKS[task](answer) else "fail") for key, answer in keys.items()},
    )
    return (keys[key] for key in select(pool, settings, seed).kept)


def expected(chances: Mapping[tuple[int, Answer], float], n: int, settings: SelectionSettings) -> Weights:
    """The expected number of times that each answer is kept, over every outcome of ``n`` samples a task."""
    weights: Counter[tuple[int, Answer]] = Counter()
    for task in TASKS:
        for tries in itertools.product(ANSWERS, repeat=n):
            chance = prod(chances[task, answer] for answer in tries)
            for answer in kept(task, tries, settings, seed=0):
                weights[task, answer] += chance  # type: ignore[assignment]
    return weights


def drawn(chances: Mapping[tuple[int, Answer], float], n: int, settings: SelectionSettings, seed: int) -> Weights:
    """How often each answer is kept in one real draw of ``n`` samples a task."""
    weights: Counter[tuple[int, Answer]] = Counter()
    rng = random.Random(seed)
    for task in TASKS:
        tries = rng.choices(ANSWERS, [chances[task, answer] for answer in ANSWERS], k=n)
        weights.update((task, answer) for answer in kept(task, tries, settings, seed))
    return weights


def beside(ours: torch.Tensor, theirs: torch.Tensor, scale: float) -> dict[str, float]:
    return {
        "cosine": float(F.cosine_similarity(ours, theirs, dim=0)),
        "length_ratio": float(ours.norm() / (theirs.norm() * scale)),
    }


def main(seed: int, n: int, draws: Iterable[int]) -> dict[str, Any]:
    model = make_model(seed)
    logs = log_probabilities(model)
    rates = [torch.stack([logs[task, answer].exp() for answer in ANSWERS if passes(answer)]).sum() for task, passes in TASKS.items()]
    mean_rate = gradient(model, torch.stack(rates).mean())
    sum_rate = gradient(model, torch.stack([(1 - (1 - rate) ** j) / j for rate in rates for j in range(1, n + 1)]).sum())

    def trained(weights: Weights) -> torch.Tensor:
        """Minus the gradient of the training loss: cross-entropy summed over the labels of what was kept."""
        logs = log_probabilities(model)
        return gradient(model, torch.stack([weight * logs[which] for which, weight in weights.items()]).sum())

    chances = {which: float(log.detach().exp()) for which, log in logs.items()}
    hot = {which: float(log.detach().exp()) for which, log in log_probabilities(model, temperature=1.5).items()}
    every, one = SelectionSettings(weighting="mean_pass_rate", dedup=False), SelectionSettings(weighting="log_pass_rate", dedup=False)
    bent = {
        "mean_pass_rate with dedup": (SelectionSettings(weighting="mean_pass_rate"), chances),
        "capped at 2, dedup (the default)": (SelectionSettings(), chances),
        "mean_pass_rate sampled at T = 1.5": (every, hot),
    }
    return {
        "seed": seed,
        "n": n,
        "trajectories": len(chances),
        "parameters": len(mean_rate),
        "pass_rates": [float(rate.detach()) for rate in rates],
        "mean_pass_rate": beside(trained(expected(chances, n, every)), mean_rate, n * len(TASKS)),
        "log_pass_rate": beside(trained(expected(chances, n, one)), sum_rate, 1.0),
        "log_pass_rate beside the mean pass rate": beside(trained(expected(chances, n, one)), mean_rate, n * len(TASKS)),
        **{name: beside(trained(expected(at, n, settings)), mean_rate, n * len(TASKS)) for name, (settings, at) in bent.items()},
        "monte_carlo": {many: beside(trained(drawn(chances, many, every, seed)), mean_rate, many * len(TASKS)) for many in draws},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=3, help="samples a task; every outcome of them is enumerated, so 40 to the power of n")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results = [main(seed, given.n, (100, 1_000, 10_000, 100_000)) for seed in range(given.seeds)]
    for result in results:
        print(json.dumps(result, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1))
