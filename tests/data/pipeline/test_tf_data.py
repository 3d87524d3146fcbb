"""The image pipeline: the pixels of Pillow, the order asked for, nothing lost, nothing twice."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import TESTS, run_new_python, scan_folder
from PIL import Image, ImageOps

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import crops, tf_data
from tlflax.data.pipeline import resize as resizing
from tlflax.utils.errors import UserError

SIZE = (24, 32)
FORMAT = {'image_format': ImageFormat(SIZE), 'batch_size': 4}
COUNT = 10


def picture(size, seed):
    """Smooth colors and some noise, as a Pillow image of `size` (height, width)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    smooth = np.asarray(small.resize(size[::-1], Image.BICUBIC), int)
    return Image.fromarray(
        np.clip(smooth + rng.integers(-25, 26, (*size, 3)), 0, 255).astype(np.uint8)
    )


def write_formats(root):
    """One class folder `a` of every kind of file, and a second class."""
    (root / 'a').mkdir(parents=True)
    (root / 'b').mkdir()
    image = picture((61, 47), 0)
    oriented = Image.Exif()
    oriented[0x0112] = 6
    image.save(root / 'a/baseline.jpg', quality=92)
    image.save(root / 'a/chroma.jpg', quality=85, subsampling=0)
    image.save(root / 'a/progressive.jpg', progressive=True)
    image.save(root / 'a/oriented.jpg', exif=oriented)
    image.convert('L').save(root / 'a/gray.jpg')
    image.convert('CMYK').save(root / 'a/cmyk.jpg')
    image.save(root / 'a/color.png')
    image.quantize(50).save(root / 'a/palette.png')
    image.save(root / 'a/photo.webp', lossless=True)
    image.save(root / 'a/wrong extension äß.png', format='JPEG')
    picture((13, 90), 1).save(root / 'b/wide.jpg')
    picture((15, 10), 2).save(root / 'b/small.jpg')


@pytest.fixture
def table(tmp_path):
    """Ten images in two classes; image i has the gray value 20 * i."""
    for i in range(COUNT):
        path = tmp_path / 'data' / 'ab'[i >= 6] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (20 * i,) * 3).save(path)
    return scan_folder(tmp_path / 'data')


def joined(batches, key):
    """All rows of one array of some batches, without padding."""
    return np.concatenate([batch[key][batch['mask']] for batch in batches])


def reference(path, size, resize, filter=Image.BILINEAR):
    image = ImageOps.exif_transpose(Image.open(path)).convert('RGB')
    size = size[::-1]
    if resize == 'pad':
        return ImageOps.pad(image, size, filter)
    if resize == 'crop':
        return ImageOps.fit(image, size, filter)
    return image.resize(size, filter)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [(24, 32), (33, 20), (96, 128)])
@pytest.mark.parametrize('resize', ['stretch', 'pad', 'crop'])
def test_pixels_are_pillows(tmp_path, resize, size, interpolation):
    """Within one level, two where the filter amplifies: Pillow rounds between its two passes."""
    write_formats(tmp_path / 'formats')
    table = scan_folder(tmp_path / 'formats')
    assert 0 < table.plain_jpeg.sum() < len(table)
    form = ImageFormat(size, resize=resize, interpolation=interpolation)
    batches = tf_data.eval_epoch(table, image_format=form, batch_size=len(table))
    images = joined(batches, 'image')
    assert images.dtype == np.uint8
    filter = {'bilinear': Image.BILINEAR, 'bicubic': Image.BICUBIC}[interpolation]
    for path, image in zip(table.paths, images, strict=True):
        expected = np.asarray(reference(path, size, resize, filter), int)
        difference = abs(image - expected)
        assert difference.max() <= {'bilinear': 1, 'bicubic': 2}[interpolation], path
        assert difference.mean() < 0.3, path


