"""Parameters addressed by their path: labels, partition, strict comparison, digest.

A tree is a plain nested dict; a leaf's path joins its keys with slashes, as in
`backbone/block1_conv1/kernel`. The same paths appear in the configuration, in checkpoints and in
messages.
"""

import difflib
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tlflax.utils.errors import UserError

Tree = dict[str, Any]
Rules = Sequence[tuple[str, str]]

FROZEN = 'frozen'

_KEY = 'config.optim.labels'
_LINES = 20  # of a diff; more hides the message


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns path -> leaf, ordered by key at every level; empty branches leave no trace."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> Tree:
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


def label_tree(params: Mapping[str, Any], rules: Rules) -> Tree:
    """Gives every parameter the label of the first pattern that matches its whole path.

    Args:
        params: The parameters; only their paths matter.
        rules: (regular expression, label) pairs.

    Returns:
        The tree of `params` with a label at each leaf.

    Raises:
        UserError: A pattern labels nothing, a parameter has no label, or all are 'frozen'.
    """
    chosen = _first_matches(list(flatten(params)), rules)
    labels = {path: rules[rule][1] for path, rule in chosen.items()}
    if set(labels.values()) == {FROZEN}:
        raise UserError(
            f'every parameter is {FROZEN!r}, so nothing could learn',
            where=_KEY,
            fix="give some another label, as in ('head/.*', 'head')",
        )
    return unflatten(labels)


def _first_matches(paths: Sequence[str], rules: Rules) -> dict[str, int]:
    """Returns path -> number of its rule; refuses rules without effect and paths without rule."""
    chosen: dict[str, int] = {}
    for number, (pattern, label) in enumerate(rules):
        try:
            matched = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as error:
            raise UserError(
                f'{pattern!r} is no regular expression ({error})', where=_KEY, fix='correct it'
            ) from None
        if not matched:
            raise UserError(
                f'the pattern {pattern!r} matches no parameter',
                where=_KEY,
                fix=f'near misses: {", ".join(map(repr, _near_misses(pattern, paths)))}',
            )
        new = [path for path in matched if path not in chosen]
        if not new:
            raise UserError(
                f'all that the pattern {pattern!r} matches has a label from an earlier pattern, '
                f'and none is left to be {label!r}',
                where=_KEY,
                fix='put it before the more general pattern, or leave it out',
            )
        chosen |= dict.fromkeys(new, number)
    bare = [path for path in paths if path not in chosen]
    if bare:
        shown = ', '.join(map(repr, bare[:5])) + (', ...' if len(bare) > 5 else '')
        raise UserError(
            f'no pattern covers {len(bare)} of {len(paths)} parameters: {shown}',
            where=_KEY,
            fix=f"add a pattern for them, as in ('.*', {FROZEN!r})",
        )
    return chosen


def _near_misses(pattern: str, paths: Sequence[str]) -> list[str]:
    """Returns up to three patterns that do match and resemble `pattern`."""
    partly = [path for path in paths if re.search(pattern, path)]
    if partly:
        return partly[:3]
    parents = {path.rpartition('/')[0] for path in paths}
    tops = {path.partition('/')[0] for path in paths if '/' in path}
    branches = sorted(f'{branch}/.*' for branch in parents | tops if branch)
    near = difflib.get_close_matches(pattern, [*branches, *paths], n=3)
    return near or sorted(f'{top}/.*' for top in tops) or list(paths[:3])


def partition(
    params: Mapping[str, Any], labels: Mapping[str, Any], frozen: str = FROZEN
) -> tuple[Tree, Tree]:
    """Splits a tree into (trainable, frozen) by the labels; neither has empty branches."""
    label = flatten(labels)
    parts: tuple[Tree, Tree] = ({}, {})
    for path, leaf in flatten(params).items():
        parts[label[path] == frozen][path] = leaf
    return unflatten(parts[0]), unflatten(parts[1])


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Tree:
    """Undoes `partition`.

    Raises:
        ValueError: A path lies in both trees.
    """
    one, other = flatten(trainable), flatten(frozen)
    if twice := sorted(one.keys() & other.keys()):
        raise ValueError(f'in both trees: {", ".join(twice)}')
    return unflatten(one | other)


def table(params: Mapping[str, Any], rules: Rules, state_bytes: Mapping[str, int]) -> str:
    """Shows what each pattern caught, for the log.

    Args:
        params: The parameters, arrays or abstract.
        rules: The rules that `label_tree` accepted for them.
        state_bytes: label -> bytes of its optimizer state.

    Returns:
        A header, a line per pattern and a line of sums. A label's optimizer state stands on the
        line of its first pattern.
    """
    flat = flatten(params)
    chosen = _first_matches(list(flat), rules)
    rows = [('pattern', 'label', 'tensors', 'parameters', 'optimizer bytes')]
    shown: set[str] = set()
    for number, (pattern, label) in enumerate(rules):
        sizes = [math.prod(flat[path].shape) for path, rule in chosen.items() if rule == number]
        memory = 'as above' if label in shown else f'{state_bytes[label]:,}'
        shown.add(label)
        rows.append((pattern, label, f'{len(sizes)}', f'{sum(sizes):,}', memory))
    total = sum(math.prod(leaf.shape) for leaf in flat.values())
    memory = f'{sum(state_bytes[label] for label in shown):,}'
    rows.append(('all', '', f'{len(flat)}', f'{total:,}', memory))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def check_same(
    expected: Mapping[str, Any], got: Mapping[str, Any], *, where: str, fix: str
) -> None:
    """Checks that two trees have the same paths, shapes and dtypes.

    Args:
        expected: Arrays or abstract arrays.
        got: The same.
        where: The file or checkpoint `got` comes from.
        fix: What the user can do about a difference.

    Raises:
        UserError: They differ; lists what is missing (-), unexpected (+) or different (!).
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


def _describe(leaf: Any) -> str:
    return f'{np.dtype(leaf.dtype).name}[{",".join(map(str, leaf.shape))}]'


def digest(tree: Mapping[str, Any]) -> str:
    """Returns the hex SHA-256 over all leaves' bytes, joined in the order of their paths.

    Each leaf counts as its C-contiguous little-endian bytes; names and shapes do not count.
    """
    sha = hashlib.sha256()
    for _, leaf in sorted(flatten(tree).items()):
        array = np.asarray(leaf)
        array = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
