"""What the folder of a rung is called, and what its name says."""

from __future__ import annotations

import re
from dataclasses import dataclass

CONTROL = "-control"  # behind the name of the rung that it stands beside
_NAME = re.compile(rf"(\d+)-(.+?)(?:-retry-(\d+)-(.+?))?({CONTROL})?")


@dataclass(frozen=True)
class RungName:
    """``002-rejection-sampling``. Where the round was made again in another way, as the run's first retry: ``002-rejection-sampling-retry-1-hints``."""

    number: int
    method: str
    retry: int = 0
    variant: str = ""
    control: bool = False

    @classmethod
    def of(cls, folder: str) -> RungName | None:
        """What the name of a folder says; None where it is no rung's."""
        if (found := _NAME.fullmatch(folder)) is None:
            return None
        return cls(int(found[1]), found[2], int(found[3] or 0), found[4] or "", found[5] is not None)

    @property
    def unnumbered(self) -> str:
        """The name without its number."""
        return "-".join(filter(None, (self.method, self.again))) + (CONTROL if self.control else "")

    @property
    def again(self) -> str:
        """What says that the round was made again, and how; "" where it was not."""
        return f"retry-{self.retry}-{self.variant}" if self.variant else ""

    @property
    def stage(self) -> str:
        """Its place in a run's folder, which is also what its stages' names begin with."""
        return f"rungs/{self.number:03d}-{self.unnumbered}"


BASE = RungName(0, "base").stage
