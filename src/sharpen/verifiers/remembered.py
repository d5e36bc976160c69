"""A verifier that is never paid twice for the same verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from sharpen.records import SampleKey, Task, Trajectory, Verdict
from sharpen.store.files import digest
from sharpen.store.segments import Segments
from sharpen.verifiers.base import Verifier, asking, close, stands

OPINIONS = "opinions"  # the folder of a run, or of work, where they lie


class Remembered:
    """``verifier``, whose verdicts are kept in ``folder``, synced, and given again for the same task and ``content``. Errors are asked for again."""

    def __init__(self, verifier: Verifier, folder: Path, content: Callable[[Trajectory], str]) -> None:
        self.members = (verifier,)
        self.name, self.exact = verifier.name, verifier.exact
        self._content = content
        self._kept = Segments(folder, Verdict)

    def __getattr__(self, name: str) -> Any:
        """What a verifier may have beside."""
        return getattr(self.members[0], name)

    def close(self) -> None:
        self._kept.close()
        close(self.members[0])

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        key = SampleKey(model="", task=task.key, environment="", sampling=digest([task, self._content(trajectory)]), index=0)
        known = self._kept.records.get(key)
        if not stands(known, self):
            (verifier,) = self.members
            known = verifier.verify(task, trajectory)
            self._kept.append(replace(known, key=key))
        return replace(known, key=trajectory.key)


def remembered(verifier: Verifier, folder: Path, content: Callable[[Trajectory], str]) -> Verifier:
    """``verifier`` as ``Remembered`` where it asks a policy or a server, which may cost money; else itself."""
    return Remembered(verifier, folder, content) if asking(verifier) else verifier
