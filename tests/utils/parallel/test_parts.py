"""Sums over a batch on several devices: one operation, and what one device computes."""

import json

from helpers import run_code

DEVICES = 4
SETUP = """
import json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec
from tlflax.utils.parallel import parts
from tlflax.utils.parallel.mesh import default_mesh, put_batch, replicate
mesh = default_mesh()
"""
DROPOUT = """
from tlflax.models.standard_heads import _dropout
key, x = jax.random.key(3), jax.random.normal(jax.random.key(1), (16, 5, 7))
whole = jax.jit(lambda x: _dropout(x, 0.3, key))(x)
def local(x):
    token = parts._INSIDE.set(True)
    try:
        return _dropout(x, 0.3, key)
    finally:
        parts._INSIDE.reset(token)
rows = PartitionSpec('data')
split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))(x)
print(json.dumps([bool((np.asarray(split) == np.asarray(whole)).all()), int((whole == 0).sum())]))
"""
STEP = """
from tlflax.models import classifier as classifiers, heads
from tlflax.models.vgg.rows import VGG16
from tlflax.train import steps
from tlflax.train.losses import Loss
import dataclasses, optax
shape = VGG16.feature_shape((128, 128), 'block5_pool')
options = {'units': 16, 'dropout': 0.5}
first = jax.device_get(heads.init('conv', shape, 3, jax.random.key(0), **options))
params = {'head': first.params}
model = classifiers.create(VGG16, params, image_size=(128, 128), num_classes=3, head='conv',
                           layer='block5_pool', preprocess='caffe', **options)
rng = np.random.default_rng(0)
batch = {
    'features': rng.standard_normal((16, *shape), np.float32),
    'label': rng.integers(0, 3, 16, np.int32), 'mask': np.arange(16) < 13,
    'weight': rng.random(16, np.float32),
}
tx = optax.sgd(0.1)
state = steps.init_state(first._replace(params=params), tx)
found, programs = [], []
for adders in (None, mesh):
    kind = dataclasses.replace(model, adders=adders)
    on_mesh = jax.tree.map(jnp.array, replicate(state, mesh))
    run = (on_mesh, first._replace(params={}, state={}), put_batch(batch, mesh), 0, Loss())
    programs.append(steps.train_step.lower(*run, classifier=kind, tx=tx).compile().as_text())
    after, sums = steps.train_step(*run, classifier=kind, tx=tx)
    found.append(jax.device_get((after.params, sums)))
error = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *found)
moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found[1][0], params)
reduced = re.findall(r'= (.*) all-reduce\\(', programs[1])
print(json.dumps([max(jax.tree.leaves(error)), max(jax.tree.leaves(moved)), reduced,
                  float(found[1][1].examples)]))
"""
FROZEN = """
from tlflax.features import programs
from tlflax.models import classifier as classifiers
from tlflax.models.vgg.rows import VGG16
variables = jax.device_get(VGG16.init(jax.random.key(0), 'block2_pool'))
model = classifiers.create(VGG16, {}, image_size=(32, 32), num_classes=2, head='gap_linear',
                           units=1, dropout=0.0, layer='block2_pool', preprocess='caffe')
image = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
options = {'image_size': (32, 32), 'images': 8, 'mesh': mesh}
there = programs.backbone_program(replicate(variables, mesh), model, **options)(image)
here = programs.backbone_program(variables, model, **options)(image)
print(json.dumps([len(there.sharding.device_set), bool((there == here).all())]))
"""


def computed(code):
    flag = f'--xla_force_host_platform_device_count={DEVICES}'
    done = run_code(SETUP + code, XLA_FLAGS=flag)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_dropout_drops_what_it_drops_of_a_whole_batch():
    same, dropped = computed(DROPOUT)
    assert same
    assert 100 < dropped < 240  # of 560


def test_a_step_adds_up_one_array_and_learns_the_same():
    error, moved, reduced, examples = computed(STEP)
    assert error < 1e-6 < 1e-3 < moved
    assert len(reduced) == 1, reduced
    assert reduced[0].startswith('f32['), reduced
    assert examples == 13


def test_the_frozen_part_is_computed_once_not_by_every_device():
    devices, same = computed(FROZEN)
    assert devices == 1
    assert same
