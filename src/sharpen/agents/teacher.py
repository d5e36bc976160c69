"""Who teaches. A teacher is an agent, described as a run's own is: a model on an engine, a program in the environment's place, several tries and a choice.

Nothing else in the pipeline knows the difference: its tries are made, judged, selected and trained on as the student's own are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sharpen.agents.choose import Several
from sharpen.agents.ensemble import Ensemble
from sharpen.agents.harness import Harness
from sharpen.errors import SettingsError
from sharpen.policies.choose import Auto, Engine
from sharpen.records import Record
from sharpen.tasks.recorded import Demonstrations

_TRACES = (".jsonl", ".json", ".parquet", ".eval", ".gz")


class Teacher(Record, frozen=True, kw_only=True):
    """Whose behaviour is copied. In settings and flags one word may do: ``best-of-8``, ``best-of-8 of MODEL``, a model, or a file of trajectories.

    ``model`` is a packaged name, a folder, a hub id, an endpoint's URL or the folder of another run, which stands for what that run ships; "" is
    the student itself, as it stands. ``template``, ``engine``, ``harness`` and ``agent`` are what they are for the run's own model; without a ``harness`` of
    its own a teacher plays in the run's. ``agent: best-of-n`` is n tries of all that and one chosen, ``agent: ensemble`` the same with more models.

    ``recorded`` are trajectories in files, in the place of all of these: tries at train tasks are copied from, those at dev tasks say how good it is.

    ``max_tokens`` for each of its turns, where it needs more than the student (None: as many).
    """

    model: str = ""
    template: str = ""
    engine: Engine = Auto()
    harness: Harness | None = None
    agent: Several | None = None
    recorded: Demonstrations | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        live = [name for name in ("model", "template", "harness", "agent", "max_tokens") if getattr(self, name)]
        if self.recorded is not None and live:
            raise SettingsError(f"recorded trajectories are all there is of a teacher, so they take no {live[0]}; leave out one of the two")
        if self.recorded is None and not self.model and self.harness is None and self.tries == 1 and not isinstance(self.agent, Ensemble):
            raise SettingsError(
                "the teacher is the student itself, one try for one, and there is nothing to copy; name a model, a harness or recorded "
                "trajectories, or let it choose: best-of-8"
            )
        if self.agent is not None and self.agent.plays != "everything":
            raise SettingsError(f"agent.plays is {self.agent.plays!r}, but a teacher plays as one agent everywhere; leave it out")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise SettingsError(f"max_tokens is {self.max_tokens}, but must be at least 1")

    @property
    def tries(self) -> int:
        """How many tries of models, at most, one of its tries is."""
        return 1 if self.agent is None else self.agent.tries

    @property
    def itself(self) -> bool:
        """Whether only the student's own weights speak."""
        return self.recorded is None and not self.model and not isinstance(self.agent, Ensemble)


def in_words(word: str) -> dict[str, Any]:
    """The settings that one word stands for. A file is one of recorded trajectories; anything else names a model."""
    if found := re.fullmatch(r"best-of-(\d+)(?: of (\S+))?", word.strip()):
        return {"agent": {"agent": "best-of-n", "n": int(found[1])}, **({"model": found[2]} if found[2] else {})}
    if not word.strip():
        raise SettingsError("teacher is empty; name one: best-of-8, a model, or a file of trajectories")
    recorded = "//" not in word and (Path(word).is_file() or Path(word).suffix in _TRACES)
    return {"recorded": {"path": word}} if recorded else {"model": word}
