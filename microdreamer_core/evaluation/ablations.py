"""Fig. 12: SIR with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from . import PROTOCOLS, plots
from .content import ENOUGH, SIMILAR, Claim, Plot, Section, Table, make_claim
from .series import Protocol, Series, get_report_plan, list_sir, make_cost_table
from .sources import Setup, get_view_count

_PAPERS_VIEWS = (1, 2, 3, 6)
_PAPERS_CURVES = ("square", "random")


def _make_section(protocol: str, claims: Sequence[Claim], table: Table, *ends: Any) -> Section:
    words = PROTOCOLS[protocol]
    plot = Plot(protocol, words["caption"], partial(plots.draw_ends, *ends))
    return Section(words["text"], claims, (table,), (plot,))


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
    text = PROTOCOLS["iterations"]["limit"].format(enough=ENOUGH, needed=2 * ENOUGH // 3)
    return [text] if choose_iterations(setup)[-2] < ENOUGH else []


def _show_iterations(setup: Setup, series: list[Series]) -> Section:
    *series, control = series
    values = choose_iterations(setup)
    full, (last, longest) = series[values.index(setup.iterations)], series[-2:]
    results = tuple(result and {**result, "rows": result["rows"][:1]} for result in full.results)
    start = replace(full, name="K = 0", results=results)  # as if the runs had stopped after the initialisation
    more = longest.minus(last)
    found, ends = f"It differs by {more.interval('dB')}.", {"last": values[-2], "longest": values[-1]}
    claims = [
        make_claim("iterations", "necessary", *full.judge(start), k=setup.iterations),
        make_claim("iterations", "control", *full.judge(control), k=setup.iterations),
        make_claim("iterations", "enough", more.below(SIMILAR), found, **ends),
    ]
    claims = claims[:2] if _limit_iterations(setup) else claims
    table = make_cost_table([start, *series, control], full)
    return _make_section("iterations", claims, table, [start, *series], [0, *values], "K, iterations", control)


ITERATIONS = Protocol(list_iterations, _show_iterations, _limit_iterations)

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
    return [PROTOCOLS["views"]["limit"].format(group=group, views=views)] if group > 1 else []


def _show_views(setup: Setup, series: list[Series]) -> Section:
    values = choose_views(setup)
    more = series[-1].judge(series[0], subject="They differ")
    claim = make_claim("views", "more", *more, most=values[-1], least=values[0])
    table = make_cost_table(series, series[values.index(get_report_plan(setup).views)])
    return _make_section("views", (claim,), table, series, values, "views")


VIEWS = Protocol(_list_views, _show_views, _limit_views)

# --- Fig. 12c: schedules of t2 ----------------------------------------------------------------------------------------


def _list_schedules(setup: Setup) -> list[Series]:
    return [list_sir(setup, curve, t2_curve=curve) for curve in ("linear", *_PAPERS_CURVES, "cosine")]


def _show_schedules(setup: Setup, series: list[Series]) -> Section:
    linear = series[0]
    differences = {other.name: other.minus(linear) for other in series if other.name in _PAPERS_CURVES}
    claims = [
        make_claim("schedules", "alike", d.within(SIMILAR), f"It differs by {d.interval('dB')}.", name=name)
        for name, d in differences.items()
    ]
    return _make_section("schedules", claims, make_cost_table(series, linear), series)


SCHEDULES = Protocol(_list_schedules, _show_schedules)

# --- Fig. 12d: forward process ----------------------------------------------------------------------------------------


def _list_forwards(setup: Setup) -> list[Series]:
    return [list_sir(setup, name, forward=name) for name in ("hybrid", "noise", "invert")]


def _show_forwards(setup: Setup, series: list[Series]) -> Section:
    hybrid, noise, invert = series
    more = hybrid.minus(invert, "evaluations_per_view").mean
    verdict, found = hybrid.judge(invert, -SIMILAR, note=f", with {-more:.0f} evaluations per view fewer")
    claims = (
        make_claim("forward", "better", *hybrid.judge(noise)),
        make_claim("forward", "cheaper", verdict if more < 0 else "no", found),
    )
    return _make_section("forward", claims, make_cost_table(series, hybrid), series)


FORWARD = Protocol(_list_forwards, _show_forwards)
