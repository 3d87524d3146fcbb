"""Class folders to a table, with everything people keep in such folders."""

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import scan_folder
from PIL import Image

from tlflax.data.images import scan as scans
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for each test."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def image_bytes(seed, fmt='JPEG', size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, fmt)
    return file.getvalue()


def put(root, files):
    """Writes files: path -> seed of an image (an int), or bytes."""
    for path, contents in files.items():
        path = Path(root, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = image_bytes(contents) if isinstance(contents, int) else contents
        path.write_bytes(data)
    return Path(root)


def relative(table):
    return [os.path.relpath(path, table.root) for path in table.paths]


LIGHTS = {'red/1.jpg': 1, 'red/2.jpg': 2, 'green/3.jpg': 3, 'yellow/4.jpg': 4, 'yellow/5.jpg': 5}


def test_table_of_class_folders(tmp_path):
    root = put(tmp_path / 'data', LIGHTS)
    table = scan_folder(root)
    assert table.root == str(root)
    assert table.class_names == ('green', 'red', 'yellow')
    assert relative(table) == [
        'green/3.jpg',
        'red/1.jpg',
        'red/2.jpg',
        'yellow/4.jpg',
        'yellow/5.jpg',
    ]
    assert all(os.path.isabs(path) for path in table.paths)
    np.testing.assert_array_equal(table.labels, [0, 1, 1, 2, 2])
    np.testing.assert_array_equal(table.counts, [1, 2, 2])
    assert table.labels.dtype == np.int32
    assert table.plain_jpeg.all()
    wanted = [hashlib.sha256(image_bytes(seed)).hexdigest() for seed in (3, 1, 2, 4, 5)]
    assert list(table.digests) == wanted
    assert len(table) == 5


def test_select_takes_rows_or_a_mask(tmp_path):
    table = scan_folder(put(tmp_path / 'data', LIGHTS))
    for rows in (np.array([4, 0]), table.labels == 2):
        chosen = table.select(rows)
        assert list(chosen.paths) == list(table.paths[rows])
        assert list(chosen.digests) == list(table.digests[rows])
        np.testing.assert_array_equal(chosen.labels, table.labels[rows])
        assert chosen.class_names == table.class_names
    assert len(table.select(np.zeros(5, bool))) == 0


def test_order_is_by_class_then_path_and_not_the_file_systems(tmp_path, monkeypatch):
    files = {
        'a b/z.png': 1,
        'a/z.jpg': 2,
        'a/b/x.jpg': 3,
        'a/B.jpg': 4,
        'a/b.jpg': 5,
        'ä/日本 1.jpg': 6,
        'نیم\u200cفاصله/1.jpg': 7,
    }
    first = scan_folder(put(tmp_path / '1', files))
    monkeypatch.setattr(scans, '_workers', lambda: 3)
    second = scan_folder(put(tmp_path / '2', dict(reversed(files.items()))))
    wanted = ['a/B.jpg', 'a/b.jpg', 'a/b/x.jpg', 'a/z.jpg', 'a b/z.png', 'ä/日本 1.jpg']
    wanted.append('نیم\u200cفاصله/1.jpg')
    assert relative(first) == relative(second) == wanted
    assert first.class_names == ('a', 'a b', 'ä', 'نیم\u200cفاصله')
    assert first.digest == second.digest


def test_digest_is_of_contents_labels_and_names(tmp_path):
    root = put(tmp_path / 'data', LIGHTS)
    digest = scan_folder(root).digest
    moved = shutil.copytree(root, tmp_path / 'elsewhere' / 'copy')
    assert scan_folder(moved).digest == digest
    (moved / 'red').rename(moved / 'rot')
    renamed_class = scan_folder(moved).digest
    (moved / 'rot').rename(moved / 'red')
    (moved / 'red/1.jpg').rename(moved / 'green/9.jpg')  # the order of contents stays
    other_label = scan_folder(moved).digest
    (moved / 'green/9.jpg').rename(moved / 'red/1.jpg')
    assert scan_folder(moved).digest == digest
    put(moved, {'red/1.jpg': 99})
    assert len({digest, renamed_class, other_label, scan_folder(moved).digest}) == 4


def test_content_decides_what_is_an_image(tmp_path, said):
    files = {
        'a/UPPER.JPG': 1,
        'a/lying.jpg': image_bytes(2, 'PNG'),
        'a/without': image_bytes(3, 'GIF'),
        'a/odd.dat': image_bytes(4, 'WEBP'),
        'b/x.jpeg': 5,
        'b/y.tif': image_bytes(6, 'TIFF'),
        'b/__init__.py': b'import os\n',
        'a/__init__.py': b'',
        'a/Thumbs.db': bytes(range(256)),
        'a/labels.csv': b'a,b\n',
        'a/.DS_Store': b'\0\0\0\1Bud1',
        'a/._x.jpg': b'AppleDouble',
        '.ipynb_checkpoints/x.jpg': 7,
        '__MACOSX/a/x.jpg': 8,
        'a/@eaDir/x.jpg': 9,
        'README.txt': b'Photographs',
    }
    table = scan_folder(put(tmp_path / 'data', files))
    wanted = ['a/UPPER.JPG', 'a/lying.jpg', 'a/odd.dat', 'a/without', 'b/x.jpeg', 'b/y.tif']
    assert relative(table) == wanted
    assert list(table.plain_jpeg) == [True, False, False, False, True, False]
    (line,) = said
    assert '6 images in 2 classes' in line
    for part in ('3 hidden', '2 *.py', '1 *.db', '1 *.csv', '1 *.txt', '1 __MACOSX', '1 @eaDir'):
        assert part in line


def test_plain_jpeg_column_follows_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new('RGB', (8, 8)).save(file, 'JPEG', exif=exif)
    table = scan_folder(put(tmp_path / 'data', {'a/1.jpg': file.getvalue(), 'b/2.jpg': 2}))
    assert list(table.plain_jpeg) == [False, True]


def no_class(root):
    root.mkdir()
    (root / 'notes.txt').write_text('x')


def unreadable_name(root):
    put(root, {'a/1.jpg': 1})
    os.mkdir(os.path.join(os.fsencode(root), b'b\xff'))


UNFIT = {
    'missing': (None, ['no such folder', "did you mean 'data2'?"]),
    'file': (lambda root: root.write_text('x'), ['is a file, not a folder']),
    'nothing': (lambda root: root.mkdir(), ['has no class folders']),
    'strays only': (no_class, ['has no class folders']),
    'name': (unreadable_name, ["class folder 'b�' is not UTF-8", 'rename it']),
    'images beside': (
        {'1.jpg': 1, '2.png': 2, 'a/3.jpg': 3, 'b/4.jpg': 4},
        ['outside of class folders: 1.jpg, 2.png;'],
    ),
    'images only': (
        {f'{n}.jpg': n for n in range(9)},
        ['outside of class folders: 0.jpg, 1.jpg, 2.jpg, ...;'],
    ),
    'single': ({'a/1.jpg': 1}, ["has the single class 'a'", 'a folder for each other class']),
    'one too high': (
        {'images/red/1.jpg': 1, 'images/green/2.jpg': 2},
        ["single class 'images'", "if its folders 'green', 'red' are the classes", "data/images'"],
    ),
    'empty class': ({'a/1.jpg': 1, 'b/.hidden.jpg': 2}, ["without a usable image: 'b'"]),
    'empty classes': (
        {'a/1.jpg': 1, 'b/x.py': b'', 'c/sub/y.txt': b'y'},
        ["without a usable image: 'b', 'c'"],
    ),
    'splits': (
        {'Train/red/1.jpg': 1, 'Test/red/2.jpg': 2},
        ['holds splits, not classes', '--config.data.val'],
    ),
}


@pytest.mark.parametrize('case', UNFIT)
def test_folder_that_cannot_be_a_training_split(tmp_path, case):
    files, words = UNFIT[case]
    (tmp_path / 'data2').mkdir()
    root = tmp_path / 'data'
    if callable(files):
        files(root)
    elif files is not None:
        put(root, files)
    with pytest.raises(UserError) as error:
        scan_folder(root, key='config.data.train')
    assert error.value.where == 'config.data.train'
    for part in words:
        assert part in str(error.value)
    str(error.value).encode()


BAD = {
    'red/empty.jpg': b'',
    'red/page.JPG': b'<html>404</html>',
    'green/cut.png': image_bytes(8, 'PNG')[:90],
    'green/phone.bin': b'\0\0\0\x18ftypheic\0\0',
    'green/huge.gif': b'GIF89a' + b'\xff' * 40,
    'yellow/cut': image_bytes(9)[:500],
}


def test_bad_images_are_named_with_reasons(tmp_path):
    root = put(tmp_path / 'data', LIGHTS | BAD)
    with pytest.raises(UserError) as error:
        scan_folder(root, key='config.data.val', class_names=['green', 'red', 'yellow'])
    assert error.value.where == 'config.data.val'
    text = str(error.value)
    assert '6 of 11 images cannot be used' in text
    assert 'green/cut.png is a truncated PNG' in text
    assert 'green/phone.bin is HEIC' in text
    assert 'red/empty.jpg is empty' in text
    assert 'and 1 more' in text
    assert '--config.data.on_bad_image=skip' in text


def test_bad_images_are_skipped_and_named_on_request(tmp_path, said):
    root = put(tmp_path / 'data', LIGHTS | BAD)
    table = scan_folder(root, on_bad_image='skip')
    assert relative(table) == sorted(LIGHTS)
    warnings = [line for line in said if line.startswith('warning')]
    assert '6 of 11 images' in warnings[0]
    for path in BAD:
        assert any(path in line for line in warnings)
    put(root, {'blue/x.jpg': b''})
    with pytest.raises(UserError, match="without a usable image: 'blue'"):
        scan_folder(root, on_bad_image='skip')


def test_links_are_followed_and_loops_are_not(tmp_path, said):
    root = put(tmp_path / 'data', {'a/1.jpg': 1, 'a/sub/2.jpg': 2, 'b/3.jpg': 3})
    other = put(tmp_path / 'other', {'4.jpg': 4, 'deep/5.jpg': 5})
    (root / 'a/up').symlink_to(root / 'a')
    (root / 'a/top').symlink_to(root)
    (root / 'a/sub/system').symlink_to('/')
    (root / 'a/elsewhere').symlink_to(other)
    (root / 'a/elsewhere again').symlink_to(other)
    (root / 'b/file.jpg').symlink_to(other / '4.jpg')
    (root / 'c').symlink_to(other)
    table = scan_folder(root)
    wanted = ['a/1.jpg', 'a/elsewhere/4.jpg', 'a/elsewhere/deep/5.jpg', 'a/sub/2.jpg', 'b/3.jpg']
    assert relative(table) == [*wanted, 'b/file.jpg', 'c/4.jpg', 'c/deep/5.jpg']
    assert '4 links to a folder already read' in said[-1]
    (root / 'b/gone.jpg').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(
        UserError, match=r'1 of 9 images cannot be used: b/gone.jpg is a broken link'
    ):
        scan_folder(root)


def test_pipes_are_not_opened(tmp_path, said):
    root = put(tmp_path / 'data', {'a/1.jpg': 1, 'b/2.jpg': 2})
    os.mkfifo(root / 'a/pipe.jpg')
    os.mkfifo(root / 'beside.jpg')
    assert relative(scan_folder(root)) == ['a/1.jpg', 'b/2.jpg']
    assert '2 pipes, sockets and devices' in said[-1]


@contextlib.contextmanager
def as_nobody():
    """Takes root's privileges away, for no permission stops root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ('closed', 'words'),
    [('a/1.jpg', 'a/1.jpg cannot be read: Permission'), ('a', 'a: the folder cannot be read')],
)
def test_missing_permission_is_named(closed, words):
    with tempfile.TemporaryDirectory() as open_folder:  # pytest's are closed to others
        os.chmod(open_folder, 0o755)
        root = put(Path(open_folder, 'data'), {'a/1.jpg': 1, 'b/2.jpg': 2})
        assert len(scan_folder(root)) == 2
        (root / closed).chmod(0)
        with as_nobody(), pytest.raises(UserError) as error:
            scan_folder(root)
        (root / closed).chmod(0o700)
    assert words in str(error.value)


TRAINING = ('Yellow', 'green', 'red', 'blue_car')


@pytest.mark.parametrize(
    ('name', 'hint'),
    [
        ('yellow', "'yellow': did you mean 'Yellow'?"),
        ('green ', "'green ': did you mean 'green'?"),
        ('RED', "'RED': did you mean 'red'?"),
        ('BLUE-CAR', "'BLUE-CAR': did you mean 'blue_car'?"),
        ('gren', "'gren': did you mean 'green'?"),
        ('pedestrian', "'pedestrian': no class is spelled like it"),
    ],
)
def test_class_that_training_does_not_have(tmp_path, name, hint):
    root = put(tmp_path / 'val', {'red/1.jpg': 1, f'{name}/2.jpg': 2})
    with pytest.raises(UserError) as error:
        scan_folder(root, key='config.data.val', class_names=TRAINING)
    assert error.value.where == 'config.data.val'
    assert f'classes that training does not have: {name!r} (and training has' in str(error.value)
    assert hint in str(error.value)


def test_labels_of_validation_are_those_of_training(tmp_path, said):
    root = put(tmp_path / 'val', {'red/1.jpg': 1, 'green/2.jpg': 2})
    table = scan_folder(root, class_names=TRAINING, key='config.data.val')
    assert table.class_names == TRAINING
    assert dict(zip(relative(table), table.labels.tolist(), strict=True)) == {
        'green/2.jpg': 1,
        'red/1.jpg': 2,
    }
    (warning,) = [line for line in said if line.startswith('warning')]
    assert (
        f"{root}: no images of 2 of the classes that training has: 'Yellow', 'blue_car'" in warning
    )
    assert len(scan_folder(put(tmp_path / 'one', {'red/1.jpg': 1}), class_names=TRAINING)) == 1
    with pytest.raises(UserError, match="without a usable image: 'green'"):
        scan_folder(
            put(tmp_path / 'none', {'red/1.jpg': 1, 'green/x.txt': b'x'}), class_names=TRAINING
        )


def test_classes_that_differ_in_spelling_only_are_a_warning(tmp_path, said):
    scan_folder(put(tmp_path / 'data', {'Yellow/1.jpg': 1, 'yellow/2.jpg': 2, 'red/3.jpg': 3}))
    assert any("differ in spelling only: 'Yellow', 'yellow'" in line for line in said)


def test_classes_that_look_the_same_are_told_apart(tmp_path, said):
    nfc, nfd = 'caf\u00e9', 'cafe\u0301'
    scan_folder(put(tmp_path / 'data', {f'{nfc}/1.jpg': 1, f'{nfd}/2.jpg': 2, 'red/3.jpg': 3}))
    shown = f"'{nfd}' (NFD: 'cafe\\u0301'), '{nfc}' (NFC)"
    assert any(f'differ in spelling only: {shown}' in line for line in said)
    with pytest.raises(UserError) as caught:
        scan_folder(put(tmp_path / 'val', {f'{nfd}/1.jpg': 1}), class_names=(nfc, 'red'))
    for part in (
        f"training does not have: '{nfd}' (NFD: 'cafe\\u0301')",
        f"and training has '{nfc}' (NFC), 'red', which",
        f"did you mean '{nfc}' (NFC)?",
    ):
        assert part in str(caught.value)


def test_many_classes(tmp_path):
    data = image_bytes(0)
    root = tmp_path / 'data'
    for name in range(1200):
        os.makedirs(root / f'class {name:05}')
        (root / f'class {name:05}' / 'x.jpg').write_bytes(data)
    table = scan_folder(root)
    assert table.class_names == tuple(f'class {name:05}' for name in range(1200))
    np.testing.assert_array_equal(table.labels, np.arange(1200))
    with pytest.raises(UserError, match='and 1195 more'):
        scan_folder(root, class_names=['a', 'b'])


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """The files below `data` that were read, in order."""
    paths, read_file = [], scans.read_file

    def spy(path, **options):
        paths.append(os.path.relpath(path, tmp_path / 'data'))
        return read_file(path, **options)

    monkeypatch.setattr(scans, 'read_file', spy)
    return paths


def assert_same(a, b):
    assert (a.root, a.class_names, a.digest) == (b.root, b.class_names, b.digest)
    for name in ('paths', 'labels', 'digests', 'plain_jpeg', 'perceptual_hashes'):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype


def test_second_scan_reads_nothing(tmp_path, reads, cache):
    files = LIGHTS | {'red/ä.png': image_bytes(6, 'PNG'), 'red/notes.txt': b'x'}
    root = put(tmp_path / 'data', files)
    with open(os.fsencode(root) + b'/red/\xff.jpg', 'wb') as file:
        file.write(image_bytes(10))
    first = scan_folder(root)
    assert len(reads) == 8
    reads.clear()
    assert_same(scan_folder(root), first)
    link = tmp_path / 'link'
    link.symlink_to(root)
    assert scan_folder(link).digest == first.digest
    assert reads == []
    put(root, {'green/new.jpg': 7})
    (root / 'red/1.jpg').unlink()
    third = scan_folder(root)
    assert reads == ['green/new.jpg']
    assert sorted(os.path.basename(path) for path in third.paths if 'green' in path) == [
        '3.jpg',
        'new.jpg',
    ]
    assert len(list((cache / 'scans').iterdir())) == 1


def test_replaced_contents_are_noticed(tmp_path, reads):
    root = put(tmp_path / 'data', LIGHTS)
    path = root / 'red/1.jpg'
    before, status = scan_folder(root), path.stat()
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as an unpacker may do
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    reads.clear()
    after = scan_folder(root)
    assert reads == ['red/1.jpg']
    assert after.digests[1] == hashlib.sha256(data).hexdigest() != before.digests[1]


class Attack:
    """A pickle of it makes a folder where it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / 'attacked'),)


