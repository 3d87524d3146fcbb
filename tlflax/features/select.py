"""Which source serves a split: images anew in every epoch, or features from the cache."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from tlflax.config.schema import Config
from tlflax.data.augment import mixup, sampling
from tlflax.data.table import ImageTable
from tlflax.features import extract
from tlflax.features.batches import Source
from tlflax.features.sources import ComputedSource, FeatureSource, ImageSource, require_on_device
from tlflax.features.views import Views, fixed_views, joined, needed, training_views
from tlflax.models.classifier import Classifier, Params
from tlflax.utils.errors import UserError
from tlflax.utils.sharding import replicate


@dataclasses.dataclass(frozen=True)
class SourceSelector:
    """Chooses the source of each split: live, or from the feature cache.

    Attributes:
        config: The experiment.
        weights_digest: Of the pretrained backbone.
        frozen: The parameters that never change, replicated over the mesh.
        classifier: The static half of the model.
        mesh: The devices.
        backbone_learns: No features are kept of what changes.
    """

    config: Config
    weights_digest: str
    frozen: Params
    classifier: Classifier
    mesh: Mesh
    backbone_learns: bool
    _programs: list[extract.Compute] = dataclasses.field(default_factory=list, repr=False)

    def train(self, table: ImageTable) -> Source:
        """Returns the source of augmented training examples."""
        config, n = self.config, len(table)
        exact = sampling.outcomes(config.augment) is not None
        if not self._cached(exact, mixed=mixup.active(config.augment)):
            self._say_why_live(exact)
            return self.live(table)
        views = training_views(
            config.augment, seed=config.train.seed, n=n, samples=config.features.views
        )
        if not views.exact:
            logging.info('augmentation is approximated by %d views', config.features.views)
        wanted = self._needed(table, views, config.train.seed)
        return self._from_features(table, views, wanted, 'training')

    def _say_why_live(self, exact: bool) -> None:
        if self.config.features.cache != 'auto' or self.backbone_learns:
            return
        if mixup.active(self.config.augment):
            logging.info(
                'mixed images (augment.mixup, augment.cutmix) have no features of their own to '
                'keep, so the backbone runs on every batch'
            )
        elif not exact:
            logging.info(
                'augmentation has endless outcomes, so the backbone runs on every batch; '
                'features.cache=True would draw from %d views of each image',
                self.config.features.views,
            )

    def train_on_device(self, table: ImageTable, seeds: Sequence[int]) -> dict[int, FeatureSource]:
        """Returns a source for each seed; all share one array of features on the device.

        Raises:
            UserError: See `require_on_device`.
        """
        config, n = self.config, len(table)
        exact = sampling.outcomes(config.augment) is not None
        if not self._cached(exact, mixed=mixup.active(config.augment)):
            require_on_device(ImageSource(table, config))
        sampled = [
            training_views(config.augment, seed=seed, n=n, samples=config.features.views)
            for seed in seeds
        ]
        views = joined(sampled)
        wanted = np.logical_or.reduce(
            [self._needed(table, v, seed) for seed, v in zip(seeds, views, strict=True)], axis=0
        )
        shared = self._from_features(table, views[0], wanted, 'training')
        require_on_device(shared)
        return {
            seed: shared.reordered(seed, v.choose) for seed, v in zip(seeds, views, strict=True)
        }

    def eval(self, table: ImageTable, name: str) -> Source:
        """Returns the source of a split that is not augmented."""
        return self.eval_views(table, name, [sampling.plain(self.config.augment)])[0]

    def eval_views(
        self, table: ImageTable, name: str, views: Sequence[sampling.View]
    ) -> list[Source]:
        """Returns a source for each view of a split's images, see `sampling.test_views`."""
        if not self._cached(exact=True):
            return self.live_views(table, views)
        fixed = fixed_views(views, self.config.augment, len(table))
        wanted = np.ones((len(views), len(table)), bool)
        shared = self._from_features(table, fixed, wanted, name)
        return [shared.viewed(number) for number in range(len(views))]

    def live(self, table: ImageTable) -> Source:
        """Returns a source that reads the images anew and keeps nothing."""
        return self.live_views(table, [None])[0]

    def live_views(self, table: ImageTable, views: Sequence[sampling.View | None]) -> list[Source]:
        """Returns `live` sources, each of which evaluates one view; None: the plain one."""
        images = [ImageSource(table, self.config, view) for view in views]
        if self.backbone_learns:
            return list(images)
        return [ComputedSource(source, self._compute(len(table))) for source in images]

    def _needed(self, table: ImageTable, views: Views, seed: int) -> Bool[np.ndarray, 'views n']:
        """Which view of which image some epoch draws."""
        train, everything = self.config.train, np.arange(len(table))

        def order(epoch: int) -> Int[np.ndarray, ' n']:
            if not train.balanced_sampling:
                return everything  # in whatever order
            return sampling.epoch_order(seed, epoch, table.labels, balanced=True)

        return needed(views, train.epochs, len(table), order)

    def _cached(self, exact: bool, *, mixed: bool = False) -> bool:
        """Says whether features are kept of a split whose views are all known, or `mixed`."""
        wish = self.config.features.cache
        if wish == 'True' and self.backbone_learns:
            raise UserError(
                'features of a backbone that learns cannot be kept',
                where='config.features.cache',
                fix="set it to 'auto', or label all of the backbone 'frozen' in optim.labels",
            )
        if wish == 'True' and mixed:
            raise UserError(
                'features of mixed images cannot be kept: every epoch mixes others',
                where='config.features.cache and config.augment',
                fix="set features.cache to 'auto', or augment.mixup and augment.cutmix to 0",
            )
        if wish == 'False' or mixed or self.backbone_learns or jax.process_count() > 1:
            return False
        return exact or wish == 'True'

    def _compute(self, images: int) -> extract.Compute:
        """Returns the backbone's program, which all splits share."""
        if not self._programs:
            program = extract.backbone_program(
                self.frozen['backbone'],
                self.classifier,
                image_size=self.config.data.image_size,
                images=images,
                mesh=self.mesh,
            )
            self._programs.append(program)
        return self._programs[0]

    def _from_features(
        self,
        table: ImageTable,
        views: Views,
        wanted: Bool[np.ndarray, 'views n'],
        name: str,
    ) -> FeatureSource:
        opened = extract.open_store(
            self.config,
            weights_digest=self.weights_digest,
            preprocess=self.classifier.preprocess,
            backbone=self.frozen['backbone'],
        )
        rows = extract.fill(opened, table, views, wanted, self._compute, self.config, name)
        return FeatureSource(
            opened,
            table,
            rows,
            choose=views.choose,
            batch_size=self.config.train.batch_size,
            seed=self.config.train.seed,
            balanced=self.config.train.balanced_sampling,
            put=functools.partial(replicate, mesh=self.mesh),
        )
