"""The command line: values, config files, mistakes and exit codes."""

import dataclasses
import gc
import os

import pytest
from helpers import run_new_python

from tlflax.config import cli, default_config, flags, libraries
from tlflax.config.flags import ConfigFile
from tlflax.config.parse import resolve
from tlflax.utils import interrupts
from tlflax.utils.errors import UserError
from tlflax.utils.files import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    config: ConfigFile = flags.config_file(needed=False)
    workdir: str = flags.required('DIR', 'a folder')
    images: tuple[str, ...] = flags.positional('image', 'IMAGE...', 'some images')
    names: tuple[str, ...] = flags.optional(('a',), 'NAME,...', 'some names')
    format: str = flags.choice('text', ('text', 'json'), 'a format')
    fast: bool = flags.switch('be fast')


def make(main=lambda arguments: None):
    return cli.Command('tlflax.some', 'Does something.', Arguments, main, '--workdir=w x.jpg')


def parse(*arguments):
    return make().parse(['--workdir=w', 'x.jpg', *arguments])


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from tlflax.config import default_config\n'
        'def get_config():\n'
        '    config = default_config()\n'
        '    config.train.epochs = 7\n'
        '    return config\n'
    )
    return path


def test_defaults():
    found = parse()
    assert (found.workdir, found.images, found.names) == ('w', ('x.jpg',), ('a',))
    assert (found.format, found.fast) == ('text', False)
    assert found.config.name == ''
    assert found.config.values == default_config()


def test_spellings_of_flags():
    found = parse('--names=b,c', '--format', 'json', '--fast', 'y.jpg', '--', '--z.jpg')
    assert (found.names, found.format, found.fast) == (('b', 'c'), 'json', True)
    assert found.images == ('x.jpg', 'y.jpg', '--z.jpg')
    assert not parse('--fast', '--nofast').fast
    assert not parse('-fast=false').fast


@pytest.mark.parametrize('equals', [True, False])
def test_config_file_and_overrides(config_file, equals):
    given = [f'--config={config_file}'] if equals else ['--config', str(config_file)]
    name, values = parse(*given, '--config.train.seed=3', '--noconfig.data.antialias').config
    assert name == 'mine'
    assert (values.train.epochs, values.train.seed, values.data.antialias) == (7, 3, False)


def test_homes_are_written_out(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert make().parse(['--workdir=~/w', '~/x.jpg']).workdir == '/home/me/w'


def test_overrides_without_a_file():
    values = parse('--config.data.image_size=(32,48)').config.values
    assert values.data.image_size == (32, 48)
    assert values.train == default_config().train


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        (['--config='], flags.UsageError, '--config: no file is named'),
        (['--config'], flags.UsageError, '--config: no file is named'),
        (['--config=no.py'], UserError, 'no.py: no such config file'),
        (['--config.trian.seed=1'], UserError, "--config.trian: no such key; did you mean 'train'"),
        (['--noconfig.data.antalias'], UserError, "did you mean 'antialias'"),
        (['--config.train.seed.x=1'], UserError, '--config.train.seed.x: no such key'),
        (['--config.train.seed=x'], UserError, 'config.train.seed=x'),
        (['--formt=json'], UserError, "did you mean '--format'? see python -m tlflax.some --help"),
        (['--verbosity=1'], UserError, "Unknown command line flag 'verbosity'"),
        (['--format=xml'], UserError, 'text|json'),
        (['--nofast=1'], UserError, 'does not take an argument'),
        (['--workdir='], flags.UsageError, 'no --workdir is given'),
        (['--workdir=~no_user/a'], UserError, "--workdir: '~no_user/a': there is no user"),
    ],
    ids=str,
)
def test_mistakes(arguments, error, words):
    with pytest.raises(error) as caught:
        parse(*arguments)
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)


def test_everything_that_is_missing_is_named():
    with pytest.raises(flags.UsageError, match='no --workdir and no image is given'):
        make().parse([])


def interrupt(arguments):
    raise KeyboardInterrupt(*arguments.names)


def refuse(arguments):
    raise UserError('it is broken', where='here', fix='repair it')


