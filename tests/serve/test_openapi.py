"""The service is asked everything that its OpenAPI document allows, and much that it does not."""

import os
import re
import subprocess
import sys

import httpx
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st

# What schemathesis sends where the document asks for an image.
HOOKS = """
import os
from pathlib import Path

import schemathesis
from hypothesis import strategies as st

FILES = [path.read_bytes() for path in sorted(Path(os.environ['IMAGES']).iterdir())]
for kind in ('image/*', 'application/octet-stream'):
    schemathesis.openapi.media_type(kind, st.sampled_from(FILES))
"""


@pytest.fixture(scope='module')
def service(start):
    return start()


@pytest.fixture(scope='module')
def api(service):
    return schemathesis.openapi.from_url(f'{service.url}/openapi.json')


def test_answers_are_as_described(service, images, tmp_path):
    """All checks: statuses, types, schemas, headers, methods; what is good is taken."""
    (tmp_path / 'images').mkdir()
    for name, data in images.items():
        (tmp_path / 'images' / name).write_bytes(data)
    (tmp_path / 'own_hooks.py').write_text(HOOKS)
    done = subprocess.run(
        [
            sys.executable, '-m', 'schemathesis.cli', 'run', f'{service.url}/openapi.json',
            '--checks=all', '--max-examples=60', '--max-time=60', '--no-color', '--seed=1',
        ],
        capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path,
        env={
            **os.environ,
            'SCHEMATHESIS_HOOKS': 'own_hooks',
            'PYTHONPATH': str(tmp_path),
            'IMAGES': str(tmp_path / 'images'),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Tested: 6' in done.stdout
    generated, passed = re.search(r'(\d+) generated, (\d+) passed', done.stdout).groups()
    assert int(generated) == int(passed) > 150
    assert 'Traceback' not in service.said


def test_all_endpoints_are_described(api):
    found = {(one.ok().path, one.ok().method.upper()) for one in api.get_all_operations()}
    assert found == {
        ('/', 'GET'), ('/model', 'GET'), ('/health', 'GET'), ('/metrics', 'GET'),
        ('/predict', 'POST'), ('/heat_map', 'POST'),
    }  # fmt: skip


def damaged(images):
    """Bytes of all kinds, and images in which some are replaced, or which break off."""

    def change(drawn):
        file, place, other, end = drawn
        return (file[:place] + other + file[place + len(other) :])[: len(file) - end]

    some = st.sampled_from(sorted(images.values()))
    spots = st.tuples(some, st.integers(0, 1000), st.binary(max_size=20), st.integers(0, 200))
    return st.one_of(st.binary(), spots.map(change))


@pytest.mark.parametrize('path', ['/predict', '/heat_map'])
def test_damaged_images_are_answered_as_described(service, api, images, path):
    seen = set()

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(data=damaged(images))
    def send(data):
        reply = httpx.post(f'{service.url}{path}', content=data, timeout=60)
        api[path]['POST'].validate_response(reply)
        assert reply.status_code in (200, 415, 422), reply.text
        seen.add(reply.status_code)

    send()
    assert seen == {200, 415, 422}
    assert 'Traceback' not in service.said
