"""Fig. 7: SIR against SDS, and against DreamGaussian's settings of it."""

from __future__ import annotations

import math
from functools import partial

from ..fields.density_control import DensitySettings
from ..sir.sds import SDS_PRESETS
from . import plots
from .content import Claim, Plot, Section, Series, Setup, Table
from .methods import HALF, REPRESENTATIONS, SIMILAR, sds_series, sir_series
from .sources import baseline
from .statistics import Estimate, by_object, mean_or_nan, ratio_at_equal_quality
from .tables import cost_table, settings_table

TITLE = "SIR against SDS"

WORTH = 5.0
"""Times fewer evaluations: the least that the paper reports for SIR against SDS."""

LOWER = 3.0
"""dB below the best common quality, where costs are compared too: methods that are quick at first need not be so at last."""
_SHORT = {"evaluations_per_view": "evaluations", "seconds": "seconds"}
_LONG = {"evaluations_per_view": "evaluations of the network per view", "seconds": "seconds"}


def compared_series(setup: Setup) -> list[Series]:
    found = []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        found.append(sir_series(setup, f"SIR, {shown}", representation))
        found.append(sds_series(setup, f"SDS, {shown}", baseline(setup.model), representation))
        if representation == "gaussians":
            found.append(sds_series(setup, "SDS as DreamGaussian's, Gaussians", SDS_PRESETS["dreamgaussian"]))
    return found


def section(setup: Setup, series: list[Series]) -> Section:
    claims, drawn, rows = [], [], []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        ours, plain, *others = [s for s in series if s.name.endswith(shown)]
        claims += [claim for cost in _judge_costs(setup) for claim in _cheaper(ours, plain, shown, cost)]
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
    return Section(TITLE, _AGAINST + _seconds_note(setup), tuple(claims), tables, tuple(drawn))


_AGAINST = (
    "PSNR of held-out views while a field is optimised (the paper has CLIP similarity), with the same start, distribution of "
    "cameras, reference losses, learning rates and seeds on both sides. Evaluations count every branch of guidance, per view; "
    "seconds are those of the processor (of the clock on a GPU), without scoring. A run's curve is read between its marks; "
    "where SIR has the quality after its initialisation, the cost of all of that counts."
)


def _seconds_note(setup: Setup) -> str:
    return f" {_ORACLE_SECONDS}" if setup.oracle else ""


_ORACLE_SECONDS = (
    "The oracle's seconds are the rendering of its objects, once for every set of cameras: they flatter SIR, which asks often "
    "about one set, and are not judged."
)


def _judge_costs(setup: Setup) -> tuple[str, ...]:
    """What SIR and SDS are judged by; no network's time is in the oracle's seconds."""
    return tuple(cost for cost in _LONG if cost != "seconds" or not setup.oracle)


def limits(setup: Setup) -> list[str]:
    found = [f"Seconds of SIR against SDS: {_ORACLE_SECONDS}"] if setup.oracle else []
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
    return (theirs.name, *(ratio.factor() for ratio, _ in found), f"{mean_or_nan(found[0][1]):.1f}", beyond)


def _best(result: dict) -> float:
    return max(row["psnr"] for row in result["rows"])


def _cheaper(ours: Series, theirs: Series, shown: str, cost: str) -> list[Claim]:
    ratio, qualities = _ratio(ours, theirs, cost)
    numbers = f"SDS takes {ratio.factor()} times the {_SHORT[cost]} of SIR, to {mean_or_nan(qualities):.1f} dB."
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
    if "seconds" in _judge_costs(setup):
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
