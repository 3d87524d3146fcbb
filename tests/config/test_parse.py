"""The schema: defaults, types, ranges, did-you-mean."""

import json
import math

import pytest

from tlflax.config.parse import default_config, resolve, to_dict
from tlflax.config.schema import Config
from tlflax.utils.errors import UserError
from tlflax.workdir.files import write_json


def test_defaults_resolve_to_themselves():
    assert resolve(default_config()).data == Config().data
    assert resolve({}).train == Config().train


def test_survives_json(tmp_path):
    config = default_config()
    config.optim.labels = (('backbone/.*', 'frozen'), ('.*', 'x'))
    config.augment.brightness_range = (0.5, 1.5)
    write_json(tmp_path / 'c.json', to_dict(resolve(config)))
    back = resolve(json.loads((tmp_path / 'c.json').read_text()))
    assert back.optim == resolve(config).optim
    assert back.augment.brightness_range == (0.5, 1.5)
    assert math.isnan(back.early_stopping.baseline)


@pytest.mark.parametrize(
    ('raw', 'where', 'hint'),
    [
        ({'trian': {}}, 'config.trian', "did you mean 'train'"),
        ({'train': {'batch_sise': 3}}, 'config.train.batch_sise', "did you mean 'batch_size'"),
        ({'train': {'batch_size': '3'}}, 'config.train.batch_size', 'str'),
        ({'train': {'batch_size': True}}, 'config.train.batch_size', 'bool'),
        ({'train': {'batch_size': -1}}, 'config.train.batch_size', 'at least 0'),
        ({'train': {'seed': 2**31}}, 'config.train.seed', 'at most'),
        ({'train': 5}, 'config.train', 'holds keys'),
        ({'data': {'image_size': (224,)}}, 'config.data.image_size', 'tuple'),
        ({'data': {'image_size': (224, 'a')}}, 'config.data.image_size', 'int'),
        ({'data': {'background': (0, 0, 256)}}, 'config.data.background', 'at most 255'),
        ({'data': {'background': (0, -1, 0)}}, 'config.data.background', 'at least 0'),
        ({'data': {'max_pixels': 0}}, 'config.data.max_pixels', 'at least 1'),
        ({'data': {'resize': 'strech'}}, 'config.data.resize', "did you mean 'stretch'"),
        ({'model': {'dropout': 1.0}}, 'config.model.dropout', 'at most'),
        ({'model': {'dropout': float('nan')}}, 'config.model.dropout', 'is not a number'),
    ],
    ids=str,
)
def test_mistakes_are_named_by_their_key(raw, where, hint):
    with pytest.raises(UserError) as error:
        resolve(raw)
    assert str(error.value).startswith(where)
    assert hint in str(error.value)


def test_numbers_and_spellings_that_are_meant():
    assert resolve({'optim': {'learning_rate': 1}}).optim.learning_rate == 1.0
    assert resolve({'features': {'cache': False}}).features.cache == 'False'
    assert resolve({'data': {'image_size': [32, 48]}}).data.image_size == (32, 48)


@pytest.mark.parametrize(
    ('raw', 'match'),
    [
        ([], r'config: holds keys, not \[\]'),
        (None, 'config: holds keys, not None'),
        ({3: 1}, '3 is not a key'),
        ({'data': {None: 1}}, 'None is not a key'),
        ({'a\n': 1}, 'no such key'),
        ({'train': {'epochs': 10**5000}}, r'config.train.epochs: int\(\.\.\.\) is too large'),
        ({'train': {'seed': -(10**30)}}, 'is too'),
        ({'optim': {'learning_rate': 10**400}}, 'is too large'),
        ({'data': {'train': 10**5000}}, 'config.data.train: '),
        ({'loss': {'weights_by_class': [('a', 10**400)]}}, 'is too large'),
        ({'data': {'train': ['x' * 10**6]}}, 'config.data.train: '),
    ],
)
def test_values_of_any_kind_are_refused_with_a_sentence(raw, match):
    with pytest.raises(UserError, match=match) as caught:
        resolve(raw)
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(('raw', 'value'), [(3, 3), ('3', 3), ('all', 'all')])
def test_a_number_or_a_word(raw, value):
    assert resolve({'data': {'fold': raw}}).data.fold == value


@pytest.mark.parametrize(
    ('raw', 'words'),
    [
        ('al', "config.data.fold: 'al' is not a number; give a whole number or 'all'"),
        ('-1', 'config.data.fold: -1 is too small'),
        (True, 'config.data.fold: True is a bool; give it as int'),
        ('9' * 30, 'is too large'),
        ('9' * 5000, 'is not a number'),
        (['all'], 'config.data.fold: '),
    ],
    ids=['al', '-1', 'bool', 'large', 'huge', 'list'],
)
def test_neither_a_number_nor_a_word(raw, words):
    with pytest.raises(UserError) as error:
        resolve({'data': {'fold': raw}})
    assert words in str(error.value)
