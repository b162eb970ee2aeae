"""The protocols on objects of known truth, from ``protocols.json``: their methods, statements, tables and plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from ..fields.density_control import DensitySettings
from ..sir.sds import COMPONENTS
from ..util.images import join_views
from . import PROTOCOLS, WORDS, plots
from .objects import SHOWN_VIEWS, make_subject, plan_run
from .pages import Claim, Plot, Protocol, Section, Table, judge_statement
from .runs import Series, is_done
from .sources import Setup
from .statistics import Estimate, compare_costs

LOWER = 3.0
"""dB below the best common quality, where costs are compared too: methods that are quick at first need not be so at last."""
SDS_MARKS = (5, 10, 25, 50, 75, 95, 130, 160, 195, 240, 290, 340, 400, 500, 700, 1000, 1500, 2000)
"""Updates after which SDS is scored; none right after density control, which costs some dB for a few updates."""
SIR_MARKS = (0, 0.05, 0.1, 0.25, 0.5, 0.75)
"""Shares of K after which SIR is scored."""
REPRESENTATIONS = {"gaussians": "Gaussians", "nerf": "NeRF"}
_COSTS = {"evaluations_per_view": "evaluations", "seconds": "seconds"}
_PAPERS_VIEWS = (1, 2, 3, 6)
Group = dict[str, Series]
"""The series of one representation, by the names that statements call them."""

# --- runs -------------------------------------------------------------------------------------------------------------


def make_protocol(name: str) -> Protocol:
    """Make one of the protocols on objects."""
    return Protocol(partial(_list_series, name), partial(_show, name), partial(_list_limits, name))


def _list_series(protocol: str, setup: Setup) -> list[Series]:
    """The runs of each method on every object with every seed, scored on the way."""
    found, pairs = [], [*product(range(setup.objects), setup.seeds)]
    for kind in setup.representations if PROTOCOLS[protocol].get("representations") else (None,):
        for name, choices in _list_methods(protocol, setup, kind):
            preset, changes = choices.get("sds"), {key: value for key, value in choices.items() if key != "sds"}
            plan = setup.plan(kind or "gaussians", **changes)
            marks, sds = [round(plan.iterations * share) for share in SIR_MARKS], None
            if preset:
                marks, sds = SDS_MARKS, setup.baseline(preset)
            runs = tuple(plan_run(setup, index, seed, plan, marks, sds) for index, seed in pairs)
            found.append(Series(f"{name}, {REPRESENTATIONS[kind]}" if kind else name, runs))
    return found


def _list_methods(protocol: str, setup: Setup, kind: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The methods of a protocol, with their changes to the plan: one row, or several that differ in a number."""
    if protocol == "iterations":
        yield from ((f"K = {k}", {"iterations": k}) for k in choose_iterations(setup))
        plan = setup.plan()  # and as a control K = 0 with as many steps in all as the report's K
        steps = plan.init_steps + plan.iterations * plan.steps
        yield f"K = 0, {steps} steps", {"iterations": 0, "init_steps": steps}
    elif protocol == "views":
        yield from ((f"{n} views" if n > 1 else "1 view", {"views": n}) for n in choose_views(setup))
    else:
        methods = PROTOCOLS[protocol]["methods"].items()
        yield from (pair for pair in methods if kind != "nerf" or pair[1].get("sds") != "dreamgaussian")


