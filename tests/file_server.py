"""A web server on this machine that also misbehaves, and packages for pip to find on it."""

import contextlib
import hashlib
import http.server
import io
import os
import threading
import zipfile


class FileServer:
    """Serves `files` (path -> bytes) over HTTP, and the same below odd prefixes:

    /truncated/... announces all and sends half; /stalled/... sends half, then nothing; /mute/...
    doesn't even answer; /slow/... takes half a second.

    Attributes:
        files: What it serves.
        hits: The paths asked for, in order.
        half_sent: Set once a stalled or truncated response has sent its half.
        on_hit: Called with each path before it is served.
    """

    def __init__(self):
        self.files = {}
        self.hits = []
        self.half_sent = threading.Event()
        self.on_hit = lambda path: None
        self._closing = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer._serve(self)

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f'http://127.0.0.1:{self._server.server_port}'

    def _serve(self, request):
        self.hits.append(request.path)
        self.on_hit(request.path)
        manner, _, rest = request.path[1:].partition('/')
        odd = manner in ('truncated', 'stalled', 'mute', 'slow')
        body = self.files.get('/' + rest if odd else request.path)
        if manner == 'mute':
            self._closing.wait(30)
        elif manner == 'slow':
            self._closing.wait(0.5)
        if body is None:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header('Content-Length', str(len(body)))
        kind = 'application/octet-stream' if '.' in rest else 'text/html'
        request.send_header('Content-Type', kind)
        request.end_headers()
        if manner not in ('truncated', 'stalled'):
            request.wfile.write(body)
            return
        request.wfile.write(body[: len(body) // 2])
        request.wfile.flush()
        self.half_sent.set()
        if manner == 'stalled':
            self._closing.wait(30)

    def close(self):
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add_package(self, name, members, manner=''):
        """Adds a package index with one wheel that has these members; returns the wheel."""
        wheel = wheel_of(name, members)
        path = f'/files/{name}-1.0-py3-none-any.whl'
        self.files[path] = wheel
        link = f'<a href="{manner}{path}">{path.rpartition("/")[2]}</a>'
        self.files[f'/simple/{name}/'] = f'<!DOCTYPE html><html><body>{link}</body></html>'.encode()
        return wheel

    def use_for_pip(self, monkeypatch, index='/simple'):
        """Makes this server the only place where pip looks, whatever this machine's settings."""
        for name in [name for name in os.environ if name.startswith('PIP_')]:
            monkeypatch.delenv(name)
        monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
        monkeypatch.setenv('PIP_NO_CACHE_DIR', '1')
        monkeypatch.setenv('PIP_INDEX_URL', self.url + index)


def wheel_of(name, members):
    """Returns the bytes of a wheel that has these members (path -> bytes)."""
    info = f'{name}-1.0.dist-info'
    members = members | {
        f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n'.encode(),
        f'{info}/WHEEL': b'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        f'{info}/RECORD': b'',
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for path, data in members.items():
            archive.writestr(path, data)
    return buffer.getvalue()


def sha256(data):
    return f'sha256:{hashlib.sha256(data).hexdigest()}'


def folder_sha256(files):
    """The digest of a folder with these files (relative path -> bytes), by its definition."""
    joined = b''.join(
        path.encode() + b'\0' + hashlib.sha256(data).digest()
        for path, data in sorted(files.items())
    )
    return sha256(joined)
