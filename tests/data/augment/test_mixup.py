"""MixUp and CutMix: the papers' numbers, the same for every batch size, and batches to match."""

import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import make_folders, picture, scan_folder, small_config
from PIL import Image
from scipy import stats

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import apply
from tlflax.data.augment import mixup as mixing
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import tf_data
from tlflax.features import live_sources
from tlflax.train import setup, train_and_evaluate
from tlflax.utils.errors import UserError

SIZE = (24, 32)
FORMAT = {'image_format': ImageFormat(SIZE), 'batch_size': 4}
MIXUP = AugmentConfig(mixup=0.4, rotation_range=10.0)
CUTMIX = AugmentConfig(cutmix=1.0, random_resized_crop=True)
BOTH = AugmentConfig(mixup=0.2, cutmix=1.0, mix_probability=0.7)


@pytest.mark.parametrize('alpha', [0.05, 0.2, 0.4, 1.0, 1.7, 8.0, 300.0])
def test_quantiles_are_scipys(alpha):
    uniform = np.concatenate([np.linspace(0, 1, 1001)[1:-1], [1e-6, 1 - 1e-6]])
    expected = stats.beta(alpha, alpha).ppf(uniform)
    np.testing.assert_allclose(mixing.beta_quantile(uniform, alpha), expected, atol=2e-6)


