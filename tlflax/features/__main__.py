"""Shows or empties the feature cache: `python -m tlflax.features info`, or `clear [SPACE]`."""

from tlflax.config import cli
from tlflax.features.cache import quota
from tlflax.utils import assets
from tlflax.utils.errors import UserError


def _main(arguments: list[str]) -> None:
    root = assets.cache_folder() / 'features'
    match arguments:
        case ['info']:
            print(quota.format_info(root))
        case ['clear', *names] if len(names) < 2:
            freed, kept = quota.clear(root, *names)
            in_use = f', {kept / 1e9:.2f} GB in use kept' if kept else ''
            print(f'{freed / 1e9:.2f} GB freed{in_use}')
        case _:
            raise UserError(
                f'{" ".join(arguments) or "nothing"!r} is no command',
                where='command line',
                fix="'info' shows what is cached, 'clear' deletes all of it, 'clear NAME' a space",
            )


if __name__ == '__main__':
    cli.run(_main)
