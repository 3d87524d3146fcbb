"""A backbone and a head of the user's own, in every command; the table's messages."""

import dataclasses
import json
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, TESTS, Stops, make_folders, run_code, run_module, small_config

import tlflax
from tlflax.data.images.format import ImageFormat
from tlflax.features.spaces import describe_space
from tlflax.models import pretrained
from tlflax.models.backbones import BACKBONES, find, from_layers
from tlflax.probe import run as probe
from tlflax.sweep import run as sweeping
from tlflax.train import components, loop, setup
from tlflax.train.run import train_and_evaluate
from tlflax.utils.errors import UserError
from tlflax.utils.trees import digest, flatten, merge
from tlflax.workdir.files import Workdir

ALL = (('.*', 'all'),)
HEAD = '''
from flax import nnx


class Head(nnx.Module):
    """Normalizes the channels, and drops some."""

    def __init__(self, shape, num_classes, *, units, dropout, rngs):
        self.norm = nnx.BatchNorm(shape[-1], momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.logits = nnx.Linear(shape[-1], num_classes, rngs=rngs)

    def __call__(self, x):
        return self.logits(self.dropout(self.norm(x).mean((1, 2))))
'''


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('own')
    make_folders(folder / 'Train', 13)
    make_folders(folder / 'Test', 5, seed=1)
    shutil.copy(TESTS / 'toy_backbone.py', folder / 'toy.py')
    (folder / 'head.py').write_text(HEAD)
    return folder


def own_config(root, *, head=False, **changes):
    """A small run of the toy backbone, and perhaps of the head with BatchNorm."""
    changes = {'model__backbone': f'py:{root}/toy.py:toy', 'features__layer': 'auto'} | changes
    if head:
        changes['model__head'] = f'py:{root}/head.py:Head'
    return small_config(root, **changes)


@pytest.fixture(scope='module')
def runs(root, tmp_path_factory):
    """Finished runs with the toy backbone: frozen, frozen under the own head, trained."""
    folder = tmp_path_factory.mktemp('runs')
    configs = {
        'frozen': own_config(root),
        'head': own_config(root, head=True, train__epochs=6),
        'trained': own_config(
            root,
            optim__labels=ALL,
            optim__name='adamw',
            optim__weight_decay=0.5,
            optim__statistics='updated',
        ),
    }
    return {
        name: (folder / name, train_and_evaluate(config, folder / name))
        for name, config in configs.items()
    }


def test_the_toy_is_short():
    assert len((TESTS / 'toy_backbone.py').read_text().splitlines()) < 60


def test_frozen_it_keeps_its_statistics_and_its_features(runs):
    restored = tlflax.load(runs['frozen'][0])
    assert restored.classifier.cut == restored.classifier.layer == 'block3'
    assert restored.trainable.state == {}
    state = flatten(restored.frozen.state)
    assert set(state) == {f'backbone/block{i}/norm/{s}' for i in (1, 2, 3) for s in ('mean', 'var')}
    assert all(np.all(leaf == path.endswith('var')) for path, leaf in state.items())
    assert restored.evaluate()['loss'] == pytest.approx(runs['frozen'][1]['val']['loss'], abs=1e-6)


def test_its_features_come_from_the_cache(root, tmp_path, caplog):
    caplog.set_level('INFO')
    config = own_config(root, train__epochs=1, train__seed=7)
    train_and_evaluate(config, tmp_path / 'a')
    assert 'training: computing features of' in caplog.text
    caplog.clear()
    train_and_evaluate(config, tmp_path / 'b')
    assert 'computing features' not in caplog.text
    live = own_config(root, train__epochs=1, train__seed=7, features__cache='False')
    losses = [
        json.loads((tmp_path / name / 'metrics.jsonl').read_text())['train_loss'] for name in 'ab'
    ]
    train_and_evaluate(live, tmp_path / 'c')
    losses.append(json.loads((tmp_path / 'c' / 'metrics.jsonl').read_text())['train_loss'])
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-3)  # kept as float16


