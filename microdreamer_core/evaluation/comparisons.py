"""The protocols on objects of known truth: SIR against SDS, the truth, time shares, losses, and SIR with one thing changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from ..fields.density_control import DensitySettings
from ..sir.sds import COMPONENTS, SDS_PRESETS
from ..util.images import join_views
from . import PROTOCOLS, plots
from .pages import ENOUGH, HALF, SIMILAR, WORTH, Claim, Plot, Section, Table, make_claim
from .runs import SHOWN_VIEWS
from .series import REPRESENTATIONS, Protocol, Series, get_report_plan, list_sds, list_sir, make_cost_table, make_score_table
from .sources import Setup, get_base_plan, get_spec, get_view_count
from .statistics import Estimate, Verdict, compare_costs, estimate_objects
from .subjects import make_subject

LOWER = 3.0
"""dB below the best common quality, where costs are compared too: methods that are quick at first need not be so at last."""

_COSTS = {"evaluations_per_view": "evaluations", "seconds": "seconds"}
_LOSSES = {"pixel": "pixel loss (Eq. 12)", "latent": "latent loss (Eq. 11)"}
_PAPERS_VIEWS, _PAPERS_CURVES = (1, 2, 3, 6), ("square", "random")

# --- Fig. 7: SIR against SDS, and against DreamGaussian's settings of it ----------------------------------------------


def _list_rivals(setup: Setup) -> list[Series]:
    found = []
    for representation in setup.representations:
        found += [list_sir(setup, "SIR", representation), list_sds(setup, "SDS", representation)]
        if representation == "gaussians":
            found.append(list_sds(setup, "SDS as DreamGaussian's", representation, SDS_PRESETS["dreamgaussian"]))
    return found


def _limit_rivals(setup: Setup) -> list[str]:
    words, found = PROTOCOLS["sds"], []
    if setup.oracle:
        found.append(f"Seconds of SIR against SDS: {words['oracle']}")
    if "gaussians" in setup.representations and DensitySettings().acts(setup.sds_steps):
        found.append(words["density"].format(steps=setup.sds_steps))
    return found


def _show_rivals(setup: Setup, series: list[Series]) -> Section:
    words, claims, drawn, rows = PROTOCOLS["sds"], [], [], []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        ours, plain, *others = [one for one in series if one.name.endswith(shown)]
        for cost, name in _COSTS.items():
            if not (setup.oracle and name == "seconds"):
                ratio, quality = _estimate_ratio(ours, plain, cost)
                because = f"SDS takes {ratio.factor()} times the {name} of SIR, to {quality} dB."
                claims.append(make_claim("sds", "fewer", ratio.above(0.0), because, cost=name, shown=shown))
                verdict = ratio.above(math.log(WORTH))
                claims.append(make_claim("sds", "worth", verdict, f"{ratio.factor()} times.", cost=name, shown=shown))
            of = name if name == "seconds" else "evaluations of the network per view"
            caption = f"{shown}: quality against {of}, mean ± standard error over objects."
            draw = partial(plots.draw_curves, [ours, plain, *others], cost)
            drawn.append(Plot(f"sir_against_sds_{representation}_{name}", caption, draw))
        claims.append(make_claim("sds", "quality", *_judge_ends(ours, plain, -SIMILAR), shown=shown))
        for other in others:
            claims.append(make_claim("sds", "dreamgaussian", *_judge_ends(ours, other, 0.0)))
            if not setup.oracle:
                ratio, _ = _estimate_ratio(ours, other, "seconds")
                claims.append(make_claim("sds", "half", ratio.above(math.log(HALF)), f"{ratio.factor()} times."))
        rows += [_compare(ours, other) for other in (plain, *others)]
    costs = [f"{name}{lower}" for name in _COSTS.values() for lower in ("", f" at {LOWER:g} dB less")]
    equal = Table(words["equal"].format(lower=LOWER), ("SDS / SIR", *costs, "quality, dB", "out of SDS's reach"), tuple(rows))
    header = ("method", "plan", "optimisation", "guidance", "cameras", "reference weights")
    settings = Table("Settings.", header, tuple((s.name, *_list_settings(**s.runs[0].settings)) for s in series))
    text = f"{words['text']} {words['oracle']}" if setup.oracle else words["text"]
    return Section(text, claims, (make_cost_table(series), equal, settings), drawn)


def _estimate_ratio(ours: Series, theirs: Series, cost: str, below: float = 0.0) -> tuple[Estimate, str]:
    """Logarithms of how many times cheaper SIR reaches the best quality that both reach, run by run, and that quality."""
    curves = ([r and [(row[cost], row["psnr"]) for row in r["rows"]] for r in one.results] for one in (ours, theirs))
    found = [compare_costs(a, b, below) if a and b else None for a, b in zip(*curves, strict=True)]
    logs = [None if one is None else math.log(one[0]) for one in found]
    return estimate_objects(logs, ours.objects), f"{Estimate.of([one[1] for one in found if one]).mean:.1f}"


def _compare(ours: Series, theirs: Series) -> tuple[str, ...]:
    """The method, its factors of cost at equal quality, that quality, and how often SDS never reaches SIR's best."""
    found = [_estimate_ratio(ours, theirs, cost, below) for cost in _COSTS for below in (0.0, LOWER)]
    never = ours.compare(
        theirs, lambda *pair: max(r["psnr"] for r in pair[1]["rows"]) < max(r["psnr"] for r in pair[0]["rows"])
    )
    beyond = [one for one in never if one is not None]
    return (theirs.name, *(ratio.factor() for ratio, _ in found), found[0][1], f"{sum(beyond)} of {len(beyond)} runs")


