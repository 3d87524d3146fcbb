"""Checks the metadata of a checkpoint: signed, or whole where a released version wrote it."""

from typing import Any

from tlflax.utils.files import JsonObject, is_signed

# What every run writes, and what some do. Only a digest tells whether the values are right.
_NEEDED = {
    'config': dict,
    'classes': list,
    'preprocess': str,
    'weights_digest': str,
    'data_digest': str,
    'position': dict,
    'record': dict,
    'wall_seconds': int | float,
    'rank': int,
}
_OPTIONAL = {
    'best_step': int | None,
    'code': dict,
    'digests': dict,
    'folder': str,
    'split_digests': dict,
}


def decode(saved: object) -> JsonObject:
    """Returns metadata as it was given to be saved.

    Raises:
        ValueError: It is damaged.
    """
    if not is_signed(saved, needed=False):
        raise ValueError('its digest is another')
    assert isinstance(saved, dict)
    found: JsonObject = _decode(saved)
    if not is_signed(saved):
        optional = {name: kind for name, kind in _OPTIONAL.items() if name in found}
        for name, kind in {**_NEEDED, **optional}.items():
            if not isinstance(found.get(name), kind):
                raise ValueError(f'{name} is missing or of another type')
    return found


def _decode(value: Any) -> Any:
    """Reads {'float': 'nan'}, which is how released versions wrote a NaN."""
    if isinstance(value, dict):
        if set(value) == {'float'}:
            return float(value['float'])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
