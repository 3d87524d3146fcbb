"""How errors get their place, and how those of others become sentences."""

import pytest

from tlflax.utils.errors import UserError, as_user_error, did_you_mean, located, quoted, shown


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


def test_outside_text_in_a_message_is_cut_and_printable():
    error = UserError('a\x1b[2J\nb' + 'x' * 10_000, where='\ud800', fix='\n')
    assert str(error).startswith('�: a�[2J\nbxxx')
    assert str(error).endswith('...; �')
    assert len(str(error)) < 4100


@pytest.mark.parametrize(
    ('value', 'text'),
    [('a', "'a'"), (10**5000, 'int(...)'), ('x' * 999, "'" + 'x' * 199 + '...')],
    ids=['short', 'no text', 'long'],
)
def test_values_are_shown(value, text):
    assert shown(value) == text


def test_few_of_many_choices_are_compared():
    choices = [f'choice {number}' for number in range(10**6)]
    assert did_you_mean('choice 77', choices) == "did you mean 'choice 77'?"


NFC, NFD = 'caf\u00e9', 'cafe\u0301'


@pytest.mark.parametrize(
    ('name', 'others', 'said'),
    [
        (NFC, [], f"'{NFC}'"),
        (NFD, [], f"'{NFD}'"),
        (NFD, [NFD, 'cafe'], f"'{NFD}'"),
        (NFC, [NFC, NFD], f"'{NFC}' (NFC)"),
        (NFD, [NFC], f"'{NFD}' (NFD: 'cafe\\u0301')"),
        ('\u212b', ['\u00c5'], "'\u212b' ('\\u212b')"),
    ],
)
def test_names_that_look_the_same_are_told_apart(name, others, said):
    assert quoted(name, others) == said


def test_a_hint_shows_the_form_of_what_looks_the_same():
    assert did_you_mean(NFD, [NFC]) == f"did you mean '{NFC}' (NFC)?"
    assert did_you_mean(NFC, [NFD]).endswith(r"(NFD: 'cafe\u0301')?")