def _judge_ends(ours: Series, theirs: Series, limit: float) -> tuple[Verdict, str]:
    """Judge the ends of SIR and SDS, with what both had spent: who is better may have spent more."""
    spent = (one.estimate("evaluations_per_view").mean for one in (ours, theirs))
    return ours.judge(theirs, limit, "SIR differs", ", with {:.0f} evaluations per view against {:.0f}".format(*spent))


def _list_settings(plan: dict, sds: dict | None = None, **_: object) -> tuple[str, ...]:
    low, high = plan["elevation_range"]
    sizes = " to ".join(map(str, plan["resolutions"]))
    cameras = f"{plan['views']} views, elevation {low:g}° to {high:g}°, {f'{sizes} px' if sizes else 'the model’s size'}"
    weights = f"colour {plan['ref_color_weight']:g}, opacity {plan['ref_opacity_weight']:g}"
    weights += f", paint {plan['ref_paint_weight']:g}" if plan.get("ref_paint_weight") else ""
    if sds is None:
        steps = f"{plan['init_steps']} + {plan['iterations']} × {plan['steps']} steps"
        return plan["name"], steps, f"{plan['guidance_scale']:g}", cameras, weights
    times = f"{sds['steps']} updates, {sds['form']}, t {sds['times']}"
    return f"SDS {sds['name']}", times, f"{sds['guidance_scale']:g}", cameras, weights


SDS = Protocol(_list_rivals, _show_rivals, _limit_rivals)

# --- the same runs against the truth ----------------------------------------------------------------------------------


def _show_truth(setup: Setup, series: list[Series]) -> Section:
    return Section(PROTOCOLS["truth"]["text"], tables=(make_score_table(series),), plots=(_plan_sheet(setup, series, "truth"),))


def _plan_sheet(setup: Setup, series: list[Series], name: str) -> Plot:
    """Plan a contact sheet: the truth of each object, and below it the last field of every method, of the first seed."""
    plan, size = get_base_plan(setup.model), get_spec(setup.model).size
    truth = {}
    for index in range(min(setup.objects, plots.SHOWN_OBJECTS)):
        images = make_subject(index, plan.radius, plan.fov_y, size).images
        truth[index] = plots.cut_opposite_views(join_views(images[list(SHOWN_VIEWS)]))
    which = "every object" if setup.objects <= plots.SHOWN_OBJECTS else f"the first {plots.SHOWN_OBJECTS} objects"
    caption = f"Two held-out views of {which}, first seed, the last field of each method."
    return plots.plan_sheet(setup, series, name, caption, "truth", truth)


TRUTH = Protocol(_list_rivals, _show_truth)

# --- Fig. 4: how the time of SDS and of SIR is spent ------------------------------------------------------------------


def _list_timed(setup: Setup) -> list[Series]:
    return [make(setup, name, kind) for kind in setup.representations for make, name in ((list_sds, "SDS"), (list_sir, "SIR"))]


