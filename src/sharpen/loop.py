"""One event loop in one thread, so that the public functions can be sync over an async core, in scripts and notebooks alike.

Others, by name, where a verifier waits for a policy of its own: see ``verifiers/judge.py``.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


MAIN = "sharpen-loop"
VERIFIERS = "sharpen-verifiers"  # where verifiers wait for policies and servers of their own
_loops: dict[str, asyncio.AbstractEventLoop] = {}
_lock = threading.Lock()


@atexit.register  # when this module is imported, so that whatever closes engines on a loop at exit, registered later, runs before
def _stop() -> None:
    for loop in _loops.values():
        loop.call_soon_threadsafe(loop.stop)


def _loop(name: str) -> asyncio.AbstractEventLoop:
    with _lock:
        if name not in _loops:
            loop = _loops[name] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
        return _loops[name]


def submit(work: Coroutine[Any, Any, T], on: str = MAIN) -> Future[T]:
    """Start ``work`` and return at once. ``on`` names another loop, in a thread of its own: for work that a thread of this one waits for."""
    return asyncio.run_coroutine_threadsafe(work, _loop(on))


def run(work: Coroutine[Any, Any, T], on: str = MAIN) -> T:
    """Wait for ``work``. An interrupt cancels it and waits until it has put everything away."""
    future = submit(work, on)
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
