"""The bytes that devices send each other in a training step, against the fewest possible.

    python scripts/communication.py [--classes=100000] [--short]

Compiles the steps of four trainings for eight virtual devices of the CPU, runs none of them, and
reads every collective operation from the compiled programs: a head on features that stay on the
device, fine-tuning, and heads of very many classes that are split by class, with a hidden layer and
without one. Bytes are what a device sends when devices form a ring: of S bytes, an all-reduce sends
2 (n - 1) / n S, an all-gather or a reduce-scatter half of it.

The fewest bytes are, where each device has the whole model, one all-reduce of the gradients and of
the three sums of the metrics; where the head is split, what the last layer reads (gathered), its
gradient where a layer below learns (scattered), the gradients of the other layers, the labels, and
for each example the highest logit and its place, the sum of the exponentials, and the cost of the
label. With a split head the memory of a device is given beside that of the head that is not split.
The last line is JSON with every figure. Takes a minute; `--short` is for tests.
"""

import argparse
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any

DEVICES = 8
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES}'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from tlflax.config.schema import OptimConfig  # noqa: E402
from tlflax.features.batches import OnDevice  # noqa: E402
from tlflax.models import classifier as classifiers  # noqa: E402
from tlflax.models import heads  # noqa: E402
from tlflax.models.backbones import find  # noqa: E402
from tlflax.models.base.modules import Variables  # noqa: E402
from tlflax.train import steps  # noqa: E402
from tlflax.train.losses import Loss  # noqa: E402
from tlflax.train.optim.learner import build_learner  # noqa: E402
from tlflax.utils import trees  # noqa: E402
from tlflax.utils.parallel.mesh import default_mesh  # noqa: E402
from tlflax.utils.parallel.placement import ClassShards  # noqa: E402

