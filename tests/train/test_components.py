"""The parts of a model: a backbone is read once where a command says so."""

from helpers import make_folders, small_config

from tlflax.train import components, setup


def test_a_backbone_is_read_once_within_the_context(tmp_path):
    make_folders(tmp_path / 'Train', 2)
    make_folders(tmp_path / 'Test', 2)
    config, other = (
        setup.configure(small_config(tmp_path, train__seed=seed, weights__source='random'))
        for seed in (0, 1)
    )
    with components.backbones_kept():
        first = components.load_backbone(config)
        with components.backbones_kept():
            assert components.load_backbone(config) is first
        assert components.load_backbone(config) is first
        assert components.load_backbone(other).digest != first.digest
    again = components.load_backbone(config)
    assert again is not first
    assert again.digest == first.digest
