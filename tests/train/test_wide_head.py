"""A head that is split over the devices by class, against the same head that is not."""

import contextlib
import json
import os
import socket

import jax
import numpy as np
import optax
import pytest
from fork_server import server
from helpers import TESTS, make_folders, run_code

from tlflax.config import default_config
from tlflax.config.parse import resolve
from tlflax.config.schema import OPTIMIZERS
from tlflax.train import components
from tlflax.train.optim import build
from tlflax.utils.errors import UserError
from tlflax.utils.parallel import columns
from tlflax.utils.parallel.mesh import default_mesh
from tlflax.utils.parallel.placement import ClassShards

BEGIN = """
import sys; sys.path[:0] = sys.argv[1:3]
import json, jax, numpy as np
from tlflax.models.base.modules import Variables
from tlflax.train import steps
from tlflax.train.losses import Loss
from tlflax.train.optim.ema import Average
from tlflax.utils.parallel.mesh import default_mesh, put_batch
import wide_head as w
"""


FAST = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


def on_devices(code, *arguments, devices=8):
    """Runs code on virtual devices; returns the object that it prints last."""
    flags = f'--xla_force_host_platform_device_count={devices} {FAST}'
    folders = str(TESTS / 'train'), str(TESTS)
    done = run_code(BEGIN + code, *folders, *map(str, arguments), XLA_FLAGS=flags, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


STEPS = """
def trained(classes, split, name, loss, mixed, average):
    model, variables = w.make(classes, split=split)
    tx, mesh, losses = w.OPTIMIZERS[name], default_mesh(), []
    state = w.first_state(model, variables, tx, average)
    for seed in range(4):
        batch = put_batch(w.make_batch(classes, seed, mixed=mixed), mesh)
        state, sums = steps.train_step(
            state, Variables({}, {}), batch, 0, loss, classifier=model, tx=tx, average=average
        )
        losses.append([float(one) for one in sums])
    if split:
        kernel = state.params['head']['logits']['kernel']
        assert kernel.shape == (16, model.shards.width)
        assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, 'data')
        assert {shard.data.shape for shard in kernel.addressable_shards} == {
            (16, model.shards.width // 4)}
        whole = model.shards.fetch(state)
    else:
        whole = jax.device_get(state)
    counted, probabilities = steps.eval_step(state.evaluated, batch, classifier=model)
    assert probabilities.shape == (16, classes)
    assert len(probabilities.sharding.spec) and probabilities.sharding.spec[0] == 'data'
    counts = [np.asarray(one).tolist() for one in counted.counts]
    leaves = [np.asarray(one).ravel() for one in jax.tree.leaves((whole, probabilities))]
    return losses, [float(one) for one in counted.sums], counts, np.concatenate(leaves)

rng, outcome = np.random.default_rng(0), []
for classes, name, mixed, gamma, average in [
    (16, 'adam', False, np.float32(2), None), (13, 'sgd', True, None, Average(0.9))]:
    loss = Loss(
        smoothing=np.float32(0.1), gamma=gamma,
        class_weight=rng.uniform(0.5, 2, classes).astype(np.float32),
        shift=rng.normal(size=classes).astype(np.float32))
    one, two = (trained(classes, split, name, loss, mixed, average) for split in (False, True))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-5)
    assert one[2] == two[2]
    assert one[3].shape == two[3].shape
    outcome.append([classes, float(abs(one[3] - two[3]).max()), one[0][0][0] - one[0][-1][0]])
print(json.dumps(outcome))
"""


def test_steps_are_those_of_the_whole_head():
    for classes, difference, learned in on_devices(STEPS, devices=4):
        assert difference < 2e-5, classes
        assert learned != 0


REDUCTIONS = """
model, _ = w.make(13, split=True)
shards, mesh = model.shards, default_mesh()
rng = np.random.default_rng(0)
values = rng.integers(0, 4, (16, 16)).astype(np.float32)  # most rows have ties
label = rng.integers(0, 13, 16).astype(np.int32)

@jax.jit
def found(values, label):
    values = shards.masked(values)
    return shards.argmax(values), shards.of_label(values, label), shards.mean(values)

argmax, own, mean = found(values, label)
np.testing.assert_array_equal(argmax, values[:, :13].argmax(-1))
np.testing.assert_array_equal(own, values[np.arange(16), label])
np.testing.assert_allclose(mean, values[:, :13].mean(-1), rtol=1e-6)
print(json.dumps([w.largest(found.lower(values, label).compile(), 'all-gather')]))
"""


def test_sums_and_maxima_over_split_classes():
    assert on_devices(REDUCTIONS) == [0]


PROGRAM = """
from tlflax.features.batches import OnDevice
from jax.sharding import NamedSharding, PartitionSpec
CLASSES, N, UNITS, BATCH = 100_003, 8, 256, 64

def shapes(tree, mesh, shards):
    def of(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        held = shards is not None and shards.holds(name, leaf.shape)
        shape = (*leaf.shape[:-1], shards.width) if held else leaf.shape
        spec = PartitionSpec(*[None] * (len(shape) - 1), 'data') if held else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
    return jax.tree.map_with_path(of, tree)

def compiled(split):
    tx, mesh = w.OPTIMIZERS['adam'], default_mesh()
    model, variables = w.make(8, split=False, units=UNITS)
    wide = lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], CLASSES), leaf.dtype)
    variables.params['head']['logits'] = jax.tree.map(wide, variables.params['head']['logits'])
    shards = w.ClassShards(mesh, CLASSES, w.LEAVES) if split else None
    model = w.dataclasses.replace(model, shards=shards)
    state = shapes(jax.eval_shape(lambda: steps.init_state(
        jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), variables), tx)), mesh, shards)
    batch = put_batch(w.make_batch(CLASSES, n=BATCH), mesh)
    loss = Loss(smoothing=np.float32(0.1))
    return (
        steps.train_step.lower(
            state, Variables({}, {}), batch, 0, loss, classifier=model, tx=tx).compile(),
        steps.eval_step.lower(state.variables, batch, classifier=model).compile())

peaks, gathered, reduced = [], [], []
for split in (False, True):
    programs = compiled(split)
    memory = programs[0].memory_analysis()
    peaks.append(memory.argument_size_in_bytes + memory.output_size_in_bytes
                 + memory.temp_size_in_bytes - memory.alias_size_in_bytes)
for program in programs:
    gathered.append(w.largest(program, 'all-gather'))
    reduced.append(w.largest(program, 'all-reduce'))
print(json.dumps([peaks, gathered, reduced, BATCH * UNITS, CLASSES]))
"""


def test_a_hundred_thousand_classes_need_an_eighth_of_the_memory():
    (whole, split), gathered, reduced, inputs, classes = on_devices(PROGRAM)
    assert whole > 3 * 256 * classes * 4  # parameters and two moments
    assert split < whole / 6
    assert max(gathered) == inputs  # of the layer: neither the kernel nor the logits
    assert reduced[0] <= 256 * 128  # the gradient of the layer below
    assert reduced[1] <= classes  # counts by class


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_padding_stays_zero(name):
    labels = {'logits': {'kernel': 'head', 'bias': 'head'}}
    tx = build.build(labels, name=name, learning_rates={'head': 0.1}, clip_norm=1.0)
    params = {'logits': {'kernel': np.ones((3, 5), np.float32), 'bias': np.ones(5, np.float32)}}

    def padded(tree):
        """As `ClassShards.place` pads: zeros in parameters and moments alike."""
        return jax.tree.map(
            lambda leaf: np.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, 3)]) if leaf.ndim else leaf,
            tree,
        )

    state, rng = padded(jax.tree.map(np.asarray, tx.init(params))), np.random.default_rng(0)
    whole, small, both = padded(params), params, tx.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
        updates, state = tx.update(padded(grads), state, whole)
        whole = optax.apply_updates(whole, updates)
        updates, both = tx.update(grads, both, small)
        small = optax.apply_updates(small, updates)
    for leaf, same in zip(jax.tree.leaves(whole), jax.tree.leaves(small), strict=True):
        assert not np.asarray(leaf)[..., 5:].any()
        np.testing.assert_allclose(np.asarray(leaf)[..., :5], same, rtol=1e-5)


