"""Messages between a process and one that it started: length-prefixed msgpack over a file descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec


class Frames:
    """Length-prefixed msgpack over a file descriptor. Not thread-safe; one side reads, the other writes."""

    def __init__(self, fd: int, kinds: Any) -> None:
        self.fd = fd
        self.decoder = msgspec.msgpack.Decoder(kinds)
        self.buffer = bytearray()

    def read(self) -> list[Any] | None:
        """Wait for bytes and return the frames they complete (perhaps none); None at the end of the stream."""
        chunk = os.read(self.fd, 1 << 20)
        if not chunk:
            return None
        self.buffer += chunk
        return list(self._frames())

    def _frames(self) -> Iterator[Any]:
        while len(self.buffer) >= 4:
            end = 4 + int.from_bytes(self.buffer[:4], "little")
            if len(self.buffer) < end:
                return
            frame = self.decoder.decode(bytes(self.buffer[4:end]))
            del self.buffer[:end]
            yield frame


def write_frame(fd: int, message: msgspec.Struct) -> None:
    body = msgspec.msgpack.encode(message)
    view = memoryview(len(body).to_bytes(4, "little") + body)
    while view:
        view = view[os.write(fd, view) :]
