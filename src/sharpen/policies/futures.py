"""Answers from an engine's thread to the event loop that waits for them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeVar

T = TypeVar("T")


def settle(future: asyncio.Future[T], answer: T | Exception) -> None:
    """Give ``future`` its result, or the exception, from any thread. Nothing happens where nobody waits any more."""

    def give() -> None:
        if future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    with contextlib.suppress(RuntimeError):  # the loop is closed
        future.get_loop().call_soon_threadsafe(give)
