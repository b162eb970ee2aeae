"""The parts of the paper's evaluation: which runs each takes, and what they show."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from ..fields.density_control import DensitySettings
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

LOWER = 3.0
"""dB below the best common quality, where costs are compared too: methods that are quick at first need not be so at last."""

HALF = 2.0
"""Times faster: what the paper reports against DreamGaussian, and at least of the loss in pixels against that in latents."""

ENOUGH = 30
"""Iterations beyond which the paper sees no significant gain."""

REPRESENTATIONS = {"gaussians": "Gaussians", "nerf": "NeRF"}
_SDS_MARKS = (5, 10, 25, 50, 75, 95, 130, 160, 195, 240, 290, 340, 400, 500, 700, 1000, 1500, 2000)
"""Updates after which SDS is scored; none right after Gaussians were split and pruned, which costs dB for some updates."""

_VIEWS = (1, 2, 3, 6)
_PAPERS_CURVES = ("square", "random")
_SHORT = {"evaluations_per_view": "evaluations", "seconds": "seconds"}
_LONG = {"evaluations_per_view": "evaluations of the network per view", "seconds": "seconds"}


def sir_marks(iterations: int) -> tuple[int, ...]:
    """Iterations after which SIR is scored."""
    return tuple(sorted({0, iterations, *(round(iterations * share) for share in (0.05, 0.1, 0.25, 0.5, 0.75))}))


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
        if representation == "gaussians":
            found.append(sds_series(setup, "SDS as DreamGaussian's, Gaussians", SDS_PRESETS["dreamgaussian"]))
    return found


def _show_against_sds(setup: Setup, series: list[Series]) -> Section:
    claims, drawn, rows = [], [], []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        ours, plain, *others = [s for s in series if s.name.endswith(shown)]
        claims += [claim for cost in _judged_costs(setup) for claim in _cheaper(ours, plain, shown, cost)]
        claims.append(_comparable(ours, plain, shown))
        claims += [claim for other in others for claim in _against_dreamgaussian(setup, ours, other)]
        rows += [_equal_row(ours, other) for other in (plain, *others)]
        for cost in _LONG:
            name = f"sir_against_sds_{representation}_{cost.partition('_')[0]}"
            caption = f"{shown}: quality against {_LONG[cost]}, mean ± standard error over objects."
            drawn.append(Plot(name, caption, partial(plots.curves, [ours, plain, *others], cost)))
    header = (
        "SDS / SIR",
        *(f"{name}{lower}" for name in _SHORT.values() for lower in ("", f" at {LOWER:g} dB less")),
        "quality, dB",
        "out of SDS's reach",
    )
    caption = (
        "Cost of SDS / cost of SIR to equal quality, the best PSNR that both runs of a pair reach on the way, and "
        f"{LOWER:g} dB less: mean factor over objects with its 95 % interval. The last column counts runs in which SDS never "
        "reaches the best of SIR."
    )
    tables = (cost_table(series), Table(caption, header, tuple(rows)), settings_table(series))
    return Section(PROTOCOLS["sds"].title, _AGAINST + _seconds_note(setup), tuple(claims), tables, tuple(drawn))


_AGAINST = (
    "PSNR of held-out views while a field is optimised (the paper has CLIP similarity), with the same start, distribution of "
    "cameras, reference losses, learning rates and seeds on both sides. Evaluations count every branch of guidance, per view; "
    "seconds are those of the processor (of the clock on a GPU), without scoring. A run's curve is read between its marks; "
    "where SIR has the quality after its initialisation, the cost of all of that counts."
)


def _seconds_note(setup: Setup) -> str:
    return f" {_ORACLE_SECONDS}" if setup.model == ANALYTIC else ""


_ORACLE_SECONDS = (
    "The oracle's seconds are the rendering of its objects, once for every set of cameras: they flatter SIR, which asks often "
    "about one set, and are not judged."
)


def _judged_costs(setup: Setup) -> tuple[str, ...]:
    """What SIR and SDS are judged by; no network's time is in the oracle's seconds."""
    return tuple(cost for cost in _LONG if cost != "seconds" or setup.model != ANALYTIC)


def _against_limits(setup: Setup) -> list[str]:
    found = [f"Seconds of SIR against SDS: {_ORACLE_SECONDS}"] if setup.model == ANALYTIC else []
    if "gaussians" in setup.representations and DensitySettings().acts(setup.sds_steps):
        found.append(
            f"The end of SDS after {setup.sds_steps} updates is a round of density control, from which Gaussians need some "
            "updates to recover: it looks worse than it is; take other --sds-steps."
        )
    return found


def _ratio(ours: Series, theirs: Series, cost: str, below: float = 0.0) -> tuple[Estimate, list[float]]:
    """Logarithms of how many times cheaper SIR reaches the best quality that both reach, run by run, and those qualities."""
    logs, qualities = [], []
    for a, b in zip(ours.results, theirs.results, strict=True):
        found = None if a is None or b is None else ratio_at_equal_quality(_points(a, cost), _points(b, cost), below)
        logs.append(None if found is None else math.log(found[0]))
        qualities += [] if found is None else [found[1]]
    return by_object(logs, ours.objects), qualities


def _equal_row(ours: Series, theirs: Series) -> tuple[str, ...]:
    """The methods, their factors of cost at equal quality, that quality, and how often SDS never reaches SIR's best."""
    found = [_ratio(ours, theirs, cost, below) for cost in _LONG for below in (0.0, LOWER)]
    pairs = [(_best(a), _best(b)) for a, b in zip(ours.results, theirs.results, strict=True) if a and b]
    beyond = f"{sum(b < a for a, b in pairs)} of {len(pairs)} runs"
    return (theirs.name, *(ratio.factor() for ratio, _ in found), f"{_mean(found[0][1]):.1f}", beyond)


