"""The parts of the paper's evaluation: which runs each takes, and what they show."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from ..schedule import SIRPlan
from ..sds import COMPONENTS, SDS_PRESETS, SDSSettings
from . import plots
from .content import Claim, Plot, Protocol, Section, Series, Setup, Table
from .runs import Run, sds_job, sir_job
from .sheets import truth_sheet
from .sources import ANALYTIC, base_plan, baseline, view_count
from .statistics import Estimate, by_object, ratio_at_equal_quality

SIMILAR = 1.0
"""dB of PSNR within which two settings count as equally good."""

WORTH = 5.0
"""Times fewer evaluations: the least that the paper reports for SIR against SDS."""

REPRESENTATIONS = {"gaussians": "Gaussians", "nerf": "NeRF"}
_SDS_MARKS = (5, 10, 25, 50, 100, 200, 300, 500, 1000, 2000)
_VIEWS = (1, 2, 3, 6)
_PAPERS_CURVES = ("square", "random")
_SHORT = {"evaluations_per_view": "evaluations", "seconds": "seconds"}
_LONG = {"evaluations_per_view": "evaluations of the network per view", "seconds": "seconds"}


def sir_marks(iterations: int) -> tuple[int, ...]:
    """Iterations after which SIR is scored."""
    return tuple(sorted({0, iterations, *(round(iterations * share) for share in (0.1, 0.25, 0.5, 0.75))}))


def plan_of(setup: Setup, representation: str = "gaussians", **changes) -> SIRPlan:
    """The report's plan with these changes."""
    return base_plan(setup.model, representation, **{"iterations": setup.iterations, **changes})


def sir_series(setup: Setup, name: str, representation: str = "gaussians", **changes) -> Series:
    """SIR on every object with every seed."""
    plan = plan_of(setup, representation, **changes)
    return Series(name, tuple(_each(setup, lambda i, seed: _sir(setup, i, seed, plan))))


def sds_series(setup: Setup, name: str, settings: SDSSettings, representation: str = "gaussians") -> Series:
    """SDS on every object with every seed."""
    plan, settings = plan_of(setup, representation), setup.sds(settings)
    marks = tuple(mark for mark in _SDS_MARKS if mark <= settings.steps)
    source = (setup.model, setup.stamp)
    return Series(name, tuple(_each(setup, lambda i, seed: sds_job(*source, i, seed, plan, settings, marks, setup.device))))


def _sir(setup: Setup, index: int, seed: int, plan: SIRPlan) -> Run:
    return sir_job(setup.model, setup.stamp, index, seed, plan, sir_marks(plan.iterations), setup.device)


def _each(setup: Setup, make: Callable[[int, int], Run]) -> list[Run]:
    return [make(index, seed) for index in range(setup.objects) for seed in setup.seeds]


# --- Fig. 7: SIR against SDS ------------------------------------------------------------------------------------------


def _against_sds(setup: Setup) -> list[Series]:
    found = []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        found.append(sir_series(setup, f"SIR, {shown}", representation))
        found.append(sds_series(setup, f"SDS, {shown}", baseline(setup.model), representation))
    if "gaussians" in setup.representations:
        found.append(sds_series(setup, "SDS as DreamGaussian's, Gaussians", SDS_PRESETS["dreamgaussian"]))
    return found


def _show_against_sds(setup: Setup, series: list[Series]) -> Section:
    claims, drawn = [], []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        ours, *theirs = [s for s in series if s.name.endswith(shown)]
        for cost in _LONG:
            claims += _equal_quality(ours, theirs[0], shown, cost)
            name = f"sir_against_sds_{representation}_{cost.partition('_')[0]}"
            caption = f"{shown}: quality against {_LONG[cost]}."
            drawn.append(Plot(name, caption, partial(plots.curves, [ours, *theirs], cost)))
    text = (
        "PSNR of held-out views while a field is optimised. Evaluations count every branch of guidance; "
        "seconds are those of the processor (of the clock on a GPU), without scoring."
    )
    return Section(PROTOCOLS["sds"].title, text, tuple(claims), (cost_table(series),), tuple(drawn))


