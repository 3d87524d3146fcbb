"""Finds images that look alike among a million, by multi-index hashing.

Two hashes of 64 bits that differ in at most k of them agree wholly on at least two of k + 2 bands
(pigeonhole; Norouzi, Punjani and Fleet, "Fast exact search in Hamming space with multi-index
hashing", 2014, take one of fewer bands). So for each two bands the hashes are sorted by these
alone, and only neighbors with equal ones are compared: exact, and about a dozen sorts. Two bands
and not one, because hashes of photographs are far from uniform and single bands collide too often.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8, UInt64

from tlflax.data.images import perceptual_hash

BITS = 4  # of 64 that the hashes of near-duplicates differ in, at most
DIFFERENCE = 6.0  # of 255: root mean square difference of their sketches, at most

_MOST_PAIRS = 2_000_000
_MOST_COMPARISONS = 1_000_000_000  # about a minute; only folders full of one picture need more


class Near(NamedTuple):
    """Pairs of images that look alike.

    Attributes:
        pairs: Two rows each, the smaller first.
        bits: In how many bits their hashes differ.
        complete: False where the search was cut off, and there are more pairs.
    """

    pairs: Int32[np.ndarray, 'm 2']
    bits: UInt8[np.ndarray, ' m']
    complete: bool


def find(
    table: UInt8[np.ndarray, 'n bytes'],
    *,
    bits: int = BITS,
    difference: float = DIFFERENCE,
    most_pairs: int = _MOST_PAIRS,
    most_comparisons: int = _MOST_COMPARISONS,
) -> Near:
    """Returns every pair of perceptual hashes that differ in few bits and little color.

    Images that are too flat to have a DCT hash are in no pair.

    Args:
        table: See `perceptual_hash.stack`.
        bits: Largest Hamming distance of the hashes.
        difference: Largest root mean square difference of the sketches, of 255.
        most_pairs: The search ends when it has found so many.
        most_comparisons: The search ends after so many.
    """
    hashes, sketches = perceptual_hash.dct_hashes(table), perceptual_hash.sketches(table)
    rows = np.flatnonzero(hashes)
    hashes = hashes[rows]
    pairs, found, compared = [np.empty((0, 2), np.int32)], 0, 0
    distances = [np.empty(0, np.uint8)]
    masks = _masks(bits)
    for number, mask in enumerate(masks):
        for a, b in _neighbors(hashes & mask):
            compared += len(a)
            both = hashes[a] ^ hashes[b]
            distance = np.bitwise_count(both)
            close = np.flatnonzero((distance <= bits) & _is_new(both, masks[:number]))
            close = close[_rms(sketches, rows[a[close]], rows[b[close]]) <= difference]
            pair = np.stack([rows[a[close]], rows[b[close]]], axis=1).astype(np.int32)
            pairs.append(np.sort(pair, axis=1))
            distances.append(distance[close])
            found += len(close)
            if found >= most_pairs or compared >= most_comparisons:
                return Near(np.concatenate(pairs), np.concatenate(distances), False)
    return Near(np.concatenate(pairs), np.concatenate(distances), True)


def _masks(bits: int) -> UInt64[np.ndarray, ' k']:
    """Returns the mask that keeps each two of `bits` + 2 bands of the 64 bits."""
    edges = [64 * band // (bits + 2) for band in range(bits + 3)]
    bands = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    return np.array([a | b for a, b in itertools.combinations(bands, 2)], np.uint64)


def _neighbors(
    keys: UInt64[np.ndarray, ' n'],
) -> Iterator[tuple[Int[np.ndarray, ' m'], Int[np.ndarray, ' m']]]:
    """Yields (rows, rows) with equal keys, each pair once, in arrays of bounded size."""
    order = np.argsort(keys)
    keys = keys[order]
    at, step = np.arange(len(keys)), 0
    while len(at):
        step += 1
        at = at[at + step < len(keys)]
        at = at[keys[at] == keys[at + step]]
        yield order[at], order[at + step]


def _is_new(
    both: UInt64[np.ndarray, ' m'], masks: UInt64[np.ndarray, ' k']
) -> Bool[np.ndarray, ' m']:
    """Tells which pairs agree on none of the earlier masks, and so were not found before."""
    new = np.ones(len(both), bool)
    for mask in masks:
        new &= (both & mask) != 0
    return new


def _rms(
    sketches: UInt8[np.ndarray, 'n 48'], a: Int[np.ndarray, ' m'], b: Int[np.ndarray, ' m']
) -> Float32[np.ndarray, ' m']:
    """Root mean square difference of some pairs of sketches."""
    apart = sketches[a].astype(np.float32) - sketches[b]
    return np.sqrt(np.mean(apart * apart, axis=1))