def _show_shares(setup: Setup, series: list[Series]) -> Section:
    words, claims, shares = PROTOCOLS["shares"], [], {}
    for one in series:
        runs = [result and result["shares"] for result in one.results]
        done = [parts for parts in runs if parts]
        names = dict.fromkeys(name for parts in done for name in parts)
        shares[one.name] = {name: sum(p.get(name, 0.0) / sum(p.values()) for p in done) / len(done) for name in names}
        if one.name.startswith("SDS") and not setup.oracle:
            parts = [(p["diffusion"] + p["encode"]) / sum(p.values()) if p else None for p in runs]
            share = estimate_objects(parts, one.objects)
            because = f"{100 * share.mean:.0f} % of the time."
            claims.append(make_claim("shares", "bottleneck", share.above(0.5), because, name=one.name))
    text = words["text"].format(components=", ".join(COMPONENTS)) + (words["oracle"] if setup.oracle else "")
    rows = [(name, ", ".join(f"{part} {100 * share:.0f} %" for part, share in parts.items())) for name, parts in shares.items()]
    plot = Plot("time_shares", "Shares of the seconds.", partial(plots.draw_shares, shares))
    return Section(text, claims, (Table("Time shares.", ("method", "shares"), tuple(rows)),), (plot,))


SHARES = Protocol(_list_timed, _show_shares, lambda setup: [PROTOCOLS["shares"]["limit"]] if setup.oracle else [])

# --- Fig. 10: pixel against latent loss -------------------------------------------------------------------------------


def _list_losses(setup: Setup) -> list[Series]:
    kinds = product(setup.representations, _LOSSES.items())
    return [list_sir(setup, name, kind, loss_space=space) for kind, (space, name) in kinds]


def _show_losses(setup: Setup, series: list[Series]) -> Section:
    claims, drawn = [], []
    for representation, pixel, latent in zip(setup.representations, series[::2], series[1::2], strict=True):
        shown = REPRESENTATIONS[representation]
        if not setup.oracle:
            logs = pixel.compare(latent, lambda a, b: math.log(_time_reconstruction(b) / _time_reconstruction(a)))
            ratio = estimate_objects(logs, pixel.objects)
            found = f"Latents take {ratio.factor()} times the seconds."
            claims.append(make_claim("latent", "faster", ratio.above(math.log(HALF)), found, shown=shown))
            ends = pixel.judge(latent, -SIMILAR, "The pixel loss differs")
            claims.append(make_claim("latent", "possible", *ends, shown=shown))
        draw = partial(plots.draw_curves, [pixel, latent], "seconds")
        drawn.append(Plot(f"pixel_against_latent_{representation}", f"{shown}: quality against seconds.", draw))
    return Section(PROTOCOLS["latent"]["text"], claims, (make_cost_table(series),), drawn)


def _time_reconstruction(result: dict) -> float:
    """Seconds of a run's reconstruction steps: their share by the clock of the seconds that are measured."""
    shares = result["shares"]
    return result["rows"][-1]["seconds"] * shares["reconstruct"] / sum(shares.values())


LATENT = Protocol(_list_losses, _show_losses)

# --- Fig. 11: SDS in pixel space --------------------------------------------------------------------------------------


def _list_spaces(setup: Setup) -> list[Series]:
    sds = {"SDS in latents (Eq. 5)": "sds", "SDS in pixels (Eq. 6)": "pixels"}
    return [list_sir(setup, "SIR"), *(list_sds(setup, name, settings=SDS_PRESETS[preset]) for name, preset in sds.items())]


def _show_spaces(setup: Setup, series: list[Series]) -> Section:
    sir, latent, pixels = series
    claims = [
        make_claim("pixels", "poor", *other.judge(pixels, SIMILAR, f"{name} differs from it"), name=name)
        for name, other in (("SDS in latents", latent), ("SIR", sir))
        if not setup.oracle
    ]
    draw = partial(plots.draw_curves, series, "evaluations_per_view")
    drawn = (Plot("sds_in_pixels", "Quality against evaluations.", draw), _plan_sheet(setup, series, "sds_in_pixels_views"))
    return Section(PROTOCOLS["pixels"]["text"], claims, (make_cost_table(series, latent),), drawn)


PIXELS = Protocol(_list_spaces, _show_spaces)

