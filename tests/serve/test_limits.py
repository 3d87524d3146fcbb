"""Limits and ends: full queues, slow clients, those that hang up, signals, and wrong addresses."""

import contextlib
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers import run_module

from tlflax.serve.http import listen
from tlflax.utils.errors import UserError

POST = b'POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n'


def status(link):
    """Returns the status of the next answer on a connection, and whether it says when to retry."""
    head = b''
    while b'\r\n\r\n' not in head:
        data = link.recv(4096)
        if not data:
            break
        head += data
    head, _, body = head.partition(b'\r\n\r\n')
    left = sum(int(line[16:]) for line in head.splitlines() if line.startswith(b'content-length: '))
    left -= len(body)  # the rest must not be taken for the next answer
    while left > 0 and (data := link.recv(left)):
        left -= len(data)
    return head[9:12], b'\r\nretry-after: ' in head


@pytest.fixture(scope='module')
def service(start):
    return start('--timeout=0.5')


def test_a_full_queue_answers_503(start, images):
    service, file = start('--queue=1'), images['plain.jpg']
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(service.connect()) for _ in range(60)]
        for link in links:
            link.sendall(POST % len(file) + file[:-1])
        for link in links:
            link.sendall(file[-1:])
        found = [status(link) for link in links]
    assert set(found) == {(b'200', False), (b'503', True)}
    assert service.post('/predict', file).status_code == 200


def test_a_body_that_trickles_is_cut_off(service, images):
    file = images['plain.jpg']
    with service.connect() as link:
        began = time.monotonic()
        link.sendall(POST % len(file))
        done = threading.Event()

        def trickle():
            with contextlib.suppress(OSError):
                while not done.wait(0.02):
                    link.sendall(b'\xff')

        with ThreadPoolExecutor(1) as pool:
            pool.submit(trickle)
            assert service.post('/predict', file).status_code == 200  # meanwhile
            assert status(link)[0] == b'408'
            assert 0.4 < time.monotonic() - began < 5
            while link.recv(4096):  # it is closed, though the client goes on
                pass
            done.set()
    assert time.monotonic() - began < 15


def test_those_that_hang_up_leave_nothing_behind(service, images):
    file = images['plain.jpg']
    for _ in range(20):
        with service.connect() as link:
            link.sendall(POST % 100_000 + bytes(50_000))
        with service.connect() as link:
            link.sendall(POST % len(file) + file)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = httpx.get(f'{service.url}/metrics').text
        if 'tlflax_body_bytes 0' in text and 'tlflax_queue_images 0' in text:
            break
    assert 'tlflax_body_bytes 0' in text
    assert 'path="/predict",status="disconnected"' in text
    assert service.post('/predict', file).status_code == 200
    assert service.said == '' or 'Traceback' not in service.said


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_a_signal_lets_what_is_in_flight_be_answered(start, images, name):
    service, file = start(), images['plain.jpg']
    with service.connect() as idle, service.connect() as link:
        link.sendall(POST % len(file) + file[:100])
        time.sleep(0.1)
        service.process.send_signal(getattr(signal, name))
        assert idle.recv(1) == b''
        with pytest.raises(ConnectionRefusedError):
            service.connect()
        link.sendall(file[100:])
        assert status(link)[0] == b'200'
        assert service.process.wait(30) == 0
    assert service.said == f'{name}: stopping; what is in flight is answered\n'


def test_a_new_request_during_a_stop_is_refused(start, images):
    service, file = start(), images['plain.jpg']
    with service.connect() as link:
        link.sendall(POST % len(file) + file[:100])
        time.sleep(0.1)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        link.sendall(file[100:] + POST % len(file) + file)
        assert status(link)[0] == b'200'
        with contextlib.suppress(ConnectionResetError):
            assert status(link)[0] in (b'', b'503')
    assert service.process.wait(30) == 0


def test_a_second_signal_ends_at_once(start, images):
    service = start()
    with service.connect() as link:
        link.sendall(POST % 1000)
        time.sleep(0.1)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 130
    assert 'Traceback' not in service.said


def test_a_port_in_use(service, workdir):
    done = run_module('serve', f'--workdir={workdir}', f'--port={service.port}')
    assert done.returncode == 2
    assert done.stderr == (
        f'error: --host=127.0.0.1 --port={service.port}: cannot listen there: Address already in '
        'use; stop what listens there, or give another port (--port=0: one that is free)\n'
    )
    assert service.process.poll() is None


@pytest.mark.parametrize(
    ('flag', 'said'),
    [
        ('--host=192.0.2.1', 'cannot listen there: Cannot assign requested address; give an addr'),
        ('--host=nowhere.invalid', 'there is no such host; give an address of this machine'),
        ('--host=', 'there is no such host; give an address of this machine'),
        ('--port=x', "--port: 'x' is not a whole number in 0..65535; give another"),
        ('--port=65536', "--port: '65536' is not a whole number in 0..65535; give another"),
        ('--queue=0', "--queue: '0' is not a whole number in 1..100000; give another"),
        ('--max_bytes=1e6', "--max_bytes: '1e6' is not a whole number in 1..1000000000"),
        ('--timeout=nan', "--timeout: 'nan' is not a number of seconds up to 3600; give 30"),
        ('--step=7000', "no checkpoint of step '7000'"),
    ],
)
def test_mistakes_on_the_command_line(workdir, flag, said):
    done = run_module('serve', f'--workdir={workdir}', '--port=0', flag)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.count('\n') == 1
    assert said in done.stderr, done.stderr


def test_an_address_of_ipv6_is_written_in_brackets():
    try:
        with listen.bound('::1', 0) as opened:
            port = opened.getsockname()[1]
            assert listen.address(opened) == f'http://[::1]:{port}/'
    except UserError:
        assert not socket.has_ipv6 or not _has_loopback_of_ipv6()


def _has_loopback_of_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as link:
        link.bind(('::1', 0))
        return True
    return False


def test_without_the_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    with pytest.raises(UserError, match=r"needs uvicorn.*pip install 'tlflax\[serve\]'"):
        listen.require()
