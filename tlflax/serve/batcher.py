"""Image files wait in a queue of bounded length, and are computed in batches in one thread."""

import asyncio
import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from absl import logging

from tlflax.serve.classifier import Answer, Classifier, Kind
from tlflax.serve.metrics import Metrics
from tlflax.serve.refusal import Refusal, busy

_FAILED = 'The classifier failed; the log of the server says why.'


@dataclasses.dataclass(eq=False)
class _Job:
    """One image file that waits.

    Attributes:
        kind: What is asked.
        file: The image file.
        answer: Where the answer comes; it is canceled where nobody waits for it any more.
    """

    kind: Kind
    file: bytes = dataclasses.field(repr=False)
    answer: 'asyncio.Future[Answer]'


class Batcher:
    """Answers image files in batches; used in one event loop.

    Args:
        classifier: What answers.
        capacity: How many may wait, apart from the batch that is computed.
        metrics: Where batches are counted.
    """

    def __init__(self, classifier: Classifier, capacity: int, metrics: Metrics) -> None:
        self._classifier, self._capacity, self._metrics = classifier, capacity, metrics
        self._waiting: collections.deque[_Job] = collections.deque()
        self._some = asyncio.Event()
        self.ready = False
        self.stopping = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def check(self) -> None:
        """Checks that a new request may come.

        Raises:
            Refusal: The service is not ready, stops, or too many images wait.
        """
        if self.stopping:
            raise busy('The server is stopping.', 5)
        if not self.ready:
            raise busy('The classifier is still being compiled.', 5)
        self._check_room()

    def _check_room(self) -> None:
        if len(self._waiting) >= self._capacity:
            raise busy('Too many images are waiting.', self._seconds())

    async def answer(self, kind: Kind, file: bytes) -> Answer:
        """Returns the answer for an image file; if this is canceled, its place is free at once.

        Raises:
            Refusal: Too many wait; or the classifier failed.
        """
        self._check_room()
        job = _Job(kind, file, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._some.set()
        try:
            return await job.answer
        finally:
            with contextlib.suppress(ValueError):  # it is part of a batch already
                self._waiting.remove(job)

    async def run(self) -> None:
        """Compiles the programs, and then computes what waits until it is canceled."""
        with _thread() as thread:
            await self._warm_up(thread)
            self.ready = True
            while True:
                self._some.clear()
                if batch := self._take():
                    await self._compute(batch, thread)
                else:
                    await self._some.wait()

    async def _warm_up(self, thread: ThreadPoolExecutor) -> None:
        loop, steps, end = asyncio.get_running_loop(), self._classifier.warm_up(), object()
        while await loop.run_in_executor(thread, next, steps, end) is not end:
            await asyncio.sleep(0)  # a service that stops does not compile the rest

    def _take(self) -> list[_Job]:
        """Removes a batch from the queue: the first that waits, and others of its kind."""
        if not self._waiting:
            return []
        kind = self._waiting[0].kind
        size = self._classifier.batch_sizes[kind]
        batch = [job for job in self._waiting if job.kind == kind][:size]
        taken = set(map(id, batch))
        self._waiting = collections.deque(job for job in self._waiting if id(job) not in taken)
        return batch

    async def _compute(self, batch: list[_Job], thread: ThreadPoolExecutor) -> None:
        files, began = [job.file for job in batch], time.monotonic()
        work = asyncio.get_running_loop().run_in_executor(
            thread, self._classifier.answers, batch[0].kind, files
        )
        try:
            answers = await work
        except Exception:  # the log says what happened, and the service goes on
            logging.exception('error: a batch of %d images failed', len(batch))
            for job in batch:
                if not job.answer.done():
                    job.answer.set_exception(Refusal(500, _FAILED))
            return
        self._metrics.batches.add(len(batch))
        self._metrics.batch_seconds.add(time.monotonic() - began)
        for job, answer in zip(batch, answers, strict=True):
            if not job.answer.done():
                job.answer.set_result(answer)

    def _seconds(self) -> int:
        """Returns after how many seconds the queue will be about empty."""
        done = self._metrics.batches.sum
        each = self._metrics.batch_seconds.sum / done if done else 0.1
        return min(60, math.ceil(1 + each * len(self._waiting)))


@contextlib.contextmanager
def _thread() -> Iterator[ThreadPoolExecutor]:
    """Yields one thread, and does not wait for what it computes in the end."""
    thread = ThreadPoolExecutor(1, thread_name_prefix='classifier')
    try:
        yield thread
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
