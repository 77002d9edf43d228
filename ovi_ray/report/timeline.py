"""Timeline of a simulated job as SVG, alone or in an HTML page: one lane per device, one bar per run of equal tasks."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import markupsafe

from ovi.files import atomic_writer
from ovi.stages import STAGES, TIME_GROUPS
from ovi_ray.printing import counted
from ovi_ray.report.durations import format_duration
from ovi_ray.simulation.virtual_cluster import Span

WIDTH, LEFT, TOP, LANE = 1200, 150, 62, 14  # pixels: width, margins at the left and at the top, height of a lane
MAX_LANES = 80
MAX_BARS = 400  # per lane, at most about this many; shorter gaps between tasks of one stage are not drawn
_COLOURED = (*TIME_GROUPS, "load")
"""The kinds of bars, each in its own colour; also the CSS classes of the bars."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body {{ margin: 0 }} svg {{ width: 100%; height: auto }}</style></head><body>
{svg}
</body></html>
"""


@dataclass(kw_only=True, slots=True, frozen=True)
class _Bar:
    """A drawn run of tasks; `x` and `width` are in pixels."""

    kind: str
    """A time group of stages or "load"; the CSS class of the bar."""
    x: float
    width: float
    title: str


@dataclass(kw_only=True, slots=True, frozen=True)
class _Lane:
    """The bars of one device, `y` pixels from the top."""

    name: str
    y: int
    bars: tuple[_Bar, ...]


@dataclass(slots=True)
class _Run:
    """Consecutive tasks of one stage without a visible gap between them."""

    kind: str
    start_s: float
    end_s: float
    tasks: int = 1


def write_timeline(path: Path, spans: Sequence[Span], *, title: str) -> None:
    """Write the timeline of `spans`, as an HTML page for `.html` and as SVG otherwise. Raises OSError."""
    svg = timeline_svg(spans, title=title)
    if path.suffix.lower() in (".html", ".htm"):
        svg = _PAGE.format(title=markupsafe.escape(title), svg=svg)
    with atomic_writer(path) as unfinished:
        unfinished.write_text(svg, encoding="utf-8")


def timeline_svg(spans: Sequence[Span], *, title: str) -> str:
    """The timeline as SVG, with the first MAX_LANES devices by name."""
    end_s = max((span.end_s for span in spans), default=1.0)
    by_device: defaultdict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        by_device[span.device, span.worker].append(span)
    shown = sorted(by_device.items(), key=lambda item: _natural(item[0][1]))[:MAX_LANES]
    lanes = [_lane(worker, TOP + LANE * i, own, end_s) for i, ((_, worker), own) in enumerate(shown)]
    hidden = len(by_device) - len(shown)
    return _TEMPLATE.render(
        title=title,
        width=WIDTH,
        height=TOP + LANE * len(lanes) + (28 if hidden else 12),
        left=LEFT,
        top=TOP,
        legend=_COLOURED,
        ticks=list(_ticks(end_s)),
        lanes=lanes,
        hidden=hidden,
    )


def _lane(name: str, y: int, spans: Iterable[Span], end_s: float) -> _Lane:
    scale = (WIDTH - LEFT - 8) / end_s
    bars = tuple(
        _Bar(
            kind=run.kind,
            x=round(LEFT + run.start_s * scale, 2),
            width=round(max(0.3, (run.end_s - run.start_s) * scale), 2),
            title=f"{run.kind}, {counted(run.tasks, 'task')}, {format_duration(run.start_s)} to {format_duration(run.end_s)}",
        )
        for run in _runs(spans, gap_s=end_s / MAX_BARS)
    )
    return _Lane(name=name, y=y, bars=bars)


def _runs(spans: Iterable[Span], gap_s: float) -> Iterator[_Run]:
    current: _Run | None = None
    for kind, start_s, end_s in _parts(spans):
        continues = current is not None and current.kind == kind and start_s - current.end_s <= gap_s
        if current is not None and continues:
            current.end_s, current.tasks = end_s, current.tasks + 1
        else:
            if current is not None:
                yield current
            current = _Run(kind, start_s, end_s)
    if current is not None:
        yield current


def _parts(spans: Iterable[Span]) -> Iterator[tuple[str, float, float]]:
    """(kind, start, end) of each task in order of time, with its loading and its work apart."""
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.load_s > 0:
            yield "load", span.start_s, span.start_s + span.load_s
        if span.end_s > span.start_s + span.load_s:
            yield STAGES[span.task.stage].time_group, span.start_s + span.load_s, span.end_s


def _ticks(end_s: float) -> Iterator[tuple[float, str]]:
    """(x, label) of up to eleven marks at round times."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400)
    step = next((s for s in steps if end_s / s <= 10), 86_400 * math.ceil(end_s / 864_000))
    for i in range(int(end_s // step) + 1):
        yield round(LEFT + i * step * (WIDTH - LEFT - 8) / end_s, 2), format_duration(i * step)


def _natural(name: str) -> list[str | int]:
    """Sort key in natural order: device-2 before device-10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]


_TEMPLATE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("timeline.svg.j2")