@pytest.mark.parametrize('size', [(61, 97), (20, 400)])
@pytest.mark.parametrize('mode', ['stretch', 'pad', 'crop'])
@pytest.mark.parametrize('threads', ['1', '2'])
def test_rows_and_columns_by_themselves_are_one_resize_to_the_last_bit(
    monkeypatch, size, mode, threads
):
    """The cache knows nothing of how a resize is computed, so it may not change a bit."""
    monkeypatch.setenv('TF_NUM_INTRAOP_THREADS', threads)  # TensorFlow has read it already

    def at_once(image, size, scale, offset, antialias, interpolation):
        return tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=size,
            scale=tf.cast(scale, tf.float32),
            translation=tf.cast(offset, tf.float32),
            kernel_type='triangle',
            antialias=antialias,
        )[0]

    image = np.random.default_rng(0).integers(0, 256, (131, 203, 3), np.uint8)
    ours = resizing.resize_image(tf.constant(image), size, mode, antialias=True)
    monkeypatch.setattr(resizing, '_resample', at_once)
    np.testing.assert_array_equal(
        ours, resizing.resize_image(tf.constant(image), size, mode, antialias=True)
    )


def test_epochs_of_one_setting_are_traced_once(photos):
    tf_data._loader.cache_clear()
    for epoch in range(3):
        joined(
            tf_data.train_epoch(photos, augment=AugmentConfig(), seed=0, epoch=epoch, **FORMAT),
            'index',
        )
    assert tf_data._loader.cache_info().misses == 1


@pytest.mark.parametrize('size', [(24, 32), (96, 128)])
def test_without_antialias_two_pixels_count(tmp_path, size):
    """Plain bilinear interpolation with half-pixel centers, written out."""
    write_formats(tmp_path / 'formats')
    table = scan_folder(tmp_path / 'formats')
    batches = tf_data.eval_epoch(
        table, **FORMAT | {'image_format': ImageFormat(size, antialias=False)}
    )
    for path, image in zip(table.paths, joined(batches, 'image'), strict=True):
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert('RGB'), float)
        for axis, n in enumerate(size):
            old = pixels.shape[axis]
            at = np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1)
            weight = np.expand_dims(at % 1, tuple({0, 1, 2} - {axis}))
            low = np.take(pixels, at.astype(int), axis)
            pixels = low + weight * (
                np.take(pixels, np.minimum(at.astype(int) + 1, old - 1), axis) - low
            )
        assert abs(image - pixels).max() <= 0.51, path


def test_a_long_strip_is_cropped_in_little_memory(tmp_path):
    """Scaling all of it to cover the square would take 6 GB."""
    for name in 'ab':
        (tmp_path / 'strips' / name).mkdir(parents=True)
        Image.new('RGB', (20_000, 2), 'red').save(tmp_path / f'strips/{name}/x.png')
    table = scan_folder(tmp_path / 'strips')
    for resize in ('stretch', 'pad', 'crop'):
        fmt = {'image_format': ImageFormat((160, 160), resize=resize), 'batch_size': 2}
        (batch,) = tf_data.eval_epoch(table, **fmt)
        assert batch['image'].max() == 255


def test_batches_have_one_shape_and_a_mask(table):
    batches = list(tf_data.eval_epoch(table, **FORMAT))
    assert len(batches) == 3
    for batch in batches:
        assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
            'image': ('uint8', (4, *SIZE, 3)),
            'label': ('int32', (4,)),
            'mask': ('bool', (4,)),
            'index': ('int64', (4,)),
        }
        assert all(type(value) is np.ndarray for value in batch.values())
    last = batches[-1]
    assert last['mask'].tolist() == [True, True, False, False]
    assert last['index'].tolist() == [8, 9, -1, -1]
    assert last['label'].tolist() == [1, 1, 0, 0]
    assert (last['image'][2:] == 0).all()
    assert joined(batches, 'index').tolist() == list(range(COUNT))
    assert joined(batches, 'label').tolist() == table.labels.tolist()
    assert (joined(batches, 'image') == 20 * np.arange(COUNT)[:, None, None, None]).all()


