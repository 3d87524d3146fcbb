"""Figures of a service, in the text format of Prometheus (version 0.0.4)."""

import bisect
import collections
from collections.abc import Callable, Sequence

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts of values up to some bounds, and their sum.

    Args:
        bounds: In ascending order; values above the last are counted too.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = '') -> list[str]:
        """Returns the samples of a metric.

        Args:
            name: Of the metric.
            labels: Of the samples, such as 'path="/predict"'.
        """
        found, total = [], 0
        before = f'{labels},' if labels else ''
        for bound, count in zip((*self._bounds, '+Inf'), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{{before}le="{bound}"}} {total}')
        within = f'{{{labels}}}' if labels else ''
        return [*found, f'{name}_sum{within} {self.sum:.6f}', f'{name}_count{within} {total}']


class Metrics:
    """The figures of a service."""

    def __init__(self) -> None:
        self._requests: collections.Counter[tuple[str, str]] = collections.Counter()
        self._seconds: dict[str, Histogram] = {}
        self.batches = Histogram(_SIZES)
        self.batch_seconds = Histogram(_SECONDS)
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def answered(self, path: str, outcome: str, seconds: float) -> None:
        """Counts a request.

        Args:
            path: Of the endpoint, or 'other'.
            outcome: The status, or 'disconnected'.
            seconds: From its first lines to the end of the answer.
        """
        self._requests[path, outcome] += 1
        if path not in self._seconds:
            self._seconds[path] = Histogram(_SECONDS)
        self._seconds[path].add(seconds)

    def text(self) -> str:
        """Returns all figures."""
        lines = [
            *_head('tlflax_requests_total', 'counter', 'Requests by endpoint and status.'),
            *(
                f'tlflax_requests_total{{path="{path}",status="{outcome}"}} {count}'
                for (path, outcome), count in sorted(self._requests.items())
            ),
            *_head('tlflax_request_seconds', 'histogram', 'Seconds until a request is answered.'),
        ]
        for path, histogram in sorted(self._seconds.items()):
            lines += histogram.lines('tlflax_request_seconds', f'path="{path}"')
        lines += _head('tlflax_batch_images', 'histogram', 'Images that are computed at once.')
        lines += self.batches.lines('tlflax_batch_images')
        lines += _head('tlflax_batch_seconds', 'histogram', 'Seconds that a batch takes.')
        lines += self.batch_seconds.lines('tlflax_batch_seconds')
        for name, (about, value) in self.gauges.items():
            lines += [*_head(name, 'gauge', about), f'{name} {value():g}']
        return '\n'.join(lines) + '\n'


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f'# HELP {name} {about}', f'# TYPE {name} {kind}']
