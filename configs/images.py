"""Any folder of images: the best head by cross-validation on frozen VGG16 features.

    python -m tlflax.train --config=configs/images.py --workdir=runs/mine \\
        --config.data.train=photos/Train --config.data.val=photos/Test

How images are resized, whether mirror images help, and an ensemble of linear models, neighbors and
small networks on the features are chosen by 5-fold cross-validation on the training images alone
(docs/auto.md). The backbone takes 1 minute for each 1,000 images on two cores, once, and as much
for what is compared; the choice takes 1 to 2.

All other keys are for another head, such as `--config.model.head=mlp`, which is trained by steps:
about 1,500 of them, however many images there are, at a rate that falls to zero. The last epoch
counts. So validation images choose nothing here either, and on small sets the last epoch is better
than one that they choose (docs/results.md).
"""

from ml_collections import ConfigDict

from tlflax.config import default_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = default_config()
    config.data.train, config.data.val = 'photos/Train', 'photos/Test'
    config.data.resize = 'auto'
    config.model.head = 'auto'
    config.train.batch_size = config.train.epochs = 0  # chosen from the number of images
    config.optim.learning_rate, config.optim.schedule = 3e-4, 'cosine'
    config.early_stopping.monitor = ''
    return config
