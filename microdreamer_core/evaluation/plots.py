"""The report's plots. matplotlib is imported when one is drawn, and its global settings are not changed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..io.pictures import read_picture
from ..util.optional import import_optional
from .pages import Plot
from .runs import Series
from .sources import Setup
from .statistics import Estimate, average

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinguishable by colour-blind readers; text on the fourth to the sixth is black."""

SHOWN_OBJECTS = 6
"""Most objects or images beside each other on a contact sheet."""

_STYLE = Path(__file__).with_name("report.mplstyle")
_QUALITY = "PSNR of held-out views, dB"
_COSTS = {"evaluations_per_view": "network evaluations per view", "seconds": "seconds"}


def check_matplotlib() -> None:
    """Raise InputError if matplotlib is missing."""
    install = "'microdreamer-comfyui[report]' (or pip install matplotlib)"
    import_optional("matplotlib.figure", "The report's plots need", install)


def encode_plot(plot: Plot) -> dict[str, bytes]:
    """Draw a plot, as "svg" and "png"."""
    import matplotlib
    from matplotlib.figure import Figure

    encoded = {"svg": io.BytesIO(), "png": io.BytesIO()}
    with matplotlib.rc_context(fname=_STYLE):
        plot.draw(figure := Figure())
        figure.savefig(encoded["svg"], format="svg", metadata={"Date": None})
        figure.savefig(encoded["png"], format="png")
    return {kind: content.getvalue() for kind, content in encoded.items()}


def draw_curves(series: Sequence[Series], cost: str, figure: Figure) -> None:
    """Draw quality against cost (logarithmic) during the runs, one line per method, ± one standard error."""
    axes = figure.add_subplot(xlabel=_COSTS[cost], ylabel=_QUALITY)
    for one, color, marker in zip(series, COLORS, "osD^vP*", strict=False):
        marks = range(len(one.finished[0][1]["rows"]) if one.finished else 0)
        x = [max(one.estimate(cost, mark).mean, 1e-3) for mark in marks]
        found = [one.estimate("psnr", mark) for mark in marks]
        low, y, high = ([value.mean + side * (value.error or 0) for value in found] for side in (-1, 0, 1))
        axes.plot(x, y, marker=marker, color=color, label=one.name)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log", subs=(2, 5))
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):  # plain numbers, also within a decade
        ticks("{x:g}")
    axes.legend()


def draw_ends(series: Sequence[Series], across: str, label: str, figure: Figure) -> None:
    """Draw quality at the ends of runs: the mean, and a thin line per object, because objects differ more than methods.

    Args:
        across, label: a number of the plan in which the methods differ, and its name; a second method of the same number stands
            apart. Without it, methods are side by side with their cost.
    """
    axes = figure.add_subplot(xlabel=label, ylabel=_QUALITY)
    pairs = [(one.runs[0].settings["plan"][across] if across else place, one) for place, one in enumerate(series)]
    line = dict(reversed(pairs))  # the first of each number
    x, found = sorted(line), [average(line[value].pick("psnr")) for value in sorted(line)]
    for index in sorted(set.intersection(*map(set, found))):
        axes.plot(x, [means[index] for means in found], color="#b8b8b8", linewidth=0.8, marker=".", markersize=3)
    means = [line[value].estimate("psnr").mean for value in x]
    axes.plot(x, means, "o-" if across else "o", color=COLORS[0], label="mean")
    for value, one in ((value, one) for value, one in pairs if one is not line[value]):
        axes.plot(value, one.estimate("psnr").mean, "D", color=COLORS[1], label=f"{one.name}, mean")
    axes.legend()
    axes.set_xticks(x)
    if not across:
        axes.set_xticklabels([f"{s.name}\n{s.estimate('evaluations_per_view').mean:.0f} evaluations" for s in series])
        axes.set_xlim(-0.6, len(series) - 0.4)


def draw_ranges(estimates: dict[str, Estimate], label: str, figure: Figure) -> None:
    """Draw one point per method with its standard deviation."""
    figure.set_figheight(0.9 + 0.4 * len(estimates))
    axes = figure.add_subplot(xlabel=label)
    means, deviations = zip(*((e.mean, e.deviation) for e in estimates.values()), strict=True)
    axes.errorbar(means, list(estimates), xerr=deviations, fmt="o", color=COLORS[0], capsize=4)
    axes.margins(y=0.5)
    axes.invert_yaxis()


def draw_shares(methods: dict[str, dict[str, float]], figure: Figure) -> None:
    """Draw the time shares of each method as stacked bars."""
    figure.set_figheight(1.2 + 0.5 * len(methods))
    axes = figure.add_subplot(xlabel="share of the time, %")
    left = [0.0] * len(methods)
    for part, color in zip(dict.fromkeys(part for shares in methods.values() for part in shares), COLORS, strict=False):
        widths = [100 * shares.get(part, 0.0) for shares in methods.values()]
        bars = axes.barh(list(methods), widths, left=left, color=color, height=0.6, edgecolor="white", label=part)
        words = [f"{width:.0f}" if width > 7 else "" for width in widths]
        axes.bar_label(bars, words, label_type="center", color="black" if color in COLORS[3:6] else "white", fontsize=9)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.28))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(visible=False)


def plan_sheet(
    setup: Setup, series: Sequence[Series], name: str, caption: str, label: str, subjects: dict[Any, Tensor]
) -> Plot:
    """Plan a contact sheet: a labelled row of images by subject, and below it those that each method left of the first seed.

    Args:
        subjects: images [S,S,3], or strips [S,4 S,3] of views evenly spread around, of which two opposite ones are shown.
    """
    return Plot(name, caption, partial(_draw_sheet, setup.runs, series, label, subjects))


def _draw_sheet(folder: Path, series: Sequence[Series], label: str, subjects: dict[Any, Tensor], figure: Figure) -> None:
    rows = {label: subjects}
    for one in series:
        names = {run.sample[0]: result["picture"] for run, result in reversed(one.finished)}
        rows[one.name] = {subject: read_picture(folder / names[subject])[..., :3] for subject in subjects if subject in names}
    figure.set(size_inches=(1.6 + 2.2 * len(subjects), 1.15 * len(rows)), layout_engine="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows.items(), strict=True):
        white = torch.ones_like(next(iter(images.values()), torch.ones(1, 1, 3)))
        axes.imshow(
            torch.cat([_show_two_sides(images.get(subject, white)) for subject in subjects], 1), interpolation="nearest"
        )
        axes.set(xticks=[], yticks=[], frame_on=False)
        words = name.replace(", ", ",\n").replace(" as ", "\nas ")
        axes.set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8)


def _show_two_sides(strip: Tensor) -> Tensor:
    """The first view and the opposite one of a strip, or an image beside white."""
    front, *others = strip.split(len(strip), 1)
    return torch.cat([front, others[1] if len(others) > 1 else torch.ones_like(front)], 1)
