"""The parts of the paper's evaluation: which runs each takes, and what they show."""

from __future__ import annotations

import math
from functools import partial

from ..sir.sds import COMPONENTS, SDS_PRESETS
from . import ablations, against_sds, plots
from .content import Claim, Plot, Protocol, Section, Series, Setup, Table
from .methods import HALF, REPRESENTATIONS, SIMILAR, sds_series, sir_series
from .sheets import truth_sheet
from .sources import baseline, takes_picture
from .statistics import by_object, mean_or_nan
from .tables import cost_table, truth_table

# --- Fig. 10: pixel against latent loss -------------------------------------------------------------------------------


def _spaces(setup: Setup) -> list[Series]:
    return [
        sir_series(setup, f"{words}, {REPRESENTATIONS[representation]}", representation, loss_space=space)
        for representation in setup.representations
        for space, words in (("pixel", "pixel loss (Eq. 12)"), ("latent", "latent loss (Eq. 11)"))
    ]


def _oracle_spaces(setup: Setup) -> str | None:
    if not setup.oracle:
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


# --- Fig. 11: SDS in pixel space --------------------------------------------------------------------------------------


def _pixel_sds(setup: Setup) -> list[Series]:
    return [
        sir_series(setup, "SIR"),
        sds_series(setup, "SDS in latents (Eq. 5)", SDS_PRESETS["sds"]),
        sds_series(setup, "SDS in pixels (Eq. 6)", SDS_PRESETS["pixels"]),
    ]


def _oracle_pixels(setup: Setup) -> str | None:
    if not setup.oracle:
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


def _time_series(setup: Setup) -> list[Series]:
    found = []
    for representation in setup.representations:
        shown = REPRESENTATIONS[representation]
        found.append(sds_series(setup, f"SDS, {shown}", baseline(setup.model), representation))
        found.append(sir_series(setup, f"SIR, {shown}", representation))
    return found


def _show_times(setup: Setup, series: list[Series]) -> Section:
    claims, rows = [], []
    for one in series:
        shares = time_shares(one)
        rows.append((one.name, ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())))
        if one.name.startswith("SDS") and not setup.oracle:
            claims.append(_bottleneck(one))
    plot = Plot("time_shares", "Shares of the seconds.", partial(plots.shares, [(s.name, time_shares(s)) for s in series]))
    text = f"Seconds of SDS by component ({', '.join(COMPONENTS)}) and of SIR by stage, by the clock."
    if setup.oracle:
        text += " The oracle's evaluation is the rendering of its objects, no network's, and it has no encoder."
    table = Table("Time shares.", ("method", "shares"), tuple(rows))
    return Section(PROTOCOLS["shares"].title, text, tuple(claims), (table,), (plot,))


def _oracle_shares(setup: Setup) -> list[str]:
    if not setup.oracle:
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
    return {name: mean_or_nan([shares.get(name, 0.0) / sum(shares.values()) for shares in done]) for name in names}


# --- known truth ------------------------------------------------------------------------------------------------------


def _show_truth(setup: Setup, series: list[Series]) -> Section:
    text = "Every object's truth is known: pictures and silhouettes from eight directions that no run saw, and its surface."
    sheet = truth_sheet(setup, series, "truth")
    return Section(PROTOCOLS["truth"].title, text, (), (truth_table(series),), (), (sheet,))


_ALL = (
    Protocol("sds", against_sds.TITLE, "Fig. 7", against_sds.compared_series, against_sds.section, against_sds.limits),
    Protocol("truth", "Against the truth", "", against_sds.compared_series, _show_truth),
    Protocol("shares", "Where the time goes", "Fig. 4", _time_series, _show_times, _oracle_shares),
    Protocol("latent", "Pixel against latent loss", "Fig. 10", _spaces, _show_spaces, idle=_oracle_spaces),
    Protocol("pixels", "SDS in pixel space", "Fig. 11", _pixel_sds, _show_pixel_sds, idle=_oracle_pixels),
    Protocol(
        "iterations",
        ablations.TITLES["iterations"],
        "Fig. 12a",
        ablations.iterations,
        ablations.show_iterations,
        ablations.iteration_limits,
    ),
    Protocol("views", ablations.TITLES["views"], "Fig. 12b", ablations.views, ablations.show_views, ablations.view_limits),
    Protocol("schedules", ablations.TITLES["schedules"], "Fig. 12c", ablations.schedules, ablations.show_schedules),
    Protocol("forward", ablations.TITLES["forward"], "Fig. 12d", ablations.forwards, ablations.show_forwards),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""All protocols on procedural objects, in the order of a report."""


def idle(setup: Setup) -> dict[str, str]:
    """Protocols that show nothing with this setup, and why."""
    if not takes_picture(setup.model):
        return dict.fromkeys(
            PROTOCOLS, "The model takes words alone and is told no procedural object: it is judged by CLIP alone."
        )
    reasons = {name: protocol.idle(setup) for name, protocol in PROTOCOLS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def limits(setup: Setup, names: tuple[str, ...]) -> list[str]:
    """What of these protocols the setup does not allow."""
    return [text for name in names if name in PROTOCOLS for text in PROTOCOLS[name].limits(setup)]
