"""The notebook: it is kept without outputs, and runs from a machine that has downloads alone."""

import os

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient

PATH = ROOT / 'docs' / 'quickstart.ipynb'


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert 'matplotlib' not in PATH.read_text()


@pytest.fixture
def downloads(tmp_path, imagenet_weights_path, traffic_lights_dir):
    """A cache with the downloads and no features."""
    folder = tmp_path / 'cache'
    folder.mkdir()
    for asset in (imagenet_weights_path, traffic_lights_dir):
        (folder / asset.name).symlink_to(asset)
    return folder


def outputs(cell, kind):
    """Returns the outputs of a cell that have a type of content."""
    return [output.data[kind] for output in cell.outputs if kind in output.get('data', ())]


@pytest.mark.assets
def test_every_cell_runs(notebook, downloads, tmp_path):
    before = set(ROOT.iterdir()), set((ROOT / 'docs').iterdir())
    place = tmp_path / 'place'
    place.mkdir()
    client = NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(place)}})
    client.execute(env={**os.environ, 'TLFLAX_CACHE': str(downloads)})
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    printed = ''.join(o.text for cell in cells for o in cell.outputs if o.get('name') == 'stdout')
    assert "{'green': 429, 'red': 723, 'yellow': 35}" in printed
    assert 'error: 26 of 297 images of val look like' in printed
    accuracy = float(printed.partition('validation accuracy ')[2].split()[0])
    assert accuracy > 0.95
    assert f'accuracy {accuracy:.3f} (95 % interval' in printed
    assert {kind: sum(bool(outputs(cell, kind)) for cell in cells) for kind in KINDS} == KINDS
    (page, mistakes) = (text for cell in cells for text in outputs(cell, 'text/html'))
    assert 'src="quickstart/mlp/report.html"' in page
    assert 'Confusion matrix' in (place / 'quickstart' / 'mlp' / 'report.html').read_text()
    assert mistakes.count('<img src="data:image/webp;base64,') == 6
    errors = [o.text for cell in cells for o in cell.outputs if o.get('name') == 'stderr']
    assert 'Traceback' not in ''.join(errors)
    assert sorted(path.name for path in place.iterdir()) == ['quickstart']
    assert (set(ROOT.iterdir()), set((ROOT / 'docs').iterdir())) == before


# How many cells end with a picture: of images, a curve, a page and a table
KINDS = {'image/png': 1, 'image/jpeg': 1, 'image/svg+xml': 1, 'text/html': 2}