def _equal_quality(ours: Series, theirs: Series, shown: str, cost: str) -> list[Claim]:
    """How many times cheaper SIR reaches the best quality that both reach, run by run."""
    logs, qualities = [], []
    for a, b in zip(ours.results, theirs.results, strict=True):
        found = None if a is None or b is None else ratio_at_equal_quality(_points(a, cost), _points(b, cost))
        logs.append(None if found is None else math.log(found[0]))
        qualities += [] if found is None else [found[1]]
    ratio = by_object(logs, ours.objects)
    best = ours.estimate("psnr").mean, theirs.estimate("psnr").mean
    numbers = (
        f"SDS takes {_factor(ratio)} times the {_SHORT[cost]} of SIR to {_mean(qualities):.1f} dB, the best that both "
        f"reach; at their ends SIR has {best[0]:.2f} dB and SDS {best[1]:.2f} dB."
    )
    return [
        Claim(
            f"SIR needs fewer {_SHORT[cost]} than SDS for the same quality (section VI-B, Fig. 7); {shown}.",
            "SDS takes more, at the best quality that both reach.",
            ratio.above(0.0),
            numbers,
        ),
        Claim(
            f"It needs 5 to 20 times fewer {_SHORT[cost]} (section VI-B); {shown}.",
            f"SDS takes more than {WORTH:g} times as many.",
            ratio.above(math.log(WORTH)),
            f"{_factor(ratio)} times.",
        ),
    ]


def _factor(logs: Estimate) -> str:
    """A mean of logarithms as a factor with its range of ± one standard error."""
    if math.isnan(logs.mean):
        return "an unknown number of"
    if logs.error is None:
        return f"{math.exp(logs.mean):.2f} (one sample)"
    low, high = (math.exp(logs.mean + side * logs.error) for side in (-1, 1))
    return f"{math.exp(logs.mean):.2f} ({low:.2f} to {high:.2f})"


def _points(result: dict, cost: str) -> list[tuple[float, float]]:
    return [(row[cost], row["psnr"]) for row in result["rows"]]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# --- Fig. 10: pixel against latent loss -------------------------------------------------------------------------------


def _spaces(setup: Setup) -> list[Series]:
    return [sir_series(setup, "pixel loss (Eq. 12)"), sir_series(setup, "latent loss (Eq. 11)", loss_space="latent")]


def _show_spaces(setup: Setup, series: list[Series]) -> Section:
    pixel, latent = series
    difference = pixel.minus(latent, "psnr")
    logs = [
        None if a is None or b is None else math.log(_reconstruction(b) / _reconstruction(a))
        for a, b in zip(pixel.results, latent.results, strict=True)
    ]
    ratio = by_object(logs, pixel.objects)
    claims = (
        Claim(
            "Optimising in pixels is 2 to 3 times faster than in latents (section VI-D, Fig. 10).",
            "The reconstruction steps take less than half the seconds.",
            ratio.above(math.log(2)),
            f"Latents take {_factor(ratio)} times the seconds. What the paper saves is the way back through a VAE's encoder"
            + ("; the oracle has none." if setup.model == ANALYTIC else "."),
        ),
        Claim(
            "SIR can be optimised in pixels (section IV-D).",
            f"The pixel loss is better, or worse by less than {SIMILAR:g} dB.",
            difference.above(-SIMILAR),
            f"The pixel loss differs by {difference.text('dB', sign=True)}.",
        ),
    )
    plot = Plot("pixel_against_latent", "Quality against seconds.", partial(plots.curves, series, "seconds"))
    return Section(PROTOCOLS["latent"].title, "SIR with both losses of section IV-D.", claims, (cost_table(series),), (plot,))


def _reconstruction(result: dict) -> float:
    """Seconds of a run's reconstruction steps: their share by the clock of the seconds that are measured."""
    shares = result["shares"]
    return result["rows"][-1]["seconds"] * shares["reconstruct"] / sum(shares.values())


