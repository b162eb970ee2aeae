"""The report: statistics and claims by hand, runs that are kept, several processes, the written page."""

from __future__ import annotations

import html.parser
import json
import math
import re
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from microdreamer_core.cli.main import main
from microdreamer_core.errors import Cancelled, InputError
from microdreamer_core.evaluation import PROTOCOLS, comparisons, objects, pages, plots
from microdreamer_core.evaluation import report as reports
from microdreamer_core.evaluation.comparisons import SDS_MARKS
from microdreamer_core.evaluation.objects import make_subject, plan_run, score_field
from microdreamer_core.evaluation.pages import Claim, Plot, Section, Table
from microdreamer_core.evaluation.report import load_protocol
from microdreamer_core.evaluation.runs import Run, Series, is_done, run_all
from microdreamer_core.evaluation.sources import ANALYTIC, Setup, stamp_model
from microdreamer_core.evaluation.statistics import Estimate, average, compare_costs, find_cost
from microdreamer_core.fields.density_control import DensitySettings
from microdreamer_core.fields.nerf_settings import nerf_settings
from microdreamer_core.io.pictures import read_picture
from microdreamer_core.sir.sds import SDSSettings
from microdreamer_core.sir.start import start_field
from microdreamer_core.util import processes


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Protocols with runs of a few steps."""
    usual = Setup.plan

    def tiny(setup, representation="gaussians", **changes):
        return usual(setup, representation, **{"init_steps": 3, "steps": 2, "discretization": 5, **changes})

    monkeypatch.setattr(Setup, "plan", tiny)


ORACLE = Setup(Path(), ANALYTIC, ANALYTIC, device="cpu")


def tiny_setup(folder, **changes) -> Setup:
    return Setup(folder, **{"model": ANALYTIC, "stamp": ANALYTIC, "objects": 1, "seeds": (0,), "iterations": 1, **changes})


def tiny_runs(seeds=(0, 1)):
    plan = ORACLE.plan(iterations=1, init_steps=2, steps=1, discretization=5)
    return [plan_run(ORACLE, 0, seed, plan, (0, 1)) for seed in seeds]


# --- statistics -------------------------------------------------------------------------------------------------------


def test_an_estimate_is_a_mean_with_students_interval():
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0])
    assert (estimate.mean, estimate.count) == (2.5, 4)
    assert estimate.error == pytest.approx(1.2909944 / 2)
    assert estimate.reach == pytest.approx(estimate.error * 3.182446)
    many = Estimate.of([0.0, 1.0] * 20)
    assert many.reach == pytest.approx(many.error * 2.022691), "39 degrees of freedom"
    assert f"{estimate:interval dB}" == "+2.50 dB (95 %: +0.45 to +4.55)" and f"{estimate:interval}"[:8] == "+2.50 (9"
    assert f"{Estimate.of([math.log(2), math.log(4), math.log(8)]):factor}" == "4.00 (95 %: 0.71 to 22.38)"
    assert f"{Estimate.of([math.log(2)]):factor}" == "2.00 (one sample)"
    assert f"{estimate:.2f}" == "2.50 ± 0.65" and f"{estimate:.1f}" == "2.5 ± 0.6"
    assert f"{Estimate.of([4.0]):.2f}" == "4.00" and math.isnan(Estimate.of([]).mean)
    assert f"{Estimate.of([]):factor}" == "an unknown number of"


def test_verdicts_need_the_whole_interval_on_one_side():
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0])  # 2.5 ± 2.05
    assert [estimate.judge("above", limit) for limit in (0.4, 1.0, 4.0, 4.6)] == ["yes", "undecided", "undecided", "no"]
    assert [estimate.judge("below", limit) for limit in (0.4, 1.0, 4.0, 4.6)] == ["no", "undecided", "undecided", "yes"]
    assert [estimate.judge("within", limit) for limit in (0.3, 1.0, 4.6)] == ["no", "undecided", "yes"]
    assert [estimate.judge("times", math.exp(limit)) for limit in (0.4, 1.0, 4.6)] == ["yes", "undecided", "no"]
    assert Estimate.of([9.0]).judge("above", 0.0) == "undecided" == Estimate.of([]).judge("within", 1.0)


def test_objects_are_the_samples():
    """Two seeds of an object say less than two objects."""
    samples = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (1, 1): 7.0}
    assert Estimate.of_runs(samples) == Estimate.of([2.0, 6.0])
    assert Estimate.of_runs({(0, 0): 1.0, (0, 1): 3.0}) == Estimate.of([1.0, 3.0])
    assert average(samples) == {0: 2.0, 1: 6.0} and average(samples, by=1) == {0: 3.0, 1: 5.0}


def test_cost_at_equal_quality():
    ours, theirs = [(10, 20.0), (20, 24.0)], [(10, 10.0), (50, 18.0), (100, 22.0)]
    assert find_cost(ours, 22.0) == 15 and find_cost(ours, 19.0) == 10 and find_cost(theirs, 23.0) is None
    ratio, quality = compare_costs(ours, theirs)
    assert quality == 22.0 and ratio == pytest.approx(100 / 15)
    ratio, quality = compare_costs(ours, theirs, 3.0)
    assert quality == 19.0 and ratio == pytest.approx(62.5 / 10)


# --- claims -----------------------------------------------------------------------------------------------------------


def made(name, psnr, evaluations=(10, 20), seconds=(1.0, 2.0), objects=(0, 1, 2), shares=None):
    """A series whose objects reach these PSNRs (a row each), shifted a little from object to object."""
    results = []
    for index in objects:
        rows = [
            {"psnr": value + 0.05 * index, "evaluations_per_view": count, "seconds": time, "iou": 0.9}
            for value, count, time in zip(psnr, evaluations, seconds, strict=True)
        ]
        results.append({"rows": rows, "shares": shares or {"reconstruct": 1.0 + 0.01 * index}})
    (setting,) = tiny_runs((0,))
    runs = tuple(replace(setting, settings={**setting.settings, "object": index}) for index in objects)
    return Series(name, runs, tuple(results))


def with_k(run, k):
    return replace(run, settings={**run.settings, "plan": {**run.settings["plan"], "iterations": k}})


def verdicts(section):
    return [claim.verdict for claim in section.claims]


def test_sir_against_sds_is_judged_at_equal_quality(tmp_path):
    setup = tiny_setup(tmp_path, objects=3)
    sir, slow = made("SIR, Gaussians", (20, 26)), made("SDS, Gaussians", (12, 26), (10, 200), (1, 3))
    other = made("SDS as DreamGaussian's, Gaussians", (10, 12))
    section = load_protocol("sds").show(setup, [sir, slow, other])
    assert verdicts(section) == ["yes"] * 4, "twice cheaper, as good, better than DreamGaussian's"
    assert "SDS takes 10.00 (95 %: 10.00 to 10.00) times the evaluations of SIR, to 26.1 dB" in section.claims[0].found
    (_, against, settings), (row, _) = section.tables, section.tables[1].rows
    assert row[0] == "SDS, Gaussians" and row[3].startswith("1.50 ") and row[5:] == ("26.1", "0 of 3 runs")
    assert against.rows[1][6] == "3 of 3 runs" and settings.rows[0][3] == "1", "the guidance is in the table"
    assert section.claims[2].found.endswith("with 20 evaluations per view against 200."), "who is better may have spent more"
    swapped = [replace(slow, name=sir.name), replace(sir, name=slow.name), other]
    assert verdicts(load_protocol("sds").show(setup, swapped)) == ["no", "no", "yes", "yes"]
    worse = [made(sir.name, (20, 24)), slow, made(other.name, (20, 25))]
    assert verdicts(load_protocol("sds").show(setup, worse))[2:] == ["no", "no"]


def test_an_oracles_seconds_are_not_judged(tmp_path):
    """It renders its objects once for a set of cameras, however often it is asked about them."""
    pair = [made("SIR, Gaussians", (20, 26)), made("SDS, Gaussians", (12, 26), (10, 200), (1, 30))]
    pair.append(replace(pair[1], name="SDS as DreamGaussian's, Gaussians"))
    oracle, network = tiny_setup(tmp_path), tiny_setup(tmp_path, model="embedded", stamp="x")
    statements = [[c.paper for c in load_protocol("sds").show(setup, pair).claims] for setup in (oracle, network)]
    assert [sum("seconds" in text or "half" in text for text in claims) for claims in statements] == [0, 3]
    assert "not judged" in load_protocol("sds").limits(oracle)[0] and load_protocol("sds").limits(network) == []


def test_no_field_is_scored_right_after_density_control(tmp_path):
    """Gaussians that were split and pruned need some updates to recover; scoring SDS then would be unfair to it."""
    control = DensitySettings()
    assert [mark for mark in SDS_MARKS if control.acts(mark)] == []
    assert not control.acts(reports.SIZES["sds_steps"][0]) and not control.acts(reports.SIZES["sds_steps"][1])
    unlucky = load_protocol("sds").limits(tiny_setup(tmp_path, sds_steps=200))
    assert any("density control" in text and "--sds-steps" in text for text in unlucky)


@pytest.mark.parametrize(("latent", "seconds", "expected"), [(25.0, 3.0, ["yes", "yes"]), (28.0, 1.1, ["no", "no"])])
def test_pixel_against_latent(tmp_path, latent, seconds, expected):
    setup = tiny_setup(tmp_path, model="embedded", stamp="x", representations=("gaussians", "nerf"))
    slower = {"seconds": (1.0, 1.0 + seconds), "shares": {"refine": 1.0, "reconstruct": seconds}}
    shares = {"refine": 1.0, "reconstruct": 1.0}
    pair = [made("pixel", (20, 25), shares=shares), made("latent", (20, latent), **slower)]
    section = load_protocol("latent").show(setup, [*pair, *pair])
    assert verdicts(section) == expected * 2 and [plot.name[-4:] for plot in section.plots] == ["ians", "nerf"]
    assert [s.runs[0].settings["plan"]["loss_space"] for s in load_protocol("latent").series(setup)] == ["pixel", "latent"] * 2


def test_ablations_are_judged_by_differences(tmp_path):
    setup = tiny_setup(tmp_path, iterations=20)
    gains = ((5, 3), (10, 4), (20, 5), (30, 5.5), (40, 5.7))
    series = [*(made(f"K = {k}", (20, 20 + gain)) for k, gain in gains), made("K = 0, 43 steps", (23,), (10,), (1,))]
    assert comparisons.choose_iterations(setup) == (5, 10, 20, 30, 40)
    assert verdicts(load_protocol("iterations").show(setup, series)) == ["yes", "yes", "yes"]
    series[-1] = made("K = 0, 43 steps", (26,), (10,), (1,))
    series[-2] = made("K = 40", (20, 30))
    assert verdicts(load_protocol("iterations").show(setup, series)) == ["yes", "no", "no"]
    short = tiny_setup(tmp_path, iterations=8)
    assert len(load_protocol("iterations").show(short, series).claims) == 2, "K beyond 30 was not run"
    assert "take --iterations 20 or more" in load_protocol("iterations").limits(short)[0]
    control = load_protocol("iterations").series(short)[-1]
    assert control.name == "K = 0, 19 steps" and control.runs[0].settings["plan"]["init_steps"] == 19, "3 + 8 x 2 steps"
    forwards = [made("hybrid", (20, 25)), made("noise", (20, 24)), made("invert", (20, 25.5), (10, 50))]
    assert verdicts(load_protocol("forward").show(setup, forwards)) == ["yes", "yes"]
    forwards[2] = made("invert", (20, 25.5), (10, 20))
    assert verdicts(load_protocol("forward").show(setup, forwards)) == ["yes", "no"]
    curves = [made(name, (20, value)) for name, value in (("linear", 25), ("square", 25.2), ("random", 22), ("cosine", 1))]
    assert verdicts(load_protocol("schedules").show(setup, curves)) == ["yes", "no"]


def test_views_are_those_that_the_model_takes(tmp_path):
    analytic, embedded = tiny_setup(tmp_path), tiny_setup(tmp_path, model="embedded", stamp="x")
    assert comparisons.choose_views(analytic) == (1, 2, 3, 4, 6) and load_protocol("views").limits(analytic) == []
    assert comparisons.choose_views(embedded) == (4, 8)
    (sentence,) = load_protocol("views").limits(embedded)
    assert "denoises 4 together" in sentence


# --- runs -------------------------------------------------------------------------------------------------------------


def test_keys_change_with_what_a_result_depends_on():
    setup, plan = ORACLE, ORACLE.plan(iterations=2)
    run = plan_run(setup, 0, 0, plan, (2,))
    assert run.key == plan_run(replace(setup, folder=Path("other")), 0, 0, plan, (2, 2)).key
    others = [
        plan_run(setup, 1, 0, plan, (2,)),
        plan_run(setup, 0, 1, plan, (2,)),
        plan_run(setup, 0, 0, replace(plan, eta=0.5), (2,)),
        plan_run(replace(setup, model="embedded", stamp=stamp_model("embedded")), 0, 0, plan, (2,)),
        plan_run(replace(setup, model="embedded", stamp="other weights"), 0, 0, plan, (2,)),
    ]
    assert len({other.key for other in others} - {run.key}) == 5

    def sds(plan, **settings):
        return plan_run(setup, 0, 0, plan, (5,), SDSSettings(steps=10, **settings)).key

    assert sds(plan) == sds(replace(plan, iterations=30, t2_curve="random")), "what only SIR looks at"
    assert sds(plan) != sds(replace(plan, views=6)) and sds(plan) != sds(plan, guidance_scale=9.0)


def test_a_run_scores_its_marks_and_leaves_a_picture(tmp_path):
    (run,) = tiny_runs((0,))
    assert run.load(tmp_path) == {}
    result = run.execute(folder=tmp_path)
    assert run.load(tmp_path) == json.loads(json.dumps(result))
    start, last = result["rows"]
    assert (start["mark"], last["mark"]) == (0, 1) and start["f_score"] is None and 0 <= last["f_score"] <= 1
    plan = ORACLE.plan(iterations=1, discretization=5)
    assert last["evaluations_per_view"] == plan.evaluations(0).per_view and start["evaluations_per_view"] == 5
    assert 0 < start["seconds"] < last["seconds"] and set(result["shares"]) == {"refine", "reconstruct"}
    assert read_picture(tmp_path / result["picture"]).shape == (64, 256, 3)


def test_warming_up_changes_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_WARM", set())
    run = plan_run(ORACLE, 0, 0, ORACLE.plan(), (), SDSSettings(steps=2, guidance_scale=1.0))
    cold, warm = (run.execute(folder=tmp_path)["rows"][-1] for _ in range(2))
    assert len(objects._WARM) == 1 and cold["evaluations_per_view"] == warm["evaluations_per_view"] == 2
    assert cold["psnr"] == warm["psnr"]


def test_other_learning_rates_are_another_run(monkeypatch):
    """A folder of an older version may hold runs of fields that learned otherwise."""

    def keys():
        plans = (ORACLE.plan(), ORACLE.plan("nerf"))
        return [plan_run(ORACLE, 0, 0, plan, (0,)).key for plan in plans]

    before = keys()
    assert before == keys()
    slower = replace(nerf_settings(device="cpu"), lr_grid=1e-4)
    monkeypatch.setattr(objects, "nerf_settings", lambda **_: slower)
    assert [a == b for a, b in zip(before, keys(), strict=True)] == [True, False]


def test_a_broken_or_failed_result_is_done_again(tmp_path, monkeypatch):
    (run,) = tiny_runs((0,))
    (tmp_path / f"{run.key}.json").write_text("{ half of")
    assert run.load(tmp_path) == {}
    (tmp_path / f"{run.key}.json").write_text(json.dumps({"key": "another", "result": {"rows": []}}))
    assert run.load(tmp_path) == {}
    wrong = replace(run, settings={**run.settings, "plan": {**run.settings["plan"], "views": 0}})
    wrong.execute(folder=tmp_path)
    assert not is_done(wrong.load(tmp_path)) and "views of the plan" in wrong.load(tmp_path)["failed"]


def test_scores_tell_the_truth_from_a_ball():
    subject = make_subject(0, 1.5, 49.1, 32)
    ball = start_field("gaussians", 32, 0, "cpu")
    found = score_field(ball, subject)
    assert found["psnr"] < 20 and found["iou"] < 0.8 and found["f_score"] < 0.9
    assert score_field(ball, subject, geometry=False)["f_score"] is None


def test_a_baseline_is_the_models_own():
    assert ORACLE.baseline().name == replace(ORACLE, model="embedded").baseline().name == "sds"


# --- several processes ------------------------------------------------------------------------------------------------


def test_seconds_do_not_depend_on_how_many_workers_there_are(tmp_path, monkeypatch):
    """One thread each, here as there; the host's own number is put back."""
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(Run, "execute", lambda *_, **__: seen.append(torch.get_num_threads()))
        run_all(tiny_runs(), tmp_path)
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_without_memory_is_told_and_the_others_go_on(tmp_path):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    (run,) = tiny_runs((0,))
    assert "fewer --workers" in replace(run, function=full).execute(folder=tmp_path)["failed"]

    def broken(*_):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        replace(run, function=broken).execute(folder=tmp_path)


