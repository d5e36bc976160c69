"""Questions from reasoning-gym's generators, scored by the generator itself."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import msgspec

from sharpen.environments.load import EnvironmentSettings, load_environment
from sharpen.environments.single_turn import SingleTurnSettings
from sharpen.errors import SettingsError, TaskError, nearest
from sharpen.records import Message, Record, Task, Trajectory, Verdict
from sharpen.store.files import digest
from sharpen.tasks.base import Splits, TaskSet, split_by_family
from sharpen.verifiers.base import Properties
from sharpen.verifiers.function import answer_of

TRIES = 20  # questions drawn for each one wanted before giving up: small generators repeat themselves


class ReasoningGym(Record, frozen=True, kw_only=True, tag_field="source", tag="reasoning_gym"):
    """Questions of one reasoning-gym data set.

    ``splits`` counts questions; ``config`` is the data set's own, without ``seed`` and ``size``; ``seed`` 0 or more; ``system`` is
    a system message, "" for none; ``environment`` is where they are answered.
    """

    dataset: str
    splits: Splits
    environment: EnvironmentSettings = SingleTurnSettings()
    config: dict[str, Any] = {}
    seed: int = 0
    system: str = ""


def load(settings: ReasoningGym) -> TaskSet:
    """One task, and one family, a different question. TaskError where the generator has fewer than the splits ask for."""
    sizes = msgspec.structs.asdict(settings.splits)
    wanted = sum(sizes.values())
    origin = {"dataset": settings.dataset, "config": settings.config, "seed": settings.seed, "size": max(1, TRIES * wanted)}
    dataset = _dataset(msgspec.json.encode(origin, order="deterministic"))
    opening = (Message(role="system", content=settings.system),) if settings.system else ()
    tasks: dict[str, Task] = {}
    for index in range(origin["size"]):
        if len(tasks) == wanted:
            break
        entry = dataset[index]
        family = digest(entry["question"])[:12]
        tasks.setdefault(
            family,
            Task(
                key=f"rg-{settings.dataset}-{family}",
                family=family,
                prompt=(*opening, Message(role="user", content=entry["question"])),
                params={"origin": origin, "index": index, "gold": _text(entry["answer"])},
                reference=_text(entry["answer"]),
            ),
        )
    if len(tasks) < wanted:
        raise TaskError(
            f"reasoning-gym {settings.dataset!r} gave only {len(tasks)} different questions of the {wanted} asked for; "
            "ask for fewer or widen its config"
        )
    chosen = split_by_family(list(tasks.values()), sizes, settings.seed)
    return TaskSet(
        f"reasoning_gym-{settings.dataset}-{digest(settings)[:8]}", chosen, load_environment(settings.environment), ReasoningGymScorer()
    )


class ReasoningGymScorer:
    """The data set's own ``score_answer`` on the text after the last ``Answer:``, or on the whole answer without one.

    Only a score of 1 passes; smaller ones (reasoning-gym gives part marks, also for a wrong answer of the right form) are
    kept in ``score`` and fail.
    """

    name = "reasoning_gym"
    exact = True
    properties = Properties(
        needs="params of a task that the source `reasoning_gym` made",
        exact="always",
        cost="cpu",
        own_limit=False,
        gameable="where the data set's own scorer is",
        fails="any score under 1",
        errors="the scorer raises; another version of reasoning-gym makes other questions",
    )

    def problem(self, task: Task) -> str:
        """Why the scorer cannot know the task."""
        return "" if {"origin", "index"} <= task.params.keys() else "was not made by the source reasoning_gym, whose scorer judges no other"

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        dataset = _dataset(msgspec.json.encode(task.params["origin"], order="deterministic"))
        # The entry is made again, not stored: its metadata holds what JSON cannot.
        entry = dataset[task.params["index"]]
        if digest(entry["question"])[:12] != task.family:
            raise TaskError(f"reasoning-gym no longer makes the question of task {task.key!r}; use the version that made it")
        score = float(dataset.score_answer(extract(answer_of(trajectory)), entry))
        passed = score >= 1.0
        reason = "" if passed else f"score {score:g}"
        return Verdict(key=trajectory.key, outcome="pass" if passed else "fail", score=score, reason=reason, verifier=self.name)


def extract(text: str) -> str:
    """What stands after the last ``Answer:`` of its line (any case), or the whole text; stripped of spaces and Markdown stars."""
    found = re.findall(r"answer\s*:\**(.*)", text, flags=re.IGNORECASE)
    return (found[-1] if found else text).strip().strip("*").strip()


@functools.lru_cache(maxsize=32)
def _dataset(origin: bytes) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise TaskError(f"these tasks need reasoning-gym ({error}); pip install 'sharpen[reasoning-gym]'") from None
    wish = msgspec.json.decode(origin)
    name, config = wish["dataset"], wish["config"]
    if name not in DATASETS:
        raise SettingsError(f"reasoning-gym has no data set {name!r}{nearest(name, DATASETS)}")
    known = {field.name for field in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
    for key in config:
        if key not in known:
            raise SettingsError(f"reasoning-gym {name!r} has no config key {key!r}{nearest(key, known)}")
    try:
        return reasoning_gym.create_dataset(name, seed=wish["seed"], size=wish["size"], **config)
    except Exception as error:  # its configs check themselves with assert, and by whatever their arithmetic raises
        raise SettingsError(f"reasoning-gym {name!r} refuses its config {config}: {error}") from None


def _text(answer: Any) -> str | None:
    return None if answer is None else str(answer)
