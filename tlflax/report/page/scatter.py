"""The map of features: a point for each image, with a color and a shape for each class."""

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup, escape

from tlflax.report.page.charts import COLORS
from tlflax.report.page.contents import Point

SHAPES = (
    'M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z',  # circle
    'M-3.5,-3.5h7v7h-7z',
    'M0,-4.6L4.4,3.4H-4.4z',
    'M0,-5L5,0L0,5L-5,0z',
    'M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z',  # plus
    'M0,4.6L4.4,-3.4H-4.4z',
    'M-4,-4L0,-1.8L4,-4L1.8,0L4,4L0,1.8L-4,4L-1.8,0z',  # star of four rays
)
"""Paths of the classes' shapes around (0, 0)."""

_SIDE, _LEAST, _ROOM = 640.0, 200.0, 12.0  # of the longer and of the shorter side; the margin


@dataclasses.dataclass(frozen=True)
class Area:
    """The part of the map that has points; both directions have one scale.

    Attributes:
        left: The lowest `x` of the points.
        bottom: The lowest `y`.
        scale: Units of the `viewBox` for a unit of the map.
        width: Of the `viewBox`.
        height: The same.
    """

    left: float
    bottom: float
    scale: float
    width: float
    height: float

    @classmethod
    def of(cls, points: Sequence[Point]) -> 'Area':
        """Returns the area of points; at least one."""
        x, y = ([getattr(point, axis) for point in points] for axis in ('x', 'y'))
        across, up = max(x) - min(x), max(y) - min(y)
        scale = (_SIDE - 2 * _ROOM) / (max(across, up) or 1)
        sizes = [max(_LEAST, scale * span + 2 * _ROOM) for span in (across, up)]
        return cls(min(x), min(y), scale, *sizes)

    def position(self, point: Point) -> tuple[float, float]:
        """Returns where a point stands."""
        right, up = self.scale * (point.x - self.left), self.scale * (point.y - self.bottom)
        return _ROOM + right, self.height - _ROOM - up


def style(label: int) -> str:
    """Returns the class of the style sheet for the color of a class."""
    return f'c{label % COLORS}'


def shape(label: int) -> int:
    """Returns the number of the shape of a class."""
    return label % len(SHAPES)


def feature_map(points: Sequence[Point], class_names: Sequence[str], title: str) -> Markup:
    """Returns the map; training images are faint, and what was classified wrongly has a ring.

    Args:
        points: At least one.
        class_names: In the order of the points' labels.
        title: A sentence that stands for the map.
    """
    area = Area.of(points)
    shapes = ''.join(f'<path id="shape-{k}" d="{d}"/>' for k, d in enumerate(SHAPES))
    parts = [f'<defs>{shapes}<circle id="ring" r="7.5"/></defs>']
    groups: dict[tuple[bool, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.split != 'train', point.label), []).append(point)
    for (evaluated, label), members in sorted(groups.items()):
        faint = '' if evaluated else ' train'
        parts.append(f'<g class="points {style(label)}{faint}" data-class="{label}">')
        parts += [_point(area, point, class_names[label]) for point in members]
        parts.append('</g>')
    return Markup(
        f'<svg class="map" viewBox="0 0 {area.width:.0f} {area.height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _point(area: Area, point: Point, label: str) -> str:
    x, y = area.position(point)
    at = f'x="{x:.1f}" y="{y:.1f}"'
    wrong = ', classified wrongly' if point.wrong else ''
    ring = f'<use href="#ring" class="wrong" {at}/>' if point.wrong else ''
    about = escape(f'{point.path} ({label}, {point.split}{wrong})')
    return f'{ring}<use href="#shape-{shape(point.label)}" {at}><title>{about}</title></use>'


def symbol(label: int) -> Markup:
    """Returns the shape of a class in its color, for a legend."""
    return Markup(
        f'<svg class="swatch {style(label)}" viewBox="-6 -6 12 12" width="14" height="14" '
        f'aria-hidden="true"><path class="fill" d="{SHAPES[shape(label)]}"/></svg>'
    )
