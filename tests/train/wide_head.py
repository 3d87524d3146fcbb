"""A wide head on virtual devices: what the tests of it run in processes of their own."""

import dataclasses
import re

import jax
import numpy as np
import optax
from toy_backbone import toy

from tlflax.models import classifier as classifiers
from tlflax.models import heads
from tlflax.models.base.modules import Variables
from tlflax.train import steps
from tlflax.utils.parallel.mesh import default_mesh
from tlflax.utils.parallel.placement import ClassShards, place

LEAVES = frozenset(f'head/{leaf}' for leaf in heads.class_leaves('mlp'))
OPTIMIZERS = {
    'adam': optax.adam(1e-2),
    'sgd': optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9)),
}
COLLECTIVE = re.compile(r'= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)\(')


def make(num_classes, head='mlp', *, split, units=16):
    """Returns a model and its first variables, random in all leaves, on the host."""
    options = {'units': units, 'dropout': 0.0}
    shape = toy.feature_shape((16, 16), 'block3')
    first = heads.init(head, shape, num_classes, jax.random.key(1), **options).params
    model = classifiers.create(
        toy, {'head': first}, image_size=(16, 16), num_classes=num_classes, head=head,
        preprocess='torch', layer='block3', **options,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), first)
    shards = ClassShards(default_mesh(), num_classes, LEAVES) if split else None
    return dataclasses.replace(model, shards=shards), Variables({'head': params}, {})


def first_state(model, variables, tx, average=None):
    state = jax.tree.map(np.asarray, steps.init_state(variables, tx, average))
    return place(state, default_mesh(), model.shards)


def make_batch(num_classes, seed=0, n=16, real=13, mixed=False):
    rng = np.random.default_rng(seed)
    batch = {
        'features': rng.normal(size=(n, 2, 2, 32)).astype(np.float32),
        'label': rng.integers(0, num_classes, n).astype(np.int32),
        'mask': np.arange(n) < real,
        'weight': rng.uniform(0.5, 2, n).astype(np.float32),
    }
    if mixed:
        batch['mix'] = rng.uniform(0, 1, n).astype(np.float32)
        batch['mix_label'] = rng.integers(0, num_classes, n).astype(np.int32)
    return batch


def largest(compiled, kind):
    """Returns the most values of one result of the collectives of a kind in a program."""
    text, sizes = compiled.as_text(), [0]
    for shapes, name in COLLECTIVE.findall(text):
        if name == kind:
            found = re.findall(r'\w+\[([\d,]*)\]', shapes)
            sizes += [int(np.prod([int(d) for d in one.split(',') if d])) for one in found]
    return max(sizes)
