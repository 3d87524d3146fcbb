"""Splits that depend on contents alone, and leaks between them."""

import hashlib

import numpy as np
import pytest

from tlflax.data.folder import ImageTable
from tlflax.data.split import stratified_split
from tlflax.errors import UserError


def table(contents, root='/data'):
    """A table of class -> contents of its files (anything with a repr), in the order of a scan."""
    classes = tuple(sorted(contents))
    rows = [
        (label, f'{root}/{name}/{number:04}.jpg', hashlib.sha256(repr(item).encode()).hexdigest())
        for label, name in enumerate(classes)
        for number, item in enumerate(contents[name])
    ]
    return ImageTable(
        root=root,
        paths=np.array([path for _, path, _ in rows], object),
        labels=np.array([label for label, _, _ in rows], np.int32),
        classes=classes,
        digests=np.array([digest for *_, digest in rows], object),
        plain_jpeg=np.ones(len(rows), bool),
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
    assert rest.classes == part.classes == ('a', 'b')


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
