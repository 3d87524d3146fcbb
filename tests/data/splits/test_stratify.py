"""Splits that depend on contents alone, and leaks between them."""

import dataclasses
import hashlib
import time

import numpy as np
import pytest

from tlflax.data.splits.stratify import fold_numbers, fold_split, stratified_split, units
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError


def table(contents, root='/data', group=None):
    """A table of class -> contents of its files (anything with a repr), in the order of a scan.

    `group` gives each content its group.
    """
    class_names = tuple(sorted(contents))
    rows = [
        (label, f'{root}/{name}/{number:04}.jpg', hashlib.sha256(repr(item).encode()).hexdigest())
        for label, name in enumerate(class_names)
        for number, item in enumerate(contents[name])
    ]
    return ImageTable(
        root=root,
        paths=np.array([path for _, path, _ in rows], object),
        labels=np.array([label for label, _, _ in rows], np.int32),
        class_names=class_names,
        digests=np.array([digest for *_, digest in rows], object),
        plain_jpeg=np.ones(len(rows), bool),
        groups=None
        if group is None
        else np.array([group(item) for name in class_names for item in contents[name]], object),
    )


def contents_of(part, label=None):
    return set(part.digests if label is None else part.digests[part.labels == label])


def names(count, prefix=''):
    return [f'{prefix}{number}' for number in range(count)]


@pytest.mark.parametrize(
    ('fraction', 'images', 'taken'),
    [(0.2, 100, 20), (0.25, 10, 3), (0.5, 5, 3), (0.01, 10, 1), (0.9, 3, 2), (0.99, 2, 1)],
)
def test_sizes(fraction, images, taken):
    rest, part = stratified_split(table({'a': names(images), 'b': names(40, 'b')}), fraction)
    assert (part.labels == 0).sum() == taken
    assert (rest.labels == 0).sum() == images - taken
    assert rest.class_names == part.class_names == ('a', 'b')


def test_sides_are_a_partition_in_order():
    whole = table({'a': names(50), 'b': names(31, 'b')})
    rest, part = stratified_split(whole, 0.3)
    assert sorted([*rest.paths, *part.paths]) == list(whole.paths)
    assert list(rest.paths) == sorted(rest.paths)
    assert list(part.paths) == sorted(part.paths)
    assert not contents_of(rest) & contents_of(part)


def test_the_choice_is_fixed_for_ever():
    # Computed apart: sha256('val' NUL digest), the three smallest of ten.
    wanted = {hashlib.sha256(repr(name).encode()).hexdigest() for name in ('1', '5', '0')}
    _, part = stratified_split(table({'a': names(10), 'b': names(10, 'b')}), 0.3)
    assert contents_of(part, 0) == wanted


def test_other_classes_names_and_places_change_nothing():
    base = {'b': names(60), 'c': names(45, 'c')}
    _, before = stratified_split(table(base), 0.2)
    changed = {'a': names(500, 'a'), 'b': names(60)[::-1], 'c': names(45, 'c') + names(7, 'new')}
    _, after = stratified_split(table(changed, root='/elsewhere/moved'), 0.2)
    assert contents_of(after, 1) == contents_of(before, 0)
    assert len(contents_of(after, 2) & contents_of(before, 1)) >= 7  # of 9, with 7 newcomers


def test_more_images_move_few_others():
    _, before = stratified_split(table({'a': names(200), 'b': names(9, 'b')}), 0.2)
    _, after = stratified_split(table({'a': names(210), 'b': names(9, 'b')}), 0.2)
    assert len(contents_of(before, 0) - contents_of(after, 0)) <= 4


def test_salts_are_independent_draws():
    whole = table({'a': names(4000), 'b': names(10, 'b')})
    drawn = [contents_of(stratified_split(whole, 0.25, salt)[1], 0) for salt in ('val', 'test')]
    assert abs(len(drawn[0] & drawn[1]) - 250) < 4 * np.sqrt(250)


def test_choice_is_even_over_the_images():
    """A content's chance does not depend on its place in the class."""
    picks = np.zeros(20)
    for salt in range(2000):
        picks += np.isin(
            TWENTY.digests[:20],
            list(contents_of(stratified_split(TWENTY, 0.25, str(salt))[1], 0)),
        )
    assert np.abs(picks - 500).max() < 4.5 * np.sqrt(2000 * 0.25 * 0.75)


TWENTY = table({'a': names(20), 'b': names(2, 'b')})


def test_identical_files_stay_together():
    whole = table({'a': names(10) * 3, 'b': names(8, 'b')})
    rest, part = stratified_split(whole, 0.2)
    assert (part.labels == 0).sum() == 6  # two contents of ten, three times each
    assert not contents_of(rest) & contents_of(part)


