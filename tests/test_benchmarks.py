"""The benchmarks of GPU and CPU run, at toy size."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from microdreamer_core.job.outputs import report_content
from microdreamer_core.job.run import job_from_image
from microdreamer_core.mesh import Mesh

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = ("gpu", "cpu", "memory", "sections", "stand_ins", "renderer", "job", "nerf", "perfect_input")


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    return module.main()


def test_without_a_gpu_one_sentence_and_an_exit_code(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in ((), ("--device", "cuda", "--tiny")):
        assert run(benchmark("gpu"), monkeypatch, *arguments) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and "no CUDA GPU" in err


def test_the_gpu_benchmark_runs_whole_on_the_cpu(benchmark, monkeypatch, capsys, tmp_path):
    gpu = benchmark("gpu")
    monkeypatch.setattr(gpu, "available_renderers", lambda device: ("numba",))
    assert run(gpu, monkeypatch, "--device", "cpu", "--tiny", "--json", tmp_path / "gpu.json") == 0
    text, content = capsys.readouterr().out, json.loads((tmp_path / "gpu.json").read_text())
    assert (
        "on the CPU, not a GPU; toy sizes" in text
        and not content["targets"]
        and content["device_type"] == "cpu"
        and content["tiny"]
    )
    assert list(content["sections"]) == ["limits", "first use", "conformance", "renderer", "kernels", "unet", "vae", "sir"]
    rows = {name: {row["stage"]: row for row in rows} for name, rows in content["sections"].items()}
    assert all(row["error_relative"] < 1e-4 for row in rows["conformance"].values())
    shares = [row["of_limit"] for section in rows.values() for row in section.values() if "of_limit" in row]
    assert len(shares) == 2 + 3 + 2 + 2 and all(share > 0 for share in shares)
    assert 0 < len(rows["kernels"]) <= 20 and all("times per pass" in row["note"] for row in rows["kernels"].values())
    assert {"K = 2, whole job", "K = 2, sir: reconstruct", "K = 2, refine texture", "K = 2, peak"} <= rows["sir"].keys()
    inner = sum(rows["sir"][f"K = 2, {name}"]["seconds"] for name in ("condition", "sir", "clean", "mesh", "refine texture"))
    assert 0.8 * rows["sir"]["K = 2, whole job"]["seconds"] < inner <= rows["sir"]["K = 2, whole job"]["seconds"]
    assert "graphs on cpu: the same" in text


def test_a_section_that_fails_is_reported_and_the_others_run(benchmark, monkeypatch, capsys, tmp_path):
    gpu = benchmark("gpu")
    monkeypatch.setattr(gpu, "available_renderers", lambda device: ("numba",))
    monkeypatch.setattr(gpu, "conformance_error", lambda renderer, device, antialiased: 0.5 if antialiased else float("nan"))
    sections = ("--sections", "conformance", "limits")
    assert run(gpu, monkeypatch, "--device", "cpu", "--tiny", "--json", tmp_path / "gpu.json", *sections) == 1
    content = json.loads((tmp_path / "gpu.json").read_text().replace("NaN", "null"))
    assert content["failed"] == ["conformance"] and len(content["sections"]["limits"]) == 2
    assert "numba, classic; numba, antialiased" in content["sections"]["conformance"][-1]["error"]
    assert "failed: ArithmeticError" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(gpu, monkeypatch, "--device", "cpu", "--tiny", "--sections", "tea")


def test_targets_are_held_against_what_was_measured(benchmark):
    gpu = benchmark("gpu")
    rows = {
        "first use": [{"stage": "cuda, nothing cached", "seconds": 0.5}, {"stage": "cuda, cached", "seconds": 9.0}],
        "renderer": [{"stage": f"{name}, forward + backward", "seconds": s} for name, s in (("cuda", 2e-3), ("gsplat", 1e-3))],
        "sir": [{"stage": "K = 20, whole job", "seconds": 6.5}, {"stage": "K = 20, peak", "memory_mb": 5000.0}],
    }
    found = {verdict["stage"]: verdict["met"] for verdict in gpu.verdicts(rows)}
    expected = {"cuda, nothing cached": True, "K = 20, whole job": False, "K = 20, peak": True}
    assert found == expected | {"renderer, against gsplat": False}
    texts = [gpu.verdict_text(verdict) for verdict in gpu.verdicts(rows)]
    assert "6500.00 ms, MISSED: at most 6000.00 ms" in texts[1] and "5000.00 MB, met: at most 6000.00 MB" in texts[2]
    assert gpu.verdicts({"limits": []}) == []


def test_the_cpu_benchmark_makes_one_table(benchmark, monkeypatch, capsys, tmp_path):
    cpu, job, renderer = benchmark("cpu"), benchmark("job"), benchmark("renderer")
    monkeypatch.setattr(renderer, "memory_rise", lambda *_: 1.0)
    monkeypatch.setattr(renderer, "use_threads", lambda count: None)
    monkeypatch.setattr(job, "IMPORTS", {"torch": "pass", "microdreamer_core": "pass"})
    clock, field = (
        SimpleNamespace(seconds={"refine": 1.0}, total=2.0),
        SimpleNamespace(kind="gaussians", summary=lambda: "4 Gaussians"),
    )
    mesh = Mesh(torch.zeros(3, 3), torch.zeros(5, 3, dtype=torch.long), uvs=torch.zeros(3, 2), texture=torch.zeros(8, 8, 3))
    asset = SimpleNamespace(clock=clock, evaluations=6, records=(), field=field, mesh=mesh)
    # what a job really reports, not what the benchmark wishes for
    measured = report_content(asset, job_from_image(FOLDER.parent / "samples" / "bird.png"), {})
    monkeypatch.setattr(job, "measure", lambda picture, seed, iterations: measured)
    assert run(cpu, monkeypatch, "--tiny", "--json", tmp_path / "cpu.json") == 0
    content, text = json.loads((tmp_path / "cpu.json").read_text()), capsys.readouterr().out
    assert list(content["sections"]) == ["import", "job", "network", "renderer"] and not content["failed"]
    assert all(row["seconds"] > 0 and "GFLOP/s" in row["note"] for row in content["sections"]["network"])
    assert content["sections"]["job"][-1]["evaluations"] == 6 and "whole job" in text
    assert "4 Gaussians, 5 faces, 6 evaluations" in text
    names = [row["stage"].split(",")[0] for row in content["sections"]["renderer"]]
    assert names == ["numba", "torch"] and all(row["seconds"] > 0 for row in content["sections"]["renderer"])


def test_the_nerf_benchmark_compares_updates_of_as_many_samples_as_asked_for(benchmark):
    nerf = benchmark("nerf")
    field, cameras, targets = nerf.scene(12, 16, 1)
    assert field.settings.samples == 16
    row = nerf.compare(field, cameras, targets, 1)
    assert row["samples"] > 0 and row["wall_ratio"] > 0 and row["numba"]["wall_ms"] > 0
    assert nerf.state_mb("small") == pytest.approx(2.2, abs=0.1)


def test_what_lives_at_once_is_counted(benchmark):
    memory = benchmark("memory")
    old = torch.empty(1000, 1000, device="meta")

    def call():
        first = old.t() + 1
        second = first * 2
        del first
        return second.t().view(-1)[:10] if second.sum() else None

    assert memory.most_bytes(call) == pytest.approx(8.0, abs=0.01), "two of them at once, views and what was before for nothing"
    query = torch.empty(2, 8, 1024, 64, device="meta")
    attended = memory.most_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert attended == pytest.approx(4 * query.numel() / 1e6, abs=0.01)


def test_memory_of_a_published_model_is_counted_without_a_gpu(benchmark):
    memory = benchmark("memory")
    usual, low = (memory.count_memory("zero123", low_memory) for low_memory in (False, True))
    # 860 million parameters in the UNet, 84 in the autoencoder, 304 in CLIP's tower and a little
    assert usual["weights"] == pytest.approx(2 * (860 + 84 + 304), rel=0.01)
    assert low["weights"] == pytest.approx(2 * (860 + 84), rel=0.01)
    assert low["noise"] == pytest.approx(usual["noise"] / 2, rel=0.02) and low["decode"] < usual["decode"] / 7
    assert usual["learn"] == low["learn"] > 7 * 256**2 * 4 * 6 / 1e6, "pictures and their gradients at least"
    assert low["whole"] < usual["whole"] < 4000


def test_perfect_input_measures_both_directions(benchmark, monkeypatch, capsys, tmp_path):
    perfect = benchmark("perfect_input")
    monkeypatch.setattr(perfect, "TRUE_GRID", 64)
    run(perfect, monkeypatch, "--objects", 1, "--size", 48, "--steps", 60, "--json", tmp_path / "perfect.json")
    row = json.loads((tmp_path / "perfect.json").read_text())["snowman1"]
    assert row["gap"] == pytest.approx(row["splat"] - row["mesh"]) and row["splat"] > 15
    assert 0 < row["off"] < row["chamfer"] and 0 < row["missed"], "many samples leave no floor"
    assert "snowman" in capsys.readouterr().out
    toy = perfect.make_held_out_toy(1)
    truth = perfect.true_surface(toy, 64)
    same = perfect.distances(truth, truth)
    assert same["off"] < 1.5 < same["floor"] and same["chamfer"] == pytest.approx(same["floor"], rel=0.05)
    painted = perfect.paint_checkers(toy)
    unpainted = [i for i in range(toy.shape[1]) if i < 18]
    assert (painted[:, unpainted] == toy[:, unpainted]).all() and (painted[:, 18:] != toy[:, 18:]).any()


def test_few_steps_are_compared_toy_by_toy(benchmark):
    few = benchmark("few_steps")
    numbers = {"ssim": 0.8, "sharpness": 0.9, "iou": 0.95, "evaluations": 288, "seconds": 8.0}
    made = {"n4 hybrid": (20.0, 22.0, 30.0, 30.0), "n3 lcm": (21.0, 23.0, 30.5, 30.5)}
    rows = {
        setting: [{"object": toy, "psnr": value, **numbers} for toy, value in zip("aabb", values, strict=True)]
        for setting, values in made.items()
    }
    header, _, base, other = (line.strip("| ").split(" | ") for line in few.write_results(rows).splitlines())
    assert base[header.index("difference")] == "" and other[header.index("difference")] == "0.75 ± 0.25"
    assert other[1:6] == ["3", "noise", "lcm", "1.0", "20 x 15"] and base[2:4] == ["hybrid", "ddim, η 1"]
    assert base[header.index("PSNR dB")] == "25.50"


def test_two_steps_leave_the_forward_process_no_choice(benchmark):
    few = benchmark("few_steps")
    noise = few.get_plan(few.BASE, **few.SETTINGS["n2"])
    assert noise.times(0) == replace(noise, forward="hybrid").times(0)


@pytest.mark.parametrize("group", [1, 4, 8])
def test_views_of_the_exact_model_see_their_group_spread_all_around(benchmark, group):
    coupled = benchmark("coupled_views")
    colors = torch.tensor([0.2, 0.8])[:, None, None, None, None]
    model = coupled.SpreadViews(
        coupled.AnalyticDiffusion(lambda cameras: colors.expand(2, len(cameras), 4, 4, 3), 4, spread=0.3), group
    )
    mixture = model.condition(coupled.orbit_cameras(0.0, torch.arange(8) * 45.0, 1.5, width=4))
    latents = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    before = model.denoised(latents, 700, mixture, 1.0)
    latents[3] += 1
    seen = (model.denoised(latents, 700, mixture, 1.0) - before).abs().amax((1, 2, 3)) > 0
    assert seen.nonzero().flatten().tolist() == {1: [3], 4: [1, 3, 5, 7], 8: list(range(8))}[group]
    assert model.evaluations == 16