def _best(result: dict) -> float:
    return max(row["psnr"] for row in result["rows"])


def _cheaper(ours: Series, theirs: Series, shown: str, cost: str) -> list[Claim]:
    ratio, qualities = _ratio(ours, theirs, cost)
    numbers = f"SDS takes {ratio.factor()} times the {_SHORT[cost]} of SIR, to {_mean(qualities):.1f} dB."
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
            f"{ratio.factor()} times.",
        ),
    ]


def _comparable(ours: Series, theirs: Series, shown: str) -> Claim:
    difference = ours.minus(theirs, "psnr")
    return Claim(
        f"SIR retains the quality of SDS (section VI-B, Fig. 7); {shown}.",
        f"At their ends SIR is better, or worse by less than {SIMILAR:g} dB.",
        difference.above(-SIMILAR),
        f"SIR differs by {difference.interval('dB')}, {_budgets(ours, theirs)}.",
    )


def _budgets(ours: Series, theirs: Series) -> str:
    """What both had spent at their ends, for who is better there may have spent more."""
    spent = (series.estimate("evaluations_per_view").mean for series in (ours, theirs))
    return "with {:.0f} evaluations per view against {:.0f}".format(*spent)


def _against_dreamgaussian(setup: Setup, ours: Series, theirs: Series) -> list[Claim]:
    better = ours.minus(theirs, "psnr")
    claims = [
        Claim(
            "MicroDreamer is better than DreamGaussian (section VI-C, Table III).",
            "At their ends SIR is better than SDS with DreamGaussian's settings.",
            better.above(0.0),
            f"SIR differs by {better.interval('dB')}, {_budgets(ours, theirs)}.",
        )
    ]
    if "seconds" in _judged_costs(setup):
        ratio, _ = _ratio(ours, theirs, "seconds")
        claims.append(
            Claim(
                "It takes half of DreamGaussian's time (section VI-C, Table III).",
                f"SDS with DreamGaussian's settings takes more than {HALF:g} times the seconds, at the best quality that both "
                "reach.",
                ratio.above(math.log(HALF)),
                f"{ratio.factor()} times.",
            )
        )
    return claims


