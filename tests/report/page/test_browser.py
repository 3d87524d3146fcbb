"""The pages in a real browser: nothing is refused or fetched, and the keyboard is enough."""

import pytest
from browser import LOOKS, WATCH, chromium
from report_pages import audit, comparison, hostile, huge, image, small

from tlflax.report.page.render import render_audit, render_comparison, render_run

PAGES = ('small', 'hostile', 'huge', 'comparison', 'audit')


@pytest.fixture(scope='module')
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Each page as a file."""
    folder = tmp_path_factory.mktemp('pages')
    pages = {
        'small': render_run(small()),
        'hostile': render_run(hostile()),
        'huge': render_run(huge()),
        'comparison': render_comparison(comparison()),
        'audit': render_audit(audit(('red', 'green'), [image(k) for k in range(12)]), 'photos'),
    }
    for name, text in pages.items():
        (folder / f'{name}.html').write_text(text, encoding='utf-8')
    return {name: folder / f'{name}.html' for name in pages}


@pytest.fixture
def show(browser, files):
    """Opens a page; in the end, nothing may have been complained of or asked for."""
    said, asked, contexts = [], [], []

    def go(name, **settings):
        context = browser.new_context(**LOOKS['light'] | settings)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(WATCH)
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.on('request', lambda request: asked.append(request.url))
        page.goto(files[name].as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []
    own = {path.as_uri() for path in files.values()}
    assert [url for url in asked if url not in own and not url.startswith('data:')] == []


def focused(page, what='document.activeElement.textContent'):
    return page.evaluate(what)


def tab_to(page, selector, most=400):
    """Presses the Tab key until an element has the focus."""
    for _ in range(most):
        page.keyboard.press('Tab')
        if page.evaluate('s => document.activeElement.matches(s)', selector):
            return
    raise AssertionError(f'{selector} cannot be reached by the Tab key')


def test_pages_are_small_enough(files):
    assert 8_000_000 < files['huge'].stat().st_size < 15_000_000
    assert files['small'].stat().st_size < 1_000_000


@pytest.mark.parametrize('name', PAGES)
def test_every_image_loads_and_nothing_scrolls_sideways(show, name):
    page = show(name, **LOOKS['phone'])
    assert page.evaluate('document.querySelectorAll("[data-same]").length') == 0
    count, broken = page.evaluate(
        """async () => {
            const images = [...document.images];
            images.forEach((image) => { image.loading = 'eager'; });
            await Promise.all(images.map((image) => image.decode().catch(() => null)));
            return [images.length, images.filter((image) => !image.naturalWidth).length];
        }"""
    )
    assert count > 5
    assert broken == 0
    for width in (360, 800, 1280):
        page.set_viewport_size({'width': width, 'height': 740})
        wide = page.evaluate(
            '[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]'
        )
        assert max(wide) == width, name


def test_a_script_that_is_not_the_page_s_is_refused(browser, files, tmp_path):
    """The policy is in force: another script and another style do nothing."""
    text = files['small'].read_text()
    more = '<script>window.ran = 1</script><style>main { color: rgb(1, 2, 3) }</style>'
    more += '<img src="http://localhost:9/x.png"><p id="odd" style="color: rgb(1, 2, 3)">x</p>'
    changed = tmp_path / 'changed.html'
    changed.write_text(text.replace('</main>', f'{more}</main>'))
    page = browser.new_page()
    refused = []
    page.on('console', lambda message: refused.append(message.text))
    page.goto(changed.as_uri())
    assert page.evaluate('window.ran') is None
    for selector in ('main', '#odd'):
        color = 'getComputedStyle(document.querySelector(s)).color'
        assert page.evaluate(f's => {color}', selector) != 'rgb(1, 2, 3)'
    assert len(refused) >= 4
    page.close()


def test_the_keyboard_alone_opens_and_closes_a_cell(show):
    page = show('small')
    tab_to(page, '.matrix button')
    first = focused(page, 'document.activeElement.ariaLabel')
    page.keyboard.press('ArrowRight')
    second = focused(page, 'document.activeElement.ariaLabel')
    assert first.endswith('of mushroom predicted as mushroom')
    assert second.startswith(('1', '2'))
    assert 'of mushroom predicted as' in second
    page.keyboard.press('Enter')
    assert focused(page) == second
    panel = page.locator('#cell')
    assert panel.is_visible()
    count = int(second.split()[0])
    cards = panel.locator('.card')
    assert cards.count() == count
    assert cards.first.locator('.path').inner_text().startswith('mushroom/image')
    assert '%' in cards.first.inner_text()
    assert panel.locator('[id^=image-]').count() == 0
    page.keyboard.press('Tab')
    assert focused(page) == 'Close'
    page.keyboard.press('Enter')
    assert not panel.is_visible()
    assert focused(page, 'document.activeElement.ariaLabel') == second
    page.keyboard.press('Space')
    assert panel.is_visible()
    page.keyboard.press('Escape')
    assert not panel.is_visible()
    assert focused(page, 'document.activeElement.ariaLabel') == second
    page.keyboard.press('ArrowLeft')
    assert focused(page, 'document.activeElement.ariaLabel') == first


def test_pictures_that_only_a_cell_shows_are_shown(show):
    page = show('small')
    button = page.locator('.matrix .right button').first
    button.click()
    pictures = page.locator('#cell .card > .pictures img')
    assert pictures.count() > 3
    sizes = page.evaluate(
        """async () => {
            const images = [...document.querySelectorAll('#cell img')];
            images.forEach((image) => { image.loading = 'eager'; });
            await Promise.all(images.map((image) => image.decode()));
            return images.map((image) => image.naturalWidth);
        }"""
    )
    assert min(sizes) > 0
    assert 'The image mushroom/image' in pictures.first.get_attribute('alt')


def test_a_cell_with_more_images_than_examples_says_so(show):
    page = show('huge')
    button = page.locator('.matrix .right button').first
    count = button.inner_text()
    button.click()
    assert page.locator('#cell-note').inner_text() == f'12 of {count} shown'
    assert page.locator('#cell .card').count() == 12


def test_tables_are_sorted_by_the_keyboard(show):
    page = show('small')
    table = page.locator('#classes table')

    def column(place):
        cells = table.locator(f'tbody td:nth-child({place})').all()
        return [float(cell.get_attribute('data-value')) for cell in cells]

    before = column(4)
    tab_to(page, '#classes th:nth-child(4) button')
    page.keyboard.press('Enter')
    assert column(4) == sorted(before)
    assert table.locator('th:nth-child(4)').get_attribute('aria-sort') == 'ascending'
    page.keyboard.press('Space')
    assert column(4) == sorted(before, reverse=True)
    tab_to(page, '#tried th:nth-child(4) button')
    for down in (False, True):  # what is not known is last in both directions
        page.keyboard.press('Enter')
        values = [cell.inner_text() for cell in page.locator('#tried td:nth-child(4)').all()]
        assert values[-1] == '–'
        assert values[:-1] == sorted(values[:-1], reverse=down)


def test_cards_are_filtered(show):
    page = show('small')
    tab_to(page, '#mistake-cards-words')
    page.keyboard.type('ZEBRA')
    visible = page.locator('#mistake-cards > li:visible')
    total = page.locator('#mistake-cards > li').count()
    assert 0 < visible.count() < total
    assert all('zebra' in card.inner_text() for card in visible.all())
    output = page.locator('#mistakes output')
    assert output.inner_text() == f'{visible.count()} of {total}'
    page.keyboard.press('Control+A')
    page.keyboard.press('Delete')
    assert visible.count() == total
    assert output.inner_text() == ''


def test_a_class_is_emphasized_on_the_map(show):
    page = show('small')
    page.select_option('#map-class', label='yield')
    shown = page.locator('svg.map.chosen g.points.on')
    assert {group.get_attribute('data-class') for group in shown.all()} == {'3'}
    page.select_option('#map-class', label='all classes')
    assert page.locator('svg.map.chosen').count() == 0


def test_hostile_names_do_nothing(show):
    page = show('hostile')
    page.locator('.matrix .right button').first.click()
    assert '<script>alert(1)</script>' in page.locator('#cell-title').inner_text()
    assert page.locator('#cell script').count() == 0
    assert page.locator('#cell .card').count() > 0


def test_the_skip_link_and_the_contents(show):
    page = show('small')
    page.keyboard.press('Tab')
    assert focused(page) == 'Skip to the content'
    page.keyboard.press('Enter')
    assert focused(page, 'document.activeElement.id') == 'content'
    page.locator('nav.contents a', has_text='Map').click()
    page.wait_for_selector('a[href="#map"][aria-current]')
    assert 0 <= page.locator('#map').bounding_box()['y'] < 300


def test_without_scripts_everything_but_the_panels_is_there(show):
    page = show('small', java_script_enabled=False)
    assert page.locator('#mistake-cards > li').count() > 5
    assert not page.locator('.filter').first.is_visible()
    assert page.locator('#cost').is_visible()


@pytest.mark.parametrize('look', LOOKS)
@pytest.mark.parametrize('name', ['small', 'hostile', 'comparison', 'audit'])
def test_no_barrier_is_serious(browser, files, name, look):
    """axe-core checks contrast, names, roles, order of headings and the like."""
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(**LOOKS[look])
    page.goto(files[name].as_uri())
    if name in ('small', 'hostile'):
        page.locator('.matrix button').first.click()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = Axe().run(page).response['violations']
    page.close()
    serious = [
        f'{each["id"]}: {node["html"][:200]} {node["failureSummary"][:300]}'
        for each in found
        if each['impact'] in ('serious', 'critical')
        for node in each['nodes'][:3]
    ]
    assert serious == []
