"""The grid of examples: its cells are the pipeline's pixels, and its text says what was drawn."""

import numpy as np
import pytest
from helpers import make_folders, picture, scan_folder
from PIL import Image

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import mixup, sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import preview, tf_data
from tlflax.utils.errors import UserError

SIZE = (40, 25)
FORMAT = {'image_format': ImageFormat(SIZE), 'batch_size': 64}
ALL = AugmentConfig(
    vertical_flip=True, random_resized_crop=True, rotation_range=20.0, zoom_range=0.1,
    jitter_hue=0.1, policy='randaugment', erasing=1.0, mixup=0.4, cutmix=1.0,
)  # fmt: skip


@pytest.fixture
def table(tmp_path):
    root = make_folders(tmp_path / 'data', 4)
    (root / 'red').rename(root / 'rot und grün')
    return scan_folder(root)


def settings(augment=AugmentConfig(), size=SIZE):  # noqa: B008
    return ImageFormat(size), augment, 0


@pytest.mark.parametrize('augment', [AugmentConfig(), ALL], ids=['defaults', 'all'])
def test_cells_are_what_training_sees(table, tmp_path, augment):
    preview.draw_grid(table, tmp_path / 'a.png', *settings(augment), images=4, epochs=2)
    with Image.open(tmp_path / 'a.png') as file:
        grid = np.asarray(file)
    rows = sampling.of_all_classes(table.labels, 0, 4)
    assert len(set(table.labels[rows[:3]])) == 3
    columns = [tf_data.eval_epoch(table, **FORMAT)]
    columns += [
        tf_data.train_epoch(table, augment=augment, seed=0, epoch=epoch, **FORMAT)
        for epoch in range(2)
    ]
    left = preview._MARGIN
    for (batch,) in columns:
        images = dict(zip(batch['index'].tolist(), batch['image'], strict=True))
        top = preview._LINE + 2 * preview._MARGIN
        for row in rows.tolist():
            cell = np.kron(images[row], np.ones((8, 8, 1), np.uint8))
            # Texts make rows of unlike heights: the cell is the first that fits from here on.
            while not (grid[top : top + 320, left : left + 200] == cell).all():
                top += 1
                assert top < len(grid), 'not in its column'
            top += 320
        left += 200 + preview._MARGIN
    assert grid.shape[1] == left
    assert {path.name for path in tmp_path.iterdir()} == {'a.png', 'data'}


def test_texts_say_what_was_drawn(table):
    rows = np.arange(len(table))
    draws = sampling.draw(ALL, 0, 2, len(table))
    mixed = mixup.draw(ALL, 0, 2, len(table), SIZE)
    for row, (_, lines) in enumerate(preview._column(table, rows, *settings(ALL), 2)):
        text = '\n'.join(lines)
        assert ('horizontal flip' in lines) == draws['horizontal_flip'][row]
        assert ('vertical flip' in lines) == draws['vertical_flip'][row]
        assert f'rotation {draws["rotation"][row]:+.1f}°' in lines
        assert ' of 24x40' in text
        assert 'erased ' in text
        own, other = (table.class_names[table.labels[r]] for r in (row, mixed.partner[row]))
        part = mixed.mix[row]
        if part < 1:
            assert lines[0] == f'{part:.2f} {own} + {1 - part:.2f} {other}'
            assert lines[1].startswith('cutmix' if mixed.box[row].any() else 'mixup')
        else:
            assert lines[0] == own
    for _, lines in preview._column(table, rows[:2], *settings(), None):
        assert lines == ['green', lines[1]]
        assert lines[1].endswith('.jpg')


def test_every_outcome_has_a_text(table):
    square = settings(AugmentConfig(right_angles=True, crops='ten'), size=(16, 16))
    columns = [preview._column(table, np.arange(12), *square, epoch) for epoch in range(2)]
    texts = {line for column in columns for _, lines in column for line in lines}
    assert {'turned by 90°', 'turned by 270°', 'crop top left', 'crop centre'} <= texts


def test_few_images_and_a_folder_that_is_not_there(table, tmp_path):
    Image.fromarray(picture((30, 30))).save(tmp_path / 'x.png')
    preview.draw_grid(table, tmp_path / 'b.png', *settings(), images=100, epochs=0)
    assert (tmp_path / 'b.png').stat().st_size > 1000
    with pytest.raises(UserError, match=r'cannot be written: No such file.*name a file'):
        preview.draw_grid(table, tmp_path / 'none' / 'b.png', *settings(), images=1, epochs=1)
    with pytest.raises(UserError, match='cannot be turned'):
        preview.draw_grid(table, tmp_path / 'c.png', *settings(AugmentConfig(right_angles=True)))
