"""Random words as a function of (seed, epoch, purpose, row) alone, and values made of them.

Row `i` of an epoch gets its values from a counter-based generator (Philox), so they do not depend
on the number of rows, the batch size, the workers or the processes, and any step of any epoch can
be computed without the ones before it. Each purpose has its own stream: switching one augmentation
on does not change another. Raw generator words are turned into values by our own arithmetic,
because NumPy guarantees the words of a bit generator across its versions, but not the values that
`Generator` makes of them (NEP 19).
"""

import zlib

import numpy as np
from jaxtyping import Float64, Int64, UInt64


def words(seed: int, epoch: int, purpose: str, n: int) -> UInt64[np.ndarray, ' n']:
    """Returns the first `n` words of the stream (seed, epoch, purpose)."""
    key = np.array([seed, epoch], np.uint64)
    # The low half of the 256-bit counter counts words, the purpose stands above it: no overlap.
    counter = np.array([0, 0, zlib.crc32(purpose.encode()), 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


def unit(words: UInt64[np.ndarray, '...']) -> Float64[np.ndarray, '...']:
    """Returns numbers uniform in [0, 1) from the 53 high bits, as many as float64 holds."""
    return (words >> np.uint64(11)) * 2.0**-53


def units(seed: int, epoch: int, purpose: str, n: int, each: int) -> Float64[np.ndarray, 'n each']:
    """Returns numbers uniform in [0, 1), `each` for each row."""
    return unit(words(seed, epoch, purpose, n * each)).reshape(n, each)


def below(
    seed: int, epoch: int, purpose: str, n: int, each: int, limit: int
) -> Int64[np.ndarray, 'n each']:
    """Returns integers uniform in [0, limit), `each` for each row."""
    return (units(seed, epoch, purpose, n, each) * limit).astype(np.int64)


def permutation(seed: int, epoch: int, purpose: str, n: int) -> Int64[np.ndarray, ' n']:
    """Returns an order of `n` rows, uniform over all orders."""
    # Sorting random 64-bit keys; a tie, less likely than n^2 / 2^65, keeps row order.
    return np.argsort(words(seed, epoch, purpose, n), kind='stable').astype(np.int64)
