"""The whole job in one node, which ComfyUI expands into the nodes of the graph that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..microdreamer_core.checkpoints.registry import EMBEDDED
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.sir.presets import get_plan
from . import types
from .compat import ADVANCED, GraphBuilder, io, schema
from .reference import elevation_input
from .types import LoadedModel, core_call, expect
from .widgets import seed_input

ESSENTIALS = "3D"


@dataclass(frozen=True)
class Quality:
    """What a run may cost: ``rounds`` is K as a share of the preset's; the others are settings of the mesh."""

    rounds: float
    resolution: int
    target_faces: int
    texture_size: int

    def describe(self) -> str:
        return f"{self.rounds:g} of the preset's K, mesh grid {self.resolution}, texture {self.texture_size}"


QUALITIES = {
    "fast": Quality(0.4, 96, 10_000, 512),
    "standard": Quality(1.0, 128, 30_000, 1024),
    "high": Quality(1.5, 192, 60_000, 2048),
}


def _run_inputs() -> list[io.Input]:
    costs = "; ".join(f"{name}: {quality.describe()}" for name, quality in QUALITIES.items())
    return [
        io.Combo.Input(
            "quality",
            options=list(QUALITIES),
            default="standard",
            tooltip=f"{costs}. K is 20 with the model of the pack, whose views are 64 px.",
        ),
        seed_input("Another seed gives another result."),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Mesh.Output(id="mesh_out", display_name="mesh", tooltip="The textured mesh."),
        types.FieldSocket.Output(
            id="field_out", display_name="field", tooltip="The cleaned Gaussians, with the reference over what it shows."
        ),
        io.Image.Output(id="sheet_out", display_name="sheet", tooltip="Renders above targets of the last iteration."),
        io.String.Output(id="report_out", display_name="report", tooltip="One line for every iteration."),
    ]


class ImageTo3D(io.ComfyNode):
    """Make a textured mesh of an image: prepare it, condition, run SIR, clean, extract, bake and refine the texture."""

    TITLE = "Image to 3D (MicroDreamer)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerImageTo3D",
            aliases=("image to 3d", "photo to mesh", "picture to 3d", "generate 3d", "MicroDreamer", "SIR"),
            essentials=ESSENTIALS,
            display_name=cls.TITLE,
            category="MicroDreamer",
            description="Makes a textured 3D object of one picture: the whole algorithm, mesh and texture, seen live.",
            inputs=[
                io.Image.Input("image", tooltip="A picture of one object, all of it visible."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the object is. Without it, a transparent or plain background is removed.",
                ),
                types.Model.Input(
                    "model", optional=True, tooltip="A multi-view model that takes a picture; without it, that of the pack."
                ),
                *_run_inputs(),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    tooltip="What the picture shows, for models that take words too, like ImageDream; else leave it empty.",
                    **ADVANCED,
                ),
                elevation_input(5.0, optional=True, **ADVANCED),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            enable_expand=True,
        )

    @classmethod
    @core_call
    def execute(
        cls,
        image: Tensor,
        quality: str = "standard",
        seed: int = 0,
        prompt: str = "",
        elevation: float = 5.0,
        mask: Tensor | None = None,
        model: LoadedModel | None = None,
    ) -> io.NodeOutput:
        graph, link = GraphBuilder(), _links(cls.hidden)
        if model is None:
            link["model"] = graph.node("MicroDreamerLoadModel", "model", checkpoint=EMBEDDED).out(0)
        takes_prompt = model is not None and expect(model, LoadedModel, "model").model.takes_prompt
        cut_out = graph.node(
            "MicroDreamerPrepareReference",
            "reference",
            image=link["image"],
            **{name: link[name] for name in ("model", "mask") if name in link},
        )
        reference = {"model": link["model"], "image": cut_out.out(0), "mask": cut_out.out(1), "elevation": elevation}
        if prompt or takes_prompt:
            condition = graph.node("MicroDreamerConditionOnBoth", "condition", prompt=prompt, **reference)
        else:
            condition = graph.node("MicroDreamerConditionOnImage", "condition", **reference)
        return _job(graph, condition.out(0), model, quality, seed)


class TextTo3D(io.ComfyNode):
    """Make a textured mesh of a prompt, as ``ImageTo3D`` does of an image."""

    TITLE = "Text to 3D (MicroDreamer)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerTextTo3D",
            aliases=("text to 3d", "prompt to mesh", "generate 3d", "MicroDreamer", "SIR"),
            essentials=ESSENTIALS,
            display_name=cls.TITLE,
            category="MicroDreamer",
            description="Makes a textured 3D object of a prompt: the whole algorithm, mesh and texture, seen live.",
            inputs=[
                types.Model.Input("model", tooltip="A model that takes a prompt, like MVDream; that of the pack takes none."),
                io.String.Input("prompt", default="", multiline=True, tooltip="What to make, in words."),
                *_run_inputs(),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the object must not look like; empty for the model's own list.",
                    **ADVANCED,
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            enable_expand=True,
        )

    @classmethod
    @core_call
    def execute(
        cls, model: LoadedModel, prompt: str, quality: str = "standard", seed: int = 0, negative: str = ""
    ) -> io.NodeOutput:
        expect(model, LoadedModel, "model")
        if not prompt.strip():
            raise InputError("The prompt is empty; say what to make.")
        graph, link = GraphBuilder(), _links(cls.hidden)
        condition = graph.node(
            "MicroDreamerConditionOnPrompt", "condition", model=link["model"], prompt=prompt, negative=negative
        )
        return _job(graph, condition.out(0), model, quality, seed)


def _links(hidden: Any) -> dict[str, list]:
    """The links of the node that runs, by input: its expansion is linked to the same outputs, so that ComfyUI's cache knows
    which parts of it a change concerns."""
    return dict(hidden.dynprompt.get_node(hidden.unique_id)["inputs"])


def _job(graph: GraphBuilder, condition: list, model: LoadedModel | None, quality: str, seed: int) -> io.NodeOutput:
    """Expand into the nodes from the plan to the refined texture.

    Raises:
        InputError: the quality is not known.
    """
    if quality not in QUALITIES:
        raise InputError(f"The quality must be one of {', '.join(QUALITIES)}, got {quality!r}.")
    cost, preset = QUALITIES[quality], EMBEDDED if model is None else model.model.preset
    rounds = max(1, round(cost.rounds * get_plan(preset).iterations))
    plan = graph.node("MicroDreamerSIRPlan", "plan", preset=preset, iterations=rounds).out(0)
    common = {"condition": condition, "plan": plan}
    run = graph.node("MicroDreamerGenerate", "generate", seed=seed, **common)
    clean = graph.node("MicroDreamerCleanGaussians", "clean", field=run.out(0)).out(0)
    shape = {"resolution": cost.resolution, "target_faces": cost.target_faces}
    mesh = graph.node("MicroDreamerExtractMesh", "mesh", field=clean, **shape)
    baked = graph.node("MicroDreamerBakeTexture", "bake", mesh=mesh.out(0), field=clean, texture_size=cost.texture_size)
    refined = graph.node("MicroDreamerRefineTexture", "refine", mesh=baked.out(0), seed=seed, **common)
    shown = graph.node("MicroDreamerCleanGaussians", "show", field=run.out(0), **common)
    return io.NodeOutput(refined.out(0), shown.out(0), run.out(1), run.out(2), expand=graph.finalize())


NODES = (ImageTo3D, TextTo3D)
