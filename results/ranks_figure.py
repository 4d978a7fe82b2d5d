"""The critical-difference figure: methods by mean rank, joined where the verdict cannot tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from results import text
from results.drawing.panels import FILES
from results.drawn import rendered
from results.ranks import Ranks
from results.verdict import Ranking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, JOIN = "#222222", "#888888", "#0072B2"
ROW = 0.24
"""Height of a line of text, inches."""


def groups(ranking: Ranking) -> list[tuple[str, ...]]:
    """The largest sets of methods of which no two can be told apart; those of one method are left out.

    Found by Bron and Kerbosch's search with pivots, CACM 1973. Each is in the order of the ranking.
    """
    names = list(ranking.values)
    near: dict[str, set[str]] = {name: set() for name in names}
    for higher, lower in ranking.alike:
        near[higher].add(lower)
        near[lower].add(higher)
    found: list[tuple[str, ...]] = []

    def search(inside: set[str], open_: set[str], closed: set[str]) -> None:
        if not open_ and not closed:
            if len(inside) > 1:
                found.append(tuple(sorted(inside, key=names.index)))
            return
        pivot = max(names, key=lambda name: len(near[name] & open_) if name in open_ | closed else -1)
        for name in sorted(open_ - near[pivot], key=names.index):
            search(inside | {name}, open_ & near[name], closed & near[name])
            open_ = open_ - {name}
            closed = closed | {name}

    search(set(), set(names), set())
    return sorted(found, key=lambda group: [names.index(name) for name in group])


def draw(found: Ranks, ranking: Ranking, title: str) -> Figure:
    """The figure.

    Args:
        found: the ranks.
        ranking: of the verdict over the same units.
        title: what the scores are.
    """
    from matplotlib.figure import Figure

    standings = sorted(found.standings, key=lambda one: one.mean_rank.value)
    names = [one.method for one in standings]
    joined = groups(ranking)
    rows = len(names)
    height = 1.5 + ROW * rows
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axis = figure.add_subplot()
    place = {name: row for row, name in enumerate(names)}
    for one in standings:
        row = place[one.method]
        axis.plot([one.mean_rank.low, one.mean_rank.high], [row, row], color=GREY, linewidth=1.2)
        axis.plot(one.mean_rank.value, row, "o", color=INK, markersize=4.5)
    right = len(names) + 0.4
    for number, group in enumerate(joined):
        x = right + 0.25 * (number + 1) * max(1.0, len(names) / 12)
        members = sorted(place[name] for name in group)
        axis.plot([x, x], [members[0], members[-1]], color=JOIN, linewidth=1.6)
        axis.plot([x] * len(members), members, "o", color=JOIN, markersize=3.2)
    axis.plot([1, 1 + found.critical], [-1, -1], color=INK, linewidth=1.6, marker="|")
    axis.text(
        1 + found.critical + 0.1, -1, "Nemenyi's critical difference", va="center", fontsize=7, color=GREY
    )
    axis.set_yticks(range(rows), [text.figure(name) for name in names])
    axis.set_ylim(rows - 0.4, -1.7)
    axis.set_xlabel("mean rank over the units (1 is the best), 95 % by bootstrap")
    axis.set_xlim(0.7, max(right + 0.25 * (len(joined) + 1) * max(1.0, len(names) / 12), right + 0.4))
    step = max(1, len(names) // 10)
    axis.set_xticks(range(1, len(names) + 1, step))
    axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(left=False)
    axis.set_title(text.figure(title), fontsize=9, loc="left")
    units = f"{found.units} units of {found.datasets} dataset{'s' * (found.datasets > 1)}"
    figure.supxlabel(
        f"{units}; dots on one blue line: no two can be told apart", fontsize=7.5, color="#555555"
    )
    return figure


def files(
    found: Ranks, ranking: Ranking, title: str, kinds: Sequence[str], report: Callable[[str], None]
) -> dict[str, bytes]:
    """The figure by kind of file.

    Args:
        found: the ranks.
        ranking: of the verdict over the same units.
        title: what the scores are.
        kinds: as `results.drawn.rendered` knows them.
        report: gets a line on letters that the font lacks.
    """
    import matplotlib

    settings: dict[str, Any] = {**FILES, "font.family": "DejaVu Sans", "font.size": 8}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        return {kind: rendered(lambda: draw(found, ranking, title), kind, report) for kind in kinds}
