"""What is remembered of a scan: never anything else than what was found."""

import fuzz_seeds
import pytest

from tlflax.data.images import scan_cache


@pytest.fixture
def place(tmp_path):
    entries, files, _ = fuzz_seeds.scanned()
    scan_cache.save(tmp_path / 'scan.npz', entries, files)
    return tmp_path / 'scan.npz'


def test_it_tells_what_was_found(place):
    entries, files, _ = fuzz_seeds.scanned()
    assert scan_cache.load(place, entries) == files
    changed = [entry._replace(ctime_ns=entry.ctime_ns + 1) for entry in entries]
    assert scan_cache.load(place, changed) == [None] * len(entries)


@pytest.mark.parametrize(
    ('was', 'now'), [(b'300, 32)', b'300, 22)'), (b'300, 56)', b'300, 16)'), (b'|u1', b'|i1')]
)
def test_a_damaged_shape_is_noticed(place, was, now):
    """The checksum of an array counts only where all of it is read."""
    entries, files, _ = fuzz_seeds.scanned()
    data = place.read_bytes()
    assert was in data
    place.write_bytes(data.replace(was, now))
    assert scan_cache.load(place, entries) == [None] * len(files)