def test_workers_do_what_is_not_done_and_stop_when_told(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    runs = tiny_runs()
    for folder in (alone, together):
        folder.mkdir()
    endless = replace(runs[1], settings={**runs[1].settings, "plan": {**runs[1].settings["plan"], "init_steps": 10_000}})

    def stop_later():
        if runs[0].load(together):
            raise Cancelled

    with pytest.raises(Cancelled):
        run_all([runs[0], endless], together, 2, check=stop_later)
    assert endless.load(together) == {}
    run_all(runs[:1], alone)
    mine, theirs = (runs[0].load(folder)["rows"][-1]["psnr"] for folder in (alone, together))
    assert mine == pytest.approx(theirs, abs=1e-6)


def test_the_number_of_workers(monkeypatch):
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(processes, "free_memory_mb", lambda: 4501)
    assert [processes.choose_workers(n, 100, "cpu", 1500) for n in (0, 1, 5)] == [3, 1, 5]
    assert processes.choose_workers(0, 2, "cpu", 1500) == 2 and processes.choose_workers(0, 100, "cuda", 1500) == 1
    assert processes.choose_workers(0, 100, "cpu", 3000) == 1, "large checkpoints leave room for fewer"
    with pytest.raises(InputError, match="workers must be 0"):
        processes.choose_workers(-1, 3, "cpu", 1500)


def test_progress_tells_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(Run, "execute", lambda *_, **__: time.sleep(0.3))
    runs = [Run("sir", objects.execute_on_object, {"n": i}, work=work) for i, work in enumerate((1.0, 3.0))]
    run_all(runs, Path(), kept=3, quiet=False)
    said = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert any("  0%" in line and "2 runs to do, 3 kept from before; 1 at a time" in line for line in said)
    assert "100%" in said[-1] and "<00:00" in said[-1] and "2/2 runs" in said[-1]
    run_all(runs, Path(), quiet=True)
    run_all([], Path(), kept=3, quiet=False)
    assert capsys.readouterr().err == "", "nothing to do, nothing to say"


# --- the page ---------------------------------------------------------------------------------------------------------


class _Tags(html.parser.HTMLParser):
    """Whether every element is closed, and what lies outside the page."""

    def __init__(self):
        super().__init__()
        self.open, self.outside = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.outside += [v for k, v in attributes if k in ("src", "href") and not v.startswith("data:")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_is_whole_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    setup = tiny_setup(tmp_path / "report", sds_steps=3)
    counted, usual = [], Run.execute
    monkeypatch.setattr(Run, "execute", lambda run, *rest, **place: counted.append(run.key) or usual(run, *rest, **place))

    def stop_later():
        if len(counted) == 2:
            raise Cancelled

    names = ("sds", "truth", "shares")
    with pytest.raises(Cancelled):
        reports.make_report(setup, names, workers=1, quiet=True, check=stop_later)
    assert len(counted) == 2 and len(list((setup.folder / "runs").glob("*.json"))) == 1
    report = reports.make_report(setup, names, workers=1, quiet=True, command=["microdreamer", "report", "a folder"])
    assert len(counted) == 4, "the first run is not repeated, and runs of several protocols are done once"
    text = report.files["page"].read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(text)
    assert tags.open == [] and tags.outside == []
    wanted = ("microdreamer report &#x27;a folder&#x27;", "torch", "Undecided", "SIR against SDS", "SSIM", "data:image/svg+xml")
    assert [words for words in wanted if words not in text] == []
    words = report.files["summary"].read_text(encoding="utf-8")
    assert "microdreamer report 'a folder'" in words and "| SIR, Gaussians |" in words and "time shares" in words.lower()
    linked = re.findall(r"\]\((\S+)\)", words)
    assert linked and all((setup.folder / place).is_file() for place in linked)
    numbers = json.loads(report.files["numbers"].read_text())
    assert len(numbers["runs"]) == 3 and numbers["facts"]["model"].startswith("analytic: no network, but the exact score of 12")
    drawn = {path.name: path for path in (setup.folder / "figures").glob("*.png")}
    assert {"truth.png", "time_shares.png", "sir_against_sds_gaussians_seconds.png"} <= set(drawn)
    assert all(path.stat().st_size > 1000 for path in drawn.values()) and drawn["time_shares.png"].with_suffix(".svg").is_file()
    reports.make_report(replace(setup, seeds=(0, 1)), ("shares",), workers=1, quiet=True)
    assert len(counted) == 6, "another seed adds its own two runs"


def test_failed_runs_are_told_and_others_are_shown(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InputError("It has no surface.")

    monkeypatch.setattr(objects, "sds_steps", fail)
    report = reports.make_report(tiny_setup(tmp_path, sds_steps=3), ("shares",), workers=1, quiet=True)
    assert report.impossible[-1] == "sds failed: It has no surface. (1 runs)"
    assert "No run of SDS, Gaussians came to an end." in report.files["page"].read_text()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_without_matplotlib_nothing_is_computed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(Run, "execute", lambda *_, **__: pytest.fail("a run began"))
    with pytest.raises(InputError, match=r"pip install 'microdreamer-comfyui\[report\]'"):
        reports.make_report(tiny_setup(tmp_path), ("shares",), workers=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "There is no protocol 'nonsense'; choose from sds, truth, "),
        (["pictures"], "needs a folder of pictures"),
        (["--model", "missing.ckpt"], "missing.ckpt"),
        (["--objects", "0"], "objects must be at least 1, got 0"),
        (["--representation", "voxels"], "The representation must be one of gaussians, nerf, got 'voxels'"),
        (["refine"], "needs a folder of meshes or splats; add --mesh"),
        (["--prompt", "a bird"], "belong to --mesh, got none"),
        (["--method", "a=b"], "are for a folder of pictures"),
        (["--workers", "-1"], "workers must be 0"),
    ],
)
def test_bad_input_is_refused_before_work_starts(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(Run, "execute", lambda *_, **__: pytest.fail("a run began"))
    assert main(["report", "-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", "shares", "-o", str(tmp_path / "file")]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_the_command_writes_a_page(tmp_path, capsys):
    out = tmp_path / "out"
    sizes = ["--quick", "--objects", "1", "--iterations", "1", "--sds-steps", "2", "--quiet", "--workers", "1"]
    assert main(["report", "latent", "-o", str(out), *sizes]) == 0
    said = capsys.readouterr().out
    assert "both losses are one" in said and f"page       {out / 'index.html'}" in said and "faster" not in said
    assert (out / "results.json").is_file()


def drawn(draw, *values):
    draw(*values, figure := Figure())
    return figure.axes


def test_plots_name_their_axes(tmp_path):
    series = [made("SIR", (20, 26)), made("SDS", (12, 26), (10, 200), (1, 3))]
    (axes,) = drawn(plots.draw_curves, series, "evaluations_per_view")
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "network evaluations per view"
    assert axes.get_ylabel() == "PSNR of held-out views, dB"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SIR", "SDS"]
    encoded = plots.encode_plot(Plot("curves", "", partial(plots.draw_curves, series, "evaluations_per_view")))
    assert encoded["png"][:4] == b"\x89PNG" and b"<svg" in encoded["svg"]
    (bars,) = drawn(plots.draw_shares, {"SDS": {"render": 0.25, "update": 0.75}})
    assert [bar.get_width() for bar in bars.patches[:2]] == [25.0, 75.0]


def test_an_oracle_without_an_encoder_is_not_asked_about_one(tmp_path):
    """Its latents are pixels: Fig. 10 and 11 would compare a thing with itself."""
    oracle, network = tiny_setup(tmp_path), tiny_setup(tmp_path, model="embedded", stamp="x")
    assert set(PROTOCOLS) - set(reports.choose_protocols((), oracle)[0]) == {"latent", "pixels", "pictures", "refine"}
    assert set(PROTOCOLS) - set(reports.choose_protocols((), network)[0]) == {"pictures", "refine"}
    assert reports.choose_protocols(("latent",), oracle)[0] == ("latent",), "it is done where it is asked for"
    pair = [made("pixel loss", (20, 25)), made("latent loss", (20, 25))]
    assert not load_protocol("latent").show(oracle, pair).claims
    assert not load_protocol("shares").show(oracle, [made("SDS, Gaussians", (20, 25))]).claims


def test_ablations_draw_every_object():
    series = [made("K = 1", (20, 25)), made("K = 2", (20, 26))]
    more = made("K = 0, more steps", (24,), (10,), (1,))
    at_k = [
        replace(one, runs=tuple(map(with_k, one.runs, (k,) * 3))) for one, k in zip([*series, more], (1, 2, 1), strict=True)
    ]
    (axes,) = drawn(plots.draw_ends, at_k, "iterations", "K")
    assert [list(line.get_ydata()) for line in axes.lines[:3]] == [[25.0, 26.0], [25.05, 26.05], [25.1, 26.1]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean", "K = 0, more steps, mean"]
    (axes,) = drawn(plots.draw_ends, series, "", "")
    assert len(axes.lines) == 4 and axes.get_xticklabels()[0].get_text() == "K = 1\n20 evaluations"


def test_every_protocol_of_the_list_is_where_it_says(capsys):
    assert all(load_protocol(name).series and words["title"] and words["text"] for name, words in PROTOCOLS.items())
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert ", ".join(PROTOCOLS) in " ".join(capsys.readouterr().out.split())


def test_the_page_says_what_the_markdown_says():
    """One text, two forms: cells with bars, markup of HTML and empty ones come through."""
    claim = Claim("SIR < SDS.", "a | b", "undecided", "x")
    table = Table("A *caption*.", ("method", "one", "two", "three"), (("a|b", "", "<b>", ""),))
    section = Section("Some words.", (claim,), (table,), (Plot("curves", 'Of "this".', None),), "Title & more")
    markdown = pages.write_markdown({"command": "run 'x'", "K": 3}, [section], ["One.", "Two."], "figures")
    assert "| a\\|b |  | <b> |  |" in markdown and '![Of "this".](figures/curves.png)' in markdown
    page = pages.write_html(markdown, {"curves": b"<svg/>"})
    wanted = (
        "<pre>run &#x27;x&#x27;</pre>",
        "<p>K: 3.</p>",
        "<ul><li>One.</li><li>Two.</li></ul>",
        '<td class="undecided short">? undecided</td>',
        "<td>a | b</td>".replace("<td>", '<td class=" short">'),
        '<td class=" short">a|b</td><td class=" short"></td><td class=" short">&lt;b&gt;</td><td class=" short"></td></tr>',
        "<p><em>A *caption*.</em></p>",
        "<h2>Title &amp; more</h2>",
        '<img src="data:image/svg+xml;base64,PHN2Zy8+" alt="Of &quot;this&quot;.">',
    )
    assert [words for words in wanted if words not in page] == []


def test_the_committed_report_is_whole_and_small():
    """What docs/report shows is there, and names no place on the machine that made it."""
    folder = Path(__file__).parent.parent / "docs" / "report"
    pages = list(folder.rglob("*.md"))
    assert folder / "README.md" in pages and folder / "analytic" / "summary.md" in pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        missing = [place for place in re.findall(r"\]\(([^)#:]+)\)", text) if not (page.parent / place).exists()]
        assert missing == [] and not re.search(r"(?:^|[\s'\"=])(?:/[a-z]+/|[A-Z]:\\)", text), page
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_500_000