@pytest.mark.parametrize(
    'damage', ['cut', 'empty', 'garbage', 'flip', 'pickle', 'short', 'version']
)
def test_damaged_cache_is_made_again(tmp_path, reads, cache, damage):
    root = put(tmp_path / 'data', LIGHTS)
    first = scan_folder(root)
    (file,) = (cache / 'scans').iterdir()
    data = file.read_bytes()
    with np.load(file) as columns:
        columns = dict(columns)
    if damage == 'pickle':
        np.savez(file, **columns | {'texts': np.array([Attack(tmp_path)], object)})
    elif damage == 'short':
        np.savez(file, **columns | {'digests': columns['digests'][:-1]})
    elif damage == 'version':
        old = columns['texts'].tobytes().replace(b'Pillow', b'Pellow')
        np.savez(file, **columns | {'texts': np.frombuffer(old, np.uint8)})
    else:
        at = data.index(bytes.fromhex(first.digests[0]))
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        broken = {'cut': data[:100], 'empty': b'', 'garbage': os.urandom(500), 'flip': flipped}
        file.write_bytes(broken[damage])
    reads.clear()
    assert_same(scan_folder(root), first)
    assert len(reads) == 5
    assert not (tmp_path / 'attacked').exists()
    reads.clear()
    assert_same(scan_folder(root), first)
    assert reads == []


