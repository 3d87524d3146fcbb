"""Config files in Python: what they return, and what is wrong with them, in one sentence."""

import os

import pytest
from ml_collections import ConfigDict

from tlflax.config import config_file
from tlflax.utils.errors import UserError

BEGIN = (
    'from tlflax.config import default_config\ndef get_config():\n    config = default_config()\n'
)


def written(folder, text):
    path = folder / 'mine.py'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (
            f'{BEGIN}    config.train.epochz = 3\n    return config\n',
            "mine.py, line 4: there is no key 'epochz'; did you mean 'epochs'?",
        ),
        (
            f'{BEGIN}    config.trian.epochs = 3\n    return config\n',
            "mine.py, line 4: there is no key 'trian'; did you mean 'train'?",
        ),
        (
            f'{BEGIN}    config.trian = 3\n    return config\n',
            "mine.py, line 4: there is no key 'trian'; did you mean 'train'?",
        ),
        (
            f'{BEGIN}    print(config["train"]["epochz"])\n    return config\n',
            "mine.py, line 4: there is no key 'epochz'; did you mean 'epochs'?",
        ),
        (
            f'{BEGIN}    config["trian"] = 3\n    return config\n',
            "mine.py, line 4: there is no key 'trian'; did you mean 'train'?",
        ),
        (
            f'{BEGIN}    config.train.epochs.many = 3\n    return config\n',
            "mine.py fails with AttributeError: 'int' object has no attribute 'many'",
        ),
        (f'{BEGIN}    {{}}["a"]\n    return config\n', "fails with KeyError: 'a' ("),
        ('', 'mine.py: it has no get_config(); '),
        ('x = 1', 'mine.py: it has no get_config(); '),
        ('get_config = 3', 'mine.py: it has no get_config(); '),
        (f'{BEGIN}    pass\n', 'mine.py: get_config() returns None; '),
        ('def get_config():\n    return 3\n', 'mine.py: get_config() returns 3; '),
        (f'{BEGIN}    1 / 0\n', 'mine.py fails with ZeroDivisionError: division by zero ('),
        ('def get_config(:\n', 'mine.py fails with SyntaxError: '),
        ('\nimport nothing_here\n', "ModuleNotFoundError: No module named 'nothing_here' ("),
        ('import sys\nsys.exit(0)\n', 'mine.py fails with SystemExit: 0 ('),
        (b'\x00\xff\xfe', 'mine.py fails with '),
        ('def get_config(x):\n    return x\n', 'get_config() missing 1 required'),
    ],
    ids=range(18),
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        config_file.read(path)
    assert said in str(caught.value)
    assert path in str(caught.value)
    assert '\n' not in str(caught.value)


def test_the_line_is_named_where_the_file_calls_a_library(tmp_path):
    path = written(tmp_path, f'import json\n{BEGIN}    json.loads("{{")\n')
    with pytest.raises(UserError, match=r'mine\.py, line 5\)'):
        config_file.read(path)


def test_an_argument_of_get_config(tmp_path):
    path = written(
        tmp_path,
        BEGIN.replace('get_config()', 'get_config(rate)')
        + '    config.optim.learning_rate = float(rate)\n    return config\n',
    )
    assert config_file.read(f'{path}:0.25').optim.learning_rate == 0.25


@pytest.mark.parametrize('kind', ['ml_collections.ConfigDict', 'dict'])
def test_a_configuration_may_have_few_keys(tmp_path, kind):
    text = f"import ml_collections\ndef get_config(): return {kind}({{'train': {{'epochs': 7}}}})"
    found = config_file.read(written(tmp_path, text))
    assert isinstance(found, ConfigDict)
    assert (found.train.epochs, found.train.batch_size) == (7, 32)


def test_paths_that_are_no_config_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe.py')
    (tmp_path / 'text.yaml').write_text('train:')
    for path, said in (
        (tmp_path / 'pipe.py', 'cannot be read as a configuration (it is a pipe, not a file)'),
        (tmp_path, 'cannot be read as a configuration (it is a folder, not a file)'),
        (tmp_path / 'none.py', 'no such config file'),
        (tmp_path / 'text.yaml', 'is no config file'),
        ('~no_such_user/a.py', "there is no user 'no_such_user'"),
    ):
        with pytest.raises(UserError) as caught:
            config_file.read(str(path))
        assert said in str(caught.value)
