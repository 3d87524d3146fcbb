"""The audit: hashes against SciPy, look-alikes against brute force, the command as users run it."""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
from helpers import ROOT, run_module, scan_folder
from PIL import Image

from tlflax.config.schema import DataConfig
from tlflax.data.audit import duplicates, near_duplicates, run
from tlflax.data.audit import report as audit_report
from tlflax.data.audit.checks import brief
from tlflax.data.images import decode, perceptual_hash
from tlflax.data.inputs.folder import list_folder
from tlflax.data.splits.load import load_splits
from tlflax.utils.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for each test."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))


def picture(seed, size=(60, 48)):
    """Smooth random colors, as different from seed to seed as photographs are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (11, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def save(root, **files):
    """Writes pictures: 'class__name_ext' -> an image, or the seed of one."""
    for path, image in files.items():
        folder, _, name = path.partition('__')
        place = Path(root, folder, name.replace('_', '.'))
        place.parent.mkdir(parents=True, exist_ok=True)
        (picture(image) if isinstance(image, int) else image).save(place)
    return Path(root)


def hash_of(path):
    return perceptual_hash.compute([decode.probe(path).thumbnail])[0]


# perceptual hashes


def test_hash_is_that_of_scipys_cosine_transform():
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (20, 16, 16, 3), np.uint8)
    table = perceptual_hash.stack(perceptual_hash.compute([thumb.tobytes() for thumb in thumbs]))
    gray = thumbs.astype(np.float64) @ [0.299, 0.587, 0.114]
    low = np.rint(scipy.fft.dctn(gray, axes=(1, 2), norm='ortho')[:, :8, :8].reshape(20, 64))
    wanted = low > np.median(low, axis=1, keepdims=True)
    # A coefficient just beside a whole number may be rounded to either.
    assert (np.unpackbits(table[:, :8], axis=1) != wanted).mean() < 0.002
    first = sum(int(bit) << (63 - place) for place, bit in enumerate(wanted[0]))
    assert np.bitwise_count(perceptual_hash.dct_hashes(table)[0] ^ np.uint64(first)) <= 1
    fields = thumbs.astype(np.float64).reshape(20, 4, 4, 4, 4, 3).mean((2, 4)).reshape(20, 48)
    assert abs(perceptual_hash.sketches(table) - fields).max() <= 0.5


def test_flat_images_have_no_dct_hash_and_missing_ones_no_hash():
    thumbs = [
        Image.new('RGB', (16, 16), (200, 30, 90)).tobytes(),
        b'',
        picture(1, (16, 16)).tobytes(),
    ]
    flat, missing, other = perceptual_hash.compute(thumbs)
    assert flat == bytes(8) + bytes((200, 30, 90) * 16)
    assert missing == b''
    assert perceptual_hash.dct_hashes(perceptual_hash.stack([flat, missing, other])).astype(
        bool
    ).tolist() == [0, 0, 1]
    assert perceptual_hash.compute([]) == []


COPIES = {
    'q75.jpg': lambda image: image,
    'half.png': lambda image: image.resize((image.width // 2, image.height // 2)),
    'large.jpg': lambda image: image.resize((image.width * 9, image.height * 9)),
    'odd.jpg': lambda image: image.resize((image.width * 5 + 3, image.height * 3 + 7)),
    'palette.gif': lambda image: image,
    'lossy.webp': lambda image: image,
}


@pytest.mark.parametrize('name', COPIES)
def test_copies_of_other_sizes_and_formats_look_alike(tmp_path, name):
    for seed in range(5):
        image = picture(seed, (130, 101))
        image.save(tmp_path / 'image.png')
        COPIES[name](image).save(tmp_path / name)
        table = perceptual_hash.stack([hash_of(tmp_path / 'image.png'), hash_of(tmp_path / name)])
        assert len(near_duplicates.find(table).pairs) == 1, seed


def test_turned_images_are_looked_at_upright(tmp_path):
    image = picture(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / 'upright.png')
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    both = perceptual_hash.stack(
        [hash_of(tmp_path / 'upright.png'), hash_of(tmp_path / 'turned.png')]
    )
    assert len(near_duplicates.find(both, bits=2, difference=1).pairs) == 1


# the search


def random_hashes(count, seed):
    """Random hashes, a third of them near others."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 256, (count, perceptual_hash.BYTES), np.uint8)
    table[:, 8:] //= 8  # sketches not far apart
    for row in range(1, count, 3):
        table[row] = table[row - 1]
        for bit in rng.integers(0, 64, rng.integers(0, 8)):
            table[row, bit // 8] ^= 1 << (bit % 8)
    return table


@pytest.mark.parametrize('bits', [0, 1, 4, 6])
def test_search_finds_what_brute_force_finds(bits):
    table = random_hashes(600, bits)
    hashes, sketches = (
        perceptual_hash.dct_hashes(table),
        perceptual_hash.sketches(table).astype(float),
    )
    wanted = {}
    for a, b in itertools.combinations(range(600), 2):
        distance = int(hashes[a] ^ hashes[b]).bit_count()
        if distance <= bits and np.sqrt(((sketches[a] - sketches[b]) ** 2).mean()) <= 12:
            wanted[a, b] = distance
    found = near_duplicates.find(table, bits=bits, difference=12)
    assert found.complete
    assert len(found.pairs) == len(wanted) > 20
    pairs = map(tuple, found.pairs.tolist())
    assert dict(zip(pairs, found.bits.tolist(), strict=True)) == wanted


def test_search_tells_colors_apart():
    table = np.repeat(random_hashes(1, 0), 2, axis=0)
    table[1, 8:] += 7
    assert len(near_duplicates.find(table, difference=7.1).pairs) == 1
    assert len(near_duplicates.find(table, difference=6.9).pairs) == 0


def test_search_among_many_copies_is_cut_off():
    table = np.repeat(random_hashes(1, 0), 3000, axis=0)
    found = near_duplicates.find(table, most_pairs=10_000)
    assert not found.complete
    assert 10_000 <= len(found.pairs) < 20_000
    assert not near_duplicates.find(table, most_comparisons=5_000).complete
    assert near_duplicates.find(table[:0]).complete


# copies


def test_copies_between_splits_labels_and_within(tmp_path):
    train = save(tmp_path / 'train', a__1_png=1, a__2_png=2, a__3_png=3, b__4_png=4, b__5_png=5)
    shutil.copy(train / 'a/1.png', train / 'a/1 again.png')
    shutil.copy(train / 'a/2.png', train / 'b/2.png')
    val = save(tmp_path / 'val', a__6_png=6, b__7_png=7, b__3_jpg=3, a__4_jpg=4)
    shutil.copy(train / 'a/1.png', val / 'a/copy.png')
    tables = {'train': scan_folder(train)}
    tables['val'] = scan_folder(val, class_names=tables['train'].class_names)
    images = duplicates.of_tables(tables)

    def names(kind):
        return [
            [f'{file["split"]} {file["path"]}' for file in item['files']] for item in kind.items
        ]

    same, alike = duplicates.exact(images), duplicates.alike(images)
    assert names(same.leaks) == [['train a/1 again.png', 'train a/1.png', 'val a/copy.png']]
    assert names(same.repeats) == names(same.leaks)
    assert names(same.conflicts) == [['train a/2.png', 'train b/2.png']]
    assert (same.leaks.count, same.repeats.count, same.conflicts.count) == (1, 1, 2)
    pairs = [['train a/3.png', 'val b/3.jpg'], ['train b/4.png', 'val a/4.jpg']]
    assert sorted(names(alike.leaks)) == sorted(names(alike.conflicts)) == pairs
    assert (alike.leaks.count, alike.conflicts.count, alike.repeats.count) == (2, 4, 0)
    assert all(item['bits'] <= near_duplicates.BITS for item in alike.leaks.items)


# the command


def command(*arguments, rc):
    """Runs the audit as a user does; returns what it prints and its last line."""
    done = run_module('data', *map(str, arguments))
    assert done.returncode == rc, done.stdout + done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def audit(**data):
    """Runs the audit in this process, where nothing need be imported anew."""
    found = run.run(
        DataConfig(
            **{key: str(value) if key in ('train', 'val') else value for key, value in data.items()}
        )
    )
    return audit_report.text(found.problems, found.summary), found.figures()


def test_sound_folders(tmp_path):
    train = save(
        tmp_path / 'train',
        **{f'{c}__{i}_jpg': 40 * k + i for k, c in enumerate('ab') for i in range(12)},
    )
    val = save(
        tmp_path / 'val',
        **{f'{c}__{i}_jpg': 99 + 40 * k + i for k, c in enumerate('ab') for i in range(3)},
    )
    text, found = audit(train=train, val=val)
    assert 'nothing is wrong' in text
    assert 'train: 24 images in 2 classes' in text
    assert (found['spoilt'], found['error'], found['warning']) == (False, {}, {})
    assert found['splits']['train']['classes'] == {'a': 12, 'b': 12}
    assert found['splits']['val']['modes'] == {'RGB': 6}
    assert found['files_read'] == 30
    assert audit(train=train, val=val)[1]['files_read'] == 0


def spoilt(root):
    """Folders with one of everything."""
    train = save(
        root / 'train', Yellow__1_jpg=1, Yellow__2_jpg=2, red__3_png=3, red__4_jpg=4, red__6_jpg=6,
        green__5_jpg=5, Green__9_jpg=9, odd__tiny_png=picture(7, (9, 80)),
    )  # fmt: skip
    val = save(root / 'val', yellow__11_jpg=11, red__12_jpg=12, red__13_jpg=13)
    shutil.copy(train / 'red/4.jpg', train / 'green/4.jpg')
    shutil.copy(train / 'red/6.jpg', val / 'red/6.jpg')
    picture(3, (30, 24)).save(val / 'red/3.jpg')
    (train / 'red/lie.jpg').write_bytes((save(root / 'x', a__8_png=8) / 'a/8.png').read_bytes())
    (train / 'red/empty.jpg').touch()
    (train / 'red/cut.jpg').write_bytes((train / 'red/4.jpg').read_bytes()[:300])
    (train / 'red/notes.txt').write_text('x')
    (train / 'red/nothing').touch()
    (train / 'red/.DS_Store').touch()
    (train / 'red/loop').symlink_to(train)
    (train / 'hollow').mkdir()
    (train / 'bad').mkdir()
    (train / 'bad/only.jpg').touch()
    picture(20).save(train / 'beside.jpg')
    return train, val


def test_everything_is_found_at_once(tmp_path):
    train, val = spoilt(tmp_path)
    report = tmp_path / 'report.json'
    text, found = command(f'--train={train}', f'--val={val}', f'--report={report}', rc=1)
    assert found['spoilt']
    assert found['error'] == {
        'leak': 1, 'conflict': 2, 'near_leak': 1, 'classes': 5, 'empty_class': 1, 'spelling': 2,
        'bad_image': 3, 'folder': 2,
    }  # fmt: skip
    assert found['warning'] == {'few': 5, 'small': 1}
    assert found['note'] == {
        'extension': 1, 'stretched': 1, 'loop': 1, 'empty_file': 1, 'not_an_image': 1, 'hidden': 1,
    }  # fmt: skip
    assert "'yellow': did you mean 'Yellow'?" in text
    assert 'train red/cut.jpg is a truncated JPEG' in text
    assert text.index('ERROR') < text.index('WARNING') < text.index('NOTE')
    whole = json.loads(report.read_text())
    assert whole['splits'] == found['splits']
    by_code = {problem['code']: problem for problem in whole['problems']}
    assert by_code['leak']['items'] == [
        {
            'files': [
                {'split': 'train', 'class': 'red', 'path': 'red/6.jpg'},
                {'split': 'val', 'class': 'red', 'path': 'red/6.jpg'},
            ]
        }
    ]
    assert by_code['near_leak']['items'][0]['files'][1]['path'] == 'red/3.jpg'
    assert by_code['loop']['items'] == [{'split': 'train', 'path': 'red/loop'}]
    assert by_code['extension']['items'] == [
        {'split': 'train', 'path': 'red/lie.jpg', 'fault': 'is a PNG'}
    ]
    assert sum(problem['count'] for problem in whole['problems']) == sum(
        count for level in ('error', 'warning', 'note') for count in found[level].values()
    )


def test_fractions_are_audited_as_they_are_drawn(tmp_path):
    """Copies stay together by their digests; look-alikes may be divided."""
    files = {f'{c}__{i}_png': 40 * k + i for k, c in enumerate('ab') for i in range(12)}
    files |= {f'{c}__{i}_jpg': 40 * k + i for k, c in enumerate('ab') for i in range(12)}
    train = save(tmp_path / 'train', **files)
    shutil.copy(train / 'a/1.png', train / 'a/copy.png')
    _, found = audit(train=train, val_fraction=0.5)
    assert list(found['error']) == ['near_leak']
    assert 1 <= found['error']['near_leak'] <= 24
    assert found['warning'] == {'repeat': 1}
    sizes = [found['splits'][split]['images'] for split in ('train', 'val')]
    assert sum(sizes) == 49
    assert min(sizes) > 15
    text, found = audit(train=train)
    assert 'look like another of their class and split' in text
    assert not found['spoilt']


def test_format_and_color_mode_that_tell_the_class(tmp_path):
    ending = {'a': 'png', 'b': 'jpg'}
    files = {f'{c}__{i}_{ending[c]}': 40 * k + i for k, c in enumerate('ab') for i in range(12)}
    train = save(tmp_path / 'train', **files)
    text, found = audit(train=train)
    assert found['warning'] == {'shortcut': 24}
    assert 'the file format alone tells the class of 24 of 24 images (PNG: a, JPEG: b)' in text
    for seed in range(12):
        picture(seed).save(train / 'a' / f'{seed}.png')
        picture(40 + seed).convert('L').save(train / 'b' / f'{seed}.jpg')
        picture(80 + seed).convert('L').save(train / 'b' / f'{seed}.png')
        picture(120 + seed).save(train / 'a' / f'{seed}.jpg')
    text, found = audit(train=train)
    assert 'the color mode alone tells the class of 48 of 48 images' in text
    assert 'format alone' not in text


def test_splits_of_a_config_file(tmp_path):
    train = save(tmp_path / 'train', a__1_png=1, b__2_png=2)
    config = ROOT / 'configs' / 'traffic.py'
    _, found = command(
        f'--config={config}', f'--config.data.train={train}', '--config.data.val=', rc=0
    )
    assert {split: part['images'] for split, part in found['splits'].items()} == {'train': 2}


def test_usage_errors():
    done = run_module('data', '--trian=x')
    assert (done.returncode, done.stdout) == (2, '')
    assert "Unknown command line flag 'trian'" in done.stderr
    assert 'Traceback' not in done.stderr
    with pytest.raises(UserError, match='--train: no training images are named'):
        audit()
    with pytest.raises(UserError, match='no such folder'):
        audit(train='nowhere')
    with pytest.raises(UserError, match="did you mean 'leak'"):
        run.check_accepted(['leek'])
    with pytest.raises(UserError, match=r'end its name with \.json'):
        audit_report.check_format('x.txt')
    with pytest.raises(UserError, match='its folder does not exist'):
        audit_report.check_format('nowhere/x.json')


def test_every_unreadable_folder_is_reported(tmp_path, monkeypatch):
    save(tmp_path, a__1_png=1, b__2_png=2, c__3_png=3)
    scandir = os.scandir

    def refuse(folder):
        if os.path.basename(folder) in 'ab':
            raise PermissionError(13, 'Permission denied')
        return scandir(folder)

    monkeypatch.setattr(os, 'scandir', refuse)
    faults = []
    listing = list_folder(tmp_path, report=faults.append)
    assert (listing.names, listing.empty) == (['c'], ('a', 'b'))
    assert [fault.where for fault in faults] == [str(tmp_path / 'a'), str(tmp_path / 'b')]
    with pytest.raises(UserError, match='Permission denied'):
        list_folder(tmp_path)


# before training


def test_brief_audit_before_training(tmp_path, said):
    train, val = (
        save(
            tmp_path / split,
            **{f'a__{i}_png': seed + i for i in range(11)},
            b__90_png=seed + 90,
        )
        for split, seed in (('train', 100), ('val', 200))
    )
    shutil.copy(train / 'a/3.png', val / 'a/copy.png')
    picture(104, (30, 24)).save(val / 'b/small.png')
    data = DataConfig(train=str(train), val=str(val))
    brief(load_splits(data).by_name, strict=False)
    assert 'info train: 12 images in 2 classes, from 1 (b) to 11 (a)' in said
    warnings = [line for line in said if line.startswith('warning')]
    assert len(warnings) == 5
    assert '1 of 14 images of val are in an earlier split too' in warnings[0]
    assert '(first: train a/3.png = val a/copy.png)' in warnings[0]
    assert '1 of 14 images of val look like one of an earlier split' in warnings[1]
    assert '2 images look like one under another label' in warnings[2]
    assert '1 classes have fewer than 10 training images: b 1' in warnings[3]
    assert "'a' has 11 training images, 'b' has 1: 11.0 to 1" in warnings[4]
    with pytest.raises(UserError, match='audit=error: 1 of 14 images of val are in an earlier'):
        brief(load_splits(data).by_name, strict=True)
    (val / 'a/copy.png').unlink()
    (val / 'b/small.png').unlink()
    splits = load_splits(data)
    brief(splits.by_name, strict=True)
    assert len(splits.val) == 12


@pytest.mark.assets
def test_the_real_traffic_lights_have_frames_of_one_scene_in_both_splits(traffic_lights_dir):
    tables = {'train': scan_folder(traffic_lights_dir / 'Train')}
    tables['val'] = scan_folder(
        traffic_lights_dir / 'Test', class_names=tables['train'].class_names
    )
    images = duplicates.of_tables(tables)
    same, alike = duplicates.exact(images), duplicates.alike(images)
    assert (same.leaks.count, same.conflicts.count, same.repeats.count) == (0, 0, 0)
    assert 15 <= alike.leaks.count <= 40  # 26; Pillow's decoders differ a little
    assert alike.conflicts.count == 0