def test_a_split_array_is_fetched_in_blocks(monkeypatch):
    """As it is where other processes have a part: here the only device has all of it."""
    monkeypatch.setattr(columns, '_BLOCK', 3 * 7 * 4)
    shards = ClassShards(default_mesh(), 7, frozenset({'head/logits/kernel'}))
    kernel = np.arange(70, dtype=np.float32).reshape(10, 7)
    placed = shards.place({'head': {'logits': {'kernel': kernel}}, 'other': kernel})
    split = placed['head']['logits']['kernel']
    np.testing.assert_array_equal(columns._in_blocks(split, 7), kernel)
    np.testing.assert_array_equal(columns._in_blocks(split[3], 7), kernel[3])


JOIN = """
import contextlib, sys
from tlflax.utils.parallel import processes
from tlflax.utils.parallel.launch import Launch
number, together = int(sys.argv[4]), contextlib.ExitStack()
together.enter_context(processes.started(Launch(sys.argv[3], 2, number)))
"""

PROCESSES = """
from tlflax.utils.parallel import columns
from tlflax.utils.parallel.mesh import local_rows
columns._BLOCK = 200  # bytes: many blocks
model, variables = w.make(13, split=True)
state, mesh = w.first_state(model, variables, w.OPTIMIZERS['adam']), default_mesh()
whole = model.shards.fetch(state)
for leaf, same in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(variables.params), strict=True):
    np.testing.assert_array_equal(leaf, same)
rows = {key: value[8 * number:][:8] for key, value in w.make_batch(13).items()}
sums, probabilities = steps.eval_step(
    state.variables, put_batch(rows, mesh), classifier=model)
own = local_rows(probabilities)
assert own.shape == (8, 13)
print(json.dumps([jax.device_count(), jax.local_device_count(), float(sums.sums.loss), *(
    own[np.arange(8), rows['label']].tolist())]))
together.close()
"""

