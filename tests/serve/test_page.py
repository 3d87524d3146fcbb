"""The page in a real browser: an image is dropped, classes and a heat map are seen."""

import base64

import pytest
from browser import LOOKS, WATCH, chromium

DROP = """([name, text]) => {
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    return transfer;
}"""


@pytest.fixture(scope='module')
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope='module')
def service(start):
    return start()


@pytest.fixture
def show(browser, service):
    """Opens the page; in the end, nothing may have been complained of, or asked of others."""
    said, asked, contexts = [], [], []

    def go(**settings):
        context = browser.new_context(**LOOKS['light'] | settings)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(WATCH)
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.on('request', lambda request: asked.append(request.url))
        page.goto(service.url)
        return page

    yield go
    for context in contexts:
        context.close()
    assert [line for line in said if 'status of 4' not in line] == []
    assert [u for u in asked if not u.startswith((f'{service.url}/', f'blob:{service.url}/'))] == []


def drop(page, name, data):
    """Drops a file on the page."""
    handle = page.evaluate_handle(DROP, [name, base64.b64encode(data).decode()])
    page.dispatch_event('#drop', 'dragover', {'dataTransfer': handle})
    page.dispatch_event('#drop', 'drop', {'dataTransfer': handle})


def serious(page):
    """What axe-core calls serious or critical: contrast, names, roles, headings and the like."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        f'{each["id"]}: {node["html"][:200]} {node["failureSummary"][:300]}'
        for each in Axe().run(page).response['violations']
        for node in each['nodes'][:3]
    ]


@pytest.mark.parametrize('look', LOOKS)
def test_an_image_is_dropped(show, service, images, look):
    page = show(**LOOKS[look])
    page.wait_for_selector('#about:has-text("classes")')
    assert page.locator('#about').inner_text() == '3 classes: green, red, yellow'
    assert serious(page) == []
    drop(page, 'plain.jpg', images['plain.jpg'])
    page.wait_for_selector('#heat:not([hidden])')
    expected = service.post('/predict?top_k=3', images['plain.jpg']).json()
    rows = page.locator('#classes tr')
    names = [row.locator('th').inner_text() for row in rows.all()]
    assert names == [one['class'] for one in expected['top']]
    for row, one in zip(rows.all(), expected['top'], strict=True):
        shown = float(row.locator('td.right').inner_text().removesuffix(' %'))
        assert shown == pytest.approx(100 * one['probability'], abs=0.06)
        wide = row.locator('.track').bounding_box()['width']
        bar = row.locator('.bar').bounding_box()['width']
        assert bar == pytest.approx(wide * one['probability'], abs=1.5)
    title = page.locator('#result-title').inner_text()
    assert title.startswith(f'{expected["label"]}: ')
    assert page.locator('#state').inner_text().startswith(expected['label'])
    sizes = page.evaluate(
        "Promise.all([...document.querySelectorAll('#result img')].map("
        '(image) => image.decode().then(() => [image.naturalWidth, image.alt])))'
    )
    assert sizes[0] == [56, 'The image plain.jpg']
    assert sizes[1] == [256, f'Heat map: the bright parts speak for {expected["label"]}']
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    assert serious(page) == []


def test_an_image_is_chosen(show, images, tmp_path):
    (tmp_path / 'alpha.png').write_bytes(images['alpha.png'])
    page = show()
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.textContent') == 'Skip to the content'
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.id') == 'file'
    page.locator('#file').set_input_files(tmp_path / 'alpha.png')
    page.wait_for_selector('#heat:not([hidden])')
    assert page.locator('#picture').get_attribute('alt') == 'The image alpha.png'


def test_what_the_browser_does_not_show_has_a_heat_map(show, images):
    page = show()
    drop(page, 'scan.tiff', images['scan.tiff'])
    page.wait_for_selector('#heat:not([hidden])')
    page.wait_for_selector('#own', state='hidden')


def test_errors_are_said_and_the_next_image_is_taken(show, images):
    page = show()
    drop(page, 'notes.txt', b'hello')
    page.wait_for_selector('#problem:not(:empty)')
    assert page.locator('#problem').inner_text() == 'The body is text, not an image.'
    assert page.locator('#result').is_hidden()
    assert serious(page) == []
    drop(page, 'plain.jpg', images['plain.jpg'])
    page.wait_for_selector('#heat:not([hidden])')
    assert page.locator('#problem').inner_text() == ''


def test_another_script_is_refused(browser, service):
    page = browser.new_page()
    said = []
    page.on('console', lambda message: said.append(message.text))
    page.goto(service.url)
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        'document.body.append(s)'
    )
    assert page.evaluate('window.ran') is None
    assert any('Content Security Policy' in line for line in said)
    page.close()
