"""Fig. 7: SIR against SDS, and against DreamGaussian's settings of it; and the same runs against the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from ..fields.density_control import DensitySettings
from ..sir.sds import SDS_PRESETS
from . import plots
from .content import Claim, Plot, Protocol, Section, Table
from .runs import SHOWN_VIEWS, join_views
from .series import HALF, REPRESENTATIONS, SIMILAR, Series, list_sds, list_sir, make_cost_table, make_score_table
from .sources import Setup, get_base_plan, get_baseline, get_spec
from .statistics import Estimate, compare_costs, estimate_objects
from .subjects import make_subject

WORTH = 5.0
"""Times fewer evaluations: the least that the paper reports for SIR against SDS."""

LOWER = 3.0
"""dB below the best common quality, where costs are compared too: methods that are quick at first need not be so at last."""

_COSTS = {"evaluations_per_view": "evaluations", "seconds": "seconds"}
_LONG = {"evaluations_per_view": "evaluations of the network per view", "seconds": "seconds"}
_TEXT = (
    "PSNR of held-out views while a field is optimised (the paper has CLIP similarity), with the same start, distribution of "
    "cameras, reference losses, learning rates and seeds on both sides. Evaluations count every branch of guidance, per view; "
    "seconds are those of the processor (of the clock on a GPU), without scoring. A run's curve is read between its marks; "
    "where SIR has the quality after its initialisation, the cost of all of that counts."
)
_ORACLE_SECONDS = (
    "The oracle's seconds are the rendering of its objects, once for every set of cameras: they flatter SIR, which asks often "
    "about one set, and are not judged."
)
_EQUAL_COSTS = (
    "Cost of SDS / cost of SIR to equal quality, the best PSNR that both runs of a pair reach on the way, and "
    f"{LOWER:g} dB less: mean factor over objects with its 95 % interval. The last column counts runs in which SDS never "
    "reaches the best of SIR."
)


def _list_series(setup: Setup) -> list[Series]:
    found = []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        found.append(list_sir(setup, f"SIR, {shown}", representation))
        found.append(list_sds(setup, f"SDS, {shown}", get_baseline(setup.model), representation))
        if representation == "gaussians":
            found.append(list_sds(setup, "SDS as DreamGaussian's, Gaussians", SDS_PRESETS["dreamgaussian"]))
    return found


def _list_limits(setup: Setup) -> list[str]:
    found = [f"Seconds of SIR against SDS: {_ORACLE_SECONDS}"] if setup.oracle else []
    if "gaussians" in setup.representations and DensitySettings().acts(setup.sds_steps):
        found.append(
            f"The end of SDS after {setup.sds_steps} updates is a round of density control, from which Gaussians need some "
            "updates to recover: it looks worse than it is; take other --sds-steps."
        )
    return found


def _show_comparison(setup: Setup, series: list[Series]) -> Section:
    claims, drawn, rows = [], [], []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        ours, plain, *others = [s for s in series if s.name.endswith(shown)]
        for cost in _COSTS:
            if cost != "seconds" or not setup.oracle:
                claims += _judge_cost(ours, plain, shown, cost)
            name = f"sir_against_sds_{representation}_{cost.partition('_')[0]}"
            caption = f"{shown}: quality against {_LONG[cost]}, mean ± standard error over objects."
            drawn.append(Plot(name, caption, partial(plots.draw_curves, [ours, plain, *others], cost)))
        claims.append(_judge_quality(ours, plain, shown))
        claims += [claim for other in others for claim in _judge_dreamgaussian(setup, ours, other)]
        rows += [_compare(ours, other) for other in (plain, *others)]
    costs = [f"{name}{lower}" for name in _COSTS.values() for lower in ("", f" at {LOWER:g} dB less")]
    equal = Table(_EQUAL_COSTS, ("SDS / SIR", *costs, "quality, dB", "out of SDS's reach"), tuple(rows))
    text = f"{_TEXT} {_ORACLE_SECONDS}" if setup.oracle else _TEXT
    return Section(text, claims, (make_cost_table(series), equal, _tabulate_settings(series)), drawn)


def _estimate_ratio(ours: Series, theirs: Series, cost: str, below: float = 0.0) -> tuple[Estimate, str]:
    """Logarithms of how many times cheaper SIR reaches the best quality that both reach, run by run, and that quality."""
    logs, qualities = [], []
    for mine, other in zip(ours.results, theirs.results, strict=True):
        found = None
        if mine and other:
            a, b = ([(row[cost], row["psnr"]) for row in result["rows"]] for result in (mine, other))
            found = compare_costs(a, b, below)
        logs.append(None if found is None else math.log(found[0]))
        qualities += [] if found is None else [found[1]]
    quality = sum(qualities) / len(qualities) if qualities else math.nan
    return estimate_objects(logs, ours.objects), f"{quality:.1f}"


def _compare(ours: Series, theirs: Series) -> tuple[str, ...]:
    """The method, its factors of cost at equal quality, that quality, and how often SDS never reaches SIR's best."""
    found = [_estimate_ratio(ours, theirs, cost, below) for cost in _COSTS for below in (0.0, LOWER)]
    pairs = [
        [max(row["psnr"] for row in r["rows"]) for r in pair if r]
        for pair in zip(ours.results, theirs.results, strict=True)
        if all(pair)
    ]
    beyond = f"{sum(b < a for a, b in pairs)} of {len(pairs)} runs"
    return (theirs.name, *(ratio.factor() for ratio, _ in found), found[0][1], beyond)


