"""The object while it forms and the iterations of a run: packing, rate, what is kept, and what Take Iteration gives."""

from __future__ import annotations

import base64
import importlib
import json
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import host_stand_in as stand_in
from helpers.node_graphs import assert_same, keep
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.render.protocol import Splats
from microdreamer_core.sir.stages import reference_view
from microdreamer_core.util.seeds import generator

K = 3


@pytest.fixture(scope="module")
def gaussians(host):
    """The module of the pack's own copy of the core."""
    return importlib.import_module(f"{stand_in.PACK}.microdreamer_core.fields.gaussians")


@pytest.fixture(scope="module")
def stream(host):
    return importlib.import_module(f"{stand_in.PACK}.nodes.stream")


@pytest.fixture(scope="module")
def history(host):
    return importlib.import_module(f"{stand_in.PACK}.nodes.history")


def graph(**generate) -> dict:
    """Generate alone, with little to do."""

    def node(name, **inputs):
        return {"class_type": f"MicroDreamer{name}", "inputs": inputs}

    made = {
        "1": node("LoadModel", checkpoint="small.safetensors"),
        "2": {"class_type": "LoadImage", "inputs": {"image": "box.png"}},
        "3": node("PrepareReference", model=["1", 0], image=["2", 0], mask=["2", 1]),
        "4": node("ConditionOnImage", model=["1", 0], image=["3", 0], mask=["3", 1], elevation=5.0),
        "50": node("SIRPlan", preset="embedded", iterations=K, steps=4),
        "5": node("SIRPlanOptions", plan=["50", 0], discretization=5, init_steps=8),
        "6": node("Generate", condition=["4", 0], plan=["5", 0], seed=0, **generate),
    }
    return keep(made, "6")


@pytest.fixture(scope="module")
def run(host):
    """What Generate gave and told the page."""
    executor = stand_in.Executor(host)
    outputs = executor.run(graph())
    field = outputs["6"][0]
    start = take(host, field, -1).args[0]  # later tests remove the runs of others
    return SimpleNamespace(field=field, start=start, outputs=outputs, ui=executor.ui["6"]["microdreamer_run"][0])


def some_splats(count: int) -> Splats:
    rng = generator(3, 0, "test")

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    return Splats(
        normal(count, 3), normal(count, 4), (normal(count, 3) - 4).exp(), normal(count).sigmoid(), normal(count, 3).sigmoid()
    )


def unpack(packed: bytes) -> Splats:
    """Written from the format's description, as the viewer is."""
    magic, count, *numbers = struct.unpack_from("<4sI8f", packed)
    assert magic == b"MDS1"
    low, span, (log_low, log_span) = np.array(numbers[:3]), np.array(numbers[3:6]), numbers[6:]
    means = np.frombuffer(packed, "<u2", 3 * count, 40).reshape(-1, 3) / 65535 * span + low
    rest = np.frombuffer(packed, "u1", -1, 40 + 6 * count).astype(float)
    assert len(rest) == 11 * count
    scales, colors, quats = np.split(rest, [3 * count, 7 * count])
    colors = colors.reshape(-1, 4) / 255
    values = (means, (quats.reshape(-1, 4) - 128) / 127, np.exp(log_low + log_span * scales.reshape(-1, 3) / 255))
    return Splats(*(torch.from_numpy(value).float() for value in (*values, colors[:, 3], colors[:, :3])))


# --- packing ---------------------------------------------------------------------------------------------------------