def choose_iterations(setup: Setup) -> tuple[int, ...]:
    """Choose values of K: a quarter, a half, the report's, half as many again, and twice as many."""
    k = setup.iterations
    return tuple(sorted({max(1, k // 4), max(1, k // 2), k, k + max(1, k // 2), 2 * k}))


def choose_views(setup: Setup) -> tuple[int, ...]:
    """Choose numbers of views: the paper's, as far as the model denoises as many together, and the plan's."""
    group = setup.spec.view_count.group or 1
    wanted = {n for n in _PAPERS_VIEWS if n % group == 0} | {setup.plan().views}
    return tuple(sorted(wanted | ({2 * group} if group > 1 else set())))


def _list_limits(protocol: str, setup: Setup) -> list[str]:
    words, group = PROTOCOLS[protocol], setup.spec.view_count.group
    found = [words["oracle_limit"]] if setup.oracle and "oracle_limit" in words else []
    if protocol == "sds" and "gaussians" in setup.representations and DensitySettings().acts(setup.sds_steps):
        found.append(words["density"].format(steps=setup.sds_steps))
    if protocol == "iterations" and not _reaches_enough(setup):
        found.append(words["limit"].format(**words))
    if protocol == "views" and group:
        found.append(words["limit"].format(group=group, views=", ".join(map(str, choose_views(setup)))))
    return found


def _reaches_enough(setup: Setup) -> bool:
    return choose_iterations(setup)[-2] >= PROTOCOLS["iterations"]["enough"]


# --- results ----------------------------------------------------------------------------------------------------------


def _show(protocol: str, setup: Setup, series: list[Series]) -> Section:
    words, rest = PROTOCOLS[protocol], iter(series)
    kinds = setup.representations if words.get("representations") else ("gaussians",)
    methods = {kind: [name for name, _ in _list_methods(protocol, setup, kind)] for kind in kinds}
    groups: dict[str, Group] = {kind: dict(zip(names, rest, strict=False)) for kind, names in methods.items()}
    if protocol == "iterations":
        full = series[choose_iterations(setup).index(setup.iterations)]
        last = {"last": series[-3], "longest": series[-2]} if _reaches_enough(setup) else {}
        series = [_cut_to_start(full), *series]
        groups = {"gaussians": {"base": full, "start": series[0], "control": series[-1], **last}}
    if protocol == "views":
        usual = series[choose_views(setup).index(setup.plan().views)]
        groups = {"gaussians": {"base": usual, "least": series[0], "most": series[-1]}}
    base = next(iter(groups.values())).get(words.get("base", "base"))
    tables = [_tabulate_scores(series, words["scores"], base)] if "scores" in words else [_tabulate_shares(series)]
    if "settings" in words:
        tables += [_tabulate_ratios(groups, words), _tabulate_settings(series, words)]
    text = words["text"].format(components=", ".join(COMPONENTS)) + (words.get("oracle", "") if setup.oracle else "")
    drawn = (_plan(plot, kind, setup, series, group) for kind, group in groups.items() for plot in words["plots"])
    return Section(text, [*_judge(words, setup, groups)], tables, [*{plot.name: plot for plot in drawn}.values()])


def _cut_to_start(full: Series) -> Series:
    """Runs as if they had stopped after the initialisation."""
    runs = tuple(replace(r, settings={**r.settings, "plan": {**r.settings["plan"], "iterations": 0}}) for r in full.runs)
    results = tuple({**result, "rows": result["rows"][:1]} if is_done(result) else result for result in full.results)
    return Series("K = 0", runs, results)


def _plan(plot: dict, kind: str, setup: Setup, series: list[Series], group: Group) -> Plot:
    """Plan a plot of one representation, or of all series."""
    name, caption = (plot.get(part, "").format(kind=kind, shown=REPRESENTATIONS[kind]) for part in ("name", "caption"))
    if plot["draw"] == "curves":
        return Plot(name, caption, partial(plots.draw_curves, [*group.values()], plot["cost"]))
    if plot["draw"] == "ends":
        return Plot(name, caption, partial(plots.draw_ends, series, plot.get("across", ""), plot.get("label", "")))
    if plot["draw"] == "shares":
        return Plot(name, caption, partial(plots.draw_shares, _average_shares(series)))
    # the truth of each object, and below it the last field of every method, of the first seed
    plan, shown = setup.plan(), range(min(setup.objects, plots.SHOWN_OBJECTS))
    images = {index: make_subject(index, plan.radius, plan.fov_y, setup.spec.size).images for index in shown}
    truth = {index: join_views(views[list(SHOWN_VIEWS)]) for index, views in images.items()}
    which = "every object" if setup.objects <= plots.SHOWN_OBJECTS else f"the first {plots.SHOWN_OBJECTS} objects"
    return plots.plan_sheet(setup, series, name, plot["sheet"].format(which=which), "truth", truth)


def _judge(words: dict, setup: Setup, groups: dict[str, Group]) -> Iterator[Claim]:
    """Judge the statements whose series there are, but for those on a network if the model is the oracle."""
    for kind, group in groups.items():
        for statement in words.get("statements", {}).values():
            for names in statement["of"]:
                if group.keys() >= set(names) and not (setup.oracle and statement.get("network")):
                    yield _judge_series(statement, REPRESENTATIONS[kind], group[names[0]], group[names[-1]])


def _judge_series(statement: dict, shown: str, ours: Series, theirs: Series) -> Claim:
    """Judge a statement on a series, or on its differences or ratios to another."""
    values: dict[str, Any] = {"ours": ours, "theirs": theirs, "shown": shown}
    measure, verdict = statement["measure"], None
    if measure in _COSTS:
        estimate, values["quality"] = _estimate_ratio(ours, theirs, measure)
    elif measure == "psnr":
        estimate, values["fewer"] = ours.minus(theirs), -ours.minus(theirs, "evaluations_per_view").mean
        values["spent"] = [one.estimate("evaluations_per_view").mean for one in (ours, theirs)]
        verdict = "no" if statement.get("cheaper") and not values["fewer"] > 0 else None
    elif measure == "reconstruction":
        estimate = Estimate.of_runs(
            ours.measure(lambda a, b: math.log(_time_reconstruction(b) / _time_reconstruction(a)), theirs)
        )
    else:
        estimate = Estimate.of_runs(ours.measure(lambda result: _share_of(result, "diffusion", "encode")))
        values["percent"] = 100 * estimate.mean
    return judge_statement(statement, estimate, verdict, **values)


def _estimate_ratio(ours: Series, theirs: Series, cost: str, below: float = 0.0) -> tuple[Estimate, float]:
    """Logarithms of how many times cheaper SIR reaches the best quality that both reach, run by run, and that quality."""

    def compare(*results: dict) -> tuple[float, float] | None:
        ours, theirs = ([(row[cost], row["psnr"]) for row in result["rows"]] for result in results)
        return compare_costs(ours, theirs, below)

    logs = ours.measure(lambda *pair: (found := compare(*pair)) and math.log(found[0]), theirs)
    qualities = ours.measure(lambda *pair: (found := compare(*pair)) and found[1], theirs)
    return Estimate.of_runs(logs), Estimate.of(qualities.values()).mean


def _find_best(result: dict) -> float:
    return max(row["psnr"] for row in result["rows"])


def _share_of(result: dict, *parts: str) -> float:
    return sum(result["shares"][part] for part in parts) / sum(result["shares"].values())


def _time_reconstruction(result: dict) -> float:
    """Seconds of a run's reconstruction steps: their share by the clock of the seconds that are measured."""
    return result["rows"][-1]["seconds"] * _share_of(result, "reconstruct")


# --- tables -----------------------------------------------------------------------------------------------------------


def _tabulate_scores(series: Sequence[Series], names: Sequence[str], base: Series | None) -> Table:
    """Numbers at the ends of each method's runs, how many runs there are, and the paired difference to one method."""
    measures = {name: WORDS["measures"][name] for name in names}
    columns = {heading: [format(one.estimate(name), how) for one in series] for name, (heading, how) in measures.items()}
    if "f_score" not in names:
        columns["runs"] = [str(len(one.finished)) for one in series]
    if base is not None:
        differences = [f"{one.minus(base):interval}" if one is not base else "" for one in series]
        columns[f"PSNR against {base.name}, dB"] = differences
    rows = zip([one.name for one in series], *columns.values(), strict=True)
    return Table("Mean ± standard error over objects.", ("method", *columns), tuple(rows))


def _tabulate_ratios(groups: dict[str, Group], words: dict) -> Table:
    """Factors of each SDS's cost at equal quality, that quality, and how often SDS never reaches SIR's best."""
    rows = []
    for ours, theirs in ((ours, one) for ours, *others in map(dict.values, groups.values()) for one in others):
        found = [_estimate_ratio(ours, theirs, cost, below) for cost in _COSTS for below in (0.0, LOWER)]
        gaps = ours.measure(lambda ours, theirs: _find_best(ours) - _find_best(theirs), theirs)
        beyond = f"{sum(gap > 0 for gap in gaps.values())} of {len(gaps)} runs"
        rows.append((theirs.name, *(f"{ratio:factor}" for ratio, _ in found), f"{found[0][1]:.1f}", beyond))
    costs = [f"{name}{lower}" for name in _COSTS.values() for lower in ("", f" at {LOWER:g} dB less")]
    return Table(words["equal"].format(lower=LOWER), ("SDS / SIR", *costs, "quality, dB", "out of SDS's reach"), tuple(rows))


def _tabulate_settings(series: Sequence[Series], words: dict) -> Table:
    rows = []
    for one in series:
        plan, sds = one.runs[0].settings["plan"], one.runs[0].settings.get("sds")
        sizes = f"{' to '.join(map(str, plan['resolutions']))} px" if plan["resolutions"] else "the model’s size"
        paint = f", paint {plan['ref_paint_weight']:g}" if plan.get("ref_paint_weight") else ""
        cells = {**words["settings"], **(words["baseline"] if sds else {})}.values()
        rows.append((one.name, *(cell.format(plan=plan, sds=sds, sizes=sizes, paint=paint) for cell in cells)))
    return Table("Settings.", ("method", *words["settings"]), tuple(rows))


def _average_shares(series: Sequence[Series]) -> dict[str, dict[str, float]]:
    """Each method's mean share of the time by stage or component."""
    shares = {}
    for one in series:
        done = [result["shares"] for _, result in one.finished]
        names = dict.fromkeys(name for parts in done for name in parts)
        shares[one.name] = {name: statistics.mean(p.get(name, 0.0) / sum(p.values()) for p in done) for name in names}
    return shares


def _tabulate_shares(series: Sequence[Series]) -> Table:
    shares = _average_shares(series).items()
    rows = ((name, ", ".join(f"{part} {100 * share:.0f} %" for part, share in parts.items())) for name, parts in shares)
    return Table("Time shares.", ("method", "shares"), tuple(rows))