def test_identical_files_stay_together_across_classes():
    shared = names(30)
    rest, part = stratified_split(table({'a': shared + names(30, 'a'), 'b': [*names(9), 'b']}), 0.3)
    assert not contents_of(rest) & contents_of(part)
    assert contents_of(part, 0) & contents_of(part, 1)


def test_class_with_one_image_keeps_it():
    rest, part = stratified_split(table({'a': ['x', 'x'], 'b': names(10)}), 0.5)
    np.testing.assert_array_equal(rest.counts, [2, 5])
    np.testing.assert_array_equal(part.counts, [0, 5])


def test_class_of_copies_that_would_be_lost_is_an_error():
    whole = table({'a': names(10), 'b': names(10)[:1]})
    taken = [salt for salt in map(str, range(20)) if whole.digests[-1] in _drawn_from_a(salt)]
    assert 3 < len(taken) < 17
    for salt in map(str, range(20)):
        if salt in taken:
            words = 'class .b. holds nothing but copies of images of other classes'
            with pytest.raises(UserError, match=f'/data/b/0000.jpg: {words}'):
                stratified_split(whole, 0.5, salt)
        else:
            assert (stratified_split(whole, 0.5, salt)[0].counts > 0).all()


def _drawn_from_a(salt):
    alone = table({'a': names(10), 'b': ['b', 'c']})
    return contents_of(stratified_split(alone, 0.5, salt)[1], 0)


@pytest.mark.parametrize('fraction', [0.0, 1.0, -0.1, float('nan')])
def test_fraction_out_of_range_is_a_programming_error(fraction):
    with pytest.raises(ValueError, match='not between 0 and 1'):
        stratified_split(TWENTY, fraction)


@pytest.mark.parametrize(('folds', 'sizes'), [(2, (23, 100)), (5, (23, 100, 7)), (10, (40, 11))])
def test_folds_are_disjoint_exhaustive_and_stratified(folds, sizes):
    whole = table({f'class {n}': names(n, f'{n}.') for n in sizes})
    numbers = fold_numbers(whole, folds)
    assert set(numbers) == set(range(folds))
    counts = np.array([np.bincount(numbers[whole.labels == c], minlength=folds) for c in (0, 1)])
    assert (counts.max(1) - counts.min(1) <= 1).all()  # as even as can be
    parts = [fold_split(whole, folds, fold) for fold in range(folds)]
    assert sorted(path for _, part in parts for path in part.paths) == sorted(whole.paths)
    for rest, part in parts:
        assert not contents_of(rest) & contents_of(part)
        assert len(rest) + len(part) == len(whole)


def test_small_classes_do_not_all_meet_in_one_fold():
    whole = table({f'{n:03}': names(2, f'{n}.') for n in range(300)})
    sizes = np.bincount(fold_numbers(whole, 5))
    assert np.abs(sizes - 120).max() < 4.5 * np.sqrt(600 * 0.2 * 0.8)


def test_folds_do_not_depend_on_names_places_or_other_classes():
    before = fold_of({'b': names(60), 'c': names(45, 'c')})
    after = fold_of({'a': names(99, 'a'), 'b': names(60)[::-1], 'c': names(46, 'c')}, root='/other')
    assert all(after[d] == before[d] for d in contents_of(table({'b': names(60), 'c': ['x']}), 0))
    moved = [d for d in before if before[d] != after[d]]
    assert len(moved) <= 4  # only at the borders of class c, which has one more


def fold_of(contents, folds=5, root='/data', group=None):
    whole = table(contents, root, group)
    return dict(zip(whole.digests, fold_numbers(whole, folds).tolist(), strict=True))


def test_copies_share_a_fold_even_across_classes():
    shared = names(30)
    whole = table({'a': shared + names(30, 'a'), 'b': shared[:9] * 2 + names(20, 'b')})
    numbers = fold_numbers(whole, 4)
    for digest in set(whole.digests):
        assert len(set(numbers[whole.digests == digest])) == 1


def test_class_of_one_content_stays_in_training(caplog):
    whole = table({'a': ['x', 'x'], 'b': names(10)})
    assert list(fold_numbers(whole, 3)[:2]) == [-1, -1]
    for fold in range(3):
        rest, part = fold_split(whole, 3, fold)
        assert rest.counts[0] == 2
        assert part.counts[0] == 0


def test_fold_without_images_is_an_error():
    whole = table({'a': ['1', '2'], 'b': ['3', '4']})
    empty = sorted(set(range(9)) - set(fold_numbers(whole, 9)))
    with pytest.raises(UserError, match=f'fold {empty[0]} of 9 has no image'):
        fold_split(whole, 9, empty[0])


