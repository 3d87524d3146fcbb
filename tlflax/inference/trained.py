"""A trained classifier, restored from its checkpoints: evaluation and prediction."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Shaped

from tlflax.config.schema import Config
from tlflax.data.augment import sampling
from tlflax.data.inputs import loose_images
from tlflax.data.inputs.listing import Announced
from tlflax.data.splits.load import load_table, load_val
from tlflax.data.table import ImageTable
from tlflax.features.select import SourceSelector
from tlflax.inference.evaluation import evaluate_views, mean_probabilities, summarize
from tlflax.inference.mistakes import check_writable, write_mistakes
from tlflax.inference.prediction import Images, Prediction
from tlflax.inference.predictor import Predictor, class_probabilities
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier, Params
from tlflax.models.classifier_module import ClassifierModule
from tlflax.models.linear.calibration import temper
from tlflax.train import losses
from tlflax.train.components import build_sources
from tlflax.train.epoch import Evaluation, Runner, evaluate_split
from tlflax.utils.errors import UserError, located
from tlflax.utils.files import JsonObject


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained classifier.

    Attributes:
        config: The run's configuration.
        class_names: In the order of the outputs.
        step: The checkpoint's step.
        weights_digest: The digest of the pretrained backbone.
        split_digests: The digests of the run's images, by split; empty if they were not recorded.
        temperature: The one that fits the predictions of this step for the validation images; None
            if it was not recorded.
        classifier: The static half of the model.
        trainable: The trained parameters and their state, on every device of `mesh`.
        frozen: The other parameters and state.
        mesh: All devices.
    """

    config: Config
    class_names: tuple[str, ...]
    step: int
    weights_digest: str
    split_digests: Mapping[str, str]
    temperature: float | None
    classifier: Classifier
    trainable: Variables = dataclasses.field(repr=False)
    frozen: Variables = dataclasses.field(repr=False)
    mesh: jax.sharding.Mesh

    @property
    def params(self) -> Params:
        """All parameters, {'backbone': ..., 'head': ...}: the first argument of `logits`."""
        return self.variables.params

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
        variables = self.variables._replace(params=params)
        logits, _ = self.classifier(variables, {'image': batch})
        return logits.reshape(*images.shape[:-3], -1)

    @property
    def module(self) -> ClassifierModule:
        """The model as a Flax NNX module, with copies of the parameters; see its class."""
        return ClassifierModule(self.classifier, self.variables)

    @property
    def variables(self) -> Variables:
        """All parameters and state, {'backbone': ..., 'head': ...}."""
        return self.trainable.merge(self.frozen)

    def evaluate(
        self,
        data: str | Path | None = None,
        *,
        tta: bool = False,
        mistakes: str | Path | None = None,
        calibrated: bool = False,
    ) -> JsonObject:
        """Evaluates every image of a data set once.

        Args:
            data: Class folders, or another value of `config.data.val`; None for the validation
                images of the run.
            tta: Average the probabilities over an image's views: its mirror image, and the flips,
                right angles and crops that the run was trained with.
            mistakes: A CSV file to write, with a line for each image that is classified wrongly;
                see `tlflax.inference.mistakes`.
            calibrated: Divide the logits by `temperature`, which changes probabilities and leaves
                every decision as it is.

        Returns:
            `accuracy`, `loss`, `num_examples`, `balanced_accuracy`, `macro_f1`, `per_class`,
            `confusion_matrix`, `intervals` and `step`.

        Raises:
            UserError: The images cannot be read, or their classes are not the classifier's; the
                file cannot be written; or no temperature is known.
        """
        temperature = self.known_temperature() if calibrated else None
        table = self.val_table() if data is None else self._other_table(str(data))
        if mistakes is not None:
            check_writable(mistakes)
        found = self.evaluate_table(table, tta=tta)
        if temperature is not None:
            found = summarize(temper(found.probabilities, temperature), table)
        if mistakes is not None:
            write_mistakes(mistakes, table, found.probabilities)
        return {**found.metrics, 'step': self.step}

    def evaluate_table(self, table: ImageTable, *, tta: bool = False) -> Evaluation:
        """Evaluates the images of a table, which has the classifier's classes; see `evaluate`."""
        if tta:
            views = self.sources.eval_views(table, 'images', self._test_views())
            return evaluate_views(self._runner, self.trainable, views, table)
        source = self.sources.eval(table, 'images')
        return evaluate_split(self._runner, self.trainable, source, table)

    def known_temperature(self) -> float:
        """Returns `temperature`.

        Raises:
            UserError: It was not recorded.
        """
        if self.temperature is None:
            raise UserError(
                f'no temperature of step {self.step} is in result.json',
                where='calibrated',
                fix='it is written when a run ends, for the step that counts; the result of an '
                'older version has none, and `python -m tlflax.train` in a new workdir fits it',
            )
        return self.temperature

    def val_table(self, announced: Announced | None = None) -> ImageTable:
        """Returns the validation images of the run.

        Args:
            announced: See `tlflax.data.inputs.listing.scan`.

        Raises:
            UserError: They cannot be read, or are not those of the run.
        """
        table = load_val(self.config.data, self.class_names, announced)
        if self.split_digests.get('val', table.digest) != table.digest:
            raise UserError(
                'these are not the validation images that the run was evaluated on',
                where=f'config.data.val={self.config.data.val!r}',
                fix='put them back, or evaluate others: `python -m tlflax.evaluate --data=IMAGES`',
            )
        return table

    def _other_table(self, data: str) -> ImageTable:
        with located('--data'):
            return load_table(data, data=self.config.data, class_names=self.class_names)

    def predict_val(
        self, announced: Announced | None = None
    ) -> tuple[ImageTable, Float[np.ndarray, 'n classes']]:
        """Returns the validation images of the run and their class probabilities, float64.

        Args:
            announced: See `tlflax.data.inputs.listing.scan`.

        Raises:
            UserError: The images cannot be read, or are not those of the run.
        """
        table = self.val_table(announced)
        source = self.sources.eval(table, 'images')
        return table, mean_probabilities(self._runner, self.trainable, [source])

    def predict(
        self,
        images: Images,
        *,
        scale: float | None = None,
        tta: bool = False,
        keep_features: bool = False,
        calibrated: bool = False,
    ) -> list[Prediction]:
        """Classifies images, one or many.

        Args:
            images: A path, the bytes of an image file, a Pillow image, or an array of any size,
                u8[h, w, 3], u8[h, w] or u8[h, w, 4] (RGBA); or an array u8[b, h, w, 3] or an
                iterable of all these. A folder stands for the images below it.
            scale: The value of white, for arrays of another type than uint8: 1.0 for values in
                0..1.
            tta: See `evaluate`.
            keep_features: Add the features of image files to the feature cache. Those that it holds
                already are never computed.
            calibrated: See `evaluate`.

        Returns:
            A prediction for each image, in order.

        Raises:
            UserError: The first that is not an image, cannot be read, or has another shape or type;
                or no temperature is known.
        """
        predictions = []
        for one in self.predict_each(
            images, scale=scale, tta=tta, keep_features=keep_features, calibrated=calibrated
        ):
            if isinstance(one, UserError):
                raise one
            predictions.append(one)
        return predictions

    def predict_each(
        self,
        images: Images,
        *,
        scale: float | None = None,
        tta: bool = False,
        keep_features: bool = False,
        calibrated: bool = False,
        no_more: bool = False,
    ) -> Iterator[Prediction | UserError]:
        """Yields predictions as they come, in bounded memory; other arguments as of `predict`.

        Args:
            no_more: See `Predictor.outputs`.

        Yields:
            A prediction, or the error of an image that cannot be classified.
        """
        temperature = self.known_temperature() if calibrated else None
        views = self._test_views() if tta else [sampling.plain(self.config.augment)]
        given = loose_images.find(images, scale=scale)
        for outcome in self._predictor.outputs(
            given, views, keep_features=keep_features, no_more=no_more
        ):
            if isinstance(outcome, UserError):
                yield outcome
            else:
                image, probabilities = outcome
                if temperature is not None:
                    probabilities = temper(probabilities, temperature)
                yield Prediction.of(image.path, probabilities, self.class_names)

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

    @functools.cached_property
    def sources(self) -> SourceSelector:
        """Knows how images are read, and the features that are kept."""
        return build_sources(
            self.config,
            self.weights_digest,
            self.variables.branch('backbone'),
            self.classifier,
            self.mesh,
        )

    @functools.cached_property
    def _runner(self) -> Runner:
        return Runner(
            classifier=self.classifier,
            tx=None,
            frozen=self.frozen,
            mesh=self.mesh,
            seed=self.config.train.seed,
            loss=losses.Loss(),  # nothing is trained any more
        )

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(
            self.classifier, self.variables, self.sources, self.mesh, class_probabilities
        )
