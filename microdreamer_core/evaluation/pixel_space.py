"""Optimising in pixels instead of latents: SIR's loss (Fig. 10), and SDS (Fig. 11)."""

from __future__ import annotations

import math
from functools import partial

from ..sir.sds import SDS_PRESETS
from . import plots
from .against_sds import plan_sheet
from .content import Claim, Plot, Protocol, Section
from .series import HALF, REPRESENTATIONS, SIMILAR, Series, list_sds, list_sir, make_cost_table
from .sources import Setup
from .statistics import estimate_objects

# --- Fig. 10: pixel against latent loss -------------------------------------------------------------------------------

_ONE_LOSS = "Pixel against latent loss (Fig. 10): the oracle's latents are pixels, so that both losses are one."
_LATENT = (
    "SIR with both losses of section IV-D. What pixels save is the way back through an autoencoder's encoder; that of the "
    "shipped network is a single small layer, that of Stable Diffusion a deep network."
)


def _list_losses(setup: Setup) -> list[Series]:
    return [
        list_sir(setup, f"{words}, {REPRESENTATIONS[representation]}", representation, loss_space=space)
        for representation in setup.representations
        for space, words in (("pixel", "pixel loss (Eq. 12)"), ("latent", "latent loss (Eq. 11)"))
    ]


def _show_losses(setup: Setup, series: list[Series]) -> Section:
    claims, drawn = [], []
    for representation, pixel, latent in zip(setup.representations, series[::2], series[1::2], strict=True):
        shown = REPRESENTATIONS[representation]
        claims += [] if setup.oracle else _judge_losses(pixel, latent, shown)
        draw = partial(plots.draw_curves, [pixel, latent], "seconds")
        drawn.append(Plot(f"pixel_against_latent_{representation}", f"{shown}: quality against seconds.", draw))
    return Section(_LATENT, claims, (make_cost_table(series),), drawn)


def _judge_losses(pixel: Series, latent: Series, shown: str) -> list[Claim]:
    difference = pixel.minus(latent)
    pairs = zip(pixel.results, latent.results, strict=True)
    logs = [math.log(_time_reconstruction(b) / _time_reconstruction(a)) if a and b else None for a, b in pairs]
    ratio = estimate_objects(logs, pixel.objects)
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


def _time_reconstruction(result: dict) -> float:
    """Seconds of a run's reconstruction steps: their share by the clock of the seconds that are measured."""
    shares = result["shares"]
    return result["rows"][-1]["seconds"] * shares["reconstruct"] / sum(shares.values())


LATENT = Protocol("Pixel against latent loss", _list_losses, _show_losses, idle=_ONE_LOSS)

# --- Fig. 11: SDS in pixel space --------------------------------------------------------------------------------------


_ONE_SDS = "SDS in pixel space (Fig. 11): the oracle's latents are pixels, so that Eq. 5 and Eq. 6 are one."


def _list_sds_spaces(setup: Setup) -> list[Series]:
    sds = {"SDS in latents (Eq. 5)": "sds", "SDS in pixels (Eq. 6)": "pixels"}
    return [list_sir(setup, "SIR"), *(list_sds(setup, name, SDS_PRESETS[preset]) for name, preset in sds.items())]


def _show_sds_spaces(setup: Setup, series: list[Series]) -> Section:
    sir, latent, pixels = series
    claims = [
        Claim(
            f"SDS in pixels gives poor results (Fig. 11); here against {name}.",
            f"It is worse than {name} by more than {SIMILAR:g} dB.",
            other.minus(pixels).above(SIMILAR),
            f"{name} differs from it by {other.minus(pixels).interval('dB')}.",
        )
        for name, other in (("SDS in latents", latent), ("SIR", sir))
        if not setup.oracle
    ]
    text = "The data-prediction form of SDS, with the one-step prediction decoded to pixels."
    draw = partial(plots.draw_curves, series, "evaluations_per_view")
    drawn = (Plot("sds_in_pixels", "Quality against evaluations.", draw), plan_sheet(setup, series, "sds_in_pixels_views"))
    return Section(text, claims, (make_cost_table(series, latent),), drawn)


PIXELS = Protocol("SDS in pixel space", _list_sds_spaces, _show_sds_spaces, idle=_ONE_SDS)