@pytest.mark.parametrize(
    ('main', 'arguments', 'code', 'said'),
    [
        (lambda arguments: None, [], 0, ''),
        (lambda arguments: 1, [], 1, ''),
        (refuse, [], 2, 'error: here: it is broken; repair it\n'),
        (interrupt, ['--names=saved'], 130, 'interrupted: saved\n'),
        (interrupt, ['--names='], 130, 'interrupted: what was computed is kept; run the same'),
    ],
)
def test_exit_codes(monkeypatch, capsys, main, arguments, code, said):
    for name in ('set_up_logging', 'keep_compiled_programs'):  # they change the process
        monkeypatch.setattr(libraries, name, lambda: None)
    monkeypatch.setattr(interrupts, 'raised', lambda: None)
    monkeypatch.setattr(interrupts, 'ignored', lambda: None)
    monkeypatch.setattr('sys.argv', ['some', '--workdir=w', 'x.jpg', *arguments])
    with pytest.raises(SystemExit) as stop:
        make(main).run()
    assert stop.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_config_json_of_a_run_is_data(tmp_path):
    folder = tmp_path / 'mine'
    folder.mkdir()
    config = default_config()
    config.train.epochs, config.optim.learning_rates = 3, (('head', 0.5),)
    write_json(folder / 'config.json', config.to_dict())
    file = str(folder / 'config.json')
    found = parse(f'--config={file}', '--config.train.seed=7').config
    assert found.name == 'mine'
    resolved = resolve(found.values)
    assert (resolved.train.epochs, resolved.train.seed) == (3, 7)
    assert resolved.optim.learning_rates == (('head', 0.5),)
    assert parse('--config', file, '--config.train.seed=7').config == found


@pytest.mark.parametrize(
    ('flags_of_fold', 'fold'),
    [
        (['--config.data.fold=all'], 'all'),
        (['--config.data.fold', '3'], 3),
        (['--config.data.fold=3', '--config.data.fold=all'], 'all'),
        ([], 2),
    ],
)
def test_a_key_of_numbers_and_words(tmp_path, flags_of_fold, fold):
    write_json(tmp_path / 'c.json', {'data': {'fold': 2}})
    found = parse(f'--config={tmp_path / "c.json"}', *flags_of_fold).config
    assert resolve(found.values).data.fold == fold


@pytest.mark.parametrize(
    ('text', 'hint'),
    [
        ('{"train": {"epochz": 3}}', "config.train.epochz: no such key; did you mean 'epochs'"),
        ('{"train": {"epochs": "many"}}', 'config.train.epochs'),
        ('{"train": ', 'cannot be read as a configuration'),
        ('[]', 'it holds no keys'),
    ],
)
def test_bad_config_json_is_one_sentence(tmp_path, text, hint):
    path = tmp_path / 'config.json'
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        parse(f'--config={path}')
    assert hint in str(caught.value)


@pytest.mark.parametrize(('runs_tensorflow', 'given'), [(False, None), (True, None), (False, '1')])
def test_tensorflow_only_reads_images(runs_tensorflow, given, monkeypatch):
    """Without oneDNN, and with one thread an operation."""
    names = ('TF_ENABLE_ONEDNN_OPTS', 'TF_NUM_INTRAOP_THREADS')
    for name in names:
        monkeypatch.setenv(name, '')  # so that it is put back
        del os.environ[name]
    if given:
        os.environ[names[0]] = given
    seen = []
    command = dataclasses.replace(
        make(lambda _: seen.extend(os.environ.get(name) for name in names)),
        runs_tensorflow=runs_tensorflow,
    )
    assert command._main(['--workdir=w', 'x.jpg']) == 0
    assert seen == ([None, None] if runs_tensorflow else [given or '0', '1'])


def test_commands_collect_garbage_seldom():
    before = gc.get_threshold()
    try:
        cli.collect_seldom()
        assert gc.isenabled()
        assert gc.get_threshold() == (50_000, *before[1:])
    finally:
        gc.set_threshold(*before)


def test_nothing_is_looked_through_at_the_end():
    code = """
import gc
from tlflax.config import cli
cli.collect_seldom()
class Loop:
    def __init__(self):
        self.me = self
    def __del__(self):
        print('looked through')
gc.collect()
Loop()
"""
    done = run_new_python('-c', code)
    assert (done.returncode, done.stdout) == (0, ''), done.stderr


@pytest.mark.parametrize('before', ['', 'import jax'])
def test_compiled_programs_are_kept_in_the_cache_folder(before, tmp_path):
    code = f"""
import os, sys
for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
    os.environ.pop(name, None)
{before}
from tlflax.config import libraries
libraries.keep_compiled_programs()
print('jax' in sys.modules)
import jax
print(jax.config.jax_compilation_cache_dir)
print(jax.config.jax_persistent_cache_min_compile_time_secs)
"""
    done = run_new_python('-c', code, TLFLAX_CACHE=str(tmp_path))
    found = done.stdout.splitlines()
    assert found == [str(bool(before)), str(tmp_path / 'programs'), '0.02'], done.stderr
