"""NeRF nodes on the stand-in host: the same graphs, what works on which representation, and memory in loops."""

from __future__ import annotations

import gc
import importlib.util
import weakref

import pytest
import torch

from helpers import host_stand_in as stand_in
from helpers import node_graphs
from helpers.node_graphs import assert_same, keep, kept


@pytest.fixture(scope="module", autouse=True)
def tiny(host):
    """The size "small", smaller still: what is tested here does not depend on it."""
    settings = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.fields.nerf_settings")
    before = dict(settings.SIZES["small"])
    values = {"levels": 4, "log2_table": 10, "hidden": 8, "samples": 16, "occupancy_resolution": 16, "density_scale": 30.0}
    settings.SIZES["small"].update(values)
    yield
    settings.SIZES["small"].clear()
    settings.SIZES["small"].update(before)


def nerf_graph(name: str, last: int) -> dict:
    graph = node_graphs.workflow(name, last)
    graph["5"]["inputs"]["preset"] = "embedded-nerf"
    return graph


def stages(count=None) -> dict:
    graph = keep(nerf_graph("01_image_to_3d_stages", 14), "14")
    graph["6"] = {"class_type": "MicroDreamerNewNeRF", "inputs": {"seed": graph["6"]["inputs"]["seed"], "size": "small"}}
    if count is not None:
        graph["5"]["inputs"]["iterations"] = count
    return graph


@pytest.fixture(scope="module")
def generated(host):
    return kept(host, keep(nerf_graph("00_hello", 6), "6"))


def run(host, name, **inputs):
    with torch.inference_mode():
        return host.nodes[f"MicroDreamer{name}"].execute(**inputs).args


def test_generate_starts_what_the_plan_is_for(generated):
    assert generated.field.kind == "nerf" and generated.k == node_graphs.K - 1 and generated.field.step > 0


def test_the_graph_of_stages_equals_generate_bit_for_bit(host, generated):
    assert_same(kept(host, stages()), generated)


def test_a_loop_lets_go_of_the_nerfs_of_its_passes(host, monkeypatch):
    """The host keeps what every node returned; of six passes the first, the last three and the start stay in memory."""
    module = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.fields.nerf")
    made, finish = [], module.NeRFOptimizer.finish

    def remembered(self):
        field = finish(self)
        made.append(weakref.ref(field))
        return field

    monkeypatch.setattr(module.NeRFOptimizer, "finish", remembered)
    executor = stand_in.Executor(host)
    results = executor.run(stages(5))
    gc.collect()
    alive = [reference() is not None for reference in made]
    assert len(alive) == 6 and results["keep"][0].k == 4
    assert alive[0] and alive[-1] and sum(alive) <= 4, alive


def test_an_interrupted_loop_keeps_no_more_nerfs_than_a_running_one(host, monkeypatch):
    """The first result, which ComfyUI may take from its cache, and the one to go on from."""
    module = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.fields.nerf")
    made, finish = [], module.NeRFOptimizer.finish
    monkeypatch.setattr(module.NeRFOptimizer, "finish", lambda self: made.append(weakref.ref(found := finish(self))) or found)
    executor, graph = stand_in.Executor(host), stages(5)
    host.progress.clear()
    host.interrupt_at = 10**9
    whole = executor.run(graph)["keep"][0]
    updates = len(host.progress)
    made.clear()
    executor = stand_in.Executor(host)
    host.progress.clear()
    host.interrupt_at = updates - 2  # in the last of six passes
    with pytest.raises(stand_in.Interrupted):
        executor.run(graph)
    gc.collect()
    assert [reference() is not None for reference in made] == [True, False, False, False, True]
    assert_same(executor.run(graph)["keep"][0], whole)


def test_what_was_let_go_says_so(host, generated):
    state = type(generated)(generated.field, 0, 0)
    state.let_go(kept=(generated,))
    assert state.field is generated.field
    state.let_go(kept=())
    with pytest.raises(ValueError, match="earlier pass of a loop"):
        state.field.render(None)
    assert generated.field.kind == "nerf"