# --- Fig. 12: ablations -----------------------------------------------------------------------------------------------


def ablated_iterations(setup: Setup) -> tuple[int, ...]:
    """Values of K: a quarter, a half, the report's, and half as many again."""
    k = setup.iterations
    return tuple(sorted({max(1, k // 4), max(1, k // 2), k, k + max(1, k // 2)}))


def _iterations(setup: Setup) -> list[Series]:
    return [sir_series(setup, f"K = {k}", iterations=k) for k in ablated_iterations(setup)]


def _show_iterations(setup: Setup, series: list[Series]) -> Section:
    values = ablated_iterations(setup)
    full, longest = series[values.index(setup.iterations)], series[-1]
    start = Series("K = 0", full.runs, tuple(_initial(result) for result in full.results))
    gain, more = full.minus(start, "psnr"), longest.minus(full, "psnr")
    claims = (
        Claim(
            "Iterating is necessary (section VI-D, Fig. 12a).",
            f"K = {setup.iterations} is better than K = 0, the initialisation alone.",
            gain.above(0),
            f"Better by {gain.text('dB', sign=True)}.",
        ),
        Claim(
            "Beyond some 20 to 30 iterations quality improves little (section VI-D, Fig. 12a).",
            f"K = {values[-1]} is within {SIMILAR:g} dB of K = {setup.iterations}.",
            more.within(SIMILAR),
            f"K = {values[-1]} differs by {more.text('dB', sign=True)}.",
        ),
    )
    plot = Plot("iterations", "Quality against K.", partial(plots.points, [start, *series], [0, *values], "K, iterations"))
    return Section(PROTOCOLS["iterations"].title, _ABLATION, claims, (cost_table([start, *series]),), (plot,))


def _initial(result: dict | None) -> dict | None:
    """A run's result as if it had stopped after the initialisation, which does not depend on K."""
    return None if result is None else {**result, "rows": result["rows"][:1]}


def allowed_views(setup: Setup) -> tuple[int, ...]:
    """Numbers of views to compare: those of the paper that the model denoises together, and the plan's."""
    group = view_count(setup.model).group or 1
    wanted = {n for n in _VIEWS if n % group == 0} | {plan_of(setup).views}
    return tuple(sorted(wanted | ({2 * group} if group > 1 else set())))


def _view_limits(setup: Setup) -> list[str]:
    group = view_count(setup.model).group or 1
    if group == 1:
        return []
    views = ", ".join(map(str, allowed_views(setup)))
    return [f"Views: this model denoises {group} together, so that of 1 to 6 only multiples can be compared ({views})."]


def _views(setup: Setup) -> list[Series]:
    return [sir_series(setup, f"{n} views" if n > 1 else "1 view", views=n) for n in allowed_views(setup)]


def _show_views(setup: Setup, series: list[Series]) -> Section:
    values = allowed_views(setup)
    gain = series[-1].minus(series[0], "psnr")
    claim = Claim(
        "More views are better (section VI-D, Fig. 12b).",
        f"{values[-1]} views are better than {values[0]}.",
        gain.above(0),
        f"{series[-1].name} better than {series[0].name} by {gain.text('dB', sign=True)}.",
    )
    plot = Plot("views", "Quality against views of an iteration.", partial(plots.points, series, list(values), "views"))
    return Section(PROTOCOLS["views"].title, _ABLATION, (claim,), (cost_table(series),), (plot,))


def _schedules(setup: Setup) -> list[Series]:
    return [sir_series(setup, curve, t2_curve=curve) for curve in ("linear", *_PAPERS_CURVES, "cosine")]


def _show_schedules(setup: Setup, series: list[Series]) -> Section:
    linear, *others = series
    claims = [
        Claim(
            f"A {other.name} schedule of t2 is about as good as the linear one (section VI-D, Fig. 12c).",
            f"Within {SIMILAR:g} dB.",
            difference.within(SIMILAR),
            f"It differs by {difference.text('dB', sign=True)}.",
        )
        for other, difference in ((other, other.minus(linear, "psnr")) for other in others)
        if other.name in _PAPERS_CURVES
    ]
    plot = Plot("schedules", "Quality against schedules of t2.", partial(plots.dots, series))
    return Section(PROTOCOLS["schedules"].title, _ABLATION, tuple(claims), (cost_table(series),), (plot,))


def _forwards(setup: Setup) -> list[Series]:
    return [sir_series(setup, name, forward=name) for name in ("hybrid", "noise", "invert")]


def _show_forwards(setup: Setup, series: list[Series]) -> Section:
    hybrid, noise, invert = series
    gain, loss = hybrid.minus(noise, "psnr"), hybrid.minus(invert, "psnr")
    fewer = hybrid.minus(invert, "evaluations_per_view")
    claims = (
        Claim(
            "The hybrid forward process is better than noise-adding (section VI-D, Fig. 12d).",
            "Hybrid is better.",
            gain.above(0),
            f"Better by {gain.text('dB', sign=True)}.",
        ),
        Claim(
            "It saves evaluations against inversion at about the same quality (section IV-C, Fig. 5).",
            f"Hybrid is less than {SIMILAR:g} dB worse than inversion, with fewer evaluations.",
            loss.above(-SIMILAR) if fewer.mean < 0 else "no",
            f"It differs by {loss.text('dB', sign=True)} with {-fewer.mean:.0f} evaluations per view fewer.",
        ),
    )
    plot = Plot("forward", "Quality against the forward process.", partial(plots.dots, series))
    return Section(PROTOCOLS["forward"].title, _ABLATION, claims, (cost_table(series),), (plot,))


_ABLATION = "SIR on Gaussians with one thing changed at a time; PSNR of held-out views, mean ± standard error over objects."


# --- Fig. 11: SDS in pixel space --------------------------------------------------------------------------------------


def _pixel_sds(setup: Setup) -> list[Series]:
    return [
        sir_series(setup, "SIR"),
        sds_series(setup, "SDS in latents (Eq. 5)", SDS_PRESETS["sds"]),
        sds_series(setup, "SDS in pixels (Eq. 6)", SDS_PRESETS["pixels"]),
    ]


def _show_pixel_sds(setup: Setup, series: list[Series]) -> Section:
    sir, latent, pixels = series
    claims = [
        Claim(
            f"SDS in pixels gives poor results (Fig. 11); here against {name}.",
            f"It is worse than {name} by more than {SIMILAR:g} dB.",
            worse.above(SIMILAR),
            f"Worse by {worse.text('dB', sign=True)}.",
        )
        for name, worse in (("SDS in latents", latent.minus(pixels, "psnr")), ("SIR", sir.minus(pixels, "psnr")))
    ]
    plot = Plot("sds_in_pixels", "Quality against evaluations.", partial(plots.curves, series, "evaluations_per_view"))
    text = "The data-prediction form of SDS, with the one-step prediction decoded to pixels."
    return Section(
        PROTOCOLS["pixels"].title,
        text,
        tuple(claims),
        (cost_table(series),),
        (plot,),
        (truth_sheet(setup, series, "sds_in_pixels_views"),),
    )


# --- Fig. 4: where the time goes --------------------------------------------------------------------------------------


def _timed(setup: Setup) -> list[Series]:
    found = []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        found.append(sds_series(setup, f"SDS, {shown}", baseline(setup.model), representation))
        found.append(sir_series(setup, f"SIR, {shown}", representation))
    return found


def _show_timed(setup: Setup, series: list[Series]) -> Section:
    claims, rows = [], []
    for one in series:
        shares = time_shares(one)
        rows.append((one.name, ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())))
        if one.name.startswith("SDS"):
            claims.append(_bottleneck(one, setup))
    plot = Plot("time_shares", "Shares of the seconds.", partial(plots.shares, [(s.name, time_shares(s)) for s in series]))
    text = f"Seconds of SDS by component ({', '.join(COMPONENTS)}) and of SIR by stage, by the clock."
    table = Table("Time shares.", ("method", "shares"), tuple(rows))
    return Section(PROTOCOLS["shares"].title, text, tuple(claims), (table,), (plot,))


def _bottleneck(series: Series, setup: Setup) -> Claim:
    parts = [
        None if r is None else (r["shares"]["diffusion"] + r["shares"]["encode"]) / sum(r["shares"].values())
        for r in series.results
    ]
    share = by_object(parts, series.objects)
    note = " The oracle's evaluation is the rendering of its objects, no network's." if setup.model == ANALYTIC else ""
    return Claim(
        f"What SDS waits for is the network and the encoder (section IV-A, Fig. 4); {series.name}.",
        "They take more than half of the time.",
        share.above(0.5),
        f"{100 * share.mean:.0f} % of the time.{note}",
    )


def time_shares(series: Series) -> dict[str, float]:
    """Mean share of each component in the seconds of a method's runs."""
    done = [result["shares"] for result in series.results if result is not None]
    names = list(dict.fromkeys(name for shares in done for name in shares))
    return {name: _mean([shares.get(name, 0.0) / sum(shares.values()) for shares in done]) for name in names}


# --- known truth ------------------------------------------------------------------------------------------------------


def _truth(setup: Setup) -> list[Series]:
    return _against_sds(setup)


def _show_truth(setup: Setup, series: list[Series]) -> Section:
    text = "Every object's truth is known: pictures and silhouettes from eight directions that no run saw, and its surface."
    sheet = truth_sheet(setup, series, "truth")
    return Section(PROTOCOLS["truth"].title, text, (), (truth_table(series),), (), (sheet,))


def truth_table(series: list[Series]) -> Table:
    """Every measure at the end of each method's runs."""
    measures = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3), "iou": ("silhouette IoU", 3), "chamfer": ("Chamfer", 4)}
    measures |= {
        "f_score": ("F-score at 0.03", 3),
        "evaluations_per_view": ("evaluations per view", 0),
        "seconds": ("seconds", 1),
    }
    rows = [(s.name, *(s.estimate(name).text(digits=digits) for name, (_, digits) in measures.items())) for s in series]
    return Table("Mean ± standard error over objects.", ("method", *(title for title, _ in measures.values())), tuple(rows))


def cost_table(series: list[Series]) -> Table:
    """Quality and cost at the end of each method's runs."""
    measures = {"psnr": 2, "iou": 3, "evaluations_per_view": 0, "seconds": 1}
    header = ("method", "PSNR, dB", "silhouette IoU", "evaluations per view", "seconds", "runs")
    rows = [
        (s.name, *(s.estimate(name).text(digits=digits) for name, digits in measures.items()), str(sum(map(bool, s.results))))
        for s in series
    ]
    return Table("Mean ± standard error over objects.", header, tuple(rows))


_ALL = (
    Protocol("sds", "SIR against SDS", "Fig. 7", _against_sds, _show_against_sds),
    Protocol("truth", "Against the truth", "", _truth, _show_truth),
    Protocol("shares", "Where the time goes", "Fig. 4", _timed, _show_timed),
    Protocol("latent", "Pixel against latent loss", "Fig. 10", _spaces, _show_spaces),
    Protocol("pixels", "SDS in pixel space", "Fig. 11", _pixel_sds, _show_pixel_sds),
    Protocol("iterations", "Iterations", "Fig. 12a", _iterations, _show_iterations),
    Protocol("views", "Views", "Fig. 12b", _views, _show_views, _view_limits),
    Protocol("schedules", "Schedules of t2", "Fig. 12c", _schedules, _show_schedules),
    Protocol("forward", "Forward process", "Fig. 12d", _forwards, _show_forwards),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""All protocols on procedural objects, in the order of a report."""


def limits(setup: Setup, names: tuple[str, ...]) -> list[str]:
    """What of these protocols the setup does not allow."""
    return [text for name in names if name in PROTOCOLS for text in PROTOCOLS[name].limits(setup)]
