"""Two processes with caches of their own, their workdir and their features in a stand-in for S3."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from helpers import free_port, make_folders, run_module, toy_config

URL = 's3://photos/runs/one'
MIRROR = 's3://photos/features'


def test_processes_share_a_workdir_and_features_in_a_bucket(bucket, tmp_path):
    make_folders(tmp_path / 'Train', 8, seed=1)
    make_folders(tmp_path / 'Test', 4, seed=2)
    path = tmp_path / 'config.json'
    config = toy_config(tmp_path, train__report=False, train__epochs=2)
    path.write_text(json.dumps(config.to_dict()))
    port = free_port()

    def train(number, *flags, workdir=URL):
        cache = tmp_path / f'cache{number}'
        return run_module(
            'train', f'--config={path}', f'--workdir={workdir}', *flags,
            TLFLAX_CACHE=str(cache), TLFLAX_CACHE_MIRROR=MIRROR,
        )  # fmt: skip

    def one_of_two(number):
        group = (f'--coordinator=127.0.0.1:{port}', '--num_processes=2')
        return train(number, *group, f'--process_id={number}')

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(one_of_two, range(2)))
    for run in runs:
        assert run.returncode == 0, run.stderr[-3000:]
    objects = {item.key: item.get()['Body'].read() for item in bucket.objects.all()}
    assert json.loads(objects['runs/one/.lease.json'])['released']
    assert not (tmp_path / 'cache1/workdirs').exists(), 'the primary process alone writes'
    keys = [content for key, content in objects.items() if key.endswith('.keys')]
    rows = np.frombuffer(b''.join(keys), '<u8').reshape(-1, 3)
    assert len(np.unique(rows[:, :2], axis=0)) == len(rows) >= 36, 'each is sent once'
    alone = train(2, workdir=tmp_path / 'alone')
    assert alone.returncode == 0, alone.stderr
    assert not re.search(r'computing features of', alone.stderr)
    assert re.search(rf'fetching {len(rows) - 12} of {len(rows) - 12} features', alone.stderr)
    ours = json.loads((tmp_path / 'alone/result.json').read_text())['val']['loss']
    theirs = json.loads(objects['runs/one/result.json'])['val']['loss']
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
