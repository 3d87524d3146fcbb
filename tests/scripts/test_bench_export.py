"""scripts/bench_export.py on a small run."""

import json

from helpers import ROOT, make_folders, run_script, toy_config

from tlflax.train import train_and_evaluate


def test_every_precision_is_measured(tmp_path):
    make_folders(tmp_path / 'Train', 8, seed=1)
    make_folders(tmp_path / 'Test', 4, seed=2)
    config = toy_config(tmp_path, train__report=False, train__epochs=20, optim__learning_rate=0.01)
    train_and_evaluate(config, tmp_path / 'w')
    arguments = [f'--output={tmp_path}', f'--table={tmp_path / "exports.json"}', '--repeats=2']
    done = run_script(
        ROOT / 'scripts/bench_export.py', tmp_path / 'w', '--formats=stablehlo,tflite', *arguments
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    found = json.loads(last)
    rows = json.loads((tmp_path / 'exports.json').read_text())
    assert found == {'images': 12, 'rows': rows}
    kinds = [(row['format'], row['precision']) for row in rows]
    assert kinds == [
        ('stablehlo', 'float32'),
        ('stablehlo', 'float16'),
        ('tflite', 'float32'),
        ('tflite', 'float16'),
        ('tflite', 'int8'),
    ]
    for row in rows:
        assert row['bytes'] > 1000
        assert min(row['latency_ms_1'], row['latency_ms_32']) > 0
        assert 0 <= row['max_difference'] < (1e-5 if row['precision'] == 'float32' else 0.5)
    assert (tmp_path / 'classifier-int8.tflite').stat().st_size == rows[-1]['bytes']
    assert done.stdout.count('| tflite |') == 3
