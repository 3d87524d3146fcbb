"""The configuration: its keys, their values checked, and the command line that sets them."""

from tlflax.config.parse import default_config, resolve
from tlflax.config.schema import Config

__all__ = ['Config', 'default_config', 'resolve']
