"""A trained classifier, restored from its checkpoints alone: evaluation and prediction."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from tlflax.config.parse import resolve
from tlflax.config.schema import Config
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.splits import load as loading
from tlflax.data.splits import loose_files
from tlflax.data.table import ImageTable
from tlflax.features.batches import Source
from tlflax.features.select import SourceSelector
from tlflax.models.classifier import Classifier, Params
from tlflax.models.vgg import network
from tlflax.train import experiment, losses, metrics
from tlflax.train.epoch import Runner, evaluate_split
from tlflax.train.steps import eval_step
from tlflax.utils import trees
from tlflax.utils.errors import UserError
from tlflax.utils.progress import progress
from tlflax.utils.sharding import default_mesh, replicate
from tlflax.workdir.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the classifier says of one image.

    Attributes:
        path: The image's file; '' for an array.
        label: The most probable class.
        probability: Of that class.
        probabilities: Class name to probability.
    """

    path: str
    label: str
    probability: float
    probabilities: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained classifier.

    Attributes:
        config: The run's configuration.
        classes: Class names, in the order of the outputs.
        step: The checkpoint's step.
        weights_digest: Of the pretrained backbone.
        classifier: The static half of the model.
        trainable: What was learned, on every device of `mesh`.
        frozen: What was not.
        mesh: All devices.
    """

    config: Config
    classes: tuple[str, ...]
    step: int
    weights_digest: str
    classifier: Classifier
    trainable: Params = dataclasses.field(repr=False)
    frozen: Params = dataclasses.field(repr=False)
    mesh: jax.sharding.Mesh

    def evaluate(self, data: str | Path | None = None, *, tta: bool = False) -> dict[str, Any]:
        """Evaluates every image of a folder once.

        Args:
            data: Class folders, or whatever `config.data.val` may be; the run's own validation
                images if None.
            tta: Take the mean of the probabilities over an image's views: its mirror image, and
                the flips, right angles and crops that the run was trained with.

        Returns:
            `accuracy`, `loss`, `num_examples`, `balanced_accuracy`, `macro_f1`, `per_class`,
            `confusion_matrix` and `step`.

        Raises:
            UserError: The folder is not fit, or its classes are not the classifier's.
        """
        if data is None:
            table = loading.load_val(self.config.data, self.classes)
        else:
            table = loading.load_table(
                str(data), key='--data', data=self.config.data, classes=self.classes
            )
        this_runner = self._runner()
        sources = self._sources()
        if tta:
            views = sources.eval_views(table, 'images', self._test_views())
            result = evaluate_views(this_runner, self.trainable, views, table)
        else:
            source = sources.eval(table, 'images')
            result = evaluate_split(this_runner, self.trainable, source, table)
        return {**result, 'step': self.step}

    def predict(
        self, images: Sequence[str | Path] | UInt8[np.ndarray, 'b h w 3'], *, tta: bool = False
    ) -> list[Prediction]:
        """Classifies image files, or RGB arrays of the run's image size.

        Args:
            images: Paths, or arrays, which are never cropped.
            tta: See `evaluate`.

        Raises:
            UserError: A file is not an image, or the arrays have another shape or type.
        """
        if isinstance(images, np.ndarray):
            paths = [''] * len(images)
            probabilities = self._predict_arrays(images, tta)
        else:
            paths = [str(path) for path in images]
            table, faults = loose_files.table(paths, max_pixels=self.config.data.max_pixels)
            if faults:
                raise UserError(faults[0])
            this_runner = self._runner()
            shown = self._test_views() if tta else [sampling.plain(self.config.augment)]
            views = self._sources().live_views(table, shown)
            probabilities = mean_probabilities(this_runner, self.trainable, views)
        return [
            Prediction(
                path=path,
                label=self.classes[row.argmax()],
                probability=float(row.max()),
                probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
            )
            for path, row in zip(paths, probabilities, strict=True)
        ]

    def _predict_arrays(
        self, images: UInt8[np.ndarray, 'b h w 3'], tta: bool
    ) -> Float[np.ndarray, 'b classes']:
        if images.dtype != np.uint8 or images.shape[1:] != (*self.config.data.image_size, 3):
            height, width = self.config.data.image_size
            raise UserError(
                f'the images are {images.dtype}{list(images.shape)}',
                where='predict',
                fix=f'give uint8[b, {height}, {width}, 3], RGB',
            )
        params = trees.merge(self.trainable, self.frozen)
        whole = dataclasses.replace(self.config.augment, crops='')
        parts = []
        for view in sampling.test_views(whole) if tta else [{}]:
            batch = {
                'image': jnp.asarray(sampling.show(images, view)),
                'label': jnp.zeros(len(images), jnp.int32),
                'mask': jnp.ones(len(images), bool),
            }
            parts.append(np.asarray(eval_step(params, batch, classifier=self.classifier)[1]))
        return np.mean(parts, axis=0)

    def _test_views(self) -> list[sampling.View]:
        augment = self.config.augment
        views = sampling.test_views(augment)
        mirrored = augment.horizontal_flip or augment.crops == 'ten'
        logging.info(
            'test-time augmentation: the mean over %d views of each image%s',
            len(views),
            '' if mirrored else ', mirrored ones too, which training has not seen',
        )
        return views

    def _sources(self) -> SourceSelector:
        return SourceSelector(
            image_format=ImageFormat.of(self.config.data),
            augment=self.config.augment,
            features=self.config.features,
            train_config=self.config.train,
            weights_digest=self.weights_digest,
            frozen=self.frozen,
            classifier=self.classifier,
            mesh=self.mesh,
            backbone_learns='backbone' in self.trainable,
        )

    def _runner(self) -> Runner:
        return Runner(
            classifier=self.classifier,
            tx=None,
            frozen=self.frozen,
            mesh=self.mesh,
            seed=self.config.train.seed,
            loss=losses.Loss(),  # nothing is trained any more
        )


def load(workdir: str | Path, step: str = 'best') -> Trained:
    """Restores a trained classifier on whatever devices there are.

    Args:
        workdir: The folder of a run.
        step: 'best', 'last' or the number of a saved step.

    Raises:
        UserError: There is no such checkpoint, or its weights can no longer be had.
    """
    with Checkpoints(_checkpoint_folder(Path(workdir)), read_only=True) as saved:
        number = saved.find(step)
        meta = saved.meta(number)
        config, classes = resolve(meta['config']), tuple(meta['classes'])
        trainable_like, frozen_like = _abstract(config, len(classes))
        trainable = saved.params(number, trainable_like)
        copied = dict(frozen_like)
        if not config.checkpoint.include_backbone:
            copied.pop('backbone', None)
        frozen = saved.frozen(number, copied) or {}
    if 'backbone' in frozen_like and 'backbone' not in frozen:
        frozen['backbone'] = _load_frozen(config, meta['weights_digest'], frozen_like['backbone'])
    backbone = trees.merge(trainable, frozen)['backbone']
    classifier = experiment.build_classifier(config, backbone, len(classes), meta['preprocess'])
    mesh = default_mesh()
    return Trained(
        config=config,
        classes=classes,
        step=number,
        weights_digest=meta['weights_digest'],
        classifier=classifier,
        trainable=replicate(trainable, mesh),
        frozen=replicate(frozen, mesh),
        mesh=mesh,
    )


def evaluate_views(
    runner: Runner, trainable: Params, views: Sequence[Source], table: ImageTable
) -> dict[str, Any]:
    """Evaluates the mean of the probabilities over several views; see `evaluate_split`."""
    labels = np.asarray(table.labels)
    probabilities = mean_probabilities(runner, trainable, views)
    right = probabilities[np.arange(len(labels)), labels]
    return {
        'loss': float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean()),
        'accuracy': float((probabilities.argmax(-1) == labels).mean()),
        'num_examples': len(labels),
        **metrics.summary(labels, probabilities, table.classes),
    }


def mean_probabilities(
    runner: Runner, trainable: Params, views: Sequence[Source]
) -> Float[np.ndarray, 'n classes']:
    """Returns the mean of each image's class probabilities over its views, float64."""
    parts: list[Float[np.ndarray, 'n classes']] = []
    with progress('views', sum(source.num_examples for source in views)) as tick:
        for source in views:
            parts.append(runner.evaluate(trainable, source, progress=tick).probabilities)
    return np.stack(parts).astype(np.float64).mean(0)


