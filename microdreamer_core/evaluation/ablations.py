"""Fig. 12: SIR with one thing changed at a time."""

from __future__ import annotations

from functools import partial

from . import plots
from .content import Claim, Plot, Section, Series, Setup
from .methods import SIMILAR, plan_of, sir_series
from .sources import view_count
from .tables import cost_table

TITLES = {"iterations": "Iterations", "views": "Views", "schedules": "Schedules of t2", "forward": "Forward process"}

ENOUGH = 30
"""Iterations beyond which the paper sees no significant gain."""
_VIEWS = (1, 2, 3, 6)
_PAPERS_CURVES = ("square", "random")


def ablated_iterations(setup: Setup) -> tuple[int, ...]:
    """Values of K: a quarter, a half, the report's, half as many again, and twice as many."""
    k = setup.iterations
    return tuple(sorted({max(1, k // 4), max(1, k // 2), k, k + max(1, k // 2), 2 * k}))


def iterations(setup: Setup) -> list[Series]:
    plan = plan_of(setup)
    steps = plan.init_steps + plan.iterations * plan.steps
    values = [sir_series(setup, f"K = {k}", iterations=k) for k in ablated_iterations(setup)]
    return [*values, sir_series(setup, f"K = 0, {steps} steps", iterations=0, init_steps=steps)]


def iteration_limits(setup: Setup) -> list[str]:
    if ablated_iterations(setup)[-2] >= ENOUGH:
        return []
    return [f"Iterations beyond {ENOUGH} (Fig. 12a): K is too small; take --iterations {2 * ENOUGH // 3} or more."]


def show_iterations(setup: Setup, series: list[Series]) -> Section:
    *series, control = series
    values = ablated_iterations(setup)
    full, (last, longest) = series[values.index(setup.iterations)], series[-2:]
    start = Series("K = 0", full.runs, tuple(_initial(result) for result in full.results))
    gain, against, more = full.minus(start, "psnr"), full.minus(control, "psnr"), longest.minus(last, "psnr")
    claims = [
        Claim(
            "Iterating is necessary (section VI-D, Fig. 12a).",
            f"K = {setup.iterations} is better than K = 0, the initialisation alone.",
            gain.above(0),
            f"It differs by {gain.interval('dB')}.",
        ),
        Claim(
            "Our control, which the paper does not show: iterating is more than further steps of reconstruction.",
            f"K = {setup.iterations} is better than K = 0 with as many steps on its first pictures.",
            against.above(0),
            f"It differs by {against.interval('dB')}.",
        ),
    ]
    if not iteration_limits(setup):
        claims.append(
            Claim(
                f"Beyond K = {ENOUGH} quality does not improve significantly (section VI-D, Fig. 12a).",
                f"K = {values[-1]} is better than K = {values[-2]} by less than {SIMILAR:g} dB.",
                more.below(SIMILAR),
                f"It differs by {more.interval('dB')}.",
            )
        )
    draw = partial(plots.points, [start, *series], [0, *values], "K, iterations", control=control)
    plot = Plot("iterations", "Quality against K; every thin line is an object.", draw)
    tables = (cost_table([start, *series, control], full),)
    return Section(TITLES["iterations"], _ABLATION, tuple(claims), tables, (plot,))


def _initial(result: dict | None) -> dict | None:
    """A run's result as if it had stopped after the initialisation."""
    return None if result is None else {**result, "rows": result["rows"][:1]}


def allowed_views(setup: Setup) -> tuple[int, ...]:
    """Numbers of views to compare: those of the paper that the model denoises together, and the plan's."""
    group = view_count(setup.model).group or 1
    wanted = {n for n in _VIEWS if n % group == 0} | {plan_of(setup).views}
    return tuple(sorted(wanted | ({2 * group} if group > 1 else set())))


def view_limits(setup: Setup) -> list[str]:
    group = view_count(setup.model).group or 1
    if group == 1:
        return []
    views = ", ".join(map(str, allowed_views(setup)))
    return [f"Views: this model denoises {group} together, so that of 1 to 6 only multiples can be compared ({views})."]


def views(setup: Setup) -> list[Series]:
    return [sir_series(setup, f"{n} views" if n > 1 else "1 view", views=n) for n in allowed_views(setup)]


def show_views(setup: Setup, series: list[Series]) -> Section:
    values = allowed_views(setup)
    gain = series[-1].minus(series[0], "psnr")
    claim = Claim(
        "More views are better (section VI-D, Fig. 12b).",
        f"{values[-1]} views are better than {values[0]}.",
        gain.above(0),
        f"They differ by {gain.interval('dB')}.",
    )
    draw = partial(plots.points, series, list(values), "views")
    plot = Plot("views", "Quality against views of an iteration; every thin line is an object.", draw)
    text = f"{_ABLATION} The number of iterations stays, so that every view more costs as many evaluations again."
    usual = series[values.index(plan_of(setup).views)]
    return Section(TITLES["views"], text, (claim,), (cost_table(series, usual),), (plot,))


def schedules(setup: Setup) -> list[Series]:
    return [sir_series(setup, curve, t2_curve=curve) for curve in ("linear", *_PAPERS_CURVES, "cosine")]


def show_schedules(setup: Setup, series: list[Series]) -> Section:
    linear, *others = series
    claims = [
        Claim(
            f"A {other.name} schedule of t2 is about as good as the linear one (section VI-D, Fig. 12c).",
            f"Within {SIMILAR:g} dB.",
            difference.within(SIMILAR),
            f"It differs by {difference.interval('dB')}.",
        )
        for other, difference in ((other, other.minus(linear, "psnr")) for other in others)
        if other.name in _PAPERS_CURVES
    ]
    plot = Plot("schedules", "Schedules of t2; every thin line is an object.", partial(plots.dots, series))
    return Section(TITLES["schedules"], _ABLATION, tuple(claims), (cost_table(series, linear),), (plot,))


def forwards(setup: Setup) -> list[Series]:
    return [sir_series(setup, name, forward=name) for name in ("hybrid", "noise", "invert")]


def show_forwards(setup: Setup, series: list[Series]) -> Section:
    hybrid, noise, invert = series
    gain, loss = hybrid.minus(noise, "psnr"), hybrid.minus(invert, "psnr")
    fewer = hybrid.minus(invert, "evaluations_per_view")
    claims = (
        Claim(
            "The hybrid forward process is better than noise-adding (section VI-D, Fig. 12d).",
            "Hybrid is better.",
            gain.above(0),
            f"It differs by {gain.interval('dB')}.",
        ),
        Claim(
            "It saves evaluations against inversion at about the same quality (section IV-C, Fig. 5).",
            f"Hybrid is less than {SIMILAR:g} dB worse than inversion, with fewer evaluations.",
            loss.above(-SIMILAR) if fewer.mean < 0 else "no",
            f"It differs by {loss.interval('dB')}, with {-fewer.mean:.0f} evaluations per view fewer.",
        ),
    )
    plot = Plot("forward", "Forward processes; every thin line is an object.", partial(plots.dots, series))
    return Section(TITLES["forward"], _ABLATION, claims, (cost_table(series, hybrid),), (plot,))


_ABLATION = (
    "SIR on Gaussians with one thing changed at a time; PSNR of held-out views. Objects differ more among each other than "
    "methods do, which is why methods are compared object by object."
)
