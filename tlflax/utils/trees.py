"""Trees of parameters addressed by path: flatten, merge, compare, digest.

A tree is a nested dict; a leaf's path joins its keys with slashes, as in
`head/hidden/kernel`. The configuration, checkpoints and messages use the same paths.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from tlflax.utils.errors import UserError

Tree = dict[str, Any]
"""A nested dict of arrays, of their shapes, or of labels."""

_LINES = 20  # the most lines of a comparison that a message shows


class Abstract(Protocol):
    """An array or its abstract value."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


def flatten(tree: Any) -> dict[str, Any]:
    """Returns path -> leaf of a pytree, a dict's by key; empty branches are dropped."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, object]) -> Tree:
    """Returns the nested dict whose `flatten` is `flat`.

    Raises:
        ValueError: A path is both a leaf and a branch.
    """
    tree: Tree = {}
    for path, leaf in flat.items():
        *branches, name = path.split('/')
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f'{branch!r} in {path!r} is both a leaf and a branch')
        if name in node:
            raise ValueError(f'{path!r} is both a leaf and a branch')
        node[name] = leaf
    return tree


def merge(tree: Mapping[str, object], other: Mapping[str, object]) -> Tree:
    """Returns the tree that has the leaves of both, such as trainable and frozen parameters.

    Raises:
        ValueError: A path is in both trees.
    """
    one, two = flatten(tree), flatten(other)
    if twice := sorted(one.keys() & two.keys()):
        raise ValueError(f'in both trees: {", ".join(twice)}')
    return unflatten(one | two)


def like(tree: Mapping[str, object], other: Mapping[str, object]) -> Tree:
    """Returns the leaves of a tree that have a path in the other."""
    flat = flatten(tree)
    return unflatten({path: flat[path] for path in flatten(other)})


def check_same(
    expected: Mapping[str, object], got: Mapping[str, object], *, where: str, fix: str
) -> None:
    """Checks that two trees have the same paths, shapes and dtypes.

    Args:
        expected: A tree of arrays or abstract arrays.
        got: Another.
        where: The file or checkpoint that `got` comes from.
        fix: What the user can do about a difference.

    Raises:
        UserError: The trees differ; lists what is missing (-), unexpected (+) or different (!).
    """
    want, have = flatten(expected), flatten(got)
    diff = []
    for path in sorted(want.keys() | have.keys()):
        if path not in have:
            diff.append(f'  - {path} {_describe(want[path])}')
        elif path not in want:
            diff.append(f'  + {path} {_describe(have[path])}')
        elif _describe(want[path]) != _describe(have[path]):
            diff.append(f'  ! {path} {_describe(want[path])}, not {_describe(have[path])}')
    if diff:
        if len(diff) > _LINES:
            diff[_LINES:] = [f'  and {len(diff) - _LINES} more']
        header = 'parameters are missing (-), unexpected (+) or different (!)'
        raise UserError('\n'.join([header, *diff]), where=where, fix=fix)


def _describe(leaf: Abstract) -> str:
    return f'{np.dtype(leaf.dtype).name}[{",".join(map(str, leaf.shape))}]'


def digest(tree: Mapping[str, object]) -> str:
    """Returns the hex SHA-256 of the bytes of all leaves in the order of their paths.

    The bytes are C-contiguous and little-endian; names and shapes do not count.
    """
    sha = hashlib.sha256()
    for _, leaf in sorted(flatten(tree).items()):
        sha.update(_bytes(leaf))
    return sha.hexdigest()


def fingerprint(tree: Any) -> str:
    """Returns the hex SHA-256 of the paths, dtypes, shapes and bytes of all leaves of a pytree."""
    sha = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        sha.update(f'{path} {_describe(leaf)}\n'.encode())
        sha.update(_bytes(leaf))
    return sha.hexdigest()


def _bytes(leaf: Any) -> memoryview:
    """Returns the bytes of an array, C-contiguous and little-endian."""
    array = np.asarray(leaf)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
    return array.reshape(-1).view(np.uint8).data
