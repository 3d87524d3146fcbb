"""The queue and the connections, in this process."""

import asyncio
import socket
import threading
import time

import pytest

import tlflax
from tlflax.features import programs
from tlflax.serve import bodies
from tlflax.serve.app import Service
from tlflax.serve.batcher import Batcher
from tlflax.serve.classifier import Classifier
from tlflax.serve.http.server import Server
from tlflax.serve.metrics import Metrics
from tlflax.serve.refusal import Refusal
from tlflax.serve.settings import Settings
from tlflax.utils import cpu


class Gated(Classifier):
    """A classifier that waits before each batch, and notes their sizes."""

    def __init__(self, trained):
        super().__init__(trained, calibrated=False)
        self.gate, self.sizes = threading.Event(), []

    def warm_up(self):
        return iter(())

    def answers(self, kind, files):
        self.sizes.append((kind, len(files)))
        assert self.gate.wait(60)
        if b'bug' in files:
            raise RuntimeError('a bug')
        return super().answers(kind, files)


@pytest.fixture
def gated(workdir):
    return Gated(tlflax.load(workdir))


def in_a_loop(gated, capacity, scenario):
    """Runs a scenario with a batcher that is ready."""

    async def run():
        batcher = Batcher(gated, capacity, Metrics())
        task = asyncio.create_task(batcher.run())
        while not batcher.ready:
            await asyncio.sleep(0.01)
        try:
            await asyncio.wait_for(scenario(batcher), 60)
        finally:
            gated.gate.set()
            task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(('cores', 'predicted'), [(2, [1, 8]), (16, [1, 8, 32])])
def test_what_is_compiled_serves_all_batches(cores, predicted, workdir, monkeypatch):
    monkeypatch.setattr(cpu, 'cores', lambda: cores)
    classifier, sizes = Classifier(tlflax.load(workdir), calibrated=False), []

    def answers(kind, files):
        sizes.append((kind, len(files)))
        return []

    monkeypatch.setattr(classifier, 'answers', answers)
    assert [*classifier.warm_up()] == [None] * (len(predicted) + 2)
    assert sizes == [*(('predict', n) for n in predicted), ('heat_map', 1), ('heat_map', 8)]
    full = programs.batch_size()
    for kind, most in classifier.batch_sizes.items():
        for n in range(1, most + 1):
            assert {(kind, size) for size in programs.batch_sizes(n, full)} <= {*sizes}


def test_what_waits_is_computed_together(gated, images):
    file = images['plain.jpg']

    async def scenario(batcher):
        kinds = ['predict', 'predict', 'heat_map', 'predict', 'heat_map']
        first = asyncio.create_task(batcher.answer('predict', file))
        while not gated.sizes:
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.answer(kind, file)) for kind in kinds]
        bad = asyncio.create_task(batcher.answer('predict', b'nothing'))
        await asyncio.sleep(0.05)
        gated.gate.set()
        answers = await asyncio.gather(first, *rest)
        assert 'not an image' in str(await bad)
        assert gated.sizes == [('predict', 1), ('predict', 4), ('heat_map', 2)]
        assert answers[1].probabilities == pytest.approx(answers[0].probabilities, abs=1e-5)
        assert answers[3].shape == (8, 8)

    in_a_loop(gated, 10, scenario)


def test_a_place_is_free_as_soon_as_nobody_waits_for_it(gated, images):
    file = images['plain.jpg']

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher.answer('predict', file))]
        while not gated.sizes:
            await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(batcher.answer('predict', file)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal, match='Too many images are waiting') as caught:
            await batcher.answer('predict', file)
        assert int(caught.value.headers['Retry-After']) >= 1
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(batcher.answer('predict', file)))
        await asyncio.sleep(0.01)
        assert len(batcher) == 2
        gated.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[1], asyncio.CancelledError)
        assert {one.label for one in (found[0], *found[2:])} <= {'green', 'red', 'yellow'}
        assert gated.sizes == [('predict', 1), ('predict', 2)]

    in_a_loop(gated, 2, scenario)


def test_a_batch_that_fails_leaves_the_service_running(gated, images):
    async def scenario(batcher):
        gated.gate.set()
        with pytest.raises(Refusal, match='the log of the server says why') as caught:
            await batcher.answer('predict', b'bug')
        assert caught.value.status == 500
        assert (await batcher.answer('predict', images['plain.jpg'])).label

    in_a_loop(gated, 2, scenario)


def test_all_bodies_together_have_a_limit():
    memory = bodies.Memory(10)
    with memory.lease() as one, memory.lease() as other:
        one.take(6)
        with pytest.raises(Refusal, match='arriving at once'):
            other.take(5)
        other.take(4)
        assert memory.held == 10
    assert memory.held == 0


@pytest.fixture
def port(workdir):
    """Of a service in this process that has little patience and few connections."""
    classifier = Gated(tlflax.load(workdir))
    service = Service(classifier, Settings(head_timeout=0.3, connections=3))
    with socket.create_server(('127.0.0.1', 0)) as opened:
        server = Server(service, opened)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([opened])))
        thread.start()
        yield opened.getsockname()[1]
        server.should_exit = True
        classifier.gate.set()
        thread.join(60)
    assert service.failure is None


def test_the_first_lines_must_come_in_time(port):
    with socket.create_connection(('127.0.0.1', port), timeout=30) as link:
        began = time.monotonic()
        link.sendall(b'POST /predict HTTP/1.1\r\nhost: x\r\n')
        while link.recv(1000):
            pass
        assert 0.2 < time.monotonic() - began < 10


def test_connections_have_a_limit(port):
    links = [socket.create_connection(('127.0.0.1', port), timeout=30) for _ in range(4)]
    answers = []
    for link in links:
        answers.append(link.makefile('rb').read())  # to the end: the others send nothing in time
        link.close()
    refused = [one for one in answers if one]
    assert len(refused) == 1
    assert refused[0].startswith(b'HTTP/1.1 503 ')
    assert b'retry-after: 5\r\n' in refused[0]
    with socket.create_connection(('127.0.0.1', port), timeout=30) as link:
        link.sendall(b'GET /health HTTP/1.1\r\nhost: x\r\n\r\n')
        assert link.recv(100).startswith((b'HTTP/1.1 200', b'HTTP/1.1 503'))
