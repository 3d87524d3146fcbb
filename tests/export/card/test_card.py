"""The model card of an exported run: read back by the Hub's own reader, its code executed."""

import json
import re
import shlex
import shutil

import pytest
from fork_server import server
from helpers import make_folders, toy_config
from huggingface_hub import ModelCard

import tlflax
from tlflax.export.card.facts import Source, source_of
from tlflax.export.card.sentences import part_name
from tlflax.export.card.usage import usage
from tlflax.export.model import Options
from tlflax.export.run import FORMATS, export
from tlflax.models.backbones import BACKBONES
from tlflax.models.vgg.rows import CANONICAL
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A folder with images and a finished run with test images; red and green are confused."""
    root = tmp_path_factory.mktemp('card')
    make_folders(root / 'Train', 6, seed=1, noise=200.0)
    make_folders(root / 'Test', 4, seed=2, noise=200.0)
    make_folders(root / 'More', 3, seed=3, noise=200.0)
    for split in ('Train', 'Test', 'More'):
        (root / split / 'green').rename(root / split / 'a | b: "c"')
    copied = root / 'Train' / 'red' / '000.jpg'
    shutil.copy(copied, root / 'Test' / 'red' / 'copy.jpg')
    config = toy_config(root, train__report=False, data__test=str(root / 'More'))
    train_and_evaluate(config, root / 'toy')
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A copy of the run; the images stay where they are."""
    shutil.copytree(finished / 'toy', tmp_path / 'toy')
    return tmp_path


def section(text, heading):
    """Returns the text below a heading, up to the next one."""
    return re.search(rf'^## {heading}\n(.*?)(?=^## |\Z)', text, re.MULTILINE | re.DOTALL)[1]


def test_the_hub_reads_the_front_matter(root):
    found = export(root / 'toy', 'safetensors')
    assert found['card'] == f'{found["file"]}.md'
    card = ModelCard.load(found['card'])
    result = json.loads((root / 'toy' / 'result.json').read_text())
    data = card.data
    assert (data.license, data.library_name) == ('unknown', 'tlflax')
    assert data.pipeline_tag == 'image-classification'
    assert {'jax', 'flax', 'transfer-learning', 'safetensors'} <= {*data.tags}
    assert data.datasets is None
    assert data.model_name == 'toy'
    figures = {(one.dataset_split, one.metric_name): one.metric_value for one in data.eval_results}
    for split, key in (('validation', 'val'), ('test', 'test')):
        assert figures[split, 'Accuracy'] == result[key]['accuracy']
        assert figures[split, 'Balanced accuracy'] == result[key]['balanced_accuracy']
        assert figures[split, 'Macro F1'] == result[key]['macro_f1']
        error = 'expected_calibration_error'
        assert figures[split, 'Expected calibration error'] == result[key][error]
        assert figures[split, 'Cross-entropy loss'] == result[key]['loss']
    assert all(one.task_type == 'image-classification' for one in data.eval_results)


def test_the_body(root):
    trained = tlflax.load(root / 'toy')
    text = ModelCard.load(export(root / 'toy', 'safetensors')['card']).text
    assert 'one of 3 classes: a \\| b: "c", red, yellow' in text
    data = section(text, 'Data')
    assert '| red | 6 | 5 | 3 |' in data
    assert '| all | 18 | 13 | 9 |' in data
    assert trained.split_digests['val'] in data
    chosen = section(text, 'How it was chosen')
    assert 'optimistic' in chosen
    assert 'The test images had no part in the run.' in chosen
    checked = section(text, 'What was checked')
    assert 'run on 13 validation images' in checked
    assert 'no image gets another class' in checked
    limits = section(text, 'Limits')
    assert '- error: 1 of 22 images of val and test are in an earlier split too' in limits
    result = json.loads((root / 'toy' / 'result.json').read_text())
    assert f'| Accuracy | {result["val"]["accuracy"]:.4f} |' in section(text, 'Metrics')
    assert str(root) not in text
    assert str(trained.config.data.train) not in text


