"""Restores a trained classifier from the checkpoints of its run."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax

from tlflax.config import parse
from tlflax.config.paths import started_in
from tlflax.config.phases import expand
from tlflax.config.schema import Config
from tlflax.inference.trained import Trained
from tlflax.models.backbones import find
from tlflax.models.base.modules import Variables
from tlflax.models.weights.preprocess import PREPROCESS
from tlflax.train import components, setup
from tlflax.train.optim import phases
from tlflax.utils import trees
from tlflax.utils.errors import UserError
from tlflax.utils.files import is_signed
from tlflax.utils.parallel.mesh import default_mesh, replicate
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.folders import checkpoint_folder
from tlflax.workdir.mirror.read import fetch_step, fetched


def load(workdir: str | Path, step: str | None = None) -> Trained:
    """Restores a trained classifier on the devices of this machine.

    Args:
        workdir: The folder of a run, or its URL in an object store.
        step: 'best', 'last' or the number of a saved step; None: the one that `result.json` is
            about, which `config.early_stopping.restore_best` decides.

    Raises:
        UserError: The checkpoint or its pretrained weights do not exist.
    """
    folder = fetched(workdir)
    with Checkpoints(checkpoint_folder(folder), read_only=True) as saved:
        number = saved.find(step or _counts(saved))
        fetch_step(saved.folder, number)
        meta = saved.meta(number)
        raw, class_names = parse.resolve(parse.filled(meta['config'])), tuple(meta['classes'])
        config = setup.configure(parse.to_dict(started_in(raw, meta.get('folder', ''))))
        _check_code(config, meta.get('code', {}))
        phase = meta['position'].get('phase', 0)
        like = _abstract(config, len(class_names), phase)
        trainable = saved.evaluated(number, like.trainable)
        include = config.checkpoint.include_backbone
        kept = phases.saved(like.frozen, like.changed, include_backbone=include)
        frozen = saved.frozen(number, kept)
    if any(missing := phases.without(like.frozen, frozen).branch('backbone')):
        loaded = _load_frozen(config, meta['weights_digest'], missing)
        frozen = frozen.merge(components.joined(backbone=loaded))
    config = expand(config)[phase]
    classifier = components.build_classifier(
        config, like.trainable.params, len(class_names), _preprocess(meta['preprocess'], number)
    )
    changed = phases.only(frozen, like.changed)
    digest = phases.features_digest(
        meta['weights_digest'], changed, classifier.backbone, classifier.cut
    )
    mesh = default_mesh()
    return Trained(
        config=config,
        class_names=class_names,
        step=number,
        weights_digest=digest,
        split_digests=meta.get('split_digests', {}),
        temperature=_temperature(folder / 'result.json', number),
        classifier=classifier,
        trainable=replicate(trainable, mesh),
        frozen=replicate(frozen, mesh),
        mesh=mesh,
    )


def _counts(saved: Checkpoints) -> str:
    """Returns the checkpoint that counts, 'best' or 'last'."""
    return parse.resolve(saved.meta(saved.find('last'))['config']).early_stopping.counts


def _check_code(config: Config, started: Mapping[str, str]) -> None:
    """Checks that the Python files that define the model are those of the run."""
    for key, digest in components.code_digests(config).items():
        if started.get(key) != digest:
            raise UserError(
                f'the file has changed since the run ({digest[:16]}, not '
                f'{started.get(key, "")[:16]})',
                where=f'config.{key}',
                fix='put the original file back',
            )


def _preprocess(name: str, step: int) -> str:
    """Returns the name of a preprocessing, checked."""
    if name not in PREPROCESS:
        raise UserError(
            f'it names the preprocessing {name!r}, and there is {", ".join(PREPROCESS)}',
            where=f'checkpoint {step}',
            fix='it is damaged, or of another version of tlflax',
        )
    return name


def _temperature(path: Path, step: int) -> float | None:
    """Returns the temperature of a step, if a result tells it; it is optional, and so is the file.

    A damaged file is said where the temperature is needed.
    """
    try:
        result = json.loads(path.read_bytes())
        if is_signed(result) and result['step'] == step:
            return float(result['calibration']['temperature'])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        pass
    return None


def _abstract(config: Config, num_classes: int, phase: int) -> phases.Parts:
    """Returns the shapes of trainable and frozen variables in a phase, from the configuration."""
    backbone = find(config.model.backbone).shapes(config.features.layer)
    head = jax.eval_shape(lambda: components.init_head(config, num_classes))
    variables = components.joined(backbone=backbone, head=head)
    return phases.parts([one.optim for one in expand(config)], variables, phase)


def _load_frozen(config: Config, digest: str, like: Variables) -> Variables:
    """Loads the frozen backbone and checks that its digest is that of the run."""
    pretrained = components.load_backbone(config)
    if pretrained.digest != digest:
        raise UserError(
            f'these weights ({pretrained.digest[:16]}) are not those of the run ({digest[:16]})',
            where=f'config.weights.source={config.weights.source!r}',
            fix='put the original file back',
        )
    return Variables(*map(trees.like, pretrained.variables, like))
