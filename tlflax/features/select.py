"""Which source serves a split: images in every epoch, or features from the cache."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from tlflax.config.schema import AugmentConfig, FeaturesConfig, TrainConfig
from tlflax.data.augment import mixup, sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.table import ImageTable
from tlflax.features import extract, programs, spaces
from tlflax.features.batches import Order, Source, StreamedSource
from tlflax.features.cache import quota
from tlflax.features.cache.store import Store
from tlflax.features.derive import LowerLayers
from tlflax.features.live_sources import ComputedSource, ImageSource
from tlflax.features.sources import (
    CachedFeatures,
    FeatureSource,
    OnDeviceFeatures,
    StreamedFeatures,
    evaluating,
    feature_source,
    reordered,
    require_on_device,
)
from tlflax.features.views import Views, fixed_views, joined, needed, training_views, view_keys
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier, feature_shape
from tlflax.utils.errors import UserError
from tlflax.utils.parallel.mesh import local_mesh, localized


@dataclasses.dataclass(frozen=True)
class SourceSelector:
    """Chooses the source of each split: live, or from the feature cache.

    Attributes:
        image_format: How images are read.
        augment: The augmentations of training.
        features: Whether and how features are kept.
        train_config: Epochs, batch size, seed and balance of the classes.
        weights_digest: The digest of the pretrained backbone.
        backbone: The variables of the backbone; those above the cut do not matter.
        classifier: The static half of the model.
        mesh: The devices.
        first_epoch: The number of the first epoch that is trained, from 0.
    """

    image_format: ImageFormat
    augment: AugmentConfig
    features: FeaturesConfig
    train_config: TrainConfig
    weights_digest: str
    backbone: Variables
    classifier: Classifier
    mesh: Mesh
    first_epoch: int = 0
    _programs: list[programs.Compute] = dataclasses.field(default_factory=list, repr=False)

    def train(self, table: ImageTable) -> Source:
        """Returns the source of augmented training examples."""
        if not self._cached(exact=self._exact, mixed=mixup.active(self.augment)):
            self._say_why_live()
            return self.live(table)
        views = self._training_views(table, self.train_config.seed)
        if not views.exact:
            logging.info('augmentation is approximated by %d views', self.features.views)
        wanted = self._needed(table, views, self.train_config.seed)
        return self._from_features(table, views, wanted, 'training')

    @property
    def _exact(self) -> bool:
        """Whether the augmentation has finitely many outcomes."""
        return sampling.outcomes(self.augment) is not None

    def _say_why_live(self) -> None:
        if self.features.cache != 'auto' or self.classifier.cut_is_image:
            return
        if mixup.active(self.augment):
            logging.info(
                'mixed images (augment.mixup, augment.cutmix) differ in every epoch, so their '
                'features are not kept and the backbone runs on every batch'
            )
        elif not self._exact:
            logging.info(
                'augmentation has endless outcomes, so the backbone runs on every batch; '
                'features.cache=True would draw from %d views of each image',
                self.features.views,
            )

    def train_on_device(
        self, table: ImageTable, seeds: Sequence[int]
    ) -> dict[int, OnDeviceFeatures]:
        """Returns a source for each seed; all share one array of features on the device.

        Raises:
            UserError: See `require_on_device`.
        """
        if not self._cached(exact=self._exact, mixed=mixup.active(self.augment)):
            require_on_device(self._images(table))
        views = joined([self._training_views(table, seed) for seed in seeds])
        wanted = np.logical_or.reduce(
            [self._needed(table, v, seed) for seed, v in zip(seeds, views, strict=True)], axis=0
        )
        shared = require_on_device(self._from_features(table, views[0], wanted, 'training'))
        return {
            seed: reordered(shared, seed, v.choose) for seed, v in zip(seeds, views, strict=True)
        }

    def _training_views(self, table: ImageTable, seed: int) -> Views:
        return training_views(self.augment, seed=seed, n=len(table), samples=self.features.views)

    def eval(self, table: ImageTable, name: str) -> Source:
        """Returns the source of a split that is not augmented."""
        return self.eval_views(table, name, [sampling.plain(self.augment)])[0]

    def eval_streamed(self, table: ImageTable, name: str) -> StreamedSource:
        """Returns what `eval` does, one batch of whose features is in memory at a time."""
        if not self._cached(exact=True):
            return self._live(table, None)
        fixed = fixed_views([sampling.plain(self.augment)], self.augment, len(table))
        return StreamedFeatures(self._kept(table, fixed, np.ones((1, len(table)), bool), name))

    def eval_views(
        self, table: ImageTable, name: str, views: Sequence[sampling.View]
    ) -> list[Source]:
        """Returns a source for each view of a split's images; see `sampling.test_views`."""
        if not self._cached(exact=True):
            return self.live_views(table, views)
        fixed = fixed_views(views, self.augment, len(table))
        wanted = np.ones((len(views), len(table)), bool)
        shared = self._from_features(table, fixed, wanted, name)
        return [evaluating(shared, number) for number in range(len(views))]

    def live(self, table: ImageTable) -> Source:
        """Returns a source that reads the images in every epoch and keeps nothing."""
        return self.live_views(table, [None])[0]

    def live_views(self, table: ImageTable, views: Sequence[sampling.View | None]) -> list[Source]:
        """Returns `live` sources, each of which evaluates one view; None: the plain one."""
        return [self._live(table, view) for view in views]

    def _live(self, table: ImageTable, view: sampling.View | None) -> StreamedSource:
        images = self._images(table, view)
        if self.classifier.cut_is_image:
            return images
        return ComputedSource(images, self.program(len(table)))

    def _images(self, table: ImageTable, view: sampling.View | None = None) -> ImageSource:
        return ImageSource(table, self.image_format, self.augment, self._order, view)

    @property
    def _order(self) -> Order:
        train = self.train_config
        return Order(train.batch_size, train.seed, train.balanced_sampling)

    def _needed(self, table: ImageTable, views: Views, seed: int) -> Bool[np.ndarray, 'views n']:
        """Returns which view of which image is drawn by any epoch."""
        train, everything = self.train_config, np.arange(len(table))

        def order(epoch: int) -> Int[np.ndarray, ' n']:
            if not train.balanced_sampling:
                return everything  # the order does not matter
            return sampling.epoch_order(seed, epoch, table.labels, balanced=True)

        epochs = range(self.first_epoch, self.first_epoch + train.epochs)
        return needed(views, epochs, len(table), order)

    def _cached(self, *, exact: bool, mixed: bool = False) -> bool:
        """Returns whether the features of a split are kept.

        Args:
            exact: Whether the split has finitely many views.
            mixed: Whether its images are mixed with each other.

        Raises:
            UserError: The configuration asks for features that cannot be kept.
        """
        wish = self.features.cache
        if wish == 'True' and self.classifier.cut_is_image:
            raise UserError(
                'the first layer of the backbone is trained, so that no features can be kept',
                where='config.features.cache',
                fix="set it to 'auto', or label the first layers 'frozen' in optim.labels",
            )
        if wish == 'True' and mixed:
            raise UserError(
                'features of mixed images cannot be kept: every epoch mixes others',
                where='config.features.cache and config.augment',
                fix="set features.cache to 'auto', or augment.mixup and augment.cutmix to 0",
            )
        if wish == 'False' or mixed or self.classifier.cut_is_image:
            return False
        return exact or wish == 'True'

    def program(self, images: int = 0) -> programs.Compute:
        """Returns the program of the backbone, which all splits share.

        Args:
            images: About how many are to come; for many, the fastest is measured.
        """
        if not self._programs:
            self._programs.append(
                programs.backbone_program(
                    self._local_backbone,
                    self.classifier,
                    image_size=self.image_format.image_size,
                    images=images,
                    mesh=local_mesh(self.mesh),
                )
            )
        return self._programs[0]

    def few_program(self) -> programs.Compute:
        """Returns the program for a few images, for which no fast one is prepared."""
        if self._programs:
            return self._programs[0]
        mesh = local_mesh(self.mesh)
        return programs.plain_program(self._local_backbone, self.classifier, mesh=mesh)

    def _from_features(
        self, table: ImageTable, views: Views, wanted: Bool[np.ndarray, 'views n'], name: str
    ) -> FeatureSource:
        """Computes the features that are missing, and returns the source of all."""
        return feature_source(self._kept(table, views, wanted, name))

    def _kept(
        self, table: ImageTable, views: Views, wanted: Bool[np.ndarray, 'views n'], name: str
    ) -> CachedFeatures:
        """Computes the features that are missing."""
        store = self.open_store()
        filled = extract.fill(
            store,
            table,
            views,
            wanted,
            self.program,
            lower=self._lower,
            image_format=self.image_format,
            max_bytes=self.features.max_gb * 1e9,
            name=name,
        )
        return CachedFeatures(store, table, filled, views.choose, self._order, self.mesh)

    @property
    def _lower(self) -> LowerLayers:
        return LowerLayers(
            self.image_format,
            self.classifier,
            self.weights_digest,
            self._local_backbone,
            local_mesh(self.mesh),
        )

    @property
    def _local_backbone(self) -> Variables:
        """The backbone, for programs that this process runs alone."""
        return localized(self.backbone, self.mesh)

    @property
    def keeps_features(self) -> bool:
        """Whether features of images that are not augmented are kept."""
        return self._cached(exact=True)

    def kept(self, table: ImageTable) -> Bool[np.ndarray, ' n']:
        """Returns for which images the features that `eval` reads are in the cache."""
        if not self.keeps_features:
            return np.zeros(len(table), bool)
        plain = sampling.describe(sampling.plain(self.augment), self.augment)
        return self.open_store().lookup(view_keys(table.digests, plain)) >= 0

    def reserve(self, store: Store, rows: int) -> None:
        """Makes room for new rows; see `quota.reserve`."""
        need = quota.predict_bytes(rows, store.row_shape, store.dtype.name)
        quota.reserve(store.root, need, self.features.max_gb * 1e9)

    def open_store(self) -> Store:
        """Opens the store of the features of this backbone and image format."""
        space = spaces.describe_space(
            self.image_format, self.classifier, weights_digest=self.weights_digest
        )
        return spaces.open_store(space, self._feature_shape, self.features.dtype)

    @functools.cached_property
    def _feature_shape(self) -> tuple[int, ...]:
        size, model = self.image_format.image_size, self.classifier
        return feature_shape(model.backbone, size, model.cut, model.taps)
