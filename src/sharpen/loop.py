"""One event loop in one thread, so that the public functions can be sync over an async core, in scripts and notebooks alike.

Others, by name, where a verifier waits for a policy of its own: see ``verifiers/judge.py``.
"""

from __future__ import annotations

import asyncio
import atexit
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


MAIN = "sharpen-loop"
VERIFIERS = "sharpen-verifiers"  # where verifiers wait for policies and servers of their own
THREADS = 64
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
            # Verdicts wait in threads, for a sandbox or a judge: the default of a few more than there are cores would hold them up.
            loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix=name))
            threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
        return _loops[name]


def submit(work: Coroutine[Any, Any, T], on: str = MAIN) -> Future[T]:
    """Start ``work`` and return at once. ``on`` names another loop, in a thread of its own: for work that a thread of this one waits for."""
    return asyncio.run_coroutine_threadsafe(work, _loop(on))


def run(work: Coroutine[Any, Any, T], on: str = MAIN, timeout_s: float | None = None) -> T:
    """Wait for ``work``. An interrupt cancels it and waits until it has put everything away. TimeoutError after ``timeout_s``: it is cancelled and left."""
    future = submit(work, on)
    try:
        return future.result(timeout_s)
    except TimeoutError:
        future.cancel()
        raise
    except KeyboardInterrupt:
        future.cancel()
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        done.wait(10)
        raise


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Callable[[], str]]:
    """Within, the first Ctrl-C only asks: the function that this gives then tells so, for work to end well. The second is a KeyboardInterrupt."""
    asked = False

    def on_interrupt(*_: object) -> None:
        nonlocal asked
        if asked:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the impatient press it once more, which must not break the putting away
            raise KeyboardInterrupt
        asked = True
        # In a thread: this may have come in the middle of a line that is being written.
        threading.Thread(
            target=say, args=("interrupted: what is under way is finished, nothing more is begun; once more stops at once",)
        ).start()

    if threading.current_thread() is not threading.main_thread():  # which alone hears of it
        yield lambda: ""
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: "interrupted" if asked else ""
    finally:
        signal.signal(signal.SIGINT, before)


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