def _judge_cost(ours: Series, theirs: Series, shown: str, cost: str) -> list[Claim]:
    ratio, quality = _estimate_ratio(ours, theirs, cost)
    return [
        Claim(
            f"SIR needs fewer {_COSTS[cost]} than SDS for the same quality (section VI-B, Fig. 7); {shown}.",
            "SDS takes more, at the best quality that both reach.",
            ratio.above(0.0),
            f"SDS takes {ratio.factor()} times the {_COSTS[cost]} of SIR, to {quality} dB.",
        ),
        Claim(
            f"It needs 5 to 20 times fewer {_COSTS[cost]} (section VI-B); {shown}.",
            f"SDS takes more than {WORTH:g} times as many.",
            ratio.above(math.log(WORTH)),
            f"{ratio.factor()} times.",
        ),
    ]


def _judge_quality(ours: Series, theirs: Series, shown: str) -> Claim:
    difference = ours.minus(theirs)
    return Claim(
        f"SIR retains the quality of SDS (section VI-B, Fig. 7); {shown}.",
        f"At their ends SIR is better, or worse by less than {SIMILAR:g} dB.",
        difference.above(-SIMILAR),
        f"SIR differs by {difference.interval('dB')}, {_tell_budgets(ours, theirs)}.",
    )


def _tell_budgets(*series: Series) -> str:
    """What both had spent at their ends, for who is better there may have spent more."""
    return "with {:.0f} evaluations per view against {:.0f}".format(*(s.estimate("evaluations_per_view").mean for s in series))


def _judge_dreamgaussian(setup: Setup, ours: Series, theirs: Series) -> list[Claim]:
    better = ours.minus(theirs)
    claim = Claim(
        "MicroDreamer is better than DreamGaussian (section VI-C, Table III).",
        "At their ends SIR is better than SDS with DreamGaussian's settings.",
        better.above(0.0),
        f"SIR differs by {better.interval('dB')}, {_tell_budgets(ours, theirs)}.",
    )
    if setup.oracle:
        return [claim]
    ratio, _ = _estimate_ratio(ours, theirs, "seconds")
    faster = Claim(
        "It takes half of DreamGaussian's time (section VI-C, Table III).",
        f"SDS with DreamGaussian's settings takes more than {HALF:g} times the seconds, at the best quality that both reach.",
        ratio.above(math.log(HALF)),
        f"{ratio.factor()} times.",
    )
    return [claim, faster]


def _tabulate_settings(series: list[Series]) -> Table:
    header = ("method", "plan", "optimisation", "guidance", "cameras", "reference weights")
    return Table("Settings.", header, tuple((s.name, *_tell_settings(**s.runs[0].settings)) for s in series))


def _tell_settings(plan: dict, sds: dict | None = None, **_: object) -> tuple[str, ...]:
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


def _show_truth(setup: Setup, series: list[Series]) -> Section:
    text = "Every object's truth is known: pictures and silhouettes from eight directions that no run saw, and its surface."
    return Section(text, tables=(make_score_table(series),), plots=(plan_sheet(setup, series, "truth"),))


def plan_sheet(setup: Setup, series: list[Series], name: str) -> Plot:
    """Plan a contact sheet: the truth of each object, and below it the last field of every method, of the first seed."""
    plan, objects = get_base_plan(setup.model), range(min(setup.objects, plots.SHOWN_OBJECTS))
    subjects = [make_subject(i, plan.radius, plan.fov_y, get_spec(setup.model).size) for i in objects]
    truth = [plots.cut_opposite_views(join_views(s.images[list(SHOWN_VIEWS)])) for s in subjects]
    rows: dict[str, Sequence[Tensor | Path | None]] = {"truth": truth}
    for one in series:
        found = one.find_images(setup, lambda run: run.settings["object"])
        rows[one.name] = [found.get(i) for i in objects]
    which = "every object" if setup.objects <= plots.SHOWN_OBJECTS else f"the first {plots.SHOWN_OBJECTS} objects"
    caption = f"Two held-out views of {which}, first seed, the last field of each method."
    return Plot(name, caption, partial(plots.draw_sheet, rows))


SDS = Protocol("SIR against SDS", _list_series, _show_comparison, _list_limits)
TRUTH = Protocol("Against the truth", _list_series, _show_truth)
