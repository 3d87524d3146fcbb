"""The benchmark scripts, as command lines in their smallest form, and the arithmetic in them."""

import csv
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, make_folders
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

from tlflax.utils import cpu

SCRIPTS = ROOT / 'scripts'


def load(name):
    """Imports a script."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(name, *arguments, timeout=120):
    """Runs a script as a user would."""
    command = [sys.executable, str(SCRIPTS / f'{name}.py'), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done


def figures(name, *arguments):
    """Runs a script and returns its last line."""
    return json.loads(run(name, *arguments).stdout.splitlines()[-1])


# bench_input


def test_bench_input_measures_every_side():
    found = figures(
        'bench_input', '--quick', '--data', 'photographs', '--photographs=40', '--repeats=2'
    )
    rates = found['images_per_second']['photographs']
    here = [peer for peer in ('keras', 'torch') if importlib.util.find_spec(peer)]
    for name in ('tlflax', 'tlflax_no_antialias', 'stage: resize', *here):
        assert len(rates[name]) == 2
        assert min(rates[name]) > 0
    for peer in ('keras', 'torch'):
        if peer in here:
            expected = sum(rates['tlflax']) / sum(rates[peer])  # the median of two is their mean
            assert found['ratio'][peer] == pytest.approx(expected)
        else:
            assert found['ratio'][peer] is None
    assert found['machine'] == cpu.described()
    assert list(found['by_cores']) == list(map(str, core_counts(cpu.cores())))
    for measured in found['by_cores'].values():
        assert set(measured) == {
            f'{name}{of}' for name in ('flips', 'full augmentation') for of in ('', ', CPU ms')
        }
        assert min(measured.values()) > 0
        assert measured['full augmentation, CPU ms'] > measured['flips, CPU ms'] > 0.5


def core_counts(cores):
    return load('bench_input').core_counts(cores)


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='cores cannot be withheld')
def test_cores_are_doubled_up_to_all():
    assert [core_counts(cores) for cores in (1, 2, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]


def test_cores_needed_follow_from_the_most_that_were_measured():
    one, four = {'flips': 400.0, 'flips, CPU ms': 2.5}, {'flips': 1200.0, 'flips, CPU ms': 3.3}
    needed = load('bench_input').cores_needed({1: one, 4: four})
    assert needed == {'flips': {1000: 4, 2000: 7, 5000: 17}}


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='cores cannot be withheld')
def test_a_worker_is_held_to_its_cores(tmp_path):
    make_folders(tmp_path, per_class=2)
    code = f"""if True:
        import io, os, sys
        import bench_input_worker as worker
        sys.stdin = io.StringIO({str(tmp_path)!r})
        worker.main('cores', '1')
        assert len(os.sched_getaffinity(0)) == 1
    """
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert set(json.loads(done.stdout)) >= {'flips', 'full augmentation, CPU ms'}, done.stderr


def test_input_ratio_is_that_of_the_worse_data():
    ratios = load('bench_input').ratios(
        {
            'small': {'tlflax': [100, 300, 200], 'keras': [100]},
            'large': {'tlflax': [30], 'keras': [60, 20, 50]},
        }
    )
    assert ratios['ratio'] == {'keras': 0.6, 'torch': None}
    assert ratios['ratio_by_data']['small'] == {'keras': 2.0, 'torch': None}


def test_generated_photographs_weigh_what_photographs_do(tmp_path):
    folder = load('bench_input').write_photographs(tmp_path, 4)
    files = sorted(folder.glob('*/*.jpg'))
    assert [file.parent.name for file in files] == ['a', 'a', 'b', 'b']
    for file in files:
        assert Image.open(file).size == (500, 375)
        assert 50_000 < file.stat().st_size < 200_000  # ImageNet's have 110 kB in the mean


@pytest.mark.parametrize('side', ['tlflax', 'keras', 'torch'])
def test_input_sides_go_through_all_images(side, tmp_path):
    if side != 'tlflax':
        pytest.importorskip(side)
    make_folders(tmp_path, per_class=13)
    # Alone, as PyTorch forks its workers, which must not happen beside TensorFlow's threads.
    code = f"""if True:
        from pathlib import Path
        from bench_input_worker import SIDES
        print(SIDES[{side!r}](Path({str(tmp_path)!r}))[{side!r}]())
    """
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert done.stdout == '39\n', done.stderr


def test_each_augmentation_has_its_rate(tmp_path):
    make_folders(tmp_path, per_class=2)
    code = f"""if True:
        from pathlib import Path
        from bench_input_worker import AUGMENTATIONS, SIDES
        epochs = SIDES['augmentations'](Path({str(tmp_path)!r}))
        assert set(AUGMENTATIONS) < set(epochs)
        print(epochs['cutmix'](), epochs['ten crops'](), epochs['stage: erasing']())
    """
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert done.stdout == '6 6 6\n', done.stderr


# bench_start


def test_bench_start_times_every_command():
    found = json.loads(run('bench_start', '--quick', timeout=400).stdout)
    names = 'libraries import help mistake train train_without_report predict serve sweep'
    names = names.split()
    assert [*found['seconds']] == [*found['cpu_seconds']] == [*found['range']] == names
    for name, (least, most) in found['range'].items():
        assert 0 < least == found['seconds'][name] == most  # of one round
    assert found['ratio'] == found['seconds']['import'] / found['seconds']['libraries']
    assert found['cpu_seconds']['help'] < 0.5  # it imports nothing
    assert found['cpu_seconds']['mistake'] < 0.9  # it imports no library


def test_bench_start_says_what_fails(tmp_path):
    with pytest.raises(SystemExit, match='failed: 3'):
        load('bench_start').run(['-c', 'raise SystemExit(3)'], {})


# bench_training


def test_extrapolation_leaves_the_first_epoch_aside():
    run = load('bench_training').Run(100.0, (50.0, 10.0, 14.0, 12.0), (0.5, 0.6, 0.7, 0.8))
    assert run.extrapolated(10) == 100 + 6 * 12
    assert run.extrapolated(4) == 100


def test_training_ratios_and_accuracies():
    module = load('bench_training')
    cold = [module.Run(s, (1.0,) * 10, tuple(i / 10 for i in range(1, 11))) for s in (20, 22, 60)]
    tlflax = {'cold_10': cold, 'cold_30': cold[:1], 'warm_10': [cold[1]]}
    found = module.summarize(tlflax, module.Run(30.0, (20.0, 5.0), (0.3, 0.9)))
    assert found['ratio'] == {'cold_10': 70 / 22, 'cold_30': 170 / 20, 'warm_10': 70 / 22}
    assert found['accuracy'] == {'tlflax': 1.0, 'keras': 0.9, 'tlflax_after_as_many': 0.2}
    alone = module.summarize(tlflax, None)
    assert alone['ratio'] == dict.fromkeys(('cold_10', 'cold_30', 'warm_10'))
    assert alone['seconds']['keras'] is None


def test_quick_training_extrapolates_thirty_epochs():
    module = load('bench_training')
    run = module.Run(20.0, (9.0, 1.0, 1.0), (0.1, 0.2, 0.3))
    found = module.summarize({'cold_10': [run], 'cold_30': [], 'warm_10': [run]}, None)
    assert found['seconds']['tlflax']['cold_30'] == [20 + 27]


def test_a_part_of_the_images_keeps_every_class(tmp_path):
    make_folders(tmp_path / 'all' / 'Train', per_class=12)
    make_folders(tmp_path / 'all' / 'Test', per_class=3)
    part = load('bench_training').copy_part(tmp_path / 'all', tmp_path / 'part', 0.25)
    counts = {str(f.relative_to(part)): len(list(f.iterdir())) for f in part.glob('*/*')}
    colors = ('green', 'red', 'yellow')
    assert counts == {f'Train/{c}': 3 for c in colors} | {f'Test/{c}': 2 for c in colors}


def test_keras_recipe_stamps_every_epoch(tmp_path):
    pytest.importorskip('keras')
    import vgg_reference as reference

    from tlflax.utils import trees

    for split in ('Train', 'Test'):
        make_folders(tmp_path / split, per_class=4)
    np.savez(tmp_path / 'weights.npz', **trees.flatten(reference.random_arrays(0)))
    done = run(
        'keras_recipe', tmp_path, tmp_path / 'weights.npz', '--image-size=64',
        '--layer=block4_pool', '--epochs=3',
    )  # fmt: skip
    stamps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    assert [stamp['epoch'] for stamp in stamps] == [1, 2, 3]
    assert all(stamp['seconds'] > 0 and 0 <= stamp['val_accuracy'] <= 1 for stamp in stamps)


# bench_finetune


@pytest.fixture(scope='module')
def finetune_problem(tmp_path_factory):
    """Few images, and random weights."""
    import vgg_reference as reference

    from tlflax.utils import trees

    folder = tmp_path_factory.mktemp('finetune')
    make_folders(folder / 'Train', per_class=11)  # a batch has 32
    make_folders(folder / 'Test', per_class=2, seed=1)
    np.savez(folder / 'weights.npz', **trees.flatten(reference.random_arrays(0)))
    return folder


@pytest.mark.parametrize('once', [False, True], ids=['live', 'once'])
@pytest.mark.parametrize('peer', ['keras', 'torch'])
def test_finetune_peers_stamp_every_epoch(peer, once, finetune_problem):
    pytest.importorskip(peer)
    done = run(
        'finetune_peers', peer, finetune_problem, finetune_problem / 'weights.npz', '--epochs=2',
        '--image-size=128', *['--once'] * once,
    )  # fmt: skip
    stamps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    assert [stamp['epoch'] for stamp in stamps] == [1, 2]
    assert all(stamp['seconds'] > 0 and 0 <= stamp['val_accuracy'] <= 1 for stamp in stamps)


def test_bench_finetune_times_the_training_command(finetune_problem):
    found = figures(
        'bench_finetune', f'--data={finetune_problem}', '--size=128', '--epochs=1',
        f'--weights={finetune_problem / "weights.npz"}', '--accuracy-epochs=0',
        '--sides', 'tlflax',
    )  # fmt: skip
    assert found['images'] == {'train': 33, 'test': 6}
    ours = found['seconds']['tlflax']
    assert len(ours['epochs']) == 2
    assert ours['10'] == pytest.approx(ours['process'] + 8 * ours['epochs'][1])
    assert found['ratio'] == dict.fromkeys(('keras_10', 'torch_10', 'keras_30', 'torch_30'))


def test_finetune_ratios_and_accuracies(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    module = load('bench_finetune')
    run = module.Run
    timed = {
        'tlflax': run(20.0, (9.0, 1.0, 3.0, 2.0), (0.1,) * 4),
        'keras': run(100.0, (30.0, 20.0, 20.0, 21.0), (0.1,) * 4),
    }
    accurate = {'tlflax': [run(1.0, (1.0,), (0.5, last)) for last in (0.7, 0.8, 0.9)]}
    found = module.summarize(timed, accurate)
    assert found['ratio'] == {
        'keras_10': (100 + 6 * 20) / (20 + 6 * 2),
        'torch_10': None,
        'keras_30': (100 + 26 * 20) / (20 + 26 * 2),
        'torch_30': None,
    }
    assert found['accuracy'] == {'tlflax': [0.7, 0.8, 0.9]}


# bench_scale


def test_bench_scale_stays_within_its_memory(tmp_path):
    found = figures('bench_scale', '--quick', f'--folder={tmp_path}')
    assert list(found['sizes']) == ['10000', '100000']
    assert found['within_bound'] is True
    assert not list(tmp_path.iterdir())


# bench_audit


def test_bench_audit_finds_what_it_planted(tmp_path):
    found = figures('bench_audit', '--quick', '--files=600', f'--folder={tmp_path}')
    assert found['real']['files'] == 600
    assert found['real']['peak_mib'] > found['real']['idle_mib'] / 2 > 10
    assert found['remembered']['files'] == 100_000
    assert not list(tmp_path.iterdir())


# bench_accuracy


def test_linear_models_of_bench_accuracy_are_those_of_unrotated_rows():
    """Rotating wide rows into the space that the training rows span changes nothing."""
    bench = load('bench_accuracy')
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 12)
    centers = rng.normal(size=(3, 200))
    train, test = (centers[label] + 3 * rng.normal(size=(36, 200)) for _ in range(2))
    score, predicted = bench.linear(train, label, np.arange(36), test)
    scale = np.sqrt((train**2).sum(1).mean())
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    folds = list(folds.split(train, label, np.arange(36)))
    scores = [
        cross_val_score(
            LogisticRegression(C=strength * 0.36, max_iter=3000), train / scale, label, cv=folds
        ).mean()
        for strength in bench.STRENGTHS
    ]
    assert score == pytest.approx(max(scores), abs=0.04)
    best = bench.STRENGTHS[int(np.argmax(scores))]
    wide = LogisticRegression(C=best * 0.36, max_iter=3000).fit(train / scale, label)
    assert (wide.predict(test / scale) == predicted).mean() > 0.95


def test_divisions_of_bench_accuracy(tmp_path):
    """Images that look alike and those of one pattern are on one side."""
    bench = load('bench_accuracy')
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 8)):
        for name in 'ab':
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
                picture = small.resize((80, 80), Image.Resampling.BICUBIC)
                picture.save(tmp_path / split / name / f'{i:02}_{split}{i // 2}{name}.png')
                if i == 0:  # the same picture again
                    picture.resize((60, 60)).save(tmp_path / split / name / 'again.jpg')
    images, share = bench.read_set(tmp_path, r'_(.*)\.png')
    assert (len(images), share) == (44, 26 / 44)
    assert len({image.group for image in images}) == 20
    chosen = set()
    for number in range(3):
        bench.divide(images, share, number, tmp_path / 'm.csv')
        with (tmp_path / 'm.csv').open() as file:
            lines = list(csv.DictReader(file))
        sides = {}
        for line in lines:
            sides.setdefault(line['group'], set()).add(line['split'])
        assert all(len(side) == 1 for side in sides.values())
        train = [line['path'] for line in lines if line['split'] == 'train']
        counts = [sum(f'/{name}/' in path for path in train) for name in 'ab']
        assert all(12 <= count <= 13 for count in counts)
        chosen.add(tuple(train))
    assert len(chosen) == 3


def test_summary_of_bench_accuracy():
    bench = load('bench_accuracy')
    rows = [
        {'auto': a, 'best_linear': b, 'hindsight': 90, 'seconds': 6, 'images': 100}
        for a, b in ((80, 78), (82, 79), (81, 80))
    ]
    found = bench.summarize({'x': rows})
    assert found['sets']['x']['auto'] == 81
    assert found['sets']['x']['seconds_per_1000'] == 60
    mean, low, high = found['gain']
    assert mean == 2
    assert (low, high) == pytest.approx(
        (2 - 2.4841, 2 + 2.4841), abs=1e-3
    )  # Student's t, 2 degrees
