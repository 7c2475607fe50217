"""A proxy that breaks things: it answers 503, or resets the connection before or in the middle of an answer, at a given rate."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

KINDS = ("503", "reset before", "reset within")
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nRetry-After: 0\r\nConnection: close\r\n\r\nbusy"


@dataclass
class FaultProxy:
    """Forwards HTTP to `upstream`; a share `rate` of the requests meets a fault, in a sequence that the seed decides."""

    upstream: tuple[str, int]
    rate: float = 0.15
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    port: int = 0
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = Random(self.seed)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_connection(*self.upstream)
        cut = asyncio.Event()
        answers = asyncio.create_task(self._answers(above, writer, cut))
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                fault = self._random.choice(self.kinds) if self._random.random() < self.rate else ""
                self.faults[fault] += bool(fault)
                if fault == "503":
                    writer.write(BUSY)
                    await writer.drain()
                    return
                if fault == "reset before":
                    _abort(writer)
                    return
                if fault == "reset within":
                    cut.set()
                below.write(head)
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                left = int(length[1]) if length else 0
                while left and (piece := await reader.read(min(left, 1 << 16))):
                    below.write(piece)
                    left -= len(piece)
                await below.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away, which it may
        finally:
            answers.cancel()
            below.close()
            writer.close()

    async def _answers(self, above: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while piece := await above.read(1 << 16):
            if cut.is_set():
                writer.write(piece[: len(piece) // 2])
                _abort(writer)
                return
            writer.write(piece)
            await writer.drain()
        writer.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Closes with a TCP reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def faulty(upstream: tuple[str, int], **settings: object) -> Iterator[FaultProxy]:
    """A running proxy in a thread of its own."""
    proxy = FaultProxy(upstream, **settings)  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(proxy._serve, "127.0.0.1", 0), loop).result(10)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        async def ended() -> None:
            server.close()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(ended(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