@pytest.mark.parametrize('name', [name for name in FORMATS if name != 'web'])
def test_the_code_runs_where_the_file_is(name, root, finished):
    found = export(root / 'toy', name)
    text = ModelCard.load(found['card']).text
    (match,) = re.finditer(r'^```(\w+)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    folder = root / 'toy'
    photo = finished / 'Test' / 'yellow' / '001.jpg'
    shutil.copy(photo, folder / 'photo.jpg')
    (folder / 'block.py').write_text(match[2])
    done = server().run('script', str(folder / 'block.py'), cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    if name != 'safetensors':
        (said,) = tlflax.load(folder).predict(photo)
        label, _, probability = done.stdout.strip().rpartition(' ')
        assert label == said.label
        assert float(probability) == pytest.approx(said.probability, abs=0.02)


def test_every_format_has_code_for_every_way_of_resizing():
    for name in FORMATS:
        for resize in ('stretch', 'pad', 'crop'):
            metadata = {
                'resize': resize, 'interpolation': 'bicubic', 'image_width': '7',
                'image_height': '5',
            }  # fmt: skip
            language, code = usage(name, "it's a {file}", metadata)
            if language == 'python':
                compile(code, name, 'exec')
                assert '(7, 5)' in code or name == 'safetensors'
            else:
                assert shlex.split(code)[-1] == "--directory=it's a {file}"
            code = usage(name, 'file', metadata | {'resized': 'true'})[1]
            assert '(7, 5)' not in code


def test_fewer_digits_or_a_temperature_have_metrics_of_their_own(root):
    for options in (Options(precision='float16'), Options(calibrated=True)):
        found = export(root / 'toy', 'safetensors', root / 'file', options)
        text = ModelCard.load(found['card']).text
        assert 'What this file itself gave for 13 validation images' in text
        assert '| Test images' not in text
        assert ('The temperature was fitted' in text) == options.calibrated
    result = json.loads((root / 'toy' / 'result.json').read_text())
    figures = {
        one.metric_name: one.metric_value for one in ModelCard.load(found['card']).data.eval_results
    }
    assert figures['Accuracy'] == pytest.approx(result['val']['accuracy'])
    assert figures['Cross-entropy loss'] != pytest.approx(result['val']['loss'], abs=1e-4)


def test_another_step(root):
    last = export(root / 'toy', 'safetensors', step='last')
    text = ModelCard.load(last['card']).text
    step = tlflax.load(root / 'toy', 'last').step
    assert f'| Step | {step} ' in text


def test_a_run_without_a_result(root):
    (root / 'toy' / 'result.json').unlink()
    found = export(root / 'toy', 'safetensors')
    text = ModelCard.load(found['card']).text
    assert 'The run was not finished when step' in text
    assert 'What this file itself gave' in text


def test_training_images_that_are_gone(root, finished):
    (finished / 'Train').rename(finished / 'gone')
    try:
        text = ModelCard.load(export(root / 'toy', 'safetensors')['card']).text
    finally:
        (finished / 'gone').rename(finished / 'Train')
    assert 'The train images could not be read' in text
    assert 'no audit of them is known' in text
    assert str(finished) not in text
    assert '| class | validation |' in text


def test_a_refused_export_leaves_the_card_that_was_there(root, monkeypatch):
    path = root / 'toy' / 'classifier.safetensors.md'
    before = 'library_name: tlflax\nthe one before'
    path.write_text(before)
    monkeypatch.setattr('tlflax.export.verify.TOLERANCE', -1.0)
    with pytest.raises(UserError, match='it is not kept'):
        export(root / 'toy', 'safetensors')
    assert path.read_text() == before


def test_names_of_parts_have_no_folder():
    assert part_name('vgg16') == 'vgg16'
    assert part_name('py:/home/someone/my_backbone.py:small') == 'small of my_backbone.py'


def test_licenses_of_what_is_known():
    assert source_of('demo:traffic_lights/Train').license.startswith('CC BY-SA 4.0')
    assert source_of('photos/Train') == Source('', '', 'unknown')
    assert BACKBONES['vgg16'].known[CANONICAL].license.startswith('CC BY 4.0')
