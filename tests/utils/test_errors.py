"""How errors get their place, and how those of others become sentences."""

import pytest

from tlflax.utils.errors import UserError, as_user_error, located


def test_located_names_the_place_of_errors_without_one():
    with pytest.raises(UserError, match=r'^config\.x: is wrong; fix it$'), located('config.x'):
        raise UserError('is wrong', fix='fix it')


def test_located_leaves_places_that_are_known():
    with pytest.raises(UserError, match=r'^a\.csv: is wrong$'), located('config.x'):
        raise UserError('is wrong', where='a.csv')


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (ValueError('bad\nsecond line'), 'bad'),
        (KeyError(), 'KeyError'),
        (FileNotFoundError(2, 'No such file', 'x'), 'No such file'),
    ],
)
def test_foreign_errors_become_one_sentence(error, reason):
    with (
        pytest.raises(UserError) as caught,
        as_user_error('cannot be read ({reason})', where='f', fix='get it again'),
    ):
        raise error
    assert str(caught.value) == f'f: cannot be read ({reason}); get it again'
    assert caught.value.__cause__ is error


def test_only_the_named_types_are_turned():
    with pytest.raises(KeyError), as_user_error('no', fix='none', of=(OSError,)):
        raise KeyError('x')
    with pytest.raises(UserError, match=r'^mine$'), as_user_error('no', fix='none'):
        raise UserError('mine')
    with pytest.raises(MemoryError), as_user_error('no', fix='none', but=(MemoryError,)):
        raise MemoryError