def test_parts_are_distributed_as_in_the_papers():
    mixup = mixing.draw(MIXUP, 0, 0, 5000, SIZE)
    assert stats.kstest(mixup.mix, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert not mixup.box.any()
    cutmix = mixing.draw(CUTMIX, 0, 0, 5000, (224, 224))
    area = cutmix.box[:, 2] * cutmix.box[:, 3] / 224**2
    np.testing.assert_allclose(cutmix.mix, 1 - area, rtol=1e-6)
    assert cutmix.box.min() >= 0
    assert (cutmix.box[:, :2] + cutmix.box[:, 2:]).max() <= 224
    # A box is cut off at the edges, so that more than half of the image is left.
    assert 0.6 < cutmix.mix.mean() < 0.75


def rand_bbox(height, width, keep, row, column):
    """The paper's code, with its random center given."""
    ratio = np.sqrt(1.0 - keep)
    half_w, half_h = int(width * ratio) // 2, int(height * ratio) // 2
    left, top = np.clip(column - half_w, 0, width), np.clip(row - half_h, 0, height)
    right, bottom = np.clip(column + half_w, 0, width), np.clip(row + half_h, 0, height)
    return top, left, bottom - top, right - left


def test_boxes_are_the_papers():
    rng = np.random.default_rng(0)
    keep, center = rng.random(200), rng.random((200, 2))
    keep[:2] = 0, 1
    boxes = mixing.cutmix_boxes(keep, center, (31, 50))
    for part, (down, across), box in zip(keep, center, boxes, strict=True):
        assert tuple(box) == rand_bbox(31, 50, part, int(31 * down), int(50 * across))


def test_both_kinds_share_the_mixed_part():
    both = mixing.draw(BOTH, 0, 0, 10000, (224, 224))
    cut = (both.box[:, 2] * both.box[:, 3] > 0).mean()
    plain = ((both.mix == 1) & ~both.box.any(1)).mean()
    assert abs(cut - 0.35) < 0.02
    assert abs(plain - 0.3) < 0.02
    assert sorted(both.partner) == list(range(10000))
    other = mixing.draw(BOTH, 0, 1, 10000, (224, 224))
    assert (both.partner != other.partner).mean() > 0.99
    assert mixing.draw(AugmentConfig(mixup=1.0, mix_probability=0.0), 0, 0, 5, SIZE) is None
    assert mixing.draw(AugmentConfig(), 0, 0, 5, SIZE) is None


def test_pixels_are_mixed_as_written():
    one, two = picture(SIZE, 1), picture(SIZE, 2)

    def mix(part, box):
        made = apply.mix(
            tf.constant(one), lambda: tf.constant(two), tf.constant(np.float32(part)),
            tf.constant(box),
        )  # fmt: skip
        return made.numpy()

    for part in (0.0, 0.31415, 0.998, 0.9981, 1.0):
        expected = np.floor(part * one + (1 - part) * two + 0.5)
        # Products of float32 may round the other way at a half.
        assert abs(mix(part, [0, 0, 0, 0]) - expected).max() <= (0 if part in (0, 1) else 1)
        assert (mix(part, [0, 0, 0, 0]) == expected).mean() > 0.99
    expected = one.copy()
    expected[3:10, 20:32] = two[3:10, 20:32]
    np.testing.assert_array_equal(mix(0.5, [3, 20, 7, 12]), expected)


@pytest.fixture
def photos(tmp_path):
    for i in range(9):
        path = tmp_path / 'photos' / 'xyz'[i % 3] / f'{i}.{"jpg" if i % 2 else "png"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture((20 + i, 50 - 3 * i), i)).save(path)
    return scan_folder(tmp_path / 'photos')


def by_row(batches):
    """Everything but the image's place in its batch, by row."""
    return {
        int(row): {name: batch[name][i] for name in batch if name != 'mask'}
        for batch in batches
        for i, row in enumerate(batch['index'])
        if row >= 0
    }


def epoch(photos, settings, seed=5, epoch=1, **changes):
    return tf_data.train_epoch(photos, augment=settings, seed=seed, epoch=epoch, **FORMAT | changes)


@pytest.mark.parametrize('settings', [MIXUP, CUTMIX, BOTH], ids=['mixup', 'cutmix', 'both'])
def test_batches_are_mixtures_of_what_would_be_seen_unmixed(photos, settings):
    """The image and its partner are those of the same epoch without mixing, label for label."""
    unmixed = {'mixup': 0.0, 'cutmix': 0.0}
    plain = by_row(epoch(photos, AugmentConfig(**{**vars(settings), **unmixed})))
    mixed = mixing.draw(settings, 5, 1, 9, SIZE)
    for row, got in by_row(epoch(photos, settings)).items():
        partner, part, box = mixed.partner[row], mixed.mix[row], mixed.box[row]
        assert got['mix'] == part
        assert got['mix_label'] == photos.labels[partner]
        assert got['label'] == photos.labels[row]
        one, two = (plain[r]['image'].astype(np.float64) for r in (row, int(partner)))
        expected = np.floor(part * one + (1 - part) * two + 0.5)
        if box[2] * box[3]:
            top, left, height, width = box
            expected = one
            expected[top : top + height, left : left + width] = two[
                top : top + height, left : left + width
            ]
        assert abs(got['image'] - expected).max() <= 1


@pytest.mark.parametrize('settings', [MIXUP, CUTMIX, BOTH], ids=['mixup', 'cutmix', 'both'])
def test_mixing_depends_on_seed_epoch_and_row_alone(photos, settings, monkeypatch):
    monkeypatch.setattr(tf_data.cpu, 'cores', lambda: 1)
    first = by_row(epoch(photos, settings))
    monkeypatch.setattr(tf_data.cpu, 'cores', lambda: 4)
    whole = list(epoch(photos, settings, batch_size=8))
    shards = [
        batch
        for process in range(2)
        for batch in epoch(photos, settings, batch_size=8, process_index=process, process_count=2)
    ]
    resumed = list(epoch(photos, settings, start_step=1))
    for again in (by_row(whole), by_row(shards), by_row(resumed)):
        for row, values in again.items():
            for name, value in values.items():
                np.testing.assert_array_equal(first[row][name], value, err_msg=name)
    assert len(by_row(whole)) == len(by_row(shards)) == 9
    assert len(by_row(resumed)) == 5
    for other in (
        by_row(epoch(photos, settings, epoch=2)),
        by_row(epoch(photos, settings, seed=6)),
    ):
        assert any((other[row]['image'] != first[row]['image']).any() for row in range(9))
    padding = ~whole[-1]['mask']
    assert whole[-1]['mix'][padding].tolist() == [1] * 7
    assert whole[-1]['mix_label'][padding].tolist() == [0] * 7
    assert {key: (value.dtype.name, value.shape) for key, value in whole[0].items()} == {
        'image': ('uint8', (8, *SIZE, 3)),
        'label': ('int32', (8,)),
        'mask': ('bool', (8,)),
        'index': ('int64', (8,)),
        'mix_label': ('int32', (8,)),
        'mix': ('float32', (8,)),
    }


def test_a_partner_that_cannot_be_decoded_is_named(photos):
    settings = AugmentConfig(mixup=1.0)
    mixed = mixing.draw(settings, 5, 1, 9, SIZE)
    batches = list(epoch(photos, settings, batch_size=1))
    first = int(batches[0]['index'][0])
    partner = int(mixed.partner[first])
    assert partner != first
    with open(photos.paths[partner], 'wb') as file:
        file.write(b'hello')
    with pytest.raises(UserError) as caught:
        next(epoch(photos, settings, batch_size=1))
    assert caught.value.where == photos.paths[partner]


def test_mixed_images_run_live_and_say_so(tmp_path, caplog):
    caplog.set_level('INFO')
    make_folders(tmp_path / 'd' / 'Train', 4, seed=1)
    make_folders(tmp_path / 'd' / 'Test', 2, seed=2)
    config = small_config(tmp_path / 'd', augment__mixup=0.2)
    prepared = setup.build(setup.configure(config), setup.load(setup.configure(config)))
    source = prepared.sources.train(prepared.splits.train)
    assert isinstance(source, live_sources.ComputedSource)
    assert 'mixed images' in caplog.text
    assert 'endless' not in caplog.text
    batch = next(iter(source.train_batches(0, 0)))
    assert batch['mix'].shape == batch['mix_label'].shape == (8,)
    with pytest.raises(UserError, match='mixup and cutmix cannot be kept'):
        prepared.sources.train_on_device(prepared.splits.train, [0])
    config.features.cache = True
    prepared = setup.build(setup.configure(config), setup.load(setup.configure(config)))
    with pytest.raises(UserError, match='features of mixed images cannot be kept'):
        prepared.sources.train(prepared.splits.train)


def test_whole_run_with_mixed_labels_learns_and_counts_shares(tmp_path):
    make_folders(tmp_path / 'd' / 'Train', 6, seed=1)
    make_folders(tmp_path / 'd' / 'Test', 3, seed=2)
    config = small_config(tmp_path / 'd', augment__mixup=1.0, train__epochs=3)
    result = train_and_evaluate(config, tmp_path / 'w')
    lines = (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert result['val']['accuracy'] > 0.7
    # Of a mixture, an answer is right by its share, so the sum is no whole number of images.
    shares = [record['train_accuracy'] * 18 for record in records]
    assert max(abs(share - round(share)) for share in shares) > 1e-3
    # No answer has the cross-entropy of a mixture's own entropy or less.
    assert records[-1]['train_loss'] > 0.1
