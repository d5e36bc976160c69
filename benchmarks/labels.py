"""What labels chosen cleverly are worth beside random ones at equal labels, where the truth is known; and what looking after every label costs.

    python benchmarks/labels.py --out labels.json       # a minute or two, no model

A world is 400 kept rows, a share of them truly good, and a second verifier that disagrees with a part of the bad ones and, wrongly, with some good
ones. The labeller is always right. ``random`` labels the rows in random order; ``disagreement`` every second row from where the verifiers disagree
(``labels.draw``), weighted back (``stats.purity_bound``); ``unweighted`` is the same labels without the weights, to show what they are for.
Each is the mean over ``--worlds`` worlds, seeds 0 and on: the estimate's bias and RMSE, how often its one-sided 95 % lower bound holds (coverage), how
far the bound lies under the truth, and how often it clears the bar of 0.9. Intervals (95 %) of shares are Clopper-Pearson over worlds.

``peeking``: 4000 rows, the labeller goes on, label by label, until the bound clears the bar, up to 29, 100 or 300 labels. Beside the bound that is used
(``stats.purity_bound``) is Clopper-Pearson's, which is for labels whose number was fixed beforehand. The first row is a purity just under the bar: there
clearing is wrong, and should happen 5 % of the time at most. The others are what that costs. Exact, path by path; no simulation.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from sharpen.labels import draw
from sharpen.records import SampleKey
from sharpen.stats import clopper_pearson, purity_bound

ROWS, PEEKED, BAR = 400, 4000, 0.9
WORLDS = {  # truly good; share of the bad and of the good ones with which the second verifier disagrees
    "good verifier, sharp second": (0.97, 0.8, 0.03),
    "good verifier, dull second": (0.97, 0.4, 0.10),
    "fair verifier, sharp second": (0.92, 0.8, 0.03),
    "weak verifier, sharp second": (0.80, 0.8, 0.03),
    "weak verifier, useless second": (0.80, 0.1, 0.10),
}


def one(world: str, seed: int, labels: tuple[int, ...]) -> dict[tuple[str, int], tuple[float, float, float]]:
    """(estimate, lower bound, truth) of each way at each number of labels."""
    purity, caught, alarmed = WORLDS[world]
    rng = random.Random(f"{world}/{seed}")
    keys = [SampleKey(model="m", task=str(n), environment="e", sampling="s", index=0) for n in range(ROWS)]
    good = {key: rng.random() < purity for key in keys}
    suspects = {key for key in keys if rng.random() < (alarmed if good[key] else caught)}
    truth = sum(good.values()) / ROWS
    rng.shuffle(keys)
    orders = {"random": draw(keys, max(labels)), "disagreement": draw(keys, max(labels), suspects)}
    found = {}
    for way, shown in orders.items():
        for m in labels:
            seen: dict[str, tuple[int, int, int]] = {one.stratum: (0, 0, one.of) for one in shown}
            for one_ in shown[:m]:
                right, n, of = seen[one_.stratum]
                seen[one_.stratum] = (right + good[one_.key], n + 1, of)
            bound = purity_bound(list(seen.values()))
            found[way, m] = (bound.value, bound.low, truth)
            if way == "disagreement":
                bare = purity_bound([(sum(right for right, _, _ in seen.values()), m, ROWS)])
                found["unweighted", m] = (bare.value, bare.low, truth)
    return found


def compare(worlds: int, labels: tuple[int, ...]) -> list[dict[str, object]]:
    rows = []
    for world in WORLDS:
        made = [one(world, seed, labels) for seed in range(worlds)]
        for way, m in made[0]:
            drawn = [each[way, m] for each in made]
            off = [value - truth for value, _, truth in drawn if value == value]
            holds = clopper_pearson(sum(low <= truth + 1e-12 for _, low, truth in drawn), worlds)
            rows.append({
                "world": world, "labels": m, "way": way,
                "bias": round(statistics.fmean(off), 4),
                "rmse": round(statistics.fmean(x * x for x in off) ** 0.5, 4),
                "coverage": [round(x, 3) for x in (holds.value, holds.low, holds.high)],
                "under the truth": round(statistics.fmean(truth - low for _, low, truth in drawn), 4),
                "clears": round(sum(low >= BAR for _, low, _ in drawn) / worlds, 3),
            })  # fmt: skip
            said = "{world:31} {labels:4} {way:13} bias {bias:+.4f}  rmse {rmse:.4f}  coverage {coverage}"
            print((said + "  under {under the truth:.4f}  clears {clears}").format(**rows[-1]))
    return rows


RULES: dict[str, Callable[[int, int], bool]] = {
    "looked at once": lambda good, n: clopper_pearson(good, n, sided="lower").low >= BAR,
    "at any look": lambda good, n: purity_bound([(good, n, PEEKED)]).low >= BAR,
}


def peeking(most: tuple[int, ...] = (29, 100, 300)) -> list[dict[str, object]]:
    rows = []
    for good in (PEEKED * 9 // 10 - 1, *(round(PEEKED * share) for share in (0.93, 0.95, 0.97, 0.98, 0.99, 1.0))):
        for rule, clears in RULES.items():
            cleared, spent, found = 0.0, 0.0, {}
            paths = {0: 1.0}
            for n in range(1, max(most) + 1):
                spent += sum(paths.values())
                then: dict[int, float] = defaultdict(float)
                for seen, chance in paths.items():
                    next_good = (good - seen) / (PEEKED - n + 1)
                    then[seen + 1] += chance * next_good
                    then[seen] += chance * (1 - next_good)
                paths = {seen: chance for seen, chance in then.items() if chance and not clears(seen, n)}
                cleared += sum(then.values()) - sum(paths.values())
                if n in most:
                    found[n] = round(cleared, 4)
            rows.append({"good": good / PEEKED, "rule": rule, "cleared by": found, "labels, 300 at most": round(spent, 1)})
            shares = "  ".join(f"by {n}: {share:5.1%}" for n, share in found.items())
            print(
                f"{good / PEEKED:8.3%} of {PEEKED} rows good, bound for labels {rule:14}: cleared {shares}, after {spent:5.1f} labels on average"
            )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=400)
    parser.add_argument("--labels", type=int, nargs="+", default=[29, 60, 100])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {"compare": compare(arguments.worlds, tuple(arguments.labels)), "peeking": peeking()}
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