def test_gaussians_and_plans_for_nerfs_do_not_meet(host):
    graph = stages()
    graph["6"] = {"class_type": "MicroDreamerNewGaussians", "inputs": {"model": ["1", 0], "num_points": 50}}
    with pytest.raises(ValueError, match="Sample Cameras: The field holds 50 Gaussians .* optimises nerf"):
        kept(host, graph)
    graph = keep(nerf_graph("00_hello", 6), "6")
    graph["7"] = {"class_type": "MicroDreamerNewGaussians", "inputs": {"model": ["1", 0], "num_points": 50}}
    graph["6"]["inputs"]["field"] = ["7", 0]
    with pytest.raises(ValueError, match="Generate: The field holds 50 Gaussians .* optimises nerf"):
        kept(host, graph)


def test_what_needs_gaussians_says_so(host, generated):
    for name in ("CleanGaussians", "SaveSplat", "FieldToSplat"):
        with pytest.raises(ValueError, match="works on Gaussians, got .*NeRF.*put NeRF to Gaussians before it"):
            run(host, name, field=generated)


def test_a_nerf_becomes_gaussians(host, monkeypatch):
    module = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.convert.nerf_to_gaussians")
    monkeypatch.setattr(module, "FIT_STEPS", 3)
    (start,) = run(host, "NewNeRF", seed=3, size="small")
    (after,) = run(host, "NeRFToGaussians", field=start, num_points=300, seed=5)
    assert (len(after.field), after.field.kind, after.seed, after.k, after.field.step) == (300, "gaussians", 5, -1, 0)
    with pytest.raises(ValueError, match="must be a NeRF, got 300 Gaussians"):
        run(host, "NeRFToGaussians", field=after)


def test_a_nerf_is_meshed_filmed_and_saved(host):
    (start,) = run(host, "NewNeRF", seed=3, size="small")
    (mesh,) = run(host, "ExtractMesh", field=start, resolution=32, target_faces=300)
    baked, texture = run(host, "BakeTexture", mesh=mesh, field=start, texture_size=64, views=12, view_size=64)
    assert texture.shape == (1, 64, 64, 3) and baked.texture is not None
    (film,) = run(host, "Turntable", field=start, frames=2, size=32)
    assert film.shape == (2, 32, 32, 3) and 0.2 < float(film.mean()) < 0.99
    (path,) = run(host, "SaveState", field=start, filename_prefix="nerf/run")
    loaded, k = run(host, "LoadState", file=f"output/{path}")
    assert k == -2
    assert_same(loaded, start)


def test_a_nerf_is_meshed_at_its_density_as_the_paper_does(host):
    (start,) = run(host, "NewNeRF", seed=3, size="small")
    (mesh,) = run(host, "ExtractMesh", field=start, resolution=32, threshold=5.0, target_faces=300, extractor="lgm")
    (same,) = run(host, "ExtractMesh", field=start, resolution=32, target_faces=300, extractor="lgm")
    assert torch.equal(mesh.vertices, same.vertices), "0 is the paper's 5"
    with pytest.raises(ValueError, match="no surface at density 5"):  # of opacities, which end at 1
        run(host, "ExtractMesh", field=start, resolution=32, threshold=5.0)
    with pytest.raises(ValueError, match="Extract Mesh: The setting extractor .* must be one of density, lgm, got 'poisson'"):
        run(host, "ExtractMesh", field=start, resolution=32, extractor="poisson")


@pytest.mark.parametrize("inputs", [{"size": "huge"}, {"background": "black"}, {"encoder": "cpp"}])
def test_choices_that_do_not_exist_are_refused(host, inputs):
    with pytest.raises(ValueError, match="New NeRF: .*must be one of"):
        run(host, "NewNeRF", **inputs)


def test_sds_and_free_cameras_take_a_nerf(host):
    graph = stages()
    graph = {n: graph[n] for n in ("1", "2", "3", "4", "5", "50", "6") if n in graph}
    graph["8"] = {
        "class_type": "MicroDreamerCameraLayout",
        "inputs": {"views": 4, "plan": ["50", 0], "field": ["6", 0], "condition": ["4", 0]},
    }
    graph["9"] = {
        "class_type": "MicroDreamerSDSSteps",
        "inputs": {"field": ["6", 0], "condition": ["4", 0], "plan": ["50", 0], "steps": 2},
    }
    graph["other"] = {"class_type": "Keep", "inputs": {"value": ["9", 0]}}
    results = stand_in.Executor(host).run(keep(graph, "8"))
    assert results["keep"][0].cameras.width == 32 and results["other"][0].field.step == 2
