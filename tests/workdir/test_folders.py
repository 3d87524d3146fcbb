"""What is wrong with folders is said before libraries are imported, and only where it is wrong."""

import pytest

from tlflax.config import default_config
from tlflax.utils.errors import UserError
from tlflax.workdir.folders import require_images, require_run


def test_a_run_has_checkpoints(tmp_path):
    with pytest.raises(UserError, match='no checkpoint found') as caught:
        require_run(str(tmp_path / 'nowhere'))
    assert caught.value.where == str((tmp_path / 'nowhere' / 'checkpoints').resolve())
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    require_run(str(tmp_path / 'run'))
    require_run('s3://bucket/run')


def config(**data):
    values = default_config()
    values.data.update(data)
    return values


@pytest.mark.parametrize('name', ['train', 'val', 'test'])
@pytest.mark.parametrize('spec', ['nowhere', '~/nowhere', 'nowhere.csv', 'nowhere.csv#val'])
def test_images_of_a_new_run_exist(tmp_path, monkeypatch, name, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        require_images(config(**{name: spec}), 'new')
    assert caught.value.where.startswith(f'config.data.{name}')
    assert 'nowhere' in str(caught.value)
    require_images(config(**{name: str(tmp_path)}), 'new')
    require_images(config(**{name: spec}), 's3://bucket/new')
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun' / 'config.json').write_text('{}')
    require_images(config(**{name: spec}), 'begun')


@pytest.mark.parametrize(
    'spec',
    ['demo:traffic_lights/Train', 'tfds:x', 'py:x.py:f', 's3://b/x', 'x/*.jpg', 'x?'],
)
def test_what_takes_longer_is_not_looked_at(tmp_path, spec):
    require_images(config(train=spec), str(tmp_path / 'new'))
