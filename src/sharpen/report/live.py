"""What is running, on the terminal: a live line where there is one, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sharpen.report.page import each
from sharpen.sampling import Progress as Seen

EVERY_S = 15.0  # seconds between plain lines of one stage, where the output is a file


class Live:
    """A listener: give it ``Progress`` and it shows stage, bar, tokens/s, pass rate so far and time left."""

    def __init__(self) -> None:
        self.console = _Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._said = self._began = 0.0
        self._first = 0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, seen: Seen) -> None:
        if seen.what != self._what:
            self._what, self._began, self._said, self._first = seen.what, time.monotonic(), 0.0, seen.done
            if self._bar is not None:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(seen.what, total=seen.total, detail="")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=seen.done, total=seen.total, detail=_detail(seen))
            return
        now = time.monotonic()
        if now - self._said >= EVERY_S or seen.done == seen.total:
            self._said = now
            self.say("  ".join(filter(None, (f"{seen.what}: {seen.done}/{seen.total}", _detail(seen), self._left(seen, now)))))

    def _left(self, seen: Seen, now: float) -> str:
        """Time left at the speed since the stage was first heard of; nothing before a twentieth is done, when it would be a wild guess."""
        made = seen.done - self._first
        if made * 20 < seen.total or seen.done == seen.total:
            return ""
        return f"{(now - self._began) / made * (seen.total - seen.done):.0f} s left"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more (``| head``): be quiet and go on. Rich would end this thread, which may be the one that all work runs in."""
        self.quiet = True


def _detail(seen: Seen) -> str:
    parts = [f"{seen.rate:.0f} tokens/s"] if seen.rate else []
    if seen.judged:
        parts.append(f"pass rate so far {seen.passes / seen.judged:.1%}")
    if seen.passes:
        parts.append(f"{each(seen.spent, seen.passes)} a pass, {each(seen.spent, seen.solved)} a task solved")
    if seen.errors:
        parts.append(f"{seen.errors} errors")
    if seen.note:
        parts.append(seen.note)
    return "  ".join(parts)
