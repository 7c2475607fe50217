"""The driver's window of tasks in flight, over whatever a run has to do (`fusion.service.weave.Work`).

Only the tiles in flight are known to the scheduler, so its memory and the driver's do not grow with the area. A task that fails
is tried again up to a cap and then given up; a tile that kills its workers is given up alone; a task that hangs behind all
others is started a second time elsewhere, which is safe because writing a tile is idempotent.
"""

from __future__ import annotations

import logging
import signal
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from fusion.errors import FusionError, JobError, StoreError
from fusion.service.job import Job
from fusion.service.plan import IN_FLIGHT
from fusion.service.progress import Show, Summary
from fusion.service.store import CubeStore
from fusion.service.weave import Index, Step, Work

log = logging.getLogger("fusion")

STORE_FAILURES = 3
"""tiles in a row that cannot be written before the run stops: the disk is full or the bucket is gone"""
POLL = 0.02
"""seconds between looks at the tasks in flight"""
STRAGGLER = 4.0
"""times the median of its kind after which a task is started a second time"""
LEAST_WAIT = 60.0
"""seconds that any task may take before it is a straggler"""


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """A list that grows with every Ctrl-C, beside what the signal does already.

    An exception is lost that is raised while Python is inside a weak reference's callback or a finaliser, and a driver of
    many futures often is: whoever works for long looks here too.
    """
    asked: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    if not callable(usual) or threading.current_thread() is not threading.main_thread():
        yield asked  # ignored by who started us, or heard by another thread
        return

    def heard(number: int, frame: Any) -> None:
        asked.append(number)
        usual(number, frame)

    signal.signal(signal.SIGINT, heard)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, usual)


@dataclass
class Drive:
    """The window of tasks in flight."""

    client: Client
    store: CubeStore
    job: Job
    summary: Summary
    show: Show
    options: dict[str, Any]
    work: Work
    flying: dict[Future, tuple[Step, float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """name of a task -> how long the last ones took"""
    unwritten: int = 0
    threads: int = -1
    """of all workers; -1 = not looked yet"""
    looked: float = -1e9
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def finish(self) -> None:
        """Until every tile is committed or given up; Ctrl-C ends it with a KeyboardInterrupt."""
        with interruptions() as asked:
            self._to_the_end(asked)

    def _to_the_end(self, asked: list[int]) -> None:
        try:
            while True:
                if asked:
                    raise KeyboardInterrupt
                while len(self.flying) < self._width() and (step := self.work.next()) is not None:
                    self._submit(step)
                if not self.flying:
                    return
                landed = self._landed()
                for future, result in landed:
                    self._take(future, result)
                if self._gone():
                    raise self._went_away()
                if not landed:
                    self._second_start()
                else:
                    self.show(self.summary)
        except (FusionError, KeyboardInterrupt):
            raise
        except Exception as error:  # a client whose scheduler died raises many kinds, from wherever it happens to be
            if self._gone():
                raise self._went_away() from error
            raise
        finally:
            if self.flying and self.client.status == "running":
                self.client.cancel(list(self.flying), force=True)

    def _width(self) -> int:
        """Tasks in flight: a few per thread that there is now (workers come and go); looked up every few seconds."""
        if time.monotonic() - self.looked > 5:
            self.looked = time.monotonic()
            before, self.threads = self.threads, sum(self.client.nthreads().values())
            if self.threads == 0 and before != 0:
                log.warning("the scheduler has no workers: waiting until some join")
        return max(4, IN_FLIGHT * self.threads)

    def _submit(self, step: Step, attempt: int = 0) -> None:
        index = step.index
        future = self.client.submit(
            step.task, self.store.url, self.store.about["fingerprint"], index, **self.options, **dict(step.given),
            key=f"{step.task.__name__}-{index[0]}.{index[1]}-{attempt}-{self.name}", pure=False, retries=self.job.cluster.retries,
            resources={"GPU": 1} if self.job.cluster.gpus else None,
        )
        self.flying[future] = step, time.monotonic()

    def _landed(self) -> list[tuple[Future, dict[str, Any] | None]]:
        """The tasks that ended, with their results fetched in one go; none if nothing ends within two seconds.

        A future's status is a local attribute, so looking at a few hundred of them costs less than waiting on them.
        """
        end = time.monotonic() + 2
        while time.monotonic() < end:
            done = [f for f in self.flying if f.status != "pending"]
            if done:
                finished = [f for f in done if f.status == "finished"]
                results = dict(zip(finished, self.client.gather(finished, errors="raise"), strict=True)) if finished else {}
                return [(f, results.get(f)) for f in done]
            time.sleep(POLL)
        return []

    def _gone(self) -> bool:
        """Whether the scheduler is there no more."""
        lost = any(f.status in ("cancelled", "lost") for f in self.flying)
        return lost or self.client.status not in ("running", "newly-created")

    def _went_away(self) -> JobError:
        return JobError(
            f"the Dask scheduler went away; {len(self.store.committed())} of {self.summary.total} tiles are committed, nothing "
            f"is lost: start it again, then `fusion resume {self.store.url}`"
        )

    def _take(self, future: Future, result: dict[str, Any] | None) -> None:
        if future not in self.flying:
            return  # the twin of one that landed a moment before
        step, started = self.flying.pop(future)
        twins = [f for f, (other, _) in self.flying.items() if other == step]
        if result is not None:
            for twin in twins:
                self.flying.pop(twin)
                twin.cancel(force=True)
            seconds = self.seconds.setdefault(step.task.__name__, [])
            seconds.append(time.monotonic() - started)
            del seconds[:-1000]
            if self.work.landed(step, result):
                self.summary.add(result)
            self.unwritten = 0
        elif future.status == "error" and not twins and self.work.lost(step):
            self._give_up(step.index, future)

    def _give_up(self, index: Index, future: Future) -> None:
        error: Any = future.exception()
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, KilledWorker):
            reason = "its workers died each time (out of memory, or a crash in a library): use smaller tiles or more memory"
        log.error("tile %s is given up: %s", index, reason)
        self.summary.failed[index] = reason
        if isinstance(error, StoreError):
            self.unwritten += 1
            if self.unwritten >= STORE_FAILURES:
                raise error
            return
        self.store.write_failure(index, reason)

    def _second_start(self) -> None:
        """Tasks that take far too long are started again, the oldest first, while fewer others than threads are under way.

        What hangs keeps its thread even when it is given up, and whatever the scheduler sends there next waits behind it.
        """
        now = time.monotonic()
        old = sorted((started, i, step) for i, (step, started) in enumerate(self.flying.values()) if now - started > self._limit(step))
        room = self.threads - (len(self.flying) - len(old))
        for started, _, step in old:
            twins = sum(1 for other, _ in self.flying.values() if other == step)
            if room > 0 and twins == 1:
                log.warning("tile %s takes more than %.0f s: started a second time", step.index, now - started)
                self.summary.repeated += 1
                self._submit(step, attempt=1)
                room -= 1

    def _limit(self, step: Step) -> float:
        """Seconds after which a task is a straggler: by others of its kind, or by all if there were few."""
        seconds = self.seconds.get(step.task.__name__, [])
        seconds = seconds if len(seconds) >= 4 else [s for kind in self.seconds.values() for s in kind]
        return max(LEAST_WAIT, STRAGGLER * statistics.median(seconds)) if len(seconds) >= 4 else float("inf")