def test_packing_keeps_every_value_within_half_a_code(stream):
    splats = some_splats(500)
    packed = stream.pack_splats(splats)
    assert len(packed) == 40 + 17 * 500
    back = unpack(packed)
    span = (splats.means.amax(0) - splats.means.amin(0)) / 65535
    assert ((back.means - splats.means).abs() <= span * 0.51 + 1e-6).all()
    logs = splats.scales.clamp_min(1e-4).log()
    assert ((back.scales.log() - logs).abs() <= 0.51 * (logs.max() - logs.min()) / 255 + 1e-5).all()
    torch.testing.assert_close(back.colors, splats.colors, rtol=0, atol=0.51 / 255)
    torch.testing.assert_close(back.opacities, splats.opacities, rtol=0, atol=0.51 / 255)
    normalised = torch.nn.functional.normalize(splats.quats, dim=1)
    torch.testing.assert_close(back.quats, normalised, rtol=0, atol=0.51 / 127)


def test_a_packed_field_renders_like_the_field(stream, gaussians):
    field = gaussians.Gaussians.ball(gaussians.GaussianSettings(num_points=400, opacity=0.6, antialiased=True), seed=1)
    field = replace(field, parameters=field.parameters._replace(dc=torch.randn(400, 3, generator=generator(1, 0, "test"))))
    back, camera = unpack(stream.pack_field(field)), orbit_cameras(10.0, 30.0, 2.0, width=64)
    means, logits = back.means, back.opacities.logit()
    parameters = type(field.parameters)(means, back.scales.log(), back.quats, logits, (back.colors - 0.5) / 0.28209479)
    same = replace(field, parameters=parameters).render(camera, WHITE).rgb
    assert (same - field.render(camera, WHITE).rgb).abs().mean() < 0.002


def test_a_fields_low_pass_is_part_of_what_is_packed(stream, gaussians):
    fresh = gaussians.Gaussians.ball(gaussians.GaussianSettings(num_points=50), seed=0)
    fitted = replace(fresh, pixel=0.05)
    wider = unpack(stream.pack_field(fitted)).scales / unpack(stream.pack_field(fresh)).scales
    assert (wider > 1.001).all()


def test_a_message_stays_below_a_megabyte_and_drops_what_shows_least(stream):
    count = stream.MAX_SPLATS + 5000
    splats = some_splats(count)
    faint = torch.arange(count) % 7 == 0
    splats = replace(splats, opacities=torch.where(faint, 1e-4, 0.9))
    packed = stream.pack_splats(splats)
    assert len(json.dumps({"splat": base64.b64encode(packed).decode()})) <= stream.MAX_BYTES - 1000
    assert struct.unpack_from("<I", packed, 4)[0] == stream.MAX_SPLATS > 40_000
    assert (unpack(packed).opacities > 0.5).float().mean() > 0.9


def test_a_nerf_has_no_splats(stream):
    assert stream.pack_field(SimpleNamespace(kind="nerf")) is None


# --- rate ------------------------------------------------------------------------------------------------------------


class Page:
    """A page that notes when which message came, and the clock that it looks at."""

    def __init__(self, stream):
        self.now, self.timers, self.got = 0.0, [], []
        self.stream = stream.Stream(lambda: self.now, lambda seconds, action: self.timers.append((self.now + seconds, action)))

    def node(self, name):
        send = lambda event, data: self.got.append((round(self.now, 3), name, data["n"]))  # noqa: E731
        return SimpleNamespace(client="page", node=name, send=send)

    def advance(self, seconds):
        end = self.now + seconds
        while self.timers and min(self.timers, key=lambda t: t[0])[0] <= end:
            first = min(self.timers, key=lambda t: t[0])
            self.timers.remove(first)
            self.now = first[0]
            first[1]()
        self.now = end


def test_messages_come_twice_a_second_at_most_and_the_last_one_comes(stream):
    page = Page(stream)
    for n in range(101):
        page.stream.offer(page.node("6"), {"n": n})
        page.advance(0.03)
    page.advance(2.0)
    times = [at for at, _, _ in page.got]
    assert len(times) == 7 and min(b - a for a, b in zip(times, times[1:], strict=False)) >= stream.PERIOD
    assert page.got[0] == (0.0, "6", 0) and page.got[-1][2] == 100
    assert not page.timers and page.stream.is_due()


