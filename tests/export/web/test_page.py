"""The page in a real browser: it computes what predict says, and asks nothing from elsewhere."""

import contextlib
import functools
import http.server
import json
import shutil
import threading

import numpy as np
import onnx
import pytest
from browser import LOOKS, WATCH, chromium
from helpers import make_folders, picture, toy_config
from onnx import TensorProto, helper
from PIL import Image

import tlflax
from tlflax.export.run import export
from tlflax.export.web import runtime
from tlflax.train import train_and_evaluate

SIZE = (32, 32)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, real_cache):
    """A finished run with its page; ONNX Runtime Web is fetched once, not in each test run."""
    kept, target = real_cache / runtime.NpmPackage().target, runtime.cache_folder()
    ready = kept.is_dir() or (real_cache / runtime.TARBALL).is_file()
    if not ready and shutil.which('npm') is None:
        pytest.skip('npm, which fetches ONNX Runtime Web, is not installed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(real_cache))
        kept = runtime.runtime()
    shutil.copytree(kept, target / kept.name, dirs_exist_ok=True)
    root = tmp_path_factory.mktemp('web')
    make_folders(root / 'Train', 6, seed=1, noise=200.0)
    make_folders(root / 'Test', 4, seed=2, noise=200.0)
    (root / 'Train' / 'green').rename(root / 'Train' / '<b>green')
    (root / 'Test' / 'green').rename(root / 'Test' / '<b>green')
    config = toy_config(
        root, model__head='conv', optim__learning_rate=0.01, train__report=False,
        data__background=(10, 200, 60),
    )  # fmt: skip
    train_and_evaluate(config, root / 'w')
    export(root / 'w', 'web')
    return root / 'w'


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Writes no log."""

    def log_message(self, *_):
        return None


@contextlib.contextmanager
def served(folder):
    """Serves a folder; yields its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    made = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{made.server_address[1]}/'
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


@pytest.fixture(scope='module')
def browser(workdir):
    with chromium() as started:
        yield started


@pytest.fixture
def show(browser, workdir):
    """Opens a folder; in the end, nothing may have been complained of or asked from elsewhere."""
    said, foreign = [], []
    with contextlib.ExitStack() as stack:

        def go(folder=workdir / 'classifier.web', **look):
            address = stack.enter_context(served(folder))
            context = browser.new_context(**LOOKS['light'] | look)
            stack.callback(context.close)
            page = context.new_page()
            page.add_init_script(WATCH)
            page.on('console', lambda message: said.append(message.text))
            page.on('pageerror', lambda error: said.append(str(error)))
            page.on(
                'request',
                lambda request: (
                    request.url.startswith((address, 'data:')) or foreign.append(request.url)
                ),
            )
            page.said = said
            page.goto(address)
            return page

        yield go
    assert said == []
    assert foreign == []


def ready(page):
    page.locator('#file:not([disabled])').wait_for(timeout=60_000)
    return page


def named(page, name):
    """Waits until the result of an image is shown."""
    page.locator('#name', has_text=name).wait_for()


def answers(page, path):
    """Chooses a file; returns the probabilities that the page shows, by class."""
    page.locator('#file').set_input_files(path)
    named(page, path.name)
    rows = page.locator('#answers tr')
    return {
        row.locator('bdi').text_content(): float(row.locator('data').get_attribute('value'))
        for row in rows.all()
    }


def check(workdir, page, path, tolerance):
    (expected,) = tlflax.load(workdir).predict(path)
    found = answers(page, path)
    assert list(found) == sorted(found, key=found.get, reverse=True)
    assert found.keys() == expected.probabilities.keys()
    for name, probability in expected.probabilities.items():
        assert found[name] == pytest.approx(probability, abs=tolerance)
    return found


def write(path, image, **settings):
    image.save(path, **settings)
    return path


def test_it_computes_what_predict_says(show, workdir, tmp_path):
    page = ready(show())
    assert '<b>green' in page.locator('#about').inner_text()
    seen = set()
    for seed in range(3):
        image = Image.fromarray(picture(SIZE, seed))
        found = check(workdir, page, write(tmp_path / f'{seed}.png', image), 1e-3)
        seen.add(round(max(found.values()), 4))
    assert len(seen) > 1
    gray = Image.fromarray(picture(SIZE, 5)).convert('L')
    check(workdir, page, write(tmp_path / 'gray.png', gray), 1e-3)


def test_transparency_and_rotation(show, workdir, tmp_path):
    page = ready(show())
    clear = Image.fromarray(picture(SIZE, 6)).convert('RGBA')
    clear.putalpha(
        Image.fromarray(np.where(np.arange(32) < 16, 0, 255).astype(np.uint8)[None].repeat(32, 0))
    )
    check(workdir, page, write(tmp_path / 'clear.png', clear), 1e-3)
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.fromarray(picture(SIZE, 7))
    path = write(tmp_path / 'turned.jpg', image, exif=turned, quality=95, subsampling=0)
    check(workdir, page, path, 0.02)


def test_another_size_is_resized_as_in_training(show, workdir, tmp_path):
    page = ready(show())
    image = Image.fromarray(picture((90, 70), 8))
    check(workdir, page, write(tmp_path / 'large.png', image), 5e-3)


def means_of_color(path):
    """Writes a model of images of any size: the softmax of a tenth of their mean color."""
    nodes = [
        helper.make_node('Cast', ['image'], ['x'], to=TensorProto.FLOAT),
        helper.make_node('ReduceMean', ['x', 'axes'], ['mean'], keepdims=0),
        helper.make_node('Div', ['mean', 'ten'], ['logits']),
        helper.make_node('Softmax', ['logits'], ['probabilities'], axis=1),
    ]
    given = helper.make_tensor_value_info('image', TensorProto.UINT8, ['n', 'h', 'w', 3])
    result = helper.make_tensor_value_info('probabilities', TensorProto.FLOAT, ['n', 3])
    constants = [
        helper.make_tensor('axes', TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor('ten', TensorProto.FLOAT, [], [10.0]),
    ]
    graph = helper.make_graph(nodes, 'means', [given], [result], constants)
    opsets = [helper.make_opsetid('', 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def test_the_model_gets_the_pixels_of_the_file(show, workdir, tmp_path):
    shutil.copytree(workdir / 'classifier.web', tmp_path / 'page')
    means_of_color(tmp_path / 'page' / 'classifier.onnx')
    page = ready(show(tmp_path / 'page'))
    pixels = np.concatenate([picture((90, 70), 8), np.full((90, 1, 3), (0, 90, 30))], 1)
    pixels = pixels.astype(np.uint8)
    found = answers(page, write(tmp_path / 'any.png', Image.fromarray(pixels)))
    logits = pixels.mean((0, 1)) / 10
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert [found[name] for name in sorted(found)] == pytest.approx(expected, abs=1e-4)
    assert page.evaluate('[seen.width, seen.height]') == [71, 90]
    huge = write(tmp_path / 'huge.png', Image.new('RGB', (5000, 4000), (0, 1, 2)))  # sums are exact
    found = answers(page, huge)
    expected = np.exp([0.0, 0.1, 0.2]) / np.exp([0.0, 0.1, 0.2]).sum()
    assert [found[name] for name in sorted(found)] == pytest.approx(expected, abs=1e-4)
    width, height = page.evaluate('[seen.width, seen.height]')
    assert 15_900_000 < width * height <= 16_000_000
    assert width / height == pytest.approx(5 / 4, abs=0.01)


def test_a_file_that_is_no_image_is_said_in_a_sentence(show, workdir, tmp_path):
    page = ready(show())
    (tmp_path / 'text.png').write_text('no image')
    page.locator('#file').set_input_files(tmp_path / 'text.png')
    status = page.locator('#status.bad')
    status.wait_for()
    assert status.inner_text() == (
        'text.png cannot be classified: it is not an image that this browser can read.'
    )
    assert not page.locator('#result').is_visible()
    image = write(tmp_path / 'good.png', Image.fromarray(picture(SIZE, 1)))
    check(workdir, page, image, 1e-3)  # the next one is


def test_an_image_with_too_many_pixels_is_refused(show, workdir, tmp_path):
    shutil.copytree(workdir / 'classifier.web', tmp_path / 'page')
    path = tmp_path / 'page' / 'metadata.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'max_pixels': '1000'}))
    page = ready(show(tmp_path / 'page'))
    image = write(tmp_path / 'image.png', Image.fromarray(picture(SIZE, 1)))
    page.locator('#file').set_input_files(image)
    page.locator('#status.bad').wait_for()
    assert 'it has 1024 pixels, more than' in page.locator('#status').inner_text()


def test_a_dropped_image_is_classified(show, workdir, tmp_path):
    page = ready(show())
    path = write(tmp_path / 'dropped.png', Image.fromarray(picture(SIZE, 3)))
    page.evaluate(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
            document.body.dispatchEvent(new DragEvent('drop',
                {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [path.name, list(path.read_bytes())],
    )
    named(page, 'dropped.png')
    (expected,) = tlflax.load(workdir).predict(path)
    assert page.locator('#answers bdi').first.text_content() == expected.label
    status = page.locator('#status').inner_text()
    assert status.startswith(expected.label)
    assert 'Computed in' in status


def test_a_missing_model_is_said_in_a_sentence(show, workdir, tmp_path):
    shutil.copytree(workdir / 'classifier.web', tmp_path / 'page')
    (tmp_path / 'page' / 'classifier.onnx').unlink()
    page = show(tmp_path / 'page')
    page.locator('#status.bad').wait_for()
    assert page.locator('#status').inner_text() == (
        'The model cannot be loaded: classifier.onnx cannot be loaded (404).'
    )
    assert [text for text in page.said if '404' not in text] == []
    page.said.clear()


@pytest.mark.parametrize('look', LOOKS)
def test_looks_and_accessibility(show, tmp_path, look):
    from axe_playwright_python.sync_playwright import Axe

    page = ready(show(**LOOKS[look]))
    for _ in range(2):
        assert Axe().run(page).response['violations'] == []
        width = page.evaluate('document.documentElement.scrollWidth')
        assert width <= LOOKS[look]['viewport']['width']
        answers(page, write(tmp_path / ('long' * 30 + '.png'), Image.fromarray(picture(SIZE, 3))))


def test_the_keyboard_reaches_the_file(show):
    page = ready(show())
    for _ in range(5):
        page.keyboard.press('Tab')
        if page.evaluate('document.activeElement.id') == 'file':
            return
    raise AssertionError('the Tab key does not reach it')


def test_what_is_in_the_folder(workdir):
    folder = workdir / 'classifier.web'
    assert {path.name for path in folder.iterdir()} == {
        'index.html', 'page.css', 'page.js', 'classifier.onnx', 'metadata.json', 'README.md',
        *runtime.FILES, runtime.LICENSE,
    }  # fmt: skip
    assert 'python -m http.server' in (folder / 'README.md').read_text()


def test_it_is_written_again_in_its_place(workdir, tmp_path):
    for _ in range(2):
        export(workdir, 'web', tmp_path / 'page')
    assert [path.name for path in tmp_path.iterdir()] == ['page']
