"""What a service answers: the classes that `predict` prints, heat maps, errors as sentences."""

import io
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers import make_folders, run_module, toy_config
from PIL import Image

import tlflax
from tlflax.serve.metrics import Histogram
from tlflax.train import train_and_evaluate


@pytest.fixture(scope='module')
def service(start):
    return start('--max_bytes=100000', '--timeout=1')


def test_answers_equal_predict(service, workdir, images, tmp_path):
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    done = run_module('predict', f'--workdir={workdir}', '--format=json', str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(images)
    for line in lines:
        name = line['path'].rpartition('/')[2]
        reply = service.post('/predict', images[name], headers={'content-type': 'text/html'})
        assert reply.status_code == 200
        found = reply.json()
        assert found['label'] == line['class']
        assert found['probability'] == pytest.approx(line['probability'], abs=1e-5)
        assert list(found['probabilities']) == list(line['probabilities'])
        for label, p in line['probabilities'].items():
            assert found['probabilities'][label] == pytest.approx(p, abs=1e-5)
        assert found['step'] == tlflax.load(workdir).step
    turned = [service.post('/predict', images[n]).json() for n in ('plain.jpg', 'turned.jpg')]
    assert turned[0]['probability'] != pytest.approx(turned[1]['probability'], abs=1e-5)


def test_top_k(service, images):
    whole = service.post('/predict', images['plain.jpg']).json()['probabilities']
    for k in (1, 2, 9):
        found = service.post(f'/predict?top_k={k}', images['plain.jpg']).json()
        assert 'probabilities' not in found
        best = sorted(whole.items(), key=lambda item: -item[1])[:k]
        assert [(one['class'], one['probability']) for one in found['top']] == best
    for value in ('0', '-1', 'x', '', '1.5', '1e3'):
        reply = service.post('/predict', images['plain.jpg'], params={'top_k': value})
        assert reply.status_code == 422
        assert reply.json()['detail'].startswith('top_k: ')


def test_calibrated(start, workdir):
    calibrated, trained = start('--calibrated'), tlflax.load(workdir)
    assert httpx.get(f'{calibrated.url}/model').json()['calibrated'] is True
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    plain, expected = (trained.predict(pixels, calibrated=each) for each in (False, True))
    changes = []
    for one, before, after in zip(pixels, plain, expected, strict=True):
        stream = io.BytesIO()
        Image.fromarray(one).save(stream, 'PNG')
        found = calibrated.post('/predict', stream.getvalue()).json()['probabilities']
        assert found == pytest.approx(after.probabilities, abs=1e-5)
        changes.append(abs(before.probability - after.probability))
    assert max(changes) > 1e-3


@pytest.mark.parametrize('name', ['plain.jpg', 'turned.jpg', 'gray.png'])
def test_heat_maps(service, images, name):
    reply = service.post('/heat_map', images[name])
    assert (reply.status_code, reply.headers['content-type']) == (200, 'image/png')
    shown = Image.open(io.BytesIO(reply.content))
    assert shown.size == ((183, 256) if name == 'turned.jpg' else (256, 183))
    assert np.asarray(shown).std() > 1
    assert service.post('/heat_map', b'x' * 20).status_code == 415


def test_heat_maps_are_those_of_the_report(workdir, images):
    from tlflax.inference import embeddings, heat_maps

    trained = tlflax.load(workdir)
    table = trained.val_table()
    files = [Path(table.root, path).read_bytes() for path in table.paths]
    expected = heat_maps.of_table(trained, table).maps
    found = list(heat_maps.of_images(trained, [*files, b'nothing']))
    np.testing.assert_allclose([one for _, one in found[:-1]], expected, atol=1e-5)
    assert 'not an image' in str(found[-1])
    assert embeddings.of_table(trained, table).shape[0] == len(files)


def test_a_head_without_heat_maps_says_so(start, tmp_path, images):
    make_folders(tmp_path / 'Train', 3)
    make_folders(tmp_path / 'Test', 2)
    layers = ('block1:mean', 'block2:mean')
    config = toy_config(tmp_path, features__layers=layers, train__report=False)
    train_and_evaluate(config, tmp_path / 'w')
    service = start(workdir=tmp_path / 'w')
    reply = service.post('/heat_map', images['plain.jpg'])
    assert reply.status_code == 404
    assert reply.json()['detail'].startswith('There are no heat maps, as block1:mean')
    assert httpx.get(f'{service.url}/model').json()['heat_maps'] is False
    assert service.post('/predict', images['plain.jpg']).status_code == 200


def test_model_names_no_path_and_no_version(service, workdir):
    found = httpx.get(f'{service.url}/model').json()
    assert found['classes'] == ['green', 'red', 'yellow']
    assert (found['backbone'], found['head'], found['image_size']) == ('toy', 'conv', [32, 32])
    assert found['max_bytes'] == 100_000
    for path in ('/model', '/openapi.json', '/metrics', '/', '/nothing', '/health'):
        reply = httpx.get(f'{service.url}{path}')
        assert str(workdir.parent) not in reply.text
        assert '.py' not in reply.text
        assert 'server' not in reply.headers
        assert reply.headers['x-content-type-options'] == 'nosniff'
        assert "default-src 'none'" in reply.headers['content-security-policy']
    for path in ('/docs', '/redoc'):
        assert httpx.get(f'{service.url}{path}').status_code == 404


@pytest.mark.parametrize(
    ('name', 'status', 'detail'),
    [
        ('text', 415, 'The body is text, not an image.'),
        ('page', 415, 'The body is an HTML page, not an image.'),
        ('bytes', 415, 'The body is not an image in a known format.'),
        ('empty', 422, 'The body is empty; send the bytes of an image file.'),
        ('cut', 422, 'The image is a truncated JPEG.'),
        ('damaged', 422, 'The image is a PNG that cannot be decoded'),
        ('bomb', 422, 'The image has 20000x20000 pixels, more than the limit of 178,956,970.'),
        ('large', 413, 'The body has more than 100,000 bytes.'),
    ],
)
def test_what_is_refused(service, images, name, status, detail):
    png = images['gray.png']
    files = {
        'text': b'hello',
        'page': b'<!doctype html><p>',
        'bytes': b'\x01\x02\x03\xff\xfe',
        'empty': b'',
        'cut': images['plain.jpg'][:1500],
        'damaged': png[:60] + bytes(20) + png[80:],
        'bomb': png[:16] + 2 * (20000).to_bytes(4, 'big') + png[24:],
        'large': bytes(100_001),
    }
    if name == 'bomb':
        import zlib

        head = files['bomb']
        files['bomb'] = head[:29] + zlib.crc32(head[12:29]).to_bytes(4, 'big') + head[33:]
    for path in ('/predict', '/heat_map'):
        reply = service.post(path, files[name])
        assert reply.status_code == status, reply.text
        assert reply.json()['detail'].startswith(detail)
        assert list(reply.json()) == ['detail']


def chunks(total, size=10_000):
    """Yields zeros; as httpx does not know how many, it sends chunks without a length."""
    for _ in range(total // size):
        yield bytes(size)


def test_bytes_are_counted_whatever_the_header_says(service):
    assert service.post('/predict', chunks(110_000)).status_code == 413
    with service.connect() as link:
        link.sendall(b'POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n')
        assert link.recv(100).startswith(b'HTTP/1.1 413 ')


def test_a_refused_client_that_goes_on_sending_can_read_why(service):
    with service.connect() as link:
        link.sendall(b'POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n')
        for _ in range(30):
            link.sendall(bytes(100_000))
        assert link.recv(100).startswith(b'HTTP/1.1 413 ')


def test_unknown_addresses_and_methods(service):
    assert 'nothing at this address' in httpx.get(f'{service.url}/x').json()['detail']
    reply = httpx.get(f'{service.url}/predict')
    assert (reply.status_code, reply.headers['allow']) == (405, 'POST')
    assert 'does not take that method' in reply.json()['detail']


def test_what_is_not_http(service):
    with service.connect() as link:
        link.sendall(b'hello\r\n\r\n')
        head, _, body = link.makefile('rb').read().partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 400 ')
    assert json.loads(body) == {'detail': 'The request is not HTTP.'}


def test_the_service_goes_on_after_a_body_that_breaks_off(service, images):
    with service.connect() as link:
        link.sendall(
            b'POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n'
        )
        link.makefile('rb').read()
    assert service.post('/predict', images['plain.jpg']).status_code == 200
    assert 'Traceback' not in service.said


def test_metrics(service, images):
    def value(text, name):
        return float(re.search(rf'^{re.escape(name)} (.*)$', text, re.MULTILINE)[1])

    url, name = f'{service.url}/metrics', 'tlflax_requests_total{path="/predict",status="200"}'
    service.post('/predict', images['plain.jpg'])
    before = httpx.get(url)
    assert before.headers['content-type'].startswith('text/plain; version=0.0.4')
    for _ in range(3):
        service.post('/predict', images['plain.jpg'])
    after = httpx.get(url).text
    assert value(after, name) - value(before.text, name) == 3
    assert value(after, 'tlflax_ready') == 1
    assert value(after, 'tlflax_queue_images') == 0
    assert value(after, 'tlflax_body_bytes') == 0
    assert value(after, 'tlflax_request_seconds_count{path="/predict"}') >= 4
    assert value(after, 'tlflax_batch_images_count') >= 4
    for line in after.splitlines():  # the grammar of the format
        sample = r'[a-z_]+(\{[a-z_]+="[^"\\]*"(,[a-z_]+="[^"\\]*")*\})? [0-9.e+-]+'
        assert re.fullmatch(rf'# (HELP|TYPE) [a-z_]+ .+|{sample}', line), line


def test_a_histogram_counts_up_to_each_bound():
    histogram = Histogram((1, 2))
    for number in (0.5, 1, 1.5, 7):
        histogram.add(number)
    assert histogram.lines('x', 'a="b"') == [
        'x_bucket{a="b",le="1"} 2',
        'x_bucket{a="b",le="2"} 3',
        'x_bucket{a="b",le="+Inf"} 4',
        'x_sum{a="b"} 10.000000',
        'x_count{a="b"} 4',
    ]


def test_no_answer_names_an_address(service, images):
    for path in ('/predict/', '/health/', '//predict'):
        headers = {'host': 'evil.example'}
        reply = service.post(path, images['plain.jpg'], headers=headers)
        assert reply.status_code == 404
        assert 'location' not in reply.headers