def test_order_is_the_one_asked_for(table):
    indices = np.array([7, 0, 0, 9, 3])
    batches = list(tf_data.batches(table, indices, **FORMAT))
    assert joined(batches, 'index').tolist() == indices.tolist()
    assert (joined(batches, 'image')[:, 0, 0, 0] == 20 * indices).all()
    assert joined(batches, 'label').tolist() == table.labels[indices].tolist()


def test_order_holds_where_images_take_unlike_times(tmp_path):
    """Every fourth image is large, so that those after it are ready first."""
    for i in range(24):
        path = tmp_path / 'unlike' / 'ab'[i % 2] / f'{i:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8) if i % 4 else (1500, 1500), (10 * i,) * 3).save(path)
    table = scan_folder(tmp_path / 'unlike')
    order = np.argsort([os.path.basename(path) for path in table.paths])
    batches = list(tf_data.batches(table, order, **FORMAT))
    assert joined(batches, 'image')[:, 0, 0, 0].tolist() == list(range(0, 240, 10))


def test_an_epoch_covers_every_image_once_in_its_own_order(table):
    orders = []
    for epoch in range(3):
        batches = list(
            tf_data.train_epoch(table, augment=AugmentConfig(), seed=1, epoch=epoch, **FORMAT)
        )
        orders.append(joined(batches, 'index').tolist())
        assert sorted(orders[-1]) == list(range(COUNT))
        assert orders[-1] == sampling.permutation(1, epoch, COUNT).tolist()
        assert (joined(batches, 'image')[:, 0, 0, 0] == 20 * joined(batches, 'index')).all()
    assert orders[0] != orders[1] != orders[2]


ROUGH = AugmentConfig(
    vertical_flip=True, rotation_range=20.0, zoom_range=0.2, brightness_range=(0.5, 1.5)
)
EACH = {
    'geometry and brightness': ROUGH,
    'corner crops': AugmentConfig(crops='ten', channel_shift_range=9.0),
    'random crops': AugmentConfig(random_resized_crop=True),
    'jitter': AugmentConfig(
        jitter_brightness=0.4, jitter_contrast=0.4, jitter_saturation=0.4, jitter_hue=0.1
    ),
    'randaugment': AugmentConfig(policy='randaugment', brightness_range=(0.8, 0.9)),
    'trivialaugment': AugmentConfig(policy='trivialaugment', brightness_range=(0.8, 0.9)),
    'erasing': AugmentConfig(erasing=1.0),
}


@pytest.fixture
def photos(tmp_path):
    """Nine noisy JPEGs and PNGs of several sizes."""
    for i in range(9):
        path = tmp_path / 'photos' / 'xy'[i % 2] / f'{i}.{"jpg" if i % 3 else "png"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture((20 + i, 50 - 3 * i), i).save(path)
    return scan_folder(tmp_path / 'photos')


def images_by_row(batches):
    return {
        int(row): image
        for batch in batches
        for row, image in zip(batch['index'], batch['image'], strict=True)
        if row >= 0
    }


@pytest.mark.parametrize('augment', EACH.values(), ids=list(EACH))
def test_augmentation_depends_on_seed_epoch_and_row_alone(photos, augment, monkeypatch):
    def run(epoch=0, seed=0, workers=2, **changes):
        monkeypatch.setattr(tf_data.cpu, 'cores', lambda: workers)
        return images_by_row(
            tf_data.train_epoch(photos, augment=augment, seed=seed, epoch=epoch, **FORMAT | changes)
        )

    first = run()
    for again in (run(batch_size=2, workers=1), run(batch_size=9, workers=5)):
        assert all((again[row] == image).all() for row, image in first.items())
    for other in (run(epoch=1), run(seed=1)):
        assert all((other[row] != image).any() for row, image in first.items())


@pytest.mark.parametrize('augment', EACH.values(), ids=list(EACH))
def test_resuming_at_a_step_gives_the_rest(photos, augment):
    args = {'augment': augment, 'seed': 3, 'epoch': 2, **FORMAT, 'batch_size': 2}
    whole = list(tf_data.train_epoch(photos, **args))
    assert len(whole) == 5
    for start in (1, 5):
        rest = list(tf_data.train_epoch(photos, start_step=start, **args))
        assert len(rest) == 5 - start
        for batch, expected in zip(rest, whole[start:], strict=True):
            for key, value in expected.items():
                np.testing.assert_array_equal(batch[key], value)