def test_repeats_divide_in_other_ways():
    """Repeat 0 is the division that folds had before there were repeats."""
    whole = table({'a': names(40, 'a'), 'b': names(41, 'b')})
    first, *others = (fold_numbers(whole, 4, repeat) for repeat in range(4))
    assert list(first) == list(fold_numbers(whole, 4))
    rank = {word: hashlib.sha256(f'fold\0{word}'.encode()).digest() for word in whole.digests}
    ranked = sorted(whole.digests[:40], key=rank.get)
    start = int.from_bytes(hashlib.sha256(b'fold\0a').digest()[:4], 'big')
    wanted = {digest: (at // 10 + start) % 4 for at, digest in enumerate(ranked)}
    assert [wanted[digest] for digest in whole.digests[:40]] == list(first[:40])
    for other in others:
        assert sorted(np.bincount(other)) == sorted(np.bincount(first))
        same = (other[:, None] == other) & (first[:, None] == first)
        np.fill_diagonal(same, val=False)
        assert same.sum() < 0.5 * (first[:, None] == first).sum()


def frame(item):
    """The group of content 'a17' or '17': frames of ten."""
    return f'street {item[:-1]}'


def test_groups_are_never_divided():
    contents = {'a': names(100, 'a'), 'b': names(57, 'b') + names(40, 'a9')}
    whole = table(contents, group=frame)
    folds_of = {group: set() for group in whole.groups}
    for fold, group in zip(fold_numbers(whole, 4), whole.groups, strict=True):
        folds_of[group].add(fold)
    assert all(len(folds) == 1 for folds in folds_of.values())
    for fraction in (0.1, 0.3, 0.5):
        rest, part = stratified_split(whole, fraction)
        assert not set(rest.groups) & set(part.groups)
        assert sorted([*rest.paths, *part.paths]) == sorted(whole.paths)
        for label in (0, 1):  # within a group of the size asked for
            count = (whole.labels == label).sum()
            assert abs((part.labels == label).sum() - fraction * count) <= 10


def test_a_copy_joins_two_groups():
    groups = {'x1': 's1', 'x2': 's2', 'y': 's3', 'z': ''}
    whole = table({'a': ['x1', 'x2'], 'b': ['y', 'z']}, group=groups.get)
    assert list(units(whole)) == ['scene s1', 'scene s2', 'scene s3', whole.digests[3]]
    copy = dataclasses.replace(whole, digests=whole.digests.copy())
    copy.digests[1] = copy.digests[2]  # x2 is y
    assert list(units(copy)) == ['scene s1', 'scene s2', 'scene s2', whole.digests[3]]


def test_groups_are_ranked_by_name_so_more_frames_change_nothing():
    few = table({'a': names(50, 'a'), 'b': names(50, 'b')}, group=frame)
    more = table({'a': [*names(50, 'a'), 'a7x', 'a8x'], 'b': names(50, 'b')}, group=frame)
    before, after = (stratified_split(t, 0.4)[1] for t in (few, more))
    assert contents_of(before, 1) == contents_of(after, 1)
    kept = fold_of({'a': names(50, 'a'), 'b': names(50, 'b')}, group=frame)
    grown = fold_of({'a': names(50, 'a'), 'b': [*names(50, 'b'), 'b0x']}, group=frame)
    assert all(grown[d] == kept[d] for d in contents_of(few, 0))


def test_class_in_one_group_cannot_be_split():
    """It stays in training by a fold, and goes with its group by a fraction."""
    whole = table({'a': names(30), 'b': ['b1', 'b2']}, group=lambda item: item[0])
    assert set(fold_numbers(whole, 3)[whole.labels == 1]) == {-1}
    shared = table({'a': names(30), 'b': ['1x', '1y']}, group=lambda item: item[0])
    taken = [salt for salt in map(str, range(30)) if '1' in _groups_of_a(shared, salt)]
    assert 3 < len(taken) < 27
    with pytest.raises(UserError, match="all groups with images of class 'b' would go to one side"):
        stratified_split(shared, 0.5, taken[0])


def _groups_of_a(whole, salt):
    alone = whole.select(whole.labels == 0)
    return set(stratified_split(alone, 0.5, salt)[1].groups)


@pytest.mark.parametrize(('group', 'words'), [(None, 'two images'), (frame, 'two groups')])
def test_nothing_to_take(group, words):
    whole = table({'a': ['a1', 'a1'], 'b': ['b1']}, group=group)
    with pytest.raises(UserError, match=f'no class has {words}'):
        stratified_split(whole, 0.5)


@pytest.mark.parametrize('group', [None, lambda item: f'{item[:-1]}{int(item[-1]) // 2}'])
def test_many_classes_and_images_take_seconds(group):
    whole = table({f'{c:05}': names(4, f'{c}.') for c in range(10_000)}, group=group)
    began = time.process_time()
    assert len(stratified_split(whole, 0.25)[1]) in range(5_000, 20_001)
    assert len(fold_split(whole, 4, 0)[1]) in range(5_000, 20_001)
    assert time.process_time() - began < 10
