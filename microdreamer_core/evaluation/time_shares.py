"""Fig. 4: how the time of SDS and of SIR is spent."""

from __future__ import annotations

from functools import partial

from ..sir.sds import COMPONENTS
from . import plots
from .content import Claim, Plot, Protocol, Section, Table
from .series import REPRESENTATIONS, Series, list_sds, list_sir
from .sources import Setup, get_baseline
from .statistics import estimate_objects


def _list_series(setup: Setup) -> list[Series]:
    pairs = [
        (
            list_sds(setup, f"SDS, {REPRESENTATIONS[representation]}", get_baseline(setup.model), representation),
            list_sir(setup, f"SIR, {REPRESENTATIONS[representation]}", representation),
        )
        for representation in setup.representations
    ]
    return [one for pair in pairs for one in pair]


def _show_shares(setup: Setup, series: list[Series]) -> Section:
    shares = {one.name: _average_shares(one) for one in series}
    claims = [_judge_bottleneck(one) for one in series if one.name.startswith("SDS") and not setup.oracle]
    text = f"Seconds of SDS by component ({', '.join(COMPONENTS)}) and of SIR by stage, by the clock."
    if setup.oracle:
        text += " The oracle's evaluation is the rendering of its objects, no network's, and it has no encoder."
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
    return Claim(
        f"What SDS waits for is the network and the encoder (section IV-A, Fig. 4); {series.name}.",
        "They take more than half of the time.",
        share.above(0.5),
        f"{100 * share.mean:.0f} % of the time.",
    )


def _limit_shares(setup: Setup) -> list[str]:
    text = "Time shares (Fig. 4) are shown, not judged: the oracle is neither a network nor has it an encoder."
    return [text] if setup.oracle else []


SHARES = Protocol("Where the time goes", _list_series, _show_shares, _limit_shares)
