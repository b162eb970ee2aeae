"""SIR against SDS (Fig. 7) and against the truth, where the time goes (Fig. 4), and pixels against latents (Fig. 10 and 11)."""

from __future__ import annotations

import math
from functools import partial

from ..fields.density_control import DensitySettings
from ..sir.sds import COMPONENTS, SDS_PRESETS
from ..util.images import join_views
from . import PROTOCOLS, plots
from .content import HALF, SIMILAR, WORTH, Claim, Plot, Section, Table, make_claim
from .runs import SHOWN_VIEWS
from .series import REPRESENTATIONS, Protocol, Series, list_sds, list_sir, make_cost_table, make_score_table
from .sources import Setup, get_base_plan, get_spec
from .statistics import Estimate, Verdict, compare_costs, estimate_objects
from .subjects import make_subject

LOWER = 3.0
"""dB below the best common quality, where costs are compared too: methods that are quick at first need not be so at last."""

_COSTS = {"evaluations_per_view": "evaluations", "seconds": "seconds"}

# --- Fig. 7: SIR against SDS, and against DreamGaussian's settings of it ----------------------------------------------

_WORDS = PROTOCOLS["sds"]


def _list_rivals(setup: Setup) -> list[Series]:
    found = []
    for representation in setup.representations:
        found += [list_sir(setup, "SIR", representation), list_sds(setup, "SDS", representation)]
        if representation == "gaussians":
            found.append(list_sds(setup, "SDS as DreamGaussian's", representation, SDS_PRESETS["dreamgaussian"]))
    return found


def _limit_rivals(setup: Setup) -> list[str]:
    found = [f"Seconds of SIR against SDS: {_WORDS['oracle']}"] if setup.oracle else []
    if "gaussians" in setup.representations and DensitySettings().acts(setup.sds_steps):
        found.append(_WORDS["density"].format(steps=setup.sds_steps))
    return found


def _show_rivals(setup: Setup, series: list[Series]) -> Section:
    claims, drawn, rows = [], [], []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        ours, plain, *others = [one for one in series if one.name.endswith(shown)]
        for cost, name in _COSTS.items():
            claims += [] if setup.oracle and name == "seconds" else _judge_cost(ours, plain, shown, cost)
            words = name if name == "seconds" else "evaluations of the network per view"
            caption = f"{shown}: quality against {words}, mean ± standard error over objects."
            draw = partial(plots.draw_curves, [ours, plain, *others], cost)
            drawn.append(Plot(f"sir_against_sds_{representation}_{name}", caption, draw))
        claims.append(make_claim("sds", "quality", *_judge_ends(ours, plain, -SIMILAR), shown=shown))
        claims += [claim for other in others for claim in _judge_dreamgaussian(setup, ours, other)]
        rows += [_compare(ours, other) for other in (plain, *others)]
    costs = [f"{name}{lower}" for name in _COSTS.values() for lower in ("", f" at {LOWER:g} dB less")]
    equal = Table(_WORDS["equal"].format(lower=LOWER), ("SDS / SIR", *costs, "quality, dB", "out of SDS's reach"), tuple(rows))
    text = f"{_WORDS['text']} {_WORDS['oracle']}" if setup.oracle else _WORDS["text"]
    return Section(text, claims, (make_cost_table(series), equal, _tabulate_settings(series)), drawn)


def _estimate_ratio(ours: Series, theirs: Series, cost: str, below: float = 0.0) -> tuple[Estimate, str]:
    """Logarithms of how many times cheaper SIR reaches the best quality that both reach, run by run, and that quality."""
    qualities = []

    def measure(*pair: dict) -> float | None:
        a, b = ([(row[cost], row["psnr"]) for row in result["rows"]] for result in pair)
        if (found := compare_costs(a, b, below)) is None:
            return None
        qualities.append(found[1])
        return math.log(found[0])

    return estimate_objects(ours.compare(theirs, measure), ours.objects), f"{Estimate.of(qualities).mean:.1f}"


def _compare(ours: Series, theirs: Series) -> tuple[str, ...]:
    """The method, its factors of cost at equal quality, that quality, and how often SDS never reaches SIR's best."""
    found = [_estimate_ratio(ours, theirs, cost, below) for cost in _COSTS for below in (0.0, LOWER)]
    beyond = [never for never in ours.compare(theirs, lambda a, b: _find_best(b) < _find_best(a)) if never is not None]
    return (theirs.name, *(ratio.factor() for ratio, _ in found), found[0][1], f"{sum(beyond)} of {len(beyond)} runs")


def _find_best(result: dict) -> float:
    return max(row["psnr"] for row in result["rows"])


