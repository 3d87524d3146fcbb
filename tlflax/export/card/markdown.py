"""Text from outside in Markdown, and values in its YAML front matter."""

import math
import re
from typing import Any

import yaml

from tlflax.utils.errors import printable

_SPECIAL = re.compile(r'([\\`*_\[\]<>|~$&!#])')
_SPACE = re.compile(r'\s')
_SURROGATE = re.compile('[\ud800-\udfff]')


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line and in a cell of a table, too."""
    return _SPECIAL.sub(r'\\\1', _SPACE.sub(' ', printable(text)).strip())


def front_matter(values: dict[str, Any]) -> str:
    """Returns YAML between lines of '---', in the order of the values.

    Bytes of file names that are no UTF-8 are replaced; all other text is read back as it is.

    Args:
        values: Dicts and lists of text and finite numbers.
    """
    text = yaml.dump(_encodable(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True,
                     width=math.inf)  # fmt: skip
    return f'---\n{text}---\n'


def _encodable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return _SURROGATE.sub('�', value) if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """Writes each text on one line: a line '---' in one would end the front matter."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar('tag:yaml.org,2002:str', text, style=style)


_Dumper.add_representer(str, _represent)