def _checkpoint_folder(workdir: Path) -> Path:
    if (workdir / '_CHECKPOINT_METADATA').exists():
        raise UserError(
            'this is one checkpoint, not a workdir',
            where=str(workdir),
            fix='give the folder two levels up',
        )
    return workdir / 'checkpoints'


def _abstract(config: Config, classes: int) -> tuple[Params, Params]:
    """The shapes of trainable and frozen parameters, from the configuration alone."""
    flat = network.shapes(top=config.features.layer in network.TOP)
    backbone = trees.unflatten(
        {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in flat.items()}
    )
    head = jax.eval_shape(functools.partial(experiment.init_head, config, backbone, classes))
    params = {'backbone': backbone, 'head': head}
    return trees.partition(params, trees.label_tree(params, config.optim.labels))


def _load_frozen(config: Config, digest: str, like: Params) -> Params:
    """Loads the frozen backbone by name and checks that it is the one of the run."""
    pretrained = experiment.load_backbone(config)
    if pretrained.digest != digest:
        raise UserError(
            f'these weights ({pretrained.digest[:16]}) are not those of the run ({digest[:16]})',
            where=f'config.weights.source={config.weights.source!r}',
            fix='put the original file back',
        )
    flat = trees.flatten(pretrained.params)
    return trees.unflatten({path: flat[path] for path in trees.flatten(like)})