@pytest.mark.parametrize('augment', EACH.values(), ids=list(EACH))
def test_shards_are_the_parts_of_the_batch(photos, augment):
    args = {'augment': augment, 'seed': 3, 'epoch': 2, **FORMAT, 'batch_size': 8}
    whole = list(tf_data.train_epoch(photos, **args))
    shards = [
        list(tf_data.train_epoch(photos, process_index=p, process_count=4, **args))
        for p in range(4)
    ]
    for step, batch in enumerate(whole):
        for key, value in batch.items():
            parts = [shard[step][key] for shard in shards]
            assert {part.shape for part in parts} == {(2, *value.shape[1:])}
            np.testing.assert_array_equal(np.concatenate(parts), value)
    # Nine images: of the last batch, three of the four processes have padding only.
    assert [bool(shard[1]['mask'].any()) for shard in shards] == [True, False, False, False]


def test_validation_is_never_augmented(photos):
    plain = list(tf_data.batches(photos, np.arange(9), **FORMAT))
    evaluated = list(tf_data.eval_epoch(photos, **FORMAT))
    trained = images_by_row(tf_data.train_epoch(photos, augment=ROUGH, seed=0, epoch=0, **FORMAT))
    np.testing.assert_array_equal(joined(evaluated, 'image'), joined(plain, 'image'))
    differing = [(trained[row] != image).any() for row, image in images_by_row(plain).items()]
    assert all(differing)


def test_flipped_views_are_mirrored_views(photos):
    """What the feature cache relies on: a flip is exactly the mirrored plain image."""
    augment = AugmentConfig(vertical_flip=True)
    views = sampling.outcomes(augment)
    plain = joined(tf_data.eval_epoch(photos, **FORMAT), 'image')
    by_view = []
    for view in views:
        draws = sampling.repeat(view, 9)
        batches = tf_data.batches(photos, np.arange(9), draws=draws, **FORMAT)
        by_view.append(joined(batches, 'image'))
        rows, columns = -1 if view['vertical_flip'] else 1, -1 if view['horizontal_flip'] else 1
        np.testing.assert_array_equal(by_view[-1], plain[:, ::rows, ::columns])
    live = images_by_row(tf_data.train_epoch(photos, augment=augment, seed=5, epoch=1, **FORMAT))
    numbers = sampling.outcome_numbers(sampling.draw(augment, 5, 1, 9), views, 9)
    assert len(set(numbers)) > 1
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(live[row], by_view[number][row])


@pytest.mark.parametrize('resize', ['stretch', 'crop'])
def test_crops_are_cut_from_the_image_enlarged(photos, resize):
    """As Pillow: the image as large as the crop's fraction asks, of which corners and center."""
    size, fraction = (24, 32), 0.75
    augment = AugmentConfig(horizontal_flip=False, crops='five', crop_fraction=fraction)
    corners = {'top_left': (0, 0), 'top_right': (11, 0), 'bottom_left': (0, 8)}
    corners |= {'bottom_right': (11, 8), 'centre': (6, 4)}  # of 43x32; half of 11 is 6, rounded
    for view in sampling.outcomes(augment):
        batches = tf_data.eval_epoch(
            photos,
            augment=augment,
            view=view,
            **FORMAT | {'image_format': ImageFormat(SIZE, resize=resize)},
        )
        left, top = corners[sampling.CROPS[view['crop']]]
        for path, image in zip(photos.paths, joined(batches, 'image'), strict=True):
            large = reference(path, (32, 43), resize)
            expected = np.asarray(large.crop((left, top, left + size[1], top + size[0])), int)
            assert abs(image - expected).max() <= 1
    plain = joined(tf_data.eval_epoch(photos, augment=augment, **FORMAT), 'image')
    center = joined(
        tf_data.eval_epoch(photos, augment=augment, view={'crop': 4}, **FORMAT), 'image'
    )
    np.testing.assert_array_equal(plain, center)


