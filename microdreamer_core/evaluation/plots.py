"""The report's plots. matplotlib is imported when one is drawn; nothing global is set."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputError
from .content import Series
from .statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind people tell apart."""

MARKERS = "osD^vP*"
_LIGHT = ("#E69F00", "#56B4E9", "#CC79A7")
_LABELS = {
    "psnr": "PSNR of held-out views, dB",
    "evaluations_per_view": "network evaluations per view",
    "seconds": "seconds",
}
_WIDTH, _HEIGHT = 6.4, 3.8
_GREY, _THIN = "#666666", "#b8b8b8"


def check_matplotlib() -> None:
    """Raise InputError when there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError(
            "The report's plots need matplotlib, which is not installed; run: pip install 'microdreamer-comfyui[report]' (or "
            "pip install matplotlib)."
        ) from error


def curves(series: Sequence[Series], cost: str, value: str = "psnr") -> Figure:
    """Quality against cost (logarithmic) on the way, one line a method, ± a standard error."""
    figure, axes = _axes()
    for i, one in enumerate(series):
        points = one.curve(cost, value)
        if not points:
            continue
        x, y = [max(c.mean, 1e-3) for c, _ in points], [v.mean for _, v in points]
        axes.plot(x, y, marker=MARKERS[i], markersize=5, color=COLORS[i], label=one.name, linewidth=1.6)
        low, high = zip(*((v.mean - (v.error or 0), v.mean + (v.error or 0)) for _, v in points), strict=True)
        axes.fill_between(x, low, high, color=COLORS[i], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    _plain_ticks(axes)
    axes.set_xlabel(_LABELS[cost])
    axes.set_ylabel(_LABELS[value])
    axes.legend(frameon=False, fontsize=9)
    return figure


def points(
    series: Sequence[Series],
    values: Sequence[float],
    label: str,
    value: str = "psnr",
    control: Series | None = None,
) -> Figure:
    """Quality at the ends of runs against a number that they differ in: the mean, and a thin line for every object.

    Args:
        control: runs beside the line, drawn at the left.
    """
    figure, axes = _axes()
    _lines_of_objects(axes, values, series, value)
    axes.plot(values, [one.estimate(value).mean for one in series], marker="o", color=COLORS[0], linewidth=2, label="mean")
    if control is not None:
        mean = control.estimate(value).mean
        axes.plot(values[:1], [mean], "D", color=COLORS[1], markersize=7, label=f"{control.name}, mean")
    axes.legend(frameon=False, fontsize=9)
    axes.set_xticks(list(values))
    axes.set_xlabel(label)
    axes.set_ylabel(_LABELS[value])
    return figure


def dots(series: Sequence[Series], value: str = "psnr") -> Figure:
    """Quality at the ends of runs that differ in a choice, with what they cost; a thin line for every object."""
    figure, axes = _axes()
    places = range(len(series))
    _lines_of_objects(axes, places, series, value)
    axes.plot(places, [one.estimate(value).mean for one in series], "o", color=COLORS[0], markersize=8, label="mean")
    axes.legend(frameon=False, fontsize=9)
    cost = [one.estimate("evaluations_per_view").mean for one in series]
    labels = [f"{one.name}\n{number:.0f} evaluations" for one, number in zip(series, cost, strict=True)]
    axes.set_xticks(places, labels)
    axes.set_xlim(-0.6, len(series) - 0.4)
    axes.set_ylabel(_LABELS[value])
    return figure


def _lines_of_objects(axes: Axes, x: Sequence[float], series: Sequence[Series], value: str) -> None:
    """Objects differ more than methods do; their own lines show whether all go the same way."""
    found = [one.of_objects(value) for one in series]
    for index in sorted(set.intersection(*map(set, found))):
        axes.plot(list(x), [values[index] for values in found], color=_THIN, linewidth=0.8, marker=".", markersize=3)


def ranges(names: Sequence[str], estimates: Sequence[Estimate], label: str) -> Figure:
    """One point a method with its standard deviation."""
    figure, axes = _axes(height=0.9 + 0.4 * len(names))
    for i, estimate in enumerate(estimates):
        color = COLORS[i % len(COLORS)]
        axes.errorbar(estimate.mean, i, xerr=estimate.deviation, fmt="o", color=color, capsize=4, markersize=7, linewidth=1.6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label)
    return figure


def shares(methods: Sequence[tuple[str, dict[str, float]]]) -> Figure:
    """How the time of each method divides, as stacked bars."""
    figure, axes = _axes(height=1.2 + 0.5 * len(methods))
    parts = list(dict.fromkeys(part for _, found in methods for part in found))
    for row, (_, found) in enumerate(methods):
        left = 0.0
        for part, share in found.items():
            axes.barh(row, 100 * share, left=left, color=COLORS[parts.index(part)], height=0.6, edgecolor="white")
            ink = "black" if COLORS[parts.index(part)] in _LIGHT else "white"
            if share > 0.07:
                axes.text(left + 50 * share, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=9)
            left += 100 * share
    handles = [axes.barh(0, 0, color=COLORS[i], label=part) for i, part in enumerate(parts)]
    axes.legend(handles=handles, frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.28))
    axes.set_yticks(range(len(methods)), [name for name, _ in methods])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(visible=False)
    axes.set_xlabel("share of the time, %")
    return figure


def render_figure(figure: Figure, kind: str) -> bytes:
    """A figure as "svg" or "png"."""
    content = io.BytesIO()
    extra = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 120}
    figure.savefig(content, format=kind, bbox_inches="tight", **extra)
    return content.getvalue()


def _axes(width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)
    axes.tick_params(colors=_GREY, labelsize=9)
    return figure, axes


def _plain_ticks(axes: Axes) -> None:
    """Numbers as people write them on a logarithmic axis, also within a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