def test_a_message_of_another_node_does_not_replace_one_that_waits(stream):
    page = Page(stream)
    for n, name in enumerate("aabb"):
        page.stream.offer(page.node(name), {"n": n})
    assert not page.stream.is_due()
    page.advance(2.0)
    assert page.got == [(0.0, "a", 0), (0.5, "a", 1), (1.0, "b", 3)]


# --- only for a page -------------------------------------------------------------------------------------------------


def test_without_a_page_nothing_is_packed_and_the_core_gets_no_hook(stream, run):
    assert stream.LiveView((0, 0, 2, 49)).hook() is None
    assert [entry["splat"] for entry in run.ui["iterations"]] == [False] * (K + 1)


def test_a_page_gets_the_field_while_it_forms_and_the_result_is_the_same(host, stream, run, monkeypatch):
    got = []
    target = SimpleNamespace(
        client="page", node="6", send=lambda event, data: got.append((event, json.loads(json.dumps(data))))
    )
    preview = importlib.import_module(f"{stand_in.PACK}.nodes.preview")
    monkeypatch.setattr(stream, "STREAM", stream.Stream(clock=iter(range(10**6)).__next__))  # always due
    monkeypatch.setattr(preview.LiveView, "of_plan", lambda plan, e, **f: stream.LiveView((e, 0.0, 1.5, 49.1), f, target))
    outputs = stand_in.Executor(host).run(graph())
    assert_same(outputs["6"][0], run.field)
    assert {event for event, _ in got} == {"microdreamer.view"} and len(got) > 10
    finished = [data for _, data in got if data.get("iterations")]
    assert [len(data["iterations"]) for data in finished] == [1, 2, 3, 4] and all("splat" in data for data in finished)
    assert base64.b64decode(finished[-1]["splat"]) == stream.pack_field(run.field.field)
    assert finished[0]["camera"] == [5.0, 0.0, 1.5, 49.1]