def test_oblong_images_are_not_turned_by_right_angles(photos):
    with pytest.raises(UserError, match='24x32 pixels cannot be turned by right angles'):
        tf_data.train_epoch(
            photos, augment=AugmentConfig(right_angles=True), seed=0, epoch=0, **FORMAT
        )


def test_random_crops_are_pillows(photos):
    """Within one level, of the part of the file's own pixels that the draws give."""
    augment = AugmentConfig(horizontal_flip=False, random_resized_crop=True)
    images = images_by_row(tf_data.train_epoch(photos, augment=augment, seed=0, epoch=0, **FORMAT))
    draws = sampling.draw(augment, 0, 0, 9)
    for row, path in enumerate(photos.paths):
        file = Image.open(path).convert('RGB')
        numbers = (draws[f'crop_{name}'][row] for name in ('area', 'ratio', 'place'))
        size = tf.constant(file.size[::-1])
        box = crops.random_box(size, *map(tf.constant, numbers), bounds=augment.random_crop_ratio)
        top, left, height, width = box.numpy().tolist()
        part = file.crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize(SIZE[::-1], Image.BILINEAR), int)
        assert abs(images[row] - expected).max() <= 1, path


def test_draws_follow_the_indices(photos):
    """Entry j of a draw belongs to indices[j], also where a row comes twice."""
    indices = np.array([4, 4, 1])
    draws = {'horizontal_flip': np.array([False, True, True])}
    images = joined(tf_data.batches(photos, indices, draws=draws, **FORMAT), 'image')
    np.testing.assert_array_equal(images[1], images[0][:, ::-1])
    with pytest.raises(ValueError, match='differ in length'):
        tf_data.batches(photos, indices[:2], draws=draws, **FORMAT)


@pytest.mark.parametrize('damage', ['truncated', 'gone', 'text'])
@pytest.mark.parametrize('name', ['5.jpg', '6.png'])
def test_a_file_that_cannot_be_decoded_is_named(photos, name, damage):
    """It was sound when the folder was scanned; the batches before it are still served."""
    (row,) = [i for i, path in enumerate(photos.paths) if path.endswith(name)]
    path = photos.paths[row]
    if damage == 'gone':
        os.remove(path)
    else:
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: len(data) // 2] if damage == 'truncated' else b'hello')
    order = np.array([i for i in range(9) if i != row] + [row])
    batches = tf_data.batches(photos, order, **FORMAT)
    assert next(batches)['mask'].all()
    assert next(batches)['mask'].all()
    with pytest.raises(UserError) as caught:
        next(batches)
    assert path in str(caught.value)


@pytest.mark.parametrize('kind', ['TIFF', 'WEBP'])
def test_a_file_replaced_by_another_format_is_named(photos, kind):
    """TensorFlow's JPEG decoder refuses TIFF, and gives WebP an axis more."""
    (row,) = [i for i, path in enumerate(photos.paths) if path.endswith('4.jpg')]
    picture((9, 9), 0).save(photos.paths[row], format=kind)
    with pytest.raises(UserError, match='cannot be decoded as the plain JPEG') as caught:
        list(tf_data.eval_epoch(photos, **FORMAT))
    assert caught.value.where == photos.paths[row]


def test_an_unshareable_batch_is_refused(photos):
    with pytest.raises(UserError, match=r'batch_size.*3 processes'):
        tf_data.eval_epoch(photos, process_count=3, **FORMAT)


def alive():
    """Threads of the process, threads that Python knows, and objects of ours and TensorFlow's."""
    tasks = len(os.listdir('/proc/self/task')) if os.path.exists('/proc/self/task') else 0
    modules = [str(type(thing).__module__).partition('.')[0] for thing in gc.get_objects()]
    ours = sum(module in ('tensorflow', 'tlflax') for module in modules)
    return tasks, threading.enumerate(), ours