def _judge_cost(ours: Series, theirs: Series, shown: str, cost: str) -> list[Claim]:
    ratio, quality = _estimate_ratio(ours, theirs, cost)
    names = {"cost": _COSTS[cost], "shown": shown}
    found = f"SDS takes {ratio.factor()} times the {_COSTS[cost]} of SIR, to {quality} dB."
    return [
        make_claim("sds", "fewer", ratio.above(0.0), found, **names),
        make_claim("sds", "worth", ratio.above(math.log(WORTH)), f"{ratio.factor()} times.", **names),
    ]


def _judge_ends(ours: Series, theirs: Series, limit: float) -> tuple[Verdict, str]:
    """Judge the ends of SIR and SDS, with what both had spent: who is better may have spent more."""
    spent = (one.estimate("evaluations_per_view").mean for one in (ours, theirs))
    note = ", with {:.0f} evaluations per view against {:.0f}".format(*spent)
    return ours.judge(theirs, limit, "SIR differs", note)


def _judge_dreamgaussian(setup: Setup, ours: Series, theirs: Series) -> list[Claim]:
    better = make_claim("sds", "dreamgaussian", *_judge_ends(ours, theirs, 0.0))
    ratio, _ = _estimate_ratio(ours, theirs, "seconds")
    faster = make_claim("sds", "half", ratio.above(math.log(HALF)), f"{ratio.factor()} times.")
    return [better] if setup.oracle else [better, faster]


def _tabulate_settings(series: list[Series]) -> Table:
    header = ("method", "plan", "optimisation", "guidance", "cameras", "reference weights")
    return Table("Settings.", header, tuple((s.name, *_list_settings(**s.runs[0].settings)) for s in series))


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
    pairs = ([list_sds(setup, "SDS", name), list_sir(setup, "SIR", name)] for name in setup.representations)
    return [one for pair in pairs for one in pair]


def _limit_shares(setup: Setup) -> list[str]:
    return [PROTOCOLS["shares"]["limit"]] if setup.oracle else []


def _show_shares(setup: Setup, series: list[Series]) -> Section:
    shares = {one.name: _average_shares(one) for one in series}
    claims = [_judge_bottleneck(one) for one in series if one.name.startswith("SDS") and not setup.oracle]
    text = PROTOCOLS["shares"]["text"].format(components=", ".join(COMPONENTS))
    text += PROTOCOLS["shares"]["oracle"] if setup.oracle else ""
    rows = [(name, ", ".join(f"{part} {100 * share:.0f} %" for part, share in parts.items())) for name, parts in shares.items()]
    plot = Plot("time_shares", "Shares of the seconds.", partial(plots.draw_shares, shares))
    return Section(text, claims, (Table("Time shares.", ("method", "shares"), tuple(rows)),), (plot,))


def _average_shares(series: Series) -> dict[str, float]:
    done = [result["shares"] for result in series.results if result is not None]
    names = dict.fromkeys(name for shares in done for name in shares)
    return {name: sum(shares.get(name, 0.0) / sum(shares.values()) for shares in done) / len(done) for name in names}


def _judge_bottleneck(series: Series) -> Claim:
    shares = [None if result is None else result["shares"] for result in series.results]
    parts = [None if s is None else (s["diffusion"] + s["encode"]) / sum(s.values()) for s in shares]
    share = estimate_objects(parts, series.objects)
    return make_claim("shares", "bottleneck", share.above(0.5), f"{100 * share.mean:.0f} % of the time.", name=series.name)


SHARES = Protocol(_list_timed, _show_shares, _limit_shares)

# --- Fig. 10: pixel against latent loss -------------------------------------------------------------------------------

_LOSSES = {"pixel": "pixel loss (Eq. 12)", "latent": "latent loss (Eq. 11)"}


def _list_losses(setup: Setup) -> list[Series]:
    return [
        list_sir(setup, words, representation, loss_space=space)
        for representation in setup.representations
        for space, words in _LOSSES.items()
    ]


def _show_losses(setup: Setup, series: list[Series]) -> Section:
    claims, drawn = [], []
    for representation, pixel, latent in zip(setup.representations, series[::2], series[1::2], strict=True):
        shown = REPRESENTATIONS[representation]
        claims += [] if setup.oracle else _judge_losses(pixel, latent, shown)
        draw = partial(plots.draw_curves, [pixel, latent], "seconds")
        drawn.append(Plot(f"pixel_against_latent_{representation}", f"{shown}: quality against seconds.", draw))
    return Section(PROTOCOLS["latent"]["text"], claims, (make_cost_table(series),), drawn)


def _judge_losses(pixel: Series, latent: Series, shown: str) -> list[Claim]:
    logs = pixel.compare(latent, lambda a, b: math.log(_time_reconstruction(b) / _time_reconstruction(a)))
    ratio = estimate_objects(logs, pixel.objects)
    found = f"Latents take {ratio.factor()} times the seconds."
    return [
        make_claim("latent", "faster", ratio.above(math.log(HALF)), found, shown=shown),
        make_claim("latent", "possible", *pixel.judge(latent, -SIMILAR, "The pixel loss differs"), shown=shown),
    ]


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