Figures = dict[str, Any]  # a JSON object

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(KINDS)})\(')
_SHAPE = re.compile(r'\b([a-z]+)(\d*)\[([\d,]*)\]')
_PERMUTED = 'collective-permute'
_LEARNING = 'backbone/block5.*'
BATCH = 64
STATISTICS = 4  # numbers of an example that devices of a split head agree on
ROWS = 512  # examples whose features are on the devices


@dataclasses.dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        name: Of the case.
        head: The head.
        num_classes: Number of logits.
        batch: Examples of a step.
        size: Height and width of an image.
        learning: A pattern of the layers of the backbone that are trained; '': none.
        split: Whether the head is split by class.
        units: Width of the head's hidden layer.
    """

    name: str
    head: str
    num_classes: int
    batch: int
    size: int
    learning: str = ''
    split: bool = False
    units: int = 64


def cases(num_classes: int, *, short: bool) -> list[Case]:
    """Returns what is measured."""
    size = 64 if short else 224
    return [
        Case('head', 'conv', 1000, BATCH, 2 * size),
        Case('fine-tuning', 'gap_linear', 1000, BATCH, size, learning=_LEARNING),
        Case('split head', 'mlp', num_classes, BATCH, 64, split=True, units=512),
        Case('split linear head', 'gap_linear', num_classes, BATCH, 64, split=True),
    ]


def collectives(text: str) -> Iterator[tuple[str, int]]:
    """Yields the kind of each collective operation of a compiled program, and its result's bytes.

    A loop's operations count once.
    """
    for shapes, kind in _COLLECTIVE.findall(text):
        yield kind, sum(_bytes(*shape) for shape in _SHAPE.findall(shapes))


def _bytes(letters: str, bits: str, dimensions: str) -> int:
    """Returns the bytes of an array of a type such as f32, or pred."""
    return math.prod(map(int, filter(None, dimensions.split(',')))) * int(bits or 8) // 8


def sent(kind: str, size: int) -> float:
    """Returns the bytes that a device sends for a collective operation, from its result's bytes."""
    part = (DEVICES - 1) / DEVICES * size
    return {
        'all-reduce': 2 * part,
        'reduce-scatter': part * DEVICES,  # its result is a part of what is summed
        _PERMUTED: float(size),
    }.get(kind, part)


def fewest(case: Case, trained: Variables, inputs: int) -> float:
    """Returns the fewest bytes that a device has to send in a step.

    Args:
        case: The training.
        trained: The shapes of what is trained.
        inputs: Columns of what the last layer reads.
    """
    leaves = {f'head/{leaf}' for leaf in heads.class_leaves(case.head)} if case.split else set()
    flat = trees.flatten(trained.params)
    others = sum(leaf.size for path, leaf in flat.items() if path not in leaves)
    if not case.split:
        return sent('all-reduce', 4 * (others + len(steps.Sums._fields)))
    read = 4 * case.batch * inputs
    back = sent('reduce-scatter', read // DEVICES) if others else 0
    labels = (4 + 1) * case.batch  # and whether an example is real
    statistics = 4 * case.batch * STATISTICS
    return sent('all-gather', read + labels) + back + sent('all-reduce', 4 * others + statistics)


def measure(case: Case) -> Figures:
    """Compiles a step of a training, and reads what its devices send each other."""
    compiled, trained, inputs = compile_step(case)
    found = list(collectives(compiled.as_text() or ''))
    total, least = sum(sent(*one) for one in found), fewest(case, trained, inputs)
    line = {
        'sent': round(total),
        'fewest': round(least),
        'ratio': total / least,
        'by_kind': {
            kind: round(sum(sent(*one) for one in found if one[0] == kind))
            for kind in KINDS
            if any(one[0] == kind for one in found)
        },
        'memory': peak_bytes(compiled),
    }
    if case.split:
        line['largest_gather'] = max(size for kind, size in found if kind == 'all-gather')
        whole = compile_step(dataclasses.replace(case, split=False))[0]
        line['memory_whole'] = peak_bytes(whole)
    return line


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a device needs for a step, its arguments among them."""
    stats = compiled.memory_analysis()
    assert stats is not None  # the CPU tells
    new = stats.output_size_in_bytes + stats.temp_size_in_bytes - stats.alias_size_in_bytes
    return int(stats.argument_size_in_bytes + new)


def compile_step(case: Case) -> tuple[jax.stages.Compiled, Variables, int]:
    """Returns the compiled step, the shapes of what it trains, and the last layer's inputs."""
    mesh, backbone, layer = default_mesh(), find('vgg16'), 'block5_pool'
    size, options = (case.size, case.size), dict[str, Any](units=case.units, dropout=0.5)
    shape = backbone.feature_shape(size, layer)
    head = jax.eval_shape(
        lambda key: heads.init(case.head, shape, case.num_classes, key, **options),
        jax.random.key(0),
    )
    rules = (
        *(((case.learning, 'tail'),) if case.learning else ()),
        ('backbone/.*', 'frozen'),
        ('head/.*', 'head'),
    )
    variables = Variables({'backbone': backbone.shapes(layer).params, 'head': head.params}, {})
    learner = build_learner(
        OptimConfig(labels=rules), variables, steps_per_epoch=10, epochs=10, layers=backbone.layers
    )
    model = classifiers.create(
        backbone,
        learner.trainable.params,
        image_size=size,
        num_classes=case.num_classes,
        head=case.head,
        preprocess='caffe',
        layer=layer,
        **options,
    )
    leaves = frozenset(f'head/{leaf}' for leaf in heads.class_leaves(case.head))
    shards = ClassShards(mesh, case.num_classes, leaves) if case.split else None
    model = dataclasses.replace(model, shards=shards, adders=None if shards else mesh)
    state = jax.eval_shape(lambda first: steps.init_state(first, learner.tx), learner.trainable)
    state, frozen = (abstract(tree, mesh, shards) for tree in (state, learner.frozen))
    inputs = trees.flatten(head.params)['logits/kernel'].shape[0]
    features = backbone.feature_shape(size, model.cut)
    static = {'classifier': model, 'tx': learner.tx}
    if not case.learning and not case.split:  # as such a head is trained: many steps, one program
        kept = OnDevice(_array((ROWS, *features), mesh), _array((ROWS,), mesh, dtype=jnp.int32))
        rows = _array((2, case.batch), mesh, None, 'data', dtype=jnp.int32)
        lowered = steps.train_scan.lower(state, frozen, kept, rows, 0, Loss(), **static)
    else:
        batch = {
            'features': _array((case.batch, *features), mesh, 'data'),
            'label': _array((case.batch,), mesh, 'data', dtype=jnp.int32),
            'mask': _array((case.batch,), mesh, 'data', dtype=jnp.bool_),
        }
        lowered = steps.train_step.lower(state, frozen, batch, 0, Loss(), **static)
    return lowered.compile(), learner.trainable, inputs


def _array(
    shape: tuple[int, ...], mesh: jax.sharding.Mesh, *axes: str | None, dtype: Any = jnp.float32
) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def abstract(tree: Any, mesh: jax.sharding.Mesh, shards: ClassShards | None) -> Any:
    """Returns the shapes of a tree of shapes, placed as `placement.place` places arrays."""

    def of(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if shards is None or not shards.holds(name, leaf.shape):
            return _array(leaf.shape, mesh, dtype=leaf.dtype)
        axes = (*[None] * (len(leaf.shape) - 1), 'data')
        return _array((*leaf.shape[:-1], shards.width), mesh, *axes, dtype=leaf.dtype)

    return jax.tree.map_with_path(of, tree)


def main() -> None:
    """Prints a table, and as its last line one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--classes', type=int, default=100_000)
    parser.add_argument('--short', action='store_true')
    arguments = parser.parse_args()
    lines: dict[str, Figures] = {}
    print(f'{"a step of":20}{"sent (MB)":>12}{"fewest (MB)":>13}{"ratio":>8}{"memory (MB)":>13}')
    for case in cases(arguments.classes, short=arguments.short):
        line = lines[case.name] = measure(case)
        whole = line.get('memory_whole')
        print(
            f'{case.name:20}{line["sent"] / 1e6:12.3f}{line["fewest"] / 1e6:13.3f}'
            f'{line["ratio"]:8.3f}{line["memory"] / 1e6:13.1f}'
            + (f'  (not split: {whole / 1e6:.1f})' if whole else ''),
            flush=True,
        )
    worst = float(np.max([line['ratio'] for line in lines.values()]))
    print(json.dumps({'devices': DEVICES, 'worst_ratio': worst, 'cases': lines}))


if __name__ == '__main__':
    main()