def test_trained_its_statistics_move_and_are_never_decayed(runs):
    workdir, result = runs['trained']
    restored = tlflax.load(workdir, 'last')
    assert restored.classifier.cut_is_image
    for path, leaf in flatten(restored.trainable.state).items():
        assert np.all(np.asarray(leaf) != float(path.endswith('var'))), path
    assert restored.frozen == ({}, {})
    best = tlflax.load(workdir)
    assert best.evaluate()['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)
    # The optimizer has moments of parameters alone.
    saved = workdir / 'checkpoints' / str(result['step'])
    assert (saved / 'state').is_dir()
    assert not (
        runs['frozen'][0] / 'checkpoints' / str(runs['frozen'][1]['step']) / 'state'
    ).exists()


def test_part_of_it_is_trained_and_the_statistics_of_the_rest_stand_still(root, tmp_path):
    labels = (('backbone/block3.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))
    changes = {'optim__labels': labels, 'optim__statistics': 'updated'}
    train_and_evaluate(own_config(root, **changes), tmp_path)
    restored = tlflax.load(tmp_path, 'last')
    assert set(restored.trainable.state['backbone']) == {'block3'}
    assert np.any(restored.trainable.state['backbone']['block3']['norm']['mean'] != 0)
    assert not np.any(restored.frozen.state['backbone']['block1']['norm']['mean'])


def test_a_head_with_statistics_learns_and_restores(runs):
    workdir, result = runs['head']
    assert result['val']['accuracy'] > 0.9
    restored = tlflax.load(workdir)
    assert set(flatten(restored.trainable.state)) == {'head/norm/mean', 'head/norm/var'}
    assert np.any(restored.trainable.state['head']['norm']['mean'] != 0)
    assert restored.evaluate()['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)


@pytest.mark.parametrize('include', [True, False])
def test_frozen_state_is_restored_from_the_checkpoint_or_from_the_weights(root, tmp_path, include):
    labels = (('head/norm/.*', 'frozen'), ('head/.*', 'head'), ('backbone/.*', 'frozen'))
    config = own_config(root, head=True, train__epochs=1, optim__labels=labels)
    config.checkpoint.include_backbone = include
    result = train_and_evaluate(config, tmp_path)
    assert (tmp_path / 'checkpoints' / str(result['step']) / 'frozen_state').is_dir()
    restored = tlflax.load(tmp_path)
    assert restored.trainable.state == {}
    assert set(restored.frozen.state) == {'backbone', 'head'}
    assert restored.evaluate()['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)


def test_an_interrupted_run_ends_with_the_same_statistics(root, tmp_path, monkeypatch, runs):
    config = own_config(root, head=True, train__epochs=6)
    answers = iter([False] * 3 + [True] * 99)
    with monkeypatch.context() as patch:
        patch.setattr(loop.interrupts, 'deferred', lambda announce: Stops(answers))
        patch.setattr('tlflax.train.epoch.SCAN', 1)
        with pytest.raises(loop.Interrupted):
            train_and_evaluate(config, tmp_path)
    result = train_and_evaluate(config, tmp_path)
    assert result['val']['loss'] == pytest.approx(runs['head'][1]['val']['loss'], rel=1e-5)
    ours, theirs = (tlflax.load(w, 'last').trainable.state for w in (tmp_path, runs['head'][0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_commands_in_new_processes(runs, root):
    workdir, result = runs['trained']
    done = run_module('evaluate', f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)
    done = run_module('predict', f'--workdir={workdir}', str(root / 'Test' / 'red'))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5


def test_sweep_members_equal_solo_runs(root, tmp_path):
    """Statistics are a member's own, and restored with the best one."""
    settings = [{'optim.learning_rate': rate, 'train.seed': 1} for rate in (1e-2, 1e-3)]
    config = setup.configure(own_config(root, head=True, train__seed=1, weights__source='random'))
    ranking = sweeping.run(config, settings, Workdir(tmp_path / 'sweep'))
    solo = own_config(
        root,
        head=True,
        train__seed=1,
        **{'optim__learning_rate': ranking[0]['setting']['optim.learning_rate']},
    )
    alone = train_and_evaluate(solo, tmp_path / 'solo')
    best = json.loads((tmp_path / 'sweep' / 'best' / 'result.json').read_text())
    assert best['val']['loss'] == pytest.approx(alone['val']['loss'], rel=1e-5)
    ours, theirs = (
        tlflax.load(w).trainable.state for w in (tmp_path / 'sweep' / 'best', tmp_path / 'solo')
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_it_is_probed(root, tmp_path):
    result = probe.run(setup.configure(own_config(root)), Workdir(tmp_path / 'w'))
    assert tlflax.load(tmp_path / 'w').evaluate()['loss'] == pytest.approx(
        result['val']['loss'], abs=1e-6
    )


def test_its_weights_are_read_from_a_file_and_known_by_their_digest(root, tmp_path):
    toy = find(f'py:{root}/toy.py:toy')
    variables = jax.device_get(toy.init(jax.random.key(5), toy.layer))
    merged = flatten(merge(*variables))
    merged['block1/norm/mean'] = merged['block1/norm/mean'] + 1
    np.savez(tmp_path / 'toy.npz', **merged, other=np.zeros(3))
    found = pretrained.load(tmp_path / 'toy.npz', toy)
    assert found.digest == digest(merged)
    np.testing.assert_array_equal(found.variables.state['block1']['norm']['mean'], np.ones(8))
    assert '1 other tensors are ignored' in found.recognized
    config = own_config(root, weights__source=str(tmp_path / 'toy.npz'), train__epochs=1)
    train_and_evaluate(config, tmp_path / 'w')
    restored = tlflax.load(tmp_path / 'w')
    np.testing.assert_array_equal(
        restored.frozen.state['backbone']['block1']['norm']['mean'], np.ones(8)
    )
    del merged['block1/norm/mean']
    np.savez(tmp_path / 'less.npz', **merged)
    with pytest.raises(UserError, match=r'- block1/norm/mean float32\[8\]'):
        pretrained.load(tmp_path / 'less.npz', toy)


@pytest.mark.parametrize(('key', 'file'), [('backbone', 'toy.py'), ('head', 'head.py')])
def test_a_changed_file_is_refused(root, tmp_path, key, file):
    shutil.copytree(root, tmp_path / 'own')
    config = own_config(tmp_path / 'own', head=True, train__epochs=1)
    train_and_evaluate(config, tmp_path / 'w')
    path = tmp_path / 'own' / file
    path.write_text(path.read_text() + '\n# changed\n')
    with pytest.raises(UserError, match=rf'config\.model\.{key}: the file has changed'):
        tlflax.load(tmp_path / 'w')
    (tmp_path / 'w' / 'result.json').unlink()
    with pytest.raises(UserError, match='Python files of the model are no longer those'):
        train_and_evaluate(config, tmp_path / 'w')


def test_features_of_other_code_have_another_address(root, tmp_path):
    (tmp_path / 'toy.py').write_text((root / 'toy.py').read_text() + '# another\n')
    spaces = []
    for spec in (f'py:{root}/toy.py:toy', f'py:{tmp_path}/toy.py:toy', 'vgg16'):
        config = setup.configure(own_config(root, model__backbone=spec))
        model = components.build_classifier(config, {}, 3, 'torch')
        spaces.append(describe_space(ImageFormat((32, 32)), model, weights_digest='abc'))
    assert spaces[0] != spaces[1]
    cubic = ImageFormat.of(setup.configure(own_config(root)).data, 'bicubic')
    assert describe_space(cubic, model, weights_digest='abc')['interpolation'] == 'bicubic'
    assert 'code' not in spaces[2]


def test_messages(root, tmp_path):
    with pytest.raises(UserError, match=r"config\.model\.backbone.*did you mean 'vgg16'"):
        find('vgg166')
    with pytest.raises(UserError, match=r'config\.model\.backbone: there is no such file'):
        find(f'py:{tmp_path}/no.py:toy')
    with pytest.raises(UserError, match=r"config\.model\.backbone.*did you mean 'toy'"):
        find(f'py:{root}/toy.py:toi')
    (tmp_path / 'other.py').write_text('toy = 3\n')
    with pytest.raises(UserError, match='is a int, not a Backbone'):
        find(f'py:{tmp_path}/other.py:toy')
    (tmp_path / 'broken.py').write_text('toy = 1 / 0\n')
    with pytest.raises(UserError, match=r'ZeroDivisionError.*broken\.py, line 1'):
        find(f'py:{tmp_path}/broken.py:toy')
    with pytest.raises(UserError, match='toy has no ImageNet weights'):
        components.load_backbone(setup.configure(own_config(root, weights__source='imagenet')))
    with pytest.raises(UserError, match=r"'block5' is not a layer of toy.*did you mean 'block"):
        setup.configure(own_config(root, features__layer='block5'))
    config = setup.configure(own_config(root, data__image_size=(4, 4)))
    with pytest.raises(UserError, match=r'toy fails on images of 4x4.*nothing is left of them'):
        components.init_head(config, 3)


@pytest.mark.parametrize(
    ('code', 'message'),
    [
        ('Head = 3', r'py:.*fails with TypeError'),
        ('def Head(*a, **k): return 3', 'makes a int, not a Flax NNX module'),
        (HEAD.replace('num_classes, rngs', 'num_classes + 1, rngs'), r'return logits \[b, 3\]'),
        (HEAD.replace('.mean((1, 2))', '.mean(7)'), 'fails with'),
    ],
)
def test_messages_about_heads(root, tmp_path, code, message):
    (tmp_path / 'bad.py').write_text(code)
    config = setup.configure(own_config(root, model__head=f'py:{tmp_path}/bad.py:Head'))
    with pytest.raises(UserError, match=message) as raised:
        components.build_classifier(config, {}, 3, 'torch')
    assert raised.value.where == 'config.model.head'
    assert '\n' not in str(raised.value)


def test_rows_say_what_they_are():
    for name, row in BACKBONES.items():
        assert row.name == name
        assert dataclasses.replace(row, code='x').layer in row.layers
    with pytest.raises(UserError, match="backbone 'x': 'cafe' is not a known preprocessing"):
        from_layers('x', lambda rngs: {'a': None}, preprocess='cafe')


def test_the_functions_for_research_code(runs):
    """`logits` takes jit, grad and vmap; `module` is an NNX module; both are the classifier."""
    classifier = tlflax.load(runs['trained'][0])
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    want = [p.probabilities for p in classifier.predict(images)]
    want = np.array([list(row.values()) for row in want])
    logits = jax.jit(classifier.logits)(classifier.params, images)
    np.testing.assert_allclose(jax.nn.softmax(logits), want, rtol=1e-5)
    one_by_one = jax.vmap(classifier.logits, in_axes=(None, 0))(classifier.params, images)
    np.testing.assert_allclose(one_by_one, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(classifier.module(images), logits, rtol=1e-4, atol=1e-5)
    grad = jax.grad(lambda x: classifier.logits(classifier.params, x)[0, 1])(
        jnp.asarray(images, jnp.float32)
    )
    assert np.any(grad[0] != 0)
    assert not np.any(grad[1:])
    by_params = jax.grad(lambda p: classifier.logits(p, images).sum())(classifier.params)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(by_params['head']))


PROCESSES = """
import sys; sys.path.insert(0, sys.argv[1])
import jax
jax.distributed.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[3]))
from pathlib import Path
from helpers import small_config
from tlflax.train.run import train_and_evaluate
from tlflax.utils.errors import UserError
try:
    train_and_evaluate(small_config(Path(sys.argv[4])), sys.argv[5])
except UserError as error:
    print(error)
"""


def test_several_processes_are_refused_in_one_sentence(root, tmp_path):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]

    def start(number):
        rest = (str(port), str(number), str(root), str(tmp_path / 'w'))
        return run_code(PROCESSES, str(TESTS), *rest)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(start, range(2)):
            assert done.stdout.startswith('jax.distributed: 2 processes run together'), done.stderr
    assert not (tmp_path / 'w').exists()


def test_no_architecture_is_named_outside_models():
    """The schema's default value is the one exception."""
    found = {}
    for path in sorted((ROOT / 'tlflax').rglob('*.py')):
        if 'models' not in path.relative_to(ROOT).parts:
            text = path.read_text()
            names = re.findall(r'(?i)\w*vgg\w*|block\d\w*|\bfc\d\b|resnet\w*', text)
            if names:
                found[str(path.relative_to(ROOT))] = sorted(set(names))
    assert found == {'tlflax/config/schema.py': ['vgg16', 'vgg19']}