# --- Fig. 12: SIR with one thing changed at a time --------------------------------------------------------------------


def _vary(variants: Callable[[Setup], dict[str, dict[str, Any]]], *rest: Any) -> Protocol:
    """A protocol of SIR with each of some changes to its plan; ``rest`` is as in ``Protocol``."""
    return Protocol(lambda setup: [list_sir(setup, name, **change) for name, change in variants(setup).items()], *rest)


def _make_section(protocol: str, claims: list[Claim], series: list[Series], base: Series, *ends: Any) -> Section:
    words = PROTOCOLS[protocol]
    plot = Plot(protocol, words["caption"], partial(plots.draw_ends, *(ends or (series,))))
    return Section(words["text"], claims, (make_cost_table(series, base),), (plot,))


def choose_iterations(setup: Setup) -> tuple[int, ...]:
    """Choose values of K: a quarter, a half, the report's, half as many again, and twice as many."""
    k = setup.iterations
    return tuple(sorted({max(1, k // 4), max(1, k // 2), k, k + max(1, k // 2), 2 * k}))


def _vary_iterations(setup: Setup) -> dict[str, dict[str, Any]]:
    """Each K, and as a control K = 0 with as many steps in all as the report's K."""
    plan = get_report_plan(setup)
    steps = plan.init_steps + plan.iterations * plan.steps
    control = {f"K = 0, {steps} steps": {"iterations": 0, "init_steps": steps}}
    return {**{f"K = {k}": {"iterations": k} for k in choose_iterations(setup)}, **control}


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
    drawn = [start, *series], [0, *values], "K, iterations", control
    return _make_section("iterations", claims, [start, *series, control], full, *drawn)


def choose_views(setup: Setup) -> tuple[int, ...]:
    """Choose numbers of views: the paper's, as far as the model denoises as many together, and the plan's."""
    group = get_view_count(setup.model).group or 1
    wanted = {n for n in _PAPERS_VIEWS if n % group == 0} | {get_report_plan(setup).views}
    return tuple(sorted(wanted | ({2 * group} if group > 1 else set())))


def _vary_views(setup: Setup) -> dict[str, dict[str, Any]]:
    return {f"{n} views" if n > 1 else "1 view": {"views": n} for n in choose_views(setup)}


def _limit_views(setup: Setup) -> list[str]:
    group, views = get_view_count(setup.model).group or 1, ", ".join(map(str, choose_views(setup)))
    return [PROTOCOLS["views"]["limit"].format(group=group, views=views)] if group > 1 else []


def _show_views(setup: Setup, series: list[Series]) -> Section:
    values = choose_views(setup)
    more = series[-1].judge(series[0], subject="They differ")
    claim = make_claim("views", "more", *more, most=values[-1], least=values[0])
    usual = series[values.index(get_report_plan(setup).views)]
    return _make_section("views", [claim], series, usual, series, values, "views")


def _show_schedules(setup: Setup, series: list[Series]) -> Section:
    differences = {other.name: other.minus(series[0]) for other in series if other.name in _PAPERS_CURVES}
    claims = [
        make_claim("schedules", "alike", d.within(SIMILAR), f"It differs by {d.interval('dB')}.", name=name)
        for name, d in differences.items()
    ]
    return _make_section("schedules", claims, series, series[0])


def _show_forwards(setup: Setup, series: list[Series]) -> Section:
    hybrid, noise, invert = series
    more = hybrid.minus(invert, "evaluations_per_view").mean
    verdict, found = hybrid.judge(invert, -SIMILAR, note=f", with {-more:.0f} evaluations per view fewer")
    claims = [
        make_claim("forward", "better", *hybrid.judge(noise)),
        make_claim("forward", "cheaper", verdict if more < 0 else "no", found),
    ]
    return _make_section("forward", claims, series, hybrid)


ITERATIONS = _vary(_vary_iterations, _show_iterations, _limit_iterations)
VIEWS = _vary(_vary_views, _show_views, _limit_views)
SCHEDULES = _vary(lambda _: {name: {"t2_curve": name} for name in ("linear", *_PAPERS_CURVES, "cosine")}, _show_schedules)
FORWARD = _vary(lambda _: {name: {"forward": name} for name in ("hybrid", "noise", "invert")}, _show_forwards)