def _points(result: dict, cost: str) -> list[tuple[float, float]]:
    return [(row[cost], row["psnr"]) for row in result["rows"]]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# --- Fig. 10: pixel against latent loss -------------------------------------------------------------------------------


def _spaces(setup: Setup) -> list[Series]:
    return [
        sir_series(setup, f"{words}, {REPRESENTATIONS[representation]}", representation, loss_space=space)
        for representation in setup.representations
        for space, words in (("pixel", "pixel loss (Eq. 12)"), ("latent", "latent loss (Eq. 11)"))
    ]


def _oracle_spaces(setup: Setup) -> str | None:
    if setup.model != ANALYTIC:
        return None
    return "Pixel against latent loss (Fig. 10): the oracle's latents are pixels, so that both losses are one."


def _show_spaces(setup: Setup, series: list[Series]) -> Section:
    claims, drawn = [], []
    for representation, pixel, latent in zip(setup.representations, series[::2], series[1::2], strict=True):
        if _oracle_spaces(setup) is None:
            claims += _pixel_claims(pixel, latent, REPRESENTATIONS[representation])
        draw = partial(plots.curves, [pixel, latent], "seconds")
        caption = f"{REPRESENTATIONS[representation]}: quality against seconds."
        drawn.append(Plot(f"pixel_against_latent_{representation}", caption, draw))
    text = (
        "SIR with both losses of section IV-D. What pixels save is the way back through an autoencoder's encoder; that of the "
        "shipped network is a single small layer, that of Stable Diffusion a deep network."
    )
    return Section(PROTOCOLS["latent"].title, text, tuple(claims), (cost_table(series),), tuple(drawn))


def _pixel_claims(pixel: Series, latent: Series, shown: str) -> list[Claim]:
    difference = pixel.minus(latent, "psnr")
    logs = [
        None if a is None or b is None else math.log(_reconstruction(b) / _reconstruction(a))
        for a, b in zip(pixel.results, latent.results, strict=True)
    ]
    ratio = by_object(logs, pixel.objects)
    return [
        Claim(
            f"Optimising in pixels is 2 to 3 times faster than in latents (section VI-D, Fig. 10); {shown}.",
            "The reconstruction steps take less than half the seconds.",
            ratio.above(math.log(HALF)),
            f"Latents take {ratio.factor()} times the seconds.",
        ),
        Claim(
            f"SIR can be optimised in pixels (section IV-D); {shown}.",
            f"The pixel loss is better, or worse by less than {SIMILAR:g} dB.",
            difference.above(-SIMILAR),
            f"The pixel loss differs by {difference.interval('dB')}.",
        ),
    ]


def _reconstruction(result: dict) -> float:
    """Seconds of a run's reconstruction steps: their share by the clock of the seconds that are measured."""
    shares = result["shares"]
    return result["rows"][-1]["seconds"] * shares["reconstruct"] / sum(shares.values())


# --- Fig. 12: ablations -----------------------------------------------------------------------------------------------


