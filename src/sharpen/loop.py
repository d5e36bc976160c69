"""One event loop in one thread, so that the public functions can be sync over an async core, in scripts and notebooks alike."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="sharpen-loop", daemon=True)
    thread.start()
    atexit.register(loop.call_soon_threadsafe, loop.stop)
    return loop


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start ``work`` and return at once."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Wait for ``work``. An interrupt cancels it and waits until it has put everything away."""
    future = submit(work)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        done.wait(10)
        raise


def stream(items: AsyncIterator[T]) -> Iterator[T]:
    """Draw from an async iterator; leaving early closes it, which cancels what is in flight."""

    async def step() -> tuple[bool, T | None]:
        try:
            return True, await anext(items)
        except StopAsyncIteration:
            return False, None

    async def close() -> None:
        aclose = getattr(items, "aclose", None)
        if aclose is not None:
            await aclose()

    try:
        while True:
            more, item = run(step())
            if not more:
                return
            yield item  # type: ignore[misc]
    finally:
        run(close())
