"""A trained classifier, restored from its checkpoints: evaluation and prediction."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Shaped

from tlflax.config.schema import Config
from tlflax.data.augment import sampling
from tlflax.data.splits import loose_files
from tlflax.data.splits.load import load_table, load_val
from tlflax.data.table import ImageTable
from tlflax.features.batches import Source
from tlflax.features.select import SourceSelector
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier, Params
from tlflax.models.classifier_module import ClassifierModule
from tlflax.train import losses, metrics
from tlflax.train.epoch import Runner, evaluate_split
from tlflax.train.setup import build_sources
from tlflax.train.steps import eval_step
from tlflax.utils.errors import UserError, located
from tlflax.utils.files import JsonObject
from tlflax.utils.progress import progress


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: The path of the image; '' for an array.
        label: The most probable class.
        probability: The probability of that class.
        probabilities: The probability of each class, by class name.
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
        class_names: In the order of the outputs.
        step: The checkpoint's step.
        weights_digest: The digest of the pretrained backbone.
        val_digest: The digest of the run's validation images; None if it was not recorded.
        classifier: The static half of the model.
        trainable: The trained parameters and their state, on every device of `mesh`.
        frozen: The other parameters and state.
        mesh: All devices.
    """

    config: Config
    class_names: tuple[str, ...]
    step: int
    weights_digest: str
    val_digest: str | None
    classifier: Classifier
    trainable: Variables = dataclasses.field(repr=False)
    frozen: Variables = dataclasses.field(repr=False)
    mesh: jax.sharding.Mesh

    @property
    def params(self) -> Params:
        """All parameters, {'backbone': ..., 'head': ...}: the first argument of `logits`."""
        return self._variables.params

    def logits(
        self, params: Params, images: Shaped[Array | np.ndarray, '*b h w 3']
    ) -> Float[Array, '*b n']:
        """Returns the logits of RGB images; a pure function for `jit`, `grad` and `vmap`.

        Preprocessing is part of it, dropout and flips are not; statistics are those of training.

        Args:
            params: Like `self.params`.
            images: RGB in 0..255, any real type, of the run's image size, with or without leading
                axes.

        Returns:
            float32, one logit for each of `class_names`.
        """
        batch = jnp.asarray(images).reshape(-1, *images.shape[-3:])
        variables = self._variables._replace(params=params)
        logits, _ = self.classifier(variables, {'image': batch})
        return logits.reshape(*images.shape[:-3], -1)

    @property
    def module(self) -> ClassifierModule:
        """The model as a Flax NNX module, with copies of the parameters; see its class."""
        return ClassifierModule(self.classifier, self._variables)

    @property
    def _variables(self) -> Variables:
        return self.trainable.merge(self.frozen)

    def evaluate(self, data: str | Path | None = None, *, tta: bool = False) -> JsonObject:
        """Evaluates every image of a data set once.

        Args:
            data: Class folders, or another value of `config.data.val`; None for the validation
                images of the run.
            tta: Average the probabilities over an image's views: its mirror image, and the flips,
                right angles and crops that the run was trained with.

        Returns:
            `accuracy`, `loss`, `num_examples`, `balanced_accuracy`, `macro_f1`, `per_class`,
            `confusion_matrix` and `step`.

        Raises:
            UserError: The images cannot be read, or their classes are not the classifier's.
        """
        if data is None:
            table = load_val(self.config.data, self.class_names)
            if self.val_digest not in (None, table.digest):
                raise UserError(
                    'these are not the validation images that the run was evaluated on',
                    where=f'config.data.val={self.config.data.val!r}',
                    fix='put them back, or name the images to evaluate with --data',
                )
        else:
            with located('--data'):
                table = load_table(str(data), data=self.config.data, class_names=self.class_names)
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
        self, images: Sequence[str | Path] | np.ndarray, *, tta: bool = False
    ) -> list[Prediction]:
        """Classifies image files, or RGB arrays of the run's image size.

        Args:
            images: Paths, or arrays u8[b, h, w, 3], which are never cropped.
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
                label=self.class_names[row.argmax()],
                probability=float(row.max()),
                probabilities=dict(zip(self.class_names, row.tolist(), strict=True)),
            )
            for path, row in zip(paths, probabilities, strict=True)
        ]

    def _predict_arrays(self, images: np.ndarray, tta: bool) -> Float[np.ndarray, 'b classes']:
        if images.dtype != np.uint8 or images.shape[1:] != (*self.config.data.image_size, 3):
            height, width = self.config.data.image_size
            raise UserError(
                f'the images are {images.dtype}{list(images.shape)}',
                where='predict',
                fix=f'give uint8[b, {height}, {width}, 3], RGB',
            )
        whole = dataclasses.replace(self.config.augment, crops='')
        parts = []
        for view in sampling.test_views(whole) if tta else [{}]:
            batch = {
                'image': jnp.asarray(sampling.show(images, view)),
                'label': jnp.zeros(len(images), jnp.int32),
                'mask': jnp.ones(len(images), bool),
            }
            parts.append(
                np.asarray(eval_step(self._variables, batch, classifier=self.classifier)[1])
            )
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
        return build_sources(
            self.config, self.weights_digest, self.frozen, self.classifier, self.mesh
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


def evaluate_views(
    runner: Runner, trainable: Variables, views: Sequence[Source], table: ImageTable
) -> JsonObject:
    """Evaluates the mean of the probabilities over several views; see `evaluate_split`."""
    labels = np.asarray(table.labels)
    probabilities = mean_probabilities(runner, trainable, views)
    right = probabilities[np.arange(len(labels)), labels]
    return {
        'loss': float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean()),
        'accuracy': float((probabilities.argmax(-1) == labels).mean()),
        'num_examples': len(labels),
        **metrics.summary(labels, probabilities, table.class_names),
    }


def mean_probabilities(
    runner: Runner, trainable: Variables, views: Sequence[Source]
) -> Float[np.ndarray, 'n classes']:
    """Returns the mean of each image's class probabilities over its views, float64."""
    parts: list[Float[np.ndarray, 'n classes']] = []
    with progress('views', sum(source.num_examples for source in views)) as tick:
        for source in views:
            parts.append(runner.evaluate(trainable, source, progress=tick).probabilities)
    return np.stack(parts).astype(np.float64).mean(0)
