"""Labels of parameters, which decide what is frozen and which optimizer settings apply.

Rules map patterns over the paths of parameters to labels; `FROZEN` marks what never changes.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence

from tlflax.utils.errors import UserError
from tlflax.utils.trees import Tree, flatten, unflatten

Rules = Sequence[tuple[str, str]]
"""(regular expression, label) pairs; the first whose expression matches a whole path applies."""

FROZEN = 'frozen'

_KEY = 'config.optim.labels'


def label_tree(params: Mapping[str, object], rules: Rules) -> Tree:
    """Returns the tree of `params` with the label of every parameter in its place.

    Args:
        params: The parameters; only their paths are read.
        rules: See `Rules`.

    Raises:
        UserError: A pattern labels nothing, a parameter has no label, or all are `FROZEN`.
    """
    chosen = _first_matches(list(flatten(params)), rules)
    labels = {path: rules[rule][1] for path, rule in chosen.items()}
    if set(labels.values()) == {FROZEN}:
        raise UserError(
            f'every parameter is {FROZEN!r}, so nothing is trained',
            where=_KEY,
            fix="give some of them another label, as in ('head/.*', 'head')",
        )
    return unflatten(labels)


def _first_matches(paths: Sequence[str], rules: Rules) -> dict[str, int]:
    """Returns path -> index of its rule; rejects rules without effect and paths without rule."""
    chosen: dict[str, int] = {}
    for number, (pattern, label) in enumerate(rules):
        try:
            matched = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as error:
            raise UserError(
                f'{pattern!r} is not a valid regular expression ({error})',
                where=_KEY,
                fix='correct it',
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
                f'earlier patterns label everything that the pattern {pattern!r} matches, so '
                f'nothing gets the label {label!r}',
                where=_KEY,
                fix='move it before the more general pattern, or remove it',
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
    """Returns up to three patterns that match something and resemble `pattern`."""
    partly = [path for path in paths if re.search(pattern, path)]
    if partly:
        return partly[:3]
    parents = {path.rpartition('/')[0] for path in paths}
    tops = {path.partition('/')[0] for path in paths if '/' in path}
    branches = sorted(f'{branch}/.*' for branch in parents | tops if branch)
    near = difflib.get_close_matches(pattern, [*branches, *paths], n=3)
    return near or sorted(f'{top}/.*' for top in tops) or list(paths[:3])


def partition(params: Mapping[str, object], labels: Mapping[str, object]) -> tuple[Tree, Tree]:
    """Splits a tree into (trainable, frozen) by its labels; `trees.merge` is the inverse."""
    label = flatten(labels)
    parts: tuple[Tree, Tree] = ({}, {})
    for path, leaf in flatten(params).items():
        parts[label[path] == FROZEN][path] = leaf
    return unflatten(parts[0]), unflatten(parts[1])


def format_table(params: Mapping[str, object], rules: Rules, state_bytes: Mapping[str, int]) -> str:
    """Formats what each pattern labels as a table, for the log.

    Args:
        params: The parameters, arrays or abstract.
        rules: Rules that `label_tree` accepts for them.
        state_bytes: label -> bytes of its optimizer state.

    Returns:
        A header, a line per pattern and a line of sums. The optimizer state of a label is on the
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