def test_failure_to_read_is_not_remembered(tmp_path, monkeypatch):
    root = put(tmp_path / 'data', LIGHTS | {'red/without extension': 6})

    def fail(path, *args, **options):
        if 'without' in path:
            raise OSError(5, 'Input/output error')
        return open(path, *args, **options)

    monkeypatch.setattr(scans, 'open', fail, raising=False)
    assert len(scan_folder(root)) == 5
    monkeypatch.undo()
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    assert len(scan_folder(root)) == 6


def test_what_was_read_is_kept_when_an_image_is_bad(tmp_path, reads):
    root = put(tmp_path / 'data', LIGHTS | {'red/bad.jpg': b'x'})
    for _ in range(2):
        with pytest.raises(UserError, match=r'red/bad.jpg is text'):
            scan_folder(root)
    assert len(reads) == 6
    put(root, {'red/bad.jpg': 6})
    assert len(scan_folder(root)) == 6
    assert reads[6:] == ['red/bad.jpg']


def test_interrupted_scan_goes_on_where_it_stopped(tmp_path, monkeypatch):
    root = put(tmp_path / 'data', {f'{name}/{n}.jpg': n for name in 'ab' for n in range(150)})
    read_file, paths = scans.read_file, []

    def interrupt(path, **options):
        if path.endswith('b/99.jpg'):
            raise KeyboardInterrupt
        paths.append(path)
        return read_file(path, **options)

    monkeypatch.setattr(scans, 'read_file', interrupt)
    monkeypatch.setattr(scans, '_workers', lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        scan_folder(root)
    kept = paths[: len(paths) // scans._CHUNK * scans._CHUNK]
    assert len(kept) >= 64
    paths.clear()
    monkeypatch.setattr(
        scans,
        'read_file',
        lambda path, **options: paths.append(path) or read_file(path, **options),
    )
    assert len(scan_folder(root)) == 300
    assert not set(paths) & set(kept)
    assert len(paths) == 300 - len(kept)


def test_cache_that_cannot_be_written_is_only_a_warning(tmp_path, cache, said):
    cache.write_text('a file where the folder should be')
    root = put(tmp_path / 'data', LIGHTS)
    assert len(scan_folder(root)) == 5
    assert any(line.startswith('warning') and 'cannot be remembered' in line for line in said)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_on_a_terminal_only(tmp_path, monkeypatch, capfd):
    root = put(tmp_path / 'data', {f'{name}/{n}.jpg': n for name in 'ab' for n in range(100)})
    scan_folder(root)
    assert capfd.readouterr().err == ''
    put(root, {f'{name}/{n}.jpg': n + 1 for name in 'ab' for n in range(100)})
    monkeypatch.setattr(sys, 'stderr', Terminal())
    monkeypatch.setattr('tlflax.utils.progress._DELAY', 0)
    scan_folder(root)
    assert 'reading images' in sys.stderr.getvalue()
    assert '/200' in sys.stderr.getvalue()


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    put(tmp_path / 'data', LIGHTS)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert scan_folder('~/data').root == str(tmp_path / 'data')


@pytest.mark.assets
def test_the_real_traffic_lights(traffic_lights_dir):
    train = scan_folder(traffic_lights_dir / 'Train')
    test = scan_folder(traffic_lights_dir / 'Test', class_names=train.class_names)
    assert train.class_names == ('green', 'red', 'yellow')
    np.testing.assert_array_equal(train.counts, [429, 723, 35])
    np.testing.assert_array_equal(test.counts, [107, 181, 9])
    assert train.plain_jpeg.all()
    assert test.plain_jpeg.all()
    assert isinstance(train, ImageTable)