def test_the_hosts_page_is_found_only_if_it_takes_previews(host, monkeypatch):
    compat = importlib.import_module(f"{stand_in.PACK}.nodes.compat")
    assert compat.browser() is None
    sent = []
    server = SimpleNamespace(client_id=None, sockets_metadata={"page": {}}, send_sync=lambda *message: sent.append(message))
    modules = {
        "server": SimpleNamespace(PromptServer=SimpleNamespace(instance=server)),
        "comfy_api.feature_flags": SimpleNamespace(supports_feature=lambda all_, client, name: name in all_.get(client, {})),
        "comfy_execution.utils": SimpleNamespace(get_executing_context=lambda: SimpleNamespace(node_id="9.2.8")),
        "comfy_execution.progress": SimpleNamespace(
            get_progress_state=lambda: SimpleNamespace(dynprompt=SimpleNamespace(get_display_node_id=lambda id: id[-1]))
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(importlib.sys.modules, name, module)
    assert compat.browser() is None, "no client has queued the prompt"
    server.client_id = "page"
    assert compat.browser() is None, "a client of the API"
    server.sockets_metadata["page"] = {"supports_preview_metadata": True}
    compat.browser().send("event", {"n": 1})
    assert sent == [("event", {"node": "8", "n": 1}, "page")]


# --- the time machine ------------------------------------------------------------------------------------------------


def take(host, field, k):
    with torch.inference_mode():
        return host.nodes["MicroDreamerTakeIteration"].execute(field=field, iteration=k)


def test_every_iteration_of_a_run_can_be_taken(host, run):
    assert [entry["k"] for entry in run.ui["iterations"]] == [-1, 0, 1, 2]
    assert run.ui["iterations"][1]["text"].startswith(f"1/{K}  t2 ")
    assert_same(take(host, run.field, 2).args[0], run.field)
    first = take(host, run.field, -1)
    assert first.args[0].k == -1 and first.args[0].field.step < run.field.field.step
    (sheet,) = first.ui["images"]
    with Image.open(host.base / "temp" / sheet["subfolder"] / sheet["filename"]) as picture:
        assert picture.width >= 512


def test_generate_goes_on_from_a_taken_iteration_as_the_run_did(host, run):
    taken = graph()
    taken["t"] = {"class_type": "MicroDreamerTakeIteration", "inputs": {"field": ["6", 0], "iteration": 0}}
    taken["g"] = {"class_type": "MicroDreamerGenerate", "inputs": {**taken["6"]["inputs"], "field": ["t", 0]}}
    executor = stand_in.Executor(host)
    executor.prompt = stand_in._Prompt(taken)
    after = executor._outputs("g")[0][0]
    assert_same(after, run.field)
    assert after.run != run.field.run
    with pytest.raises(ValueError, match=r"Take Iteration.*Iteration 0 of this run is not kept; choose one of 1, 2 "):
        take(host, after, 0)


def test_a_field_without_a_run_is_refused(host, run):
    with pytest.raises(ValueError, match="comes from no run"):
        take(host, replace(run.field, run=""), 0)


def states(history, run):
    return [int(path.name[:4]) for path in history._states(history._folder(run))]


def kept(history, gaussians, count):
    """The numbers of the states that are left of a run of ``count`` iterations."""
    one = history.History(seed=0)
    field = gaussians.Gaussians.ball(gaussians.GaussianSettings(num_points=5), seed=0)
    state = importlib.import_module(f"{stand_in.PACK}.nodes.types").FieldState
    for k in range(-1, count - 1):
        one.keep(state(field, 0, k), Image.new("RGB", (4, 4)), b"x", "")
    return one.run, states(history, one.run)


def test_states_of_a_long_run_are_thinned_out_evenly(history, gaussians, monkeypatch):
    monkeypatch.setattr(history, "MOST_STATES", 8)
    _, left = kept(history, gaussians, 33)
    assert len(left) == 8 and left[0] == 0 and left[-2:] == [31, 32]
    assert max(b - a for a, b in zip(left, left[1:], strict=False)) <= 10


def test_the_bytes_of_a_run_are_bounded(history, gaussians, monkeypatch):
    run, all_ = kept(history, gaussians, 12)
    each = history._size(history._states(history._folder(run))) / len(all_)
    monkeypatch.setattr(history, "MOST_STATE_BYTES", int(5.5 * each))
    run, left = kept(history, gaussians, 12)
    assert len(left) == 5 and history._size(history._states(history._folder(run))) <= 5.5 * each


def test_the_oldest_runs_are_removed(history, gaussians, monkeypatch, host):
    monkeypatch.setattr(history, "MOST_RUNS", 3)
    runs = [kept(history, gaussians, 1)[0] for _ in range(5)]
    assert not any(states(history, run) for run in runs[:2]) and all(states(history, run) for run in runs[2:])
    monkeypatch.setattr(history, "MOST_BYTES", 1)
    last, _ = kept(history, gaussians, 1)
    assert states(history, last) and not any(states(history, run) for run in runs)
    gone = importlib.import_module(f"{stand_in.PACK}.nodes.types").FieldState(None, run=runs[0])
    with pytest.raises(ValueError, match="The iterations of this run are gone"):
        take(host, gone, 0)


def test_a_full_disk_ends_the_keeping_and_not_the_run(history, gaussians, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(history, "save_field", fail)
    run, left = kept(history, gaussians, 3)
    assert left == [] and caplog.text.count("no space left on device") == 1


# --- stages that were silent -----------------------------------------------------------------------------------------


def shown(host) -> list[tuple[str, int, int]]:
    """Format and size of the previews so far, which are then forgotten; all have something to see."""
    previews, host.previews = host.previews, []
    assert all(np.ptp(np.asarray(picture), axis=(0, 1)).max() > 8 for _, picture, _ in previews)
    return [(kind, *picture.size) for kind, picture, _ in previews]


def test_extraction_and_baking_show_how_far_they_are(host, run):
    inputs = {"field": run.field, "resolution": 48, "target_faces": 300}
    shown(host)
    with torch.inference_mode():
        (mesh,) = host.nodes["MicroDreamerExtractMesh"].execute(**inputs).args
    assert shown(host) == [("JPEG", 4 * 192, 192)] * 2
    host.progress.clear()
    with torch.inference_mode():
        baked = host.nodes["MicroDreamerBakeTexture"].execute(
            mesh=mesh, field=run.field, texture_size=64, views=13, view_size=32
        )
    assert shown(host) == [("JPEG", 96, 32)] * 4 + [("JPEG", 32, 32), ("JPEG", 4 * 192, 192)]
    done = [value / total for value, total in host.progress]
    assert done == sorted(done) and done[-1] == 1 and len(done) == 9
    assert baked.args[1].shape == (1, 64, 64, 3)


def test_baking_can_be_interrupted_between_renders(host, run, monkeypatch):
    mesh_nodes = importlib.import_module(f"{stand_in.PACK}.nodes.mesh")
    calls = iter(range(5))
    monkeypatch.setattr(mesh_nodes, "interrupt_check", lambda: next(calls))
    with torch.inference_mode():
        (mesh,) = host.nodes["MicroDreamerExtractMesh"].execute(field=run.field, resolution=48, target_faces=300).args
        with pytest.raises((StopIteration, RuntimeError)):  # after extract, clean, unwrap, render and its first views
            host.nodes["MicroDreamerBakeTexture"].execute(mesh=mesh, field=run.field, texture_size=64, views=13, view_size=32)
    assert [size for _, *size in shown(host)] == [[768, 192]] * 2 + [[96, 32]]


def test_the_conversion_of_a_nerf_shows_how_far_it_is(host, monkeypatch):
    module = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.convert.nerf_to_gaussians")
    for place in (module, importlib.import_module(f"{stand_in.PACK}.nodes.field")):
        monkeypatch.setattr(place, "FIT_STEPS", 3)
    with torch.inference_mode():
        (start,) = host.nodes["MicroDreamerNewNeRF"].execute(seed=3, size="small").args
        host.progress.clear()
        shown(host)
        host.nodes["MicroDreamerNeRFToGaussians"].execute(field=start, num_points=300)
    assert host.progress == [(1, 3), (2, 3), (3, 3), (3, 3)]
    assert shown(host) == [("JPEG", 512, 128)]


def test_reconstruct_steps_shows_its_sheet_and_a_page_the_field(host, stream, run, monkeypatch):
    got = []
    target = SimpleNamespace(client="page", node="11", send=lambda event, data: got.append(data))
    monkeypatch.setattr(stream, "STREAM", stream.Stream(clock=iter(range(10**6)).__next__))
    of_plan = lambda plan, e, **f: stream.LiveView((e, 0.0, plan.radius, plan.fov_y), f, target)  # noqa: E731
    monkeypatch.setattr(stream.LiveView, "of_plan", of_plan)
    stages = {name: entry for name, entry in graph().items() if name not in ("6", "keep")}

    def node(name, **inputs):
        return {"class_type": f"MicroDreamer{name}", "inputs": inputs}

    link = {"condition": ["4", 0], "cameras": ["8", 0]}
    stages["7"] = node("NewGaussians", model=["1", 0], seed=0)
    stages["8"] = node("SampleCameras", field=["7", 0], plan=["5", 0], condition=["4", 0])
    stages["9"] = node("RenderViews", field=["7", 0], cameras=["8", 0])
    stages["12"] = node("HybridForward", images=["9", 0], **link)
    stages["10"] = node("DDIMRefine", latent=["12", 0], **link)
    stages["11"] = node("ReconstructSteps", field=["7", 0], images=["10", 0], **link)
    shown(host)
    field, _, sheet, _ = stand_in.Executor(host).run(keep(stages, "11"))["11"]
    assert shown(host) == [("JPEG", 512, 512 * sheet.shape[1] // sheet.shape[2] + 26)]
    assert len(got) > 2 and base64.b64decode(got[-1]["splat"]) == stream.pack_field(field.field)
    assert_same(field, run.start)


# --- the time that a plan takes --------------------------------------------------------------------------------------


def test_a_plan_says_what_earlier_runs_measured(host):
    pace = importlib.import_module(f"{stand_in.PACK}.nodes.pace")
    plan = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.sir.presets").get_plan("imagedream-gaussians")
    (host.base / pace.FILE).unlink(missing_ok=True)
    assert "the first run with this preset measures" in pace.expected_time(plan)
    meter = pace.PaceMeter(plan)
    for evaluations in (100, 140, 180):  # 0.01 s an evaluation, 0.002 s an update, after a slow start
        late = 9.0 if evaluations == 100 else 1.0
        meter.add(
            SimpleNamespace(
                evaluations=evaluations, losses=(1.0,) * 50, seconds={"refine": 0.4 * late, "reconstruct": 0.1 * late}
            )
        )
    updates = plan.init_steps + plan.iterations * plan.steps
    expected = 0.01 * plan.evaluations().total + 0.002 * updates
    assert pace.expected_seconds(plan) == pytest.approx(expected)
    assert pace.expected_seconds(replace(plan, iterations=2 * plan.iterations)) > 1.7 * expected
    other = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.sir.presets").get_plan("embedded")
    assert pace.expected_seconds(replace(other, name="never run")) is None
    with torch.inference_mode():
        made = host.nodes["MicroDreamerSIRPlan"].execute(preset="imagedream-gaussians")
    assert made.ui["text"][0].startswith(made.args[2]) and "on this device" in made.ui["text"][0]
    assert "device" not in made.args[2], "the output does not change with what was measured"
    (host.base / pace.FILE).write_text("{damaged", encoding="utf-8")
    assert pace.expected_seconds(plan) is None


def test_generate_measures_its_pace(host, run):
    pace = importlib.import_module(f"{stand_in.PACK}.nodes.pace")
    plan = run.outputs["5"][0]
    (host.base / pace.FILE).unlink(missing_ok=True)
    stand_in.Executor(host).run(graph(keep_best=True))
    assert 0 < pace.expected_seconds(plan) < 60


# --- the best iteration ----------------------------------------------------------------------------------------------


def test_keep_best_gives_the_iteration_nearest_to_the_reference(host):
    full = graph(keep_best=True)
    outputs = stand_in.Executor(host).run(full)
    best, _, report = outputs["6"]
    condition, plan = outputs["4"][0], outputs["5"][0]
    view = reference_view(condition.reference, plan, condition.diffusion.image_size)
    inside = view.alpha[0, ..., 0] > 0.5

    def error(k):
        render = take(host, best, k).args[0].field.render(view.cameras, WHITE).rgb[0]
        return float((render.clamp(0, 1) - view.image[0])[inside].square().mean())

    errors = {k: error(k) for k in (-1, 0, 1, 2)}
    assert best.k == min(errors, key=errors.get)
    decibels = -10 * np.log10(min(errors.values()))
    assert report.splitlines()[-1] == f"kept k {best.k}: {decibels:.1f} dB from the reference within its silhouette"


def test_keep_best_needs_a_reference(host, run):
    inputs = {name: run.outputs[link][0] for name, link in (("condition", "4"), ("plan", "5"))}
    inputs["condition"] = replace(inputs["condition"], reference=None)
    with pytest.raises(ValueError, match="keep_best compares with the reference"), torch.inference_mode():
        host.nodes["MicroDreamerGenerate"].execute(**inputs, keep_best=True)