ALONE = """
model, variables = w.make(13, split=False)
batch = w.make_batch(13)
sums, found = steps.eval_step(variables, batch, classifier=model)
print(json.dumps([float(sums.sums.loss), *found[np.arange(16), batch['label']].tolist()]))
"""


def test_two_processes_share_a_split_head(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context((tmp_path / str(n)).open('w+')) for n in (0, 1)]
        folders = str(TESTS / 'train'), str(TESTS)
        processes = [
            server().start(
                'code', JOIN + BEGIN + PROCESSES, *folders, address, str(number),
                env=env, stdout=output, stderr=output,
            )
            for number, output in enumerate(outputs)
        ]  # fmt: skip
        codes = [process.wait(120) for process in processes]
    said = [(tmp_path / str(number)).read_text() for number in (0, 1)]
    assert codes == [0, 0], said
    first, second = (json.loads(text.splitlines()[-1]) for text in said)
    assert first[:2] == second[:2] == [4, 2]
    assert first[2] == second[2]
    loss, *own = on_devices(ALONE, devices=1)
    np.testing.assert_allclose([first[2], *first[3:], *second[3:]], [loss, *own], rtol=1e-5)


WHICH = """
from tlflax.config import default_config
from tlflax.train import components
from tlflax.train.setup import configure

def shards(head, shard_head, classes=100_000):
    config = default_config()
    config.model.head, config.train.shard_head = head, shard_head
    return components.head_shards(configure(config), classes, default_mesh())

print(json.dumps([
    sorted(shards('flatten_linear', 'auto').leaves),
    *[shards(*one) is None for one in (
        ('flatten_linear', 'auto', 1000), ('flatten_linear', 'False'),
        ('py:file.py:Head', 'auto'), ('mlp', 'True', 7))]]))
"""


def test_which_heads_are_split():
    leaves, small, off, own, asked = on_devices(WHICH)
    assert leaves == ['head/logits/bias', 'head/logits/kernel']
    assert small
    assert off
    assert own
    assert not asked


def test_a_head_that_cannot_be_split():
    config = default_config()
    config.model.head, config.train.shard_head = 'py:file.py:Head', 'True'
    with pytest.raises(UserError, match='cannot be split by class'):
        components.head_shards(resolve(config), 5, default_mesh())
    config.model.head = 'mlp'
    assert components.head_shards(resolve(config), 5, default_mesh()) is None  # on one device


RUN = """
from pathlib import Path
from helpers import Stops, toy_config
from tlflax.train import loop
from tlflax.train.run import train_and_evaluate
import tlflax
root, work, shard, stop = sys.argv[3:]
config = toy_config(Path(root), model__head='mlp', train__epochs=3, train__shard_head=shard,
                    optim__ema_decay=0.5, train__label_smoothing=0.1)
if int(stop):
    answers = [False] * int(stop) + [True] * 99
    loop.interrupts.deferred = lambda announce: Stops(iter(answers))
try:
    result = train_and_evaluate(config, Path(work))
except loop.Interrupted as interrupted:
    print(json.dumps([jax.device_count(), interrupted.step]))
else:
    records = [json.loads(line) for line in (Path(work) / 'metrics.jsonl').open()]
    print(json.dumps([jax.device_count(), *[line['train_loss'] for line in records],
                      *[line['val_loss'] for line in records], result['val']['loss'],
                      tlflax.load(work).evaluate()['loss']]))
"""


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 7, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return root


def test_a_split_run_goes_on_with_any_number_of_devices(images, tmp_path):
    """Stopped and continued on 8, 1 and 8 devices, it ends as the run that is not split."""

    def run(work, devices, shard='True', stop=0):
        outcome = on_devices(RUN, images, tmp_path / work, shard, stop, devices=devices)
        assert outcome[0] == devices
        return outcome[1:]

    whole = run('whole', 1, 'False')
    assert run('parts', 8, stop=1) == [3]  # steps: one epoch
    assert run('parts', 1, stop=1) == [6]
    np.testing.assert_allclose(run('parts', 8), whole, rtol=2e-5)
    code = 'import tlflax\nprint(json.dumps(tlflax.load(sys.argv[3]).evaluate()["loss"]))'
    loss = on_devices(code, tmp_path / 'parts', devices=4)
    assert loss == pytest.approx(whole[-1], rel=2e-5)
