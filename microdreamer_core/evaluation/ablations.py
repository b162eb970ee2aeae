"""Fig. 12: SIR with one thing changed at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from . import plots
from .content import Claim, Plot, Section
from .series import SIMILAR, Protocol, Series, get_report_plan, list_sir, make_cost_table
from .sources import Setup, get_view_count

ENOUGH = 30
"""Iterations beyond which the paper sees no significant gain."""

_PAPERS_VIEWS = (1, 2, 3, 6)
_PAPERS_CURVES = ("square", "random")
_TEXT = (
    "SIR on Gaussians with one thing changed at a time; PSNR of held-out views. Objects differ more among each other than "
    "methods do, which is why methods are compared object by object."
)


def _plan_ends(name: str, caption: str, *ends: Any) -> tuple[Plot]:
    return (Plot(name, f"{caption}; every thin line is an object.", partial(plots.draw_ends, *ends)),)


# --- Fig. 12a: iterations ---------------------------------------------------------------------------------------------


def choose_iterations(setup: Setup) -> tuple[int, ...]:
    """Choose values of K: a quarter, a half, the report's, half as many again, and twice as many."""
    k = setup.iterations
    return tuple(sorted({max(1, k // 4), max(1, k // 2), k, k + max(1, k // 2), 2 * k}))


def list_iterations(setup: Setup) -> list[Series]:
    """List SIR with each K, and as a control K = 0 with as many steps in all as the report's K."""
    plan = get_report_plan(setup)
    steps = plan.init_steps + plan.iterations * plan.steps
    values = [list_sir(setup, f"K = {k}", iterations=k) for k in choose_iterations(setup)]
    return [*values, list_sir(setup, f"K = 0, {steps} steps", iterations=0, init_steps=steps)]


def _limit_iterations(setup: Setup) -> list[str]:
    text = f"Iterations beyond {ENOUGH} (Fig. 12a): K is too small; take --iterations {2 * ENOUGH // 3} or more."
    return [text] if choose_iterations(setup)[-2] < ENOUGH else []


def _show_iterations(setup: Setup, series: list[Series]) -> Section:
    *series, control = series
    values = choose_iterations(setup)
    full, (last, longest) = series[values.index(setup.iterations)], series[-2:]
    results = tuple(result and {**result, "rows": result["rows"][:1]} for result in full.results)
    start = replace(full, name="K = 0", results=results)  # as if the runs had stopped after the initialisation
    more = longest.minus(last)
    claims = [
        Claim(
            "Iterating is necessary (section VI-D, Fig. 12a).",
            f"K = {setup.iterations} is better than K = 0, the initialisation alone.",
            *full.judge(start),
        ),
        Claim(
            "Our control, which the paper does not show: iterating is more than further steps of reconstruction.",
            f"K = {setup.iterations} is better than K = 0 with as many steps on its first pictures.",
            *full.judge(control),
        ),
        Claim(
            f"Beyond K = {ENOUGH} quality does not improve significantly (section VI-D, Fig. 12a).",
            f"K = {values[-1]} is better than K = {values[-2]} by less than {SIMILAR:g} dB.",
            more.below(SIMILAR),
            f"It differs by {more.interval('dB')}.",
        ),
    ]
    drawn = _plan_ends("iterations", "Quality against K", [start, *series], [0, *values], "K, iterations", control)
    table = make_cost_table([start, *series, control], full)
    return Section(_TEXT, claims[:2] if _limit_iterations(setup) else claims, (table,), drawn)


ITERATIONS = Protocol("Iterations", list_iterations, _show_iterations, _limit_iterations)

# --- Fig. 12b: views --------------------------------------------------------------------------------------------------


def choose_views(setup: Setup) -> tuple[int, ...]:
    """Choose numbers of views: the paper's, as far as the model denoises as many together, and the plan's."""
    group = get_view_count(setup.model).group or 1
    wanted = {n for n in _PAPERS_VIEWS if n % group == 0} | {get_report_plan(setup).views}
    return tuple(sorted(wanted | ({2 * group} if group > 1 else set())))


def _list_views(setup: Setup) -> list[Series]:
    return [list_sir(setup, f"{n} views" if n > 1 else "1 view", views=n) for n in choose_views(setup)]


def _limit_views(setup: Setup) -> list[str]:
    group, views = get_view_count(setup.model).group or 1, ", ".join(map(str, choose_views(setup)))
    text = f"Views: this model denoises {group} together, so that of 1 to 6 only multiples can be compared ({views})."
    return [text] if group > 1 else []


def _show_views(setup: Setup, series: list[Series]) -> Section:
    values = choose_views(setup)
    claim = Claim(
        "More views are better (section VI-D, Fig. 12b).",
        f"{values[-1]} views are better than {values[0]}.",
        *series[-1].judge(series[0], subject="They differ"),
    )
    text = f"{_TEXT} The number of iterations stays, so that every view more costs as many evaluations again."
    table = make_cost_table(series, series[values.index(get_report_plan(setup).views)])
    return Section(
        text, (claim,), (table,), _plan_ends("views", "Quality against views of an iteration", series, values, "views")
    )


VIEWS = Protocol("Views", _list_views, _show_views, _limit_views)

# --- Fig. 12c: schedules of t2 ----------------------------------------------------------------------------------------


def _list_schedules(setup: Setup) -> list[Series]:
    return [list_sir(setup, curve, t2_curve=curve) for curve in ("linear", *_PAPERS_CURVES, "cosine")]


def _show_schedules(setup: Setup, series: list[Series]) -> Section:
    linear = series[0]
    claims = [
        Claim(
            f"A {other.name} schedule of t2 is about as good as the linear one (section VI-D, Fig. 12c).",
            f"Within {SIMILAR:g} dB.",
            other.minus(linear).within(SIMILAR),
            f"It differs by {other.minus(linear).interval('dB')}.",
        )
        for other in series
        if other.name in _PAPERS_CURVES
    ]
    return Section(_TEXT, claims, (make_cost_table(series, linear),), _plan_ends("schedules", "Schedules of t2", series))


SCHEDULES = Protocol("Schedules of t2", _list_schedules, _show_schedules)

# --- Fig. 12d: forward process ----------------------------------------------------------------------------------------


def _list_forwards(setup: Setup) -> list[Series]:
    return [list_sir(setup, name, forward=name) for name in ("hybrid", "noise", "invert")]


def _show_forwards(setup: Setup, series: list[Series]) -> Section:
    hybrid, noise, invert = series
    more = hybrid.minus(invert, "evaluations_per_view").mean
    verdict, found = hybrid.judge(invert, -SIMILAR, note=f", with {-more:.0f} evaluations per view fewer")
    claims = (
        Claim(
            "The hybrid forward process is better than noise-adding (section VI-D, Fig. 12d).",
            "Hybrid is better.",
            *hybrid.judge(noise),
        ),
        Claim(
            "It saves evaluations against inversion at about the same quality (section IV-C, Fig. 5).",
            f"Hybrid is less than {SIMILAR:g} dB worse than inversion, with fewer evaluations.",
            verdict if more < 0 else "no",
            found,
        ),
    )
    return Section(_TEXT, claims, (make_cost_table(series, hybrid),), _plan_ends("forward", "Forward processes", series))


FORWARD = Protocol("Forward process", _list_forwards, _show_forwards)
