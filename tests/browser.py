"""What the tests in a real browser share."""

import contextlib
import os
import shutil

import pytest

BROWSERS = 'chromium chromium-browser google-chrome google-chrome-stable'.split()
LOOKS = {
    'light': {'color_scheme': 'light', 'viewport': {'width': 1280, 'height': 900}},
    'dark': {'color_scheme': 'dark', 'viewport': {'width': 1280, 'height': 900}},
    'phone': {'color_scheme': 'light', 'viewport': {'width': 360, 'height': 740}},
}
WATCH = """
document.addEventListener('securitypolicyviolation', (event) =>
    console.error(`refused: ${event.violatedDirective} ${event.blockedURI}`));
"""


@contextlib.contextmanager
def chromium():
    """Starts a headless Chromium of the system; without one, the test is skipped by name."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        if os.environ.get('TLFLAX_REQUIRE_BROWSER'):
            pytest.fail('no Chromium is installed')
        pytest.skip('no Chromium is installed')
    from playwright.sync_api import sync_playwright

    options = ['--no-sandbox'] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=options)
        yield started
        started.close()
