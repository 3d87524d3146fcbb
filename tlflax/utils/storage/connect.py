"""Opens an object store by its URL, and says what stores raise as a sentence."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from tlflax.utils.errors import UserError, as_user_error, did_you_mean, printable, reason

_URL = re.compile(r'([a-z][a-z0-9+.-]*)://')
_NO_ACCESS = (
    *('NoCredentialsError', 'PartialCredentialsError', 'DefaultCredentialsError'),
    *('ClientAuthenticationError', 'TokenRetrievalError', 'RefreshError'),
)


class StoreFailed(UserError):
    """A store does not answer as it should, though the URL and the credentials may be right."""


class Store(Protocol):
    """The part of fsspec's `AbstractFileSystem` that is used here."""

    def find(self, path: str, *, detail: bool) -> dict[str, Mapping[str, object]]:
        """Describes every object below a folder, by path."""

    def get_file(self, rpath: str, lpath: str) -> object:
        """Fetches an object to a file."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Returns the bytes of an object, or a part of them."""

    def put_file(self, lpath: str, rpath: str) -> object:
        """Writes an object from a file."""

    def pipe_file(self, path: str, value: bytes) -> object:
        """Writes an object."""

    def rm_file(self, path: str) -> object:
        """Deletes an object."""


def is_url(spec: str) -> bool:
    """Tells whether a specification is a URL with a scheme that is not one of ours."""
    return _URL.match(spec) is not None


def connect(base: str) -> tuple[Store, str]:
    """Returns the file system of a URL and the path in it.

    Raises:
        UserError: The package for such URLs is missing, or they are not known.
    """
    scheme = base.partition('://')[0]
    install = f"pip install 'tlflax[cloud]' has those for s3:// and gs:// ({scheme}:// may need "
    install += 'another)'
    try:
        import fsspec
        from fsspec.registry import known_implementations
    except ImportError:
        raise UserError(f'{base} needs the package fsspec', fix=install) from None
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        hint = did_you_mean(scheme, known_implementations)
        hint = hint if hint.startswith('did') else 'give gs://, s3:// or another that fsspec knows'
        raise UserError(f'{scheme}:// is not known', fix=hint) from None
    except ImportError as error:
        what = f'{base} needs a package that is not installed ({error})'
        raise UserError(what, fix=install) from error
    with explaining(base):
        return fsspec.core.url_to_fs(base, use_listings_cache=False)


@contextlib.contextmanager
def explaining(
    base: str,
    *,
    refused: str = 'may not be read',
    failed: str = 'cannot be mirrored',
    fix: str = 'check the network and the room in the cache folder; what was fetched is kept',
) -> Iterator[None]:
    """Turns what stores raise, each in types of its own, into a sentence.

    Args:
        base: The URL that the sentence is about.
        refused: What it says where access is denied.
        failed: What it says of everything else.
        fix: What helps against everything else.
    """
    missing = f'there is no such bucket or folder: {base}'
    try:
        with as_user_error(missing, fix='fix the URL', of=(FileNotFoundError,)):
            yield
    except UserError:
        raise
    except Exception as error:
        said = printable(f'{type(error).__name__}: {reason(error)}')
        if isinstance(error, PermissionError) or type(error).__name__ in _NO_ACCESS:
            raise UserError(
                f'{base} {refused} ({said})',
                fix='give the credentials that its own tools use (AWS_PROFILE or '
                'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS)',
            ) from error
        raise StoreFailed(f'{base} {failed} ({said})', fix=fix) from error
