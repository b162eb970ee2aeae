"""The ComfyUI pack on a stand-in host: schemas, graphs, the loop pair, interrupt and resume, samplers of the host."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import node_files
import pytest
import torch

from helpers import host_stand_in as stand_in
from helpers.node_graphs import K, assert_same, keep, kept, workflow
from helpers.workflow_graphs import API, EARLIER
from microdreamer_core.sir.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
NATIVE = {"LoadImage": 2, "PreviewImage": 0, "PreviewAny": 0, "Preview3D": 0, "SaveAnimatedWEBP": 0}
NATIVE |= {"KSamplerSelect": 1, "SamplerEulerAncestral": 1, "KarrasScheduler": 1}
NATIVE |= {"ImageOnlyCheckpointLoader": 3, "CheckpointLoaderSimple": 3, "CLIPLoader": 1, "LoraLoaderModelOnly": 1}
NATIVE |= {"ControlNetLoader": 1}
NATIVE |= {"UNETLoader": 1, "CLIPVisionLoader": 1, "VAELoader": 1, "KSampler": 1, "TransformSplat": 1, "VoxelToMesh": 1}
NATIVE |= {"TripoSplatPreprocessImage": 1, "TripoSplatConditioning": 3, "VAEDecodeTripoSplat": 1, "VAEDecodeHunyuan3D": 1}
NATIVE |= {"EmptyLatentHunyuan3Dv2": 1, "CLIPVisionEncode": 1, "ModelSamplingAuraFlow": 1, "Hunyuan3Dv2Conditioning": 2}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.fixture(scope="module")
def generated(host):
    return kept(host, keep(workflow("00_hello", 6), "6"))


# --- schemas ---------------------------------------------------------------------------------------------------------


def own(host):
    return {name: node for name, node in host.nodes.items() if issubclass(node, stand_in.ComfyNode)}


def test_texts_help_pages_and_snapshot_say_what_the_schemas_say(host):
    """After a wanted change: python scripts/node_files.py, and look at the difference: saved graphs rely on ids and order."""
    wanted = node_files.files(own(host))
    assert [str(path) for path, text in wanted.items() if (ROOT / path).read_text(encoding="utf-8") != text] == []
    assert {page.relative_to(ROOT) for page in (ROOT / "web" / "docs").glob("*.md")} <= set(wanted)


def test_every_node_is_named_explained_and_small(host):
    for name, node in own(host).items():
        schema = node.define_schema()
        assert name.startswith("MicroDreamer") and schema.category.split("/")[0] == "MicroDreamer"
        assert schema.description and schema.search_aliases and schema.display_name == node.TITLE
        hidden = ("force_input", "advanced")
        shown = [s for s in schema.inputs if s.kind in WIDGETS and not any(s.options.get(option) for option in hidden)]
        assert len(shown) <= 8, name
        sockets = [*schema.inputs, *schema.outputs]
        assert len({s.id for s in sockets}) == len(sockets), f"{name}: old hosts want ids of inputs and outputs to differ"
        assert all(s.options.get("tooltip") for s in sockets), name


def test_no_other_folder_hides_the_templates():
    """A host serves the first of these folders that a pack has, whatever is in it."""
    names = ["example_workflows", "example", "examples", "workflow", "workflows"]
    assert [name for name in names if (ROOT / name).exists()] == ["workflows"]


@pytest.mark.parametrize("path", [*API, *EARLIER], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_workflows_fit_the_schemas(host, path):
    graph = json.loads(path.read_text())
    for entry in graph.values():
        if entry["class_type"] in NATIVE:
            continue
        schema = host.nodes[entry["class_type"]].define_schema()
        sockets = {s.id: s for s in schema.inputs}
        assert set(entry["inputs"]) <= set(sockets), entry
        assert {s.id for s in schema.inputs if not s.optional} <= set(entry["inputs"]), entry
        for name, value in entry["inputs"].items():
            if not stand_in.is_link(value):
                continue
            source = graph[value[0]]["class_type"]
            if source in NATIVE:
                assert value[1] < NATIVE[source]
                continue
            kind = host.nodes[source].define_schema().outputs[value[1]].kind
            assert {kind, "*"} & set(sockets[name].kind.split(",")), (entry, name)


# --- plans -----------------------------------------------------------------------------------------------------------

NUMBERS = json.loads((ROOT / "web" / "presets.js").read_text(encoding="utf-8").partition("default ")[2])
OLD_PLAN = {"iterations": -1, "steps": -1, "t2_start": -1.0, "t2_end": -1.0, "forward": "preset", "eta": -1.0, "guidance": -1.0}
OLD_OPTIONS = {"views": -1, "discretization": -1, "init_steps": -1}
OLD_OPTIONS |= {name: "preset" for name in ("t2_curve", "t1_rule", "sampler", "loss", "loss_space")}


def planned(host, plan: dict, options: dict):
    """The plan behind both nodes, as a dict, and the text below each."""
    first = host.nodes["MicroDreamerSIRPlan"].execute(**plan)
    last = host.nodes["MicroDreamerSIRPlanOptions"].execute(plan=first.args[0], **options)
    for made in (first, last):
        assert made.ui["text"][0].startswith(made.args[-1] + "; ")
    return dataclasses.asdict(last.args[0]), first.args[-1], last.args[-1]


@pytest.mark.parametrize("preset", PRESETS)
def test_absent_old_and_filled_in_numbers_are_all_the_presets(host, preset):
    numbers = ({name: NUMBERS[preset][name] for name in names} for names in (OLD_PLAN, OLD_OPTIONS))
    for plan, options in (({}, {}), (OLD_PLAN, OLD_OPTIONS), tuple(numbers)):
        assert planned(host, {"preset": preset, **plan}, options)[0] == dataclasses.asdict(PRESETS[preset])


def test_every_number_of_a_plan_counts(host):
    """All widgets of one preset on top of another give its numbers; what has no widget stays."""
    numbers = NUMBERS["mvdream-nerf"] | {"forward": "noise", "sampler": "euler", "loss": "l2", "loss_space": "latent"}
    numbers |= {"steps": 7, "t2_curve": "cosine"}
    plan, options = ({name: numbers[name] for name in names} for names in (OLD_PLAN, OLD_OPTIONS))
    got, before, after = planned(host, {"preset": "stable-zero123-gaussians", **plan}, options)
    usual = dataclasses.asdict(PRESETS["stable-zero123-gaussians"])
    numbers["guidance_scale"] = numbers.pop("guidance")
    assert got == usual | numbers
    assert "K 50 rounds of I 7 steps on 6 views" in before and "evaluations" in before
    assert "K 50 rounds of I 7 steps on 4 views" in after and "euler" in after


def test_a_new_node_shows_the_numbers_of_the_preset_that_it_shows(host):
    sockets = [s for name in ("SIRPlan", "SIRPlanOptions") for s in host.nodes[f"MicroDreamer{name}"].define_schema().inputs]
    shown = {s.id: s.options["default"] for s in sockets if s.kind in WIDGETS}
    assert shown == {"preset": "embedded", **NUMBERS["embedded"]}
    assert all(s.optional for s in sockets if s.id in NUMBERS["embedded"])
    assert all(s.options["min"] >= 0 for s in sockets if "min" in s.options)


def test_a_number_out_of_range_is_refused_in_words(host):
    with pytest.raises(Exception, match="SIR Plan: The setting t2_end of the plan must be positive and at most t2_start = 0.3"):
        host.nodes["MicroDreamerSIRPlan"].execute(preset="embedded", t2_start=0.3)
    with pytest.raises(Exception, match="SIR Plan Options: The setting views of the plan must be a whole number in"):
        planned(host, {"preset": "embedded"}, {"views": 0})


def test_the_packs_folder_is_not_the_hosts_nodes():
    run = subprocess.run([sys.executable, "-c", "import nodes"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode and "off sys.path" in run.stderr


def test_the_root_imports_nothing_of_a_host():
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('p', '__init__.py'); m = u.module_from_spec(s); "
    code += "s.loader.exec_module(m); assert m.WEB_DIRECTORY == './web' and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_kernels_compiled_under_one_package_name_serve_another(tmp_path):
    """Numba's cached files name the module, which a host calls after the pack's path and the command line does not."""
    code = """
