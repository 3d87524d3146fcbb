"""What commands do to the libraries they load, in processes of their own."""

import platform

import pytest
from helpers import run_new_python

_USE = """
import resource
from tlflax.config import libraries

def use():
    for _ in range(5):
        [bytearray(15 << 20) for _ in range(3)]

libraries.only_read_images()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc is told')
@pytest.mark.parametrize('given', [False, True])
def test_freed_memory_is_kept_unless_the_user_says_otherwise(monkeypatch, given):
    for name in ('GLIBC_TUNABLES', 'MALLOC_TRIM_THRESHOLD_'):
        monkeypatch.delenv(name, raising=False)
    done = run_new_python('-c', _USE, **({'MALLOC_TRIM_THRESHOLD_': '131072'} if given else {}))
    assert done.returncode == 0, done.stderr
    pages = 5 * 3 * (15 << 20) // 65536  # the largest that a Linux is built with
    assert (int(done.stdout) >= pages // 2) == given
