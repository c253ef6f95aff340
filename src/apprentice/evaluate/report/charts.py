"""The report's charts: Matplotlib, as inline SVG whose colours follow the page's light or dark theme."""

import io
import re
from collections.abc import Callable
from html import escape
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from apprentice.evaluate.report.findings import percent
from apprentice.evaluate.results import ProbeRow, Row

# Stand-ins that no chart would choose, replaced by CSS variables once the SVG is drawn.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = [f"#0400{n:02x}" for n in range(6)]
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", **{colour: f"c{n}" for n, colour in enumerate(SERIES)}}
WIDTH = 4.0  # inches: narrow, so that text stays readable on a phone
LEFT, TITLE = 0.22, 44  # of that for the names of policies; letters that fit into a line
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def success_chart(groups: dict[str, list[Row]], colours: dict[str, str], by: str) -> str:
    """Bars with Wilson intervals, a group (a task, or what was changed) of one bar per policy."""

    def bar(axes: Axes, y: float, row: Row) -> str:
        axes.barh(y, row.rate, 0.72, color=colours[row.policy])
        reach = [[row.rate - row.low95], [row.high95 - row.rate]]
        axes.errorbar(row.rate, y, xerr=reach, color=INK, capsize=2.5, lw=1)
        return f"{percent(row.rate)}  {row.successes}/{row.episodes}"

    return _bars(groups, bar, f"Success by {by}")


def probe_chart(groups: dict[str, list[ProbeRow]]) -> str:
    """Stacked bars: did the instructed task (--c3), did what the scene was set up for (--c4), neither (--c2)."""

    def bar(axes: Axes, y: float, row: ProbeRow) -> str:
        left = 0.0
        for part, colour in ((row.did_instructed, SERIES[3]), (row.did_task, SERIES[4]), (row.did_neither, SERIES[2])):
            axes.barh(y, part / row.episodes, 0.72, left, color=colour)
            left += part / row.episodes
        return f"instructed: {row.did_instructed}/{row.episodes}"

    return _bars(groups, bar, "What was done when another task's instruction was given")


def _bars[R: (Row, ProbeRow)](groups: dict[str, list[R]], bar: Callable[[Axes, float, R], str], title: str) -> str:
    """Groups of horizontal bars from 0 to 100 %; `bar` draws one at height y and returns the text beside it."""
    titles = {name: wrap(name, TITLE) for name in groups}
    with plt.rc_context(STYLE):
        height = 0.25 * sum(len(rows) + 0.6 + len(titles[name]) for name, rows in groups.items()) + 0.2
        figure, axes = plt.subplots(figsize=(WIDTH, height))
        figure.subplots_adjust(left=LEFT, right=0.72, top=1 - 0.02 / height, bottom=0.3 / height)
        y = 0.0
        for name, rows in groups.items():
            for line, text in enumerate(titles[name]):
                y += line > 0
                axes.text(-LEFT / (0.72 - LEFT), y, text, weight="bold", va="center")
            for row in rows:
                y += 1
                beside = bar(axes, y, row)
                axes.text(-0.02, y, row.policy, ha="right", va="center")
                axes.text(1.04, y, beside, va="center")
            y += 1.6
        axes.set(xlim=(0, 1), ylim=(y - 0.9, -0.6), yticks=[])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        axes.spines["left"].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=LINE, lw=0.6)
        return _svg(figure, f"{title}, as bars; the table has the numbers")


def loss_chart(
    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], colours: dict[str, str], label: str
) -> str:
    """Loss over samples seen, each curve (samples (N,), loss (N,), held out (M, 2)) faint as logged, strong as a
    running mean, and dotted where episodes are held out."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 2.5), layout="constrained")
        for name, (samples, loss, held_out) in curves.items():
            window = max(1, len(loss) // 25)
            padded = np.pad(loss, (window // 2, window - 1 - window // 2), mode="edge")
            smooth = np.convolve(padded, np.ones(window) / window, mode="valid")
            axes.plot(samples, loss, color=colours[name], lw=0.8, alpha=0.3)
            axes.plot(samples, smooth, color=colours[name], lw=1.8, label=name)
            if len(held_out):
                axes.plot(*held_out.T, color=colours[name], lw=1.2, ls=":", marker="o", ms=3, label=f"{name}, held out")
        if all((loss > 0).all() for _, loss, _ in curves.values()):
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.tick_params(which="both", labelsize=8.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        axes.grid(axis="y", color=LINE, lw=0.6)
        axes.set_xlabel("samples seen")
        axes.set_ylabel(label)
        axes.legend()
        return _svg(figure, f"{label[0].upper()}{label[1:]} of {', '.join(curves)} over samples seen")


def _svg(figure: Figure, says: str) -> str:
    """The figure as an <svg> element that scales with its column and takes the page's colours and font.

    `says` is what a screen reader reads instead."""
    stream = io.StringIO()
    with plt.rc_context({"svg.hashsalt": says}):  # equal charts give equal text, different ones different ids
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    plt.close(figure)
    svg = stream.getvalue()
    svg = f'<svg role="img" aria-label="{escape(says)}" ' + svg[svg.index("<svg") + 5 :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
