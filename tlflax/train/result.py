"""The result of a run: the metrics of the checkpoint that counts, and of its calibration."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from tlflax.data.splits.stratify import fold_numbers
from tlflax.data.table import ImageTable
from tlflax.features.batches import Source
from tlflax.models.base.modules import Variables
from tlflax.models.linear.calibration import cross_entropy, cross_fit
from tlflax.train.epoch import evaluate_split
from tlflax.train.loop import Fit
from tlflax.train.metrics.counts import VAL_METRICS
from tlflax.train.metrics.scores import calibration_error
from tlflax.train.metrics.table import format_table
from tlflax.train.position import Position, Record
from tlflax.train.setup import Run
from tlflax.utils.files import JsonObject
from tlflax.workdir import provenance
from tlflax.workdir.loggers import pictures
from tlflax.workdir.loggers.base import Pictures

_LONG = 60.0  # seconds of a run whose augmentation is drawn in any case
_FOLDS = 5  # of the validation images, for the quality of the temperature


def evaluate(fit: Fit, position: Position, run: Run, trained: Variables) -> JsonObject:
    """Evaluates the checkpoint that counts and returns the contents of result.json.

    Args:
        fit: The training.
        position: Where it ended.
        run: The phase of the checkpoint.
        trained: What that had trained.
    """
    checkpoints = fit.checkpoints
    best = checkpoints.meta(checkpoints.find('best'))['record']
    trained = run.runner.place(trained)
    source = fit.val if run is fit.run else run.sources.eval(run.splits.val, 'validation')
    val, probabilities = evaluate_split(run.runner, trained, source, run.splits.val)
    test = None
    if run.splits.test is not None:
        source = run.sources.eval(run.splits.test, 'test')
        test = evaluate_split(run.runner, trained, source, run.splits.test).metrics
    _show(fit, run, val, probabilities)
    return {
        'best_epoch': best['epoch'],
        'best_val_accuracy': best['val_accuracy'],
        'best_val_loss': best['val_loss'],
        'stopped_early': position.stopping.stopped,
        'epochs_run': position.epoch,
        'step': checkpoints.find(run.config.early_stopping.counts),
        'wall_seconds': fit.clock(),
        **provenance.peak_memory(),
        'weights_digest': run.pretrained.digest,
        'data_digest': run.splits.digest,
        'val': val,
        'test': test,
        'calibration': calibrate(probabilities, run.splits.val),
        'versions': provenance.versions(),
    }


def _show(
    fit: Fit, run: Run, val: JsonObject, probabilities: Float[np.ndarray, 'n num_classes']
) -> None:
    """Gives the loggers pictures of what was predicted, and of how training images were shown."""
    loggers, sources, splits = fit.workdir.loggers, run.sources, run.splits
    matrix = val['confusion_matrix']
    counts = np.array(matrix, int) if isinstance(matrix, list) else None
    # The augmentation takes a second, and TensorFlow, which a run from the cache does without.
    whole = fit.clock() > _LONG or bool({'wandb', 'mlflow'} & {*loggers.names})

    def draw() -> Pictures:
        form, augment, seed = sources.image_format, sources.augment, run.config.train.seed
        drawn = pictures.of_predictions(splits.val, probabilities, counts, form)
        more = pictures.of_augmentation(splits.train, form, augment, seed) if whole else {}
        return {**drawn, **more}

    loggers.pictures(draw)


def calibrate(
    probabilities: Float[np.ndarray, 'n num_classes'], table: ImageTable
) -> JsonObject | None:
    """Fits the temperature of predictions (Guo et al. 2017) and measures what it does for them.

    Args:
        probabilities: Of images that had no part in training.
        table: The images. Copies and groups are not divided between fitting and measuring.

    Returns:
        `temperature`, fitted to all images; and of `expected_calibration_error` and `loss` the
        values `before` and `after`, the latter with each fifth of the images at the temperature of
        the others; None where it is not known. None if a probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        return None
    label = np.asarray(table.labels)
    one_class = dataclasses.replace(table, labels=np.zeros_like(label), class_names=('',))
    fitted = cross_fit(probabilities, label, fold_numbers(one_class, _FOLDS))
    own = label[fitted.rows]
    return {
        'temperature': fitted.temperature,
        **{
            name: {
                'before': measure(label, probabilities),
                'after': measure(own, fitted.probabilities) if len(own) else None,
            }
            for name, measure in (
                ('expected_calibration_error', calibration_error),
                ('loss', cross_entropy),
            )
        },
    }


def format_result(result: JsonObject) -> str:
    """Shows for people what result.json says."""
    parts = [format_table(result['val'])]
    if 'calibration' in result:  # runs of older versions have none
        parts.append(format_calibration(result['calibration']))
    if result['test']:
        parts.append(f'test split\n{format_table(result["test"])}')
    return '\n'.join(parts)


def format_calibration(calibration: JsonObject | None) -> str:
    """Shows what `calibrate` returns in a line."""
    if calibration is None:
        return 'calibrated: no temperature fits probabilities that are not finite'
    error, loss = (
        ' to '.join('-' if value is None else f'{value:.4f}' for value in calibration[key].values())
        for key in ('expected_calibration_error', 'loss')
    )
    return (
        f'calibrated by temperature {calibration["temperature"]:.4g}: calibration error {error}, '
        f'loss {loss}'
    )


def assess(run: Run, variables: Variables, train: Source, val: Source) -> Record:
    """Returns the metrics that a record has of a head that was fitted at once, without steps."""
    variables = run.runner.place(variables)
    on_train, on_val = (run.runner.evaluate(variables, split).metrics for split in (train, val))
    return {
        'train_loss': on_train['loss'],
        'train_accuracy': on_train['accuracy'],
        **{f'val_{name}': on_val[name] for name in VAL_METRICS},
        'learning_rate': math.nan,
    }
