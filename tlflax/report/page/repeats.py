"""What a page shows several times, and writes once."""

from markupsafe import Markup

from tlflax.report.page.pictures import Picture


class Once:
    """Says of a number whether it is asked for the first time."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def __call__(self, number: int) -> bool:
        first = number not in self._seen
        self._seen.add(number)
        return first

    def __contains__(self, number: int) -> bool:
        return number in self._seen


class First:
    """Says of the first cell only that it is the first."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, cell: object) -> bool:
        first, self._asked = not self._asked, True
        return first


class Pictures:
    """Writes each picture of a page once; elsewhere the script puts the same one."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def __call__(self, picture: Picture | None, alt: str, name: str = '') -> Markup:
        if picture is None:
            return Markup('')
        shown = Markup(' class="{}"').format(name) if name else ''
        if (place := self._places.get(picture.source)) is not None:
            slot = Markup('<span data-same="{}" data-alt="{}"{}></span>')
            return slot.format(place, alt, shown)
        place = self._places[picture.source] = f'p{len(self._places)}'
        image = Markup('<img id="{}" src="{}" width="{}" height="{}" alt="{}" loading="lazy"{}>')
        return image.format(place, picture.source, picture.width, picture.height, alt, shown)