import importlib.util as u, sys, numpy as np
spec = u.spec_from_file_location(sys.argv[1], 'microdreamer_core/__init__.py')
module = sys.modules[sys.argv[1]] = u.module_from_spec(spec)
spec.loader.exec_module(module)
from importlib import import_module
fill = import_module(sys.argv[1] + '.render.zbuffer_numba').fill
ids, barycentrics, depth = np.full((4, 4), -1, np.int32), np.zeros((4, 4, 3), np.float32), np.full((4, 4), np.inf, np.float32)
points = np.array([[0, 0], [9, 0], [0, 9]], np.float64)
fill(points, np.ones(3), np.array([[0, 1, 2]]), 0.1, ids, barycentrics, depth)
assert (ids == 0).any()
"""
    for name in ("one_name", "another name/of_a.path".replace(".", "_")):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code, name], cwd=ROOT, env=environment, check=True)
    assert len(list(tmp_path.rglob("*.nbi"))) == 2


# --- graphs ----------------------------------------------------------------------------------------------------------


def test_the_graph_of_stages_equals_generate_bit_for_bit(host, generated):
    graph = keep(workflow("01_image_to_3d_stages", 14), "14")
    executor = stand_in.Executor(host)
    result = executor.run(graph)["keep"][0]
    assert_same(result, generated)
    assert result.k == K - 1
    assert sum(node.endswith("12") for node in executor.ran) == K + 1
    assert sum(node.endswith("13") for node in executor.ran) == K + 1, "previews that hang off the body run in every pass"


def test_the_loop_stops_at_the_plans_end_though_its_count_is_higher(host, generated):
    graph = keep(workflow("01_image_to_3d_stages", 14), "14")
    graph["7"]["inputs"]["count"] = 100
    assert_same(kept(host, graph), generated)


def test_a_loop_of_count_0_never_runs_its_body(host):
    graph = keep(workflow("01_image_to_3d_stages", 14), "14")
    del graph["13"]
    graph["7"]["inputs"]["count"] = 0
    executor = stand_in.Executor(host)
    assert executor.run(graph)["keep"][0].k is None
    assert "12" not in executor.ran


def test_a_body_without_field_is_named_with_its_pass(host):
    graph = keep(workflow("01_image_to_3d_stages", 14), "14")
    del graph["13"]
    graph["15"] = {"class_type": "Broken", "inputs": {"field": ["12", 0]}}
    graph["14"]["inputs"]["field"] = ["15", 0]
    with pytest.raises(ValueError, match="SIR Loop End: Pass 0 of the loop gave list"):
        kept(host, graph)


@pytest.mark.parametrize("first_list", [0, 1])
def test_a_list_of_fields_is_refused_with_its_pass(host, first_list):
    graph = {
        "1": {"class_type": "MicroDreamerLoadModel", "inputs": {"checkpoint": "small.safetensors"}},
        "2": {"class_type": "MicroDreamerNewGaussians", "inputs": {"model": ["1", 0], "num_points": 50}},
        "3": {"class_type": "MicroDreamerLoopStart", "inputs": {"field": ["2", 0], "count": 3}},
        "6": {"class_type": "Advance", "inputs": {"field": ["3", 1], "outer": 0}},
        "4": {"class_type": "Many", "inputs": {"field": ["6", 0], "index": ["3", 2], "only": first_list}},
        "5": {"class_type": "MicroDreamerLoopEnd", "inputs": {"flow": ["3", 0], "field": ["4", 0]}},
    }
    with pytest.raises(ValueError, match=f"SIR Loop End.*: Pass {first_list} of the loop gave a list of 3 for 'field'"):
        kept(host, keep(graph, "5"))
    graph["4"]["inputs"]["field"], graph["3"]["inputs"]["field"] = ["2", 0], ["4", 0]
    graph["4"]["inputs"]["index"], graph["5"]["inputs"]["field"] = 5, ["3", 1]
    with pytest.raises(ValueError, match="SIR Loop Start got a list of 3 fields"):
        kept(host, keep(graph, "5"))


def test_more_passes_than_the_plan_has_end_in_one_sentence(host):
    graph = keep(workflow("01_image_to_3d_stages", 14), "14")
    graph["7"]["inputs"]["count"] = 100
    del graph["14"]["inputs"]["stop"]
    with pytest.raises(ValueError, match=f"Sample Cameras: The plan has {K} iterations"):
        kept(host, graph)


def test_loops_within_loops_run_everything_as_often_as_they_should(host):
    graph = {
        "1": {"class_type": "MicroDreamerLoadModel", "inputs": {"checkpoint": "small.safetensors"}},
        "2": {"class_type": "MicroDreamerNewGaussians", "inputs": {"model": ["1", 0], "num_points": 50}},
        "3": {"class_type": "MicroDreamerLoopStart", "inputs": {"field": ["2", 0], "count": 2}},
        "4": {"class_type": "MicroDreamerLoopStart", "inputs": {"field": ["3", 1], "count": 3}},
        "5": {"class_type": "Advance", "inputs": {"field": ["4", 1], "outer": ["3", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
        "7": {"class_type": "MicroDreamerLoopEnd", "inputs": {"flow": ["4", 0], "field": ["5", 0]}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
        "9": {"class_type": "MicroDreamerLoopEnd", "inputs": {"flow": ["3", 0], "field": ["7", 0]}},
    }
    executor = stand_in.Executor(host)
    assert executor.run(keep(graph, "9"))["keep"][0].k == 2 * 3 - 2
    classes = [executor.prompt.get_node(node)["class_type"] for node in executor.ran]
    assert (classes.count("Advance"), classes.count("PreviewImage")) == (6, 6 + 2)


def test_a_loop_of_the_hosts_own_stays_whole_in_every_pass(host):
    """Newer hosts note body and end on the node that begins such a loop."""
    graph = {
        "1": {"class_type": "MicroDreamerLoadModel", "inputs": {"checkpoint": "small.safetensors"}},
        "2": {"class_type": "MicroDreamerNewGaussians", "inputs": {"model": ["1", 0], "num_points": 50}},
        "3": {"class_type": "MicroDreamerLoopStart", "inputs": {"field": ["2", 0], "count": 2}},
        "4": {"class_type": "Advance", "inputs": {"field": ["3", 1], "outer": 0}, "_loop_body": ["5"], "_loop_end": "6"},
        "5": {"class_type": "Advance", "inputs": {"field": ["4", 0], "outer": 0}},
        "6": {"class_type": "Advance", "inputs": {"field": ["5", 0], "outer": 0}},
        "9": {"class_type": "MicroDreamerLoopEnd", "inputs": {"flow": ["3", 0], "field": ["6", 0]}},
    }
    executor = stand_in.Executor(host)
    assert executor.run(keep(graph, "9"))["keep"][0].k == 2 * 3 - 2
    copy = executor.prompt.get_node("9.1.4")
    assert (copy["_loop_body"], copy["_loop_end"]) == (["9.1.5"], "9.1.6")
    assert "_loop_end" not in executor.prompt.get_node("9.1.5")


def test_k_0_gives_the_initialisation(host):
    graph = keep(workflow("00_hello", 6), "6")
    graph["5"]["inputs"]["iterations"] = 0
    assert kept(host, graph).k == -1


def test_an_interrupt_keeps_the_last_iteration_and_the_run_goes_on_from_it(host, generated):
    graph = keep(workflow("00_hello", 6), "6")
    host.progress.clear()
    host.previews.clear()
    host.interrupt_at = 5 + 8 + 8  # in the first iteration's reconstruction, after 5 network calls and 8 steps of the start
    with pytest.raises(stand_in.Interrupted):
        kept(host, graph)
    assert len(host.previews) == 1
    graph["8"] = {
        "class_type": "MicroDreamerLoadState",
        "inputs": {"file": "output/microdreamer/interrupted.state.safetensors"},
    }
    graph["6"]["inputs"].update(field=["8", 0], seed=99)
    results = stand_in.Executor(host).run(graph)
    assert results["8"][1] == -1
    assert_same(results["keep"][0], generated)


def test_generate_shows_its_progress_and_a_sheet_of_every_iteration(host):
    host.progress.clear()
    host.previews.clear()
    kept(host, keep(workflow("00_hello", 6), "6"))
    values = [value for value, total in host.progress]
    assert values == sorted(values) and values[-1] == host.progress[-1][1]
    assert len(host.previews) == K + 1
    kind, picture, side = host.previews[-1]
    assert kind == "JPEG" and picture.width == side == 512


def test_a_field_passes_through_files(host, generated):
    graph = keep(workflow("00_hello", 6), "9")
    graph["7"] = {
        "class_type": "MicroDreamerSaveState",
        "inputs": {"field": ["6", 0], "filename_prefix": "microdreamer/run", "condition": ["4", 0], "plan": ["50", 0]},
    }
    graph["8"] = {"class_type": "MicroDreamerSaveSplat", "inputs": {"field": ["6", 0], "filename_prefix": "splat"}}
    del graph["keep"]
    executor = stand_in.Executor(host)
    path = executor.run(graph)["7"][0]
    (entry,) = executor.ui["7"]["files"]
    assert path == f"{entry['subfolder']}/{entry['filename']}" and (host.base / "output" / path).is_file()
    loaded = kept(host, keep({"9": {"class_type": "MicroDreamerLoadState", "inputs": {"file": f"output/{path}"}}}, "9"))
    assert_same(loaded, generated)
    (splat,) = executor.ui["8"]["3d"]
    name = f"output/{splat['subfolder']}/{splat['filename']}"
    graph = {"9": {"class_type": "MicroDreamerFieldFromSplat", "inputs": {"file": name, "seed": 3}}}
    loaded = kept(host, keep(graph, "9"))
    assert (loaded.k, loaded.seed, len(loaded.field)) == (-1, 3, len(generated.field))
    assert torch.equal(loaded.field.parameters.means, generated.field.parameters.means)


def test_small_work_leaves_a_core_to_the_browser(host, monkeypatch):
    types = importlib.import_module(f"{stand_in.PACK}.nodes.types")
    monkeypatch.setattr(types.os, "cpu_count", lambda: 3)

    class Node:
        TITLE = "Node"

        @classmethod
        @types.core_call
        def execute(cls, model):
            if model is None:
                raise types.InputError("no")
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        small, large = (types.LoadedModel(None, None, name) for name in (types.EMBEDDED, "large.ckpt"))
        assert [Node.execute(model=model) for model in (small, large)] == [2, 3]
        with pytest.raises(ValueError):
            Node.execute(model=None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_glb_keeps_its_graph_unless_the_user_minds(host):
    types = importlib.import_module(f"{stand_in.PACK}.nodes.types")
    mesh = types.from_native_mesh(stand_in.MESH(torch.eye(3)[None], torch.tensor([[[0, 1, 2]]])))
    node = type("Node", (host.nodes["MicroDreamerSaveMesh"],), {})
    node.hidden = SimpleNamespace(prompt={"1": {"inputs": {}}}, extra_pnginfo={"workflow": {"nodes": []}})
    arguments = sys.modules["comfy.cli_args"].args
    for disabled, expected in ((False, {"prompt": '{"1": {"inputs": {}}}', "workflow": '{"nodes": []}'}), (True, {})):
        arguments.disable_metadata = disabled
        path = node.execute(mesh=types.to_native_mesh(mesh)).args[0]
        data = (host.base / "output" / path).read_bytes()
        document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
        assert document["asset"]["extras"] == {"source": "ComfyUI", **expected}
    arguments.disable_metadata = False


def test_a_saved_path_may_be_linked_to_what_loads(host, generated):
    graph = keep(workflow("00_hello", 6), "6")
    graph["7"] = {"class_type": "MicroDreamerSaveState", "inputs": {"field": ["6", 0], "filename_prefix": "a/run"}}
    graph["8"] = {"class_type": "MicroDreamerLoadState", "inputs": {"file": "linked path", "path": ["7", 0]}}
    assert_same(kept(host, {**graph, **keep({}, "8")}), generated)
    node = host.nodes["MicroDreamerLoadState"]
    assert node.validate_inputs("linked path") is True
    assert node.fingerprint_inputs(file="linked path", path="a") == node.fingerprint_inputs(file="linked path", path="b")
    with pytest.raises(ValueError, match="link the output of a node that saves"):
        node.execute(file="linked path")
    with pytest.raises(ValueError, match="choose 'linked path' as file, or unlink the path"):
        node.execute(file="output/a.state.safetensors", path="b.state.safetensors")


def test_the_packs_examples_load(host):
    picture = host.nodes["MicroDreamerExamplePicture"]
    (name,) = (s for s in picture.define_schema().inputs)
    for option in name.options["options"]:
        image, mask = picture.execute(picture=option).args
        assert image.shape == (1, *mask.shape[1:], 3) and 0.05 < float(mask.mean()) < 0.9
        assert float(mask[:, 0].max()) == 0, "white is object"
    with pytest.raises(ValueError, match="There is no example 'nobody'"):
        picture.execute(picture="nobody")
    field = host.nodes["MicroDreamerFieldFromSplat"]
    assert "samples/bird_rough.ply" in field.define_schema().inputs[0].options["options"]
    assert len(field.execute(file="samples/bird_rough.ply").args[0].field) > 1000
    (model,) = host.nodes["MicroDreamerLoadModel"].execute(checkpoint="small.safetensors").args
    suited, fresh = (
        state.args[0].field.settings
        for state in (
            field.execute(file="samples/bird_rough.ply", model=model),
            host.nodes["MicroDreamerNewGaussians"].execute(model=model),
        )
    )
    assert suited == fresh


@pytest.mark.parametrize("name", ["output/../secret.state.safetensors", "elsewhere/a.state.safetensors", "output/none.ply"])
def test_only_files_of_the_hosts_folders_are_opened(host, name):
    (host.base / "secret.state.safetensors").write_bytes(b"")
    node = host.nodes["MicroDreamerLoadState"]
    assert "There is no file" in node.validate_inputs(name)
    with pytest.raises(ValueError, match="Load State: There is no file"):
        node.execute(file=name)


def test_every_stage_names_itself_when_shapes_do_not_match(host):
    nodes = host.nodes
    results = stand_in.Executor(host).run(keep(workflow("01_image_to_3d_stages", 10), "10"))
    model, condition, rig, images = results["1"][0], results["4"][0], results["8"][0], results["9"][0]
    reference, mask = results["3"]
    with pytest.raises(ValueError, match=r"Condition on Image: The reference must be square"):
        nodes["MicroDreamerConditionOnImage"].execute(model=model, image=reference[:, :9], mask=mask)
    with pytest.raises(ValueError, match=r"Hybrid Forward \(iteration -1\): The pictures must have shape"):
        nodes["MicroDreamerHybridForward"].execute(condition=condition, cameras=rig, images=images[:3])
    with pytest.raises(ValueError, match=r"DDIM Refine \(iteration -1\): The latents must have shape"):
        nodes["MicroDreamerDDIMRefine"].execute(condition=condition, cameras=rig, latent={"samples": torch.zeros(4, 4, 8, 8)})
    with pytest.raises(ValueError, match="Render Views.*'cameras' must be a Step, got Tensor"):
        nodes["MicroDreamerRenderViews"].execute(field=results["6"][0], cameras=images)
    with pytest.raises(ValueError, match="Turntable: Either a field or a mesh is rendered, got none"):
        nodes["MicroDreamerTurntable"].execute()
    with pytest.raises(ValueError, match="SIGMAS are linked without a SAMPLER"):
        nodes["MicroDreamerGenerate"].execute(condition=condition, plan=rig.plan, sigmas=torch.tensor([1.0, 0.0]))


def test_masks_of_load_image_and_of_cut_out_nodes_are_understood(host):
    object_mask = importlib.import_module(f"{stand_in.PACK}.nodes.reference").object_mask
    mask = torch.zeros(8, 8)
    mask[2:6, 2:6] = 1
    assert torch.equal(object_mask(mask, "auto"), mask)
    assert torch.equal(object_mask(1 - mask, "auto"), mask)
    assert torch.equal(object_mask(1 - mask, "background"), mask)
    assert torch.equal(object_mask(1 - mask, "object"), 1 - mask)
    assert object_mask(torch.zeros(64, 64), "auto") is None


# --- samplers of the host --------------------------------------------------------------------------------------------


class Ancestral:
    """Ancestral Euler steps in the host's convention (x / α, noise levels σ / α), with its choice of noise."""

    def __init__(self, eta):
        self.eta = eta

    def sample(self, model, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        x = noise * sigmas[0] + latent_image
        draw = torch.Generator().manual_seed(extra_args["seed"])
        for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            denoised = model(x, now.expand(len(x)), **extra_args)
            up = self.eta * (after**2 * (now**2 - after**2) / now**2).sqrt()
            down = (after**2 - up**2).sqrt()
            x = denoised + (x - denoised) / now * down + up * torch.randn(x.shape, generator=draw)
        return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps, t2", [(10, 801), (20, 451)])
def test_a_native_ancestral_sampler_equals_our_ddim(host, eta, steps, t2):
    native = importlib.import_module(f"{stand_in.PACK}.nodes.native")
    diffusion = f"{stand_in.PACK}.microdreamer_core.diffusion"
    ddim, timesteps = (importlib.import_module(f"{diffusion}.{name}") for name in ("ddim", "timesteps"))
    process = importlib.import_module(f"{diffusion}.noise").STABLE_DIFFUSION
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def denoise(x, t):
        return torch.tanh(x.flip(1) + 0.001 * t)

    draw = torch.Generator().manual_seed(2)
    noise = torch.Generator().manual_seed(int(torch.randint(0, 2**31, (), generator=draw)))
    path = timesteps.sampling_path(t2, steps)
    noises = [torch.randn(x.shape, generator=noise) for _ in path]
    expected = ddim.sample(x, path, denoise, process, eta=eta, noises=noises)
    sampler = native.NativeSampler(Ancestral(eta))
    got = sampler(denoise, x, path, process, torch.Generator().manual_seed(2))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_sigmas_above_t2_are_left_out(host):
    native = importlib.import_module(f"{stand_in.PACK}.nodes.native")
    diffusion = f"{stand_in.PACK}.microdreamer_core.diffusion"
    ddim, timesteps = (importlib.import_module(f"{diffusion}.{name}") for name in ("ddim", "timesteps"))
    process = importlib.import_module(f"{diffusion}.noise").STABLE_DIFFUSION
    seen = []

    def denoise(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    x = torch.ones(1, 4, 8, 8)
    sampler = native.NativeSampler(Ancestral(0.0), torch.tensor([14.0, 9.0, 1.0, 0.5, 0.0]))
    path = timesteps.sampling_path(801, 10)
    sampler(denoise, x, path, process, torch.Generator())
    assert seen[0] == 801 and len(seen) == 3
    with pytest.raises(ValueError, match="No SIGMAS lie below"):
        native.NativeSampler(Ancestral(0.0), torch.tensor([14.0]))(denoise, x, path, process, torch.Generator())


def test_a_native_sampler_drives_generate(host, generated):
    graph = keep(workflow("00_hello", 6), "6")
    graph["8"] = {"class_type": "Pick", "inputs": {}}
    host.nodes["Pick"] = type("Pick", (), {"OUTPUT_NODE": False, "execute": lambda: stand_in.NodeOutput(Ancestral(0.0))})
    graph["6"]["inputs"]["sampler"] = ["8", 0]
    result = kept(host, graph)
    assert result.k == generated.k
    assert not torch.equal(result.field.parameters.dc[:8], generated.field.parameters.dc[:8])


# --- mesh ------------------------------------------------------------------------------------------------------------


def test_the_whole_workflow_leaves_its_files(host):
    graph = workflow("00_hello", 26)
    graph["21"]["inputs"].update(resolution=48, target_faces=300)
    graph["22"]["inputs"].update(texture_size=64, views=12, view_size=64)
    graph["23"]["inputs"].update(steps=2, views=4)
    graph["27"] = {"class_type": "MicroDreamerTurntable", "inputs": {"mesh": ["23", 0], "frames": 2, "size": 32}}
    executor = stand_in.Executor(host)
    results = executor.run(keep(graph, "27"))
    native = results["23"][0]
    assert native.vertices.ndim == native.faces.ndim == 3 and native.microdreamer.texture.shape == (64, 64, 3)
    assert results["keep"][0].shape == (2, 32, 32, 3)
    for node in ("24", "26"):
        (entry,) = executor.ui[node]["3d"]
        assert (host.base / "output" / entry["subfolder"] / entry["filename"]).stat().st_size > 1000
    assert results["24"][0] == "microdreamer/" + executor.ui["24"]["3d"][0]["filename"]