def ablated_iterations(setup: Setup) -> tuple[int, ...]:
    """Values of K: a quarter, a half, the report's, half as many again, and twice as many."""
    k = setup.iterations
    return tuple(sorted({max(1, k // 4), max(1, k // 2), k, k + max(1, k // 2), 2 * k}))


def _iterations(setup: Setup) -> list[Series]:
    plan = plan_of(setup)
    steps = plan.init_steps + plan.iterations * plan.steps
    values = [sir_series(setup, f"K = {k}", iterations=k) for k in ablated_iterations(setup)]
    return [*values, sir_series(setup, f"K = 0, {steps} steps", iterations=0, init_steps=steps)]


def _iteration_limits(setup: Setup) -> list[str]:
    if ablated_iterations(setup)[-2] >= ENOUGH:
        return []
    return [f"Iterations beyond {ENOUGH} (Fig. 12a): K is too small; take --iterations {2 * ENOUGH // 3} or more."]


def _show_iterations(setup: Setup, series: list[Series]) -> Section:
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
    if not _iteration_limits(setup):
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
    text = _ABLATION + (_UNLUCKY_START if DensitySettings().acts(plan_of(setup).init_steps) else "")
    return Section(PROTOCOLS["iterations"].title, text, tuple(claims), tables, (plot,))


_UNLUCKY_START = (
    " The initialisation ends with a round of density control here, which costs K = 0 some dB until further steps mend it; "
    "K = 0 with as many steps as K's is the fair comparison."
)


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
        f"They differ by {gain.interval('dB')}.",
    )
    draw = partial(plots.points, series, list(values), "views")
    plot = Plot("views", "Quality against views of an iteration; every thin line is an object.", draw)
    text = f"{_ABLATION} The number of iterations stays, so that every view more costs as many evaluations again."
    usual = series[values.index(plan_of(setup).views)]
    return Section(PROTOCOLS["views"].title, text, (claim,), (cost_table(series, usual),), (plot,))


def _schedules(setup: Setup) -> list[Series]:
    return [sir_series(setup, curve, t2_curve=curve) for curve in ("linear", *_PAPERS_CURVES, "cosine")]


def _show_schedules(setup: Setup, series: list[Series]) -> Section:
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
    return Section(PROTOCOLS["schedules"].title, _ABLATION, tuple(claims), (cost_table(series, linear),), (plot,))


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
    return Section(PROTOCOLS["forward"].title, _ABLATION, claims, (cost_table(series, hybrid),), (plot,))


_ABLATION = (
    "SIR on Gaussians with one thing changed at a time; PSNR of held-out views. Objects differ more among each other than "
    "methods do, which is why methods are compared object by object."
)


# --- Fig. 11: SDS in pixel space --------------------------------------------------------------------------------------


def _pixel_sds(setup: Setup) -> list[Series]:
    return [
        sir_series(setup, "SIR"),
        sds_series(setup, "SDS in latents (Eq. 5)", SDS_PRESETS["sds"]),
        sds_series(setup, "SDS in pixels (Eq. 6)", SDS_PRESETS["pixels"]),
    ]


def _oracle_pixels(setup: Setup) -> str | None:
    if setup.model != ANALYTIC:
        return None
    return "SDS in pixel space (Fig. 11): the oracle's latents are pixels, so that Eq. 5 and Eq. 6 are one."


def _show_pixel_sds(setup: Setup, series: list[Series]) -> Section:
    sir, latent, pixels = series
    pairs = (("SDS in latents", latent), ("SIR", sir)) if _oracle_pixels(setup) is None else ()
    claims = []
    for name, other in pairs:
        worse = other.minus(pixels, "psnr")
        claims.append(
            Claim(
                f"SDS in pixels gives poor results (Fig. 11); here against {name}.",
                f"It is worse than {name} by more than {SIMILAR:g} dB.",
                worse.above(SIMILAR),
                f"{name} differs from it by {worse.interval('dB')}.",
            )
        )
    plot = Plot("sds_in_pixels", "Quality against evaluations.", partial(plots.curves, series, "evaluations_per_view"))
    return Section(
        PROTOCOLS["pixels"].title,
        "The data-prediction form of SDS, with the one-step prediction decoded to pixels.",
        tuple(claims),
        (cost_table(series, latent),),
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
        if one.name.startswith("SDS") and setup.model != ANALYTIC:
            claims.append(_bottleneck(one))
    plot = Plot("time_shares", "Shares of the seconds.", partial(plots.shares, [(s.name, time_shares(s)) for s in series]))
    text = f"Seconds of SDS by component ({', '.join(COMPONENTS)}) and of SIR by stage, by the clock."
    if setup.model == ANALYTIC:
        text += " The oracle's evaluation is the rendering of its objects, no network's, and it has no encoder."
    table = Table("Time shares.", ("method", "shares"), tuple(rows))
    return Section(PROTOCOLS["shares"].title, text, tuple(claims), (table,), (plot,))


def _oracle_shares(setup: Setup) -> list[str]:
    if setup.model != ANALYTIC:
        return []
    return ["Time shares (Fig. 4) are shown, not judged: the oracle is neither a network nor has it an encoder."]


def _bottleneck(series: Series) -> Claim:
    parts = [
        None if r is None else (r["shares"]["diffusion"] + r["shares"]["encode"]) / sum(r["shares"].values())
        for r in series.results
    ]
    share = by_object(parts, series.objects)
    return Claim(
        f"What SDS waits for is the network and the encoder (section IV-A, Fig. 4); {series.name}.",
        "They take more than half of the time.",
        share.above(0.5),
        f"{100 * share.mean:.0f} % of the time.",
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


def cost_table(series: list[Series], base: Series | None = None) -> Table:
    """Quality and cost at the end of each method's runs, and the difference to one of them, run by run."""
    measures = {"psnr": 2, "iou": 3, "evaluations_per_view": 0, "seconds": 1}
    header = ("method", "PSNR, dB", "silhouette IoU", "evaluations per view", "seconds", "runs")
    rows = [
        (s.name, *(s.estimate(name).text(digits=digits) for name, digits in measures.items()), str(sum(map(bool, s.results))))
        for s in series
    ]
    if base is not None:
        header = (*header, f"PSNR against {base.name}, dB")
        rows = [(*row, "" if s is base else s.minus(base, "psnr").interval()) for row, s in zip(rows, series, strict=True)]
    return Table("Mean ± standard error over objects.", header, tuple(rows))


def settings_table(series: list[Series]) -> Table:
    """What the methods were run with."""
    header = ("method", "plan", "optimisation", "guidance", "cameras", "reference weights")
    return Table("Settings.", header, tuple((s.name, *_settings(s.runs[0].settings)) for s in series))


def _settings(settings: dict) -> tuple[str, ...]:
    plan, sds = settings["plan"], settings.get("sds")
    low, high = plan["elevation_range"]
    sizes = " to ".join(map(str, plan["resolutions"]))
    cameras = f"{plan['views']} views, elevation {low:g}° to {high:g}°, {f'{sizes} px' if sizes else 'the model’s size'}"
    weights = f"colour {plan['ref_color_weight']:g}, opacity {plan['ref_opacity_weight']:g}"
    if sds is None:
        steps = f"{plan['init_steps']} + {plan['iterations']} × {plan['steps']} steps"
        return plan["name"], steps, f"{plan['guidance']:g}", cameras, weights
    times = f"{sds['steps']} updates, {sds['form']}, t {sds['times']}"
    return f"SDS {sds['name']}", times, f"{sds['guidance']:g}", cameras, weights


_ALL = (
    Protocol("sds", "SIR against SDS", "Fig. 7", _against_sds, _show_against_sds, _against_limits),
    Protocol("truth", "Against the truth", "", _truth, _show_truth),
    Protocol("shares", "Where the time goes", "Fig. 4", _timed, _show_timed, _oracle_shares),
    Protocol("latent", "Pixel against latent loss", "Fig. 10", _spaces, _show_spaces, idle=_oracle_spaces),
    Protocol("pixels", "SDS in pixel space", "Fig. 11", _pixel_sds, _show_pixel_sds, idle=_oracle_pixels),
    Protocol("iterations", "Iterations", "Fig. 12a", _iterations, _show_iterations, _iteration_limits),
    Protocol("views", "Views", "Fig. 12b", _views, _show_views, _view_limits),
    Protocol("schedules", "Schedules of t2", "Fig. 12c", _schedules, _show_schedules),
    Protocol("forward", "Forward process", "Fig. 12d", _forwards, _show_forwards),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""All protocols on procedural objects, in the order of a report."""


def idle(setup: Setup) -> dict[str, str]:
    """Protocols that show nothing with this setup, and why."""
    reasons = {name: protocol.idle(setup) for name, protocol in PROTOCOLS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def limits(setup: Setup, names: tuple[str, ...]) -> list[str]:
    """What of these protocols the setup does not allow."""
    return [text for name in names if name in PROTOCOLS for text in PROTOCOLS[name].limits(setup)]