def run_epochs(photos, epochs):
    """Reads epochs; every third to its end, every third closed early, every third abandoned."""
    for epoch in range(epochs):
        batches = tf_data.train_epoch(photos, augment=ROUGH, seed=0, epoch=epoch, **FORMAT)
        next(batches)
        if epoch % 3 == 0:
            assert len(list(batches)) == 2
        if epoch % 3 == 1:
            batches.close()


def test_epochs_that_end_or_are_abandoned_leave_nothing_behind(photos):
    """No thread and no object; a stop request abandons an epoch."""
    run_epochs(photos, 30)  # starts what TensorFlow keeps for the whole process
    gc.collect()
    before = alive()
    run_epochs(photos, 30)
    gc.collect()
    after = alive()
    assert after[0] <= before[0]
    assert after[1] == before[1]
    assert after[2] <= before[2] + 100


def test_epochs_need_no_memory_that_grows(photos):
    """In a process of its own: elsewhere other tests have left the allocator in pieces."""
    code = f"""
import gc, resource, sys
from pathlib import Path
sys.path[:0] = [{str(TESTS)!r}, {str(Path(__file__).parent)!r}]
from helpers import scan_folder
from test_tf_data import run_epochs
table = scan_folder({photos.root!r})
for _ in range(4):
    run_epochs(table, 30)
    gc.collect()
    print(int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize())
"""
    done = run_new_python('-c', code, timeout=300)
    assert done.returncode == 0, done.stderr
    sizes = [int(line) for line in done.stdout.split()]
    assert min(sizes[2:]) < min(sizes[:2]) + 8e6, sizes


def test_an_error_that_is_kept_keeps_no_threads(photos):
    os.remove(photos.paths[8])
    with pytest.raises(UserError):
        list(tf_data.eval_epoch(photos, **FORMAT))
    gc.collect()
    before = alive()[0]
    kept = []
    for _ in range(4):
        with pytest.raises(UserError) as caught:
            list(tf_data.eval_epoch(photos, **FORMAT))
        kept.append(caught)
    assert alive()[0] <= before


def test_importing_and_reading_change_no_environment_and_hide_the_gpus(photos):
    """In a process of its own: import and one epoch."""
    code = f"""
import logging, os, sys
sys.path.insert(0, {str(TESTS)!r})
from helpers import TESTS, scan_folder
before, stderr = dict(os.environ), os.fstat(2).st_ino
level = logging.getLogger('tensorflow').level
from tlflax.config.schema import AugmentConfig
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import tf_data
assert dict(os.environ) == before, set(os.environ) ^ set(before)
assert os.fstat(2).st_ino == stderr
assert logging.getLogger('tensorflow').level == level
table = scan_folder({photos.root!r})
for batch in tf_data.train_epoch(
    table, augment=AugmentConfig(rotation_range=3.0), seed=0, epoch=0,
    image_format=ImageFormat((8, 8)), batch_size=4,
):
    pass
import tensorflow as tf
assert not tf.config.get_visible_devices('GPU')
"""
    done = run_new_python('-c', code)
    assert (done.returncode, done.stdout) == (0, ''), done.stderr


def test_a_pipeline_works_where_tensorflow_has_started_already(photos):
    """Its devices stay as they are."""
    tf.constant(1) + 1
    before = tf.config.get_visible_devices()
    assert len(list(tf_data.eval_epoch(photos, **FORMAT))) == 3
    assert tf.config.get_visible_devices() == before


@pytest.mark.assets
def test_real_photographs(traffic_lights_dir):
    """Every real test image, decoded and resized, is Pillow's within one level."""
    table = scan_folder(traffic_lights_dir / 'Test')
    assert len(table) == 297
    assert table.plain_jpeg.all()
    batches = tf_data.eval_epoch(table, image_format=ImageFormat((224, 224)), batch_size=32)
    for path, image in zip(table.paths, joined(batches, 'image'), strict=True):
        expected = np.asarray(reference(path, (224, 224), 'stretch'), int)
        assert abs(image - expected).max() <= 1, path
