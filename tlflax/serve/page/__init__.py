"""The page on which images can be tried: one file with its style and script."""

import base64
import functools
import hashlib
from pathlib import Path

_FOLDER = Path(__file__).parent


@functools.cache
def rendered() -> tuple[str, str]:
    """Returns the page as HTML, and the policy that it is served with.

    The policy lets nothing run or be loaded but what the page holds, the service itself and the
    pictures that the page shows.
    """
    html, style, script = (
        (_FOLDER / name).read_text(encoding='utf-8')
        for name in ('page.html', 'page.css', 'page.js')
    )
    policy = '; '.join(
        [
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "connect-src 'self'",
            'img-src blob: data:',
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    return html.replace('{style}', style).replace('{script}', script), policy


def _hash(text: str) -> str:
    return f'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'
