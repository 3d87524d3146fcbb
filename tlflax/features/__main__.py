"""Shows or empties the feature cache.

info: lists what is cached, and its size.
clear: deletes all cached features that no process is using; clear NAME: those that info lists under
that name.
"""

import dataclasses

from tlflax.config import cli, flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    action: tuple[str, ...] = flags.positional('action', 'info|clear [NAME]', 'what to do')


def main(arguments: Arguments) -> None:
    """Prints what is cached, or how much was deleted."""
    from tlflax.features.cache import quota
    from tlflax.utils import assets

    root = assets.cache_folder() / 'features'
    match arguments.action:
        case ['info']:
            print(quota.format_info(root))
        case ['clear', *names] if len(names) < 2:
            freed, kept = quota.clear(root, *names)
            in_use = f', {kept / 1e9:.2f} GB in use kept' if kept else ''
            print(f'{freed / 1e9:.2f} GB freed{in_use}')
        case _:
            raise flags.UsageError(
                f'{" ".join(arguments.action)!r} is not an action',
                where='command line',
                fix='info lists what is cached, clear deletes all of it, clear NAME a part of it',
            )


COMMAND = cli.Command('tlflax.features', __doc__, Arguments, main, 'info')

if __name__ == '__main__':
    COMMAND.run()
