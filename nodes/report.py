"""The paper's evaluation in a graph, at small sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..microdreamer_core.checkpoints.registry import EMBEDDED
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.evaluation.page import claim_lines, summary
from ..microdreamer_core.evaluation.report import make_report, make_setup
from ..microdreamer_core.evaluation.sources import ANALYTIC
from ..microdreamer_core.io.pictures import on_white, read_picture
from .compat import FOLDER, ProgressBar, interrupt_check, io, output_folder, schema
from .types import core_call

PROTOCOLS = ("sds", "truth", "shares", "latent", "pixels", "iterations", "views", "schedules", "forward")
MODELS = (ANALYTIC, EMBEDDED)
REPRESENTATIONS = {"gaussians": ("gaussians",), "nerf": ("nerf",), "both": ("gaussians", "nerf")}
_WIDTH = 1024


class Report(io.ComfyNode):
    """One protocol on procedural objects."""

    TITLE = "Report"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerReport",
            aliases=("evaluate", "benchmark", "ablation", "paper"),
            display_name=cls.TITLE,
            category="MicroDreamer/Evaluation",
            description="Does a part of the paper's evaluation on procedural objects of known truth and writes a page of it. "
            "Finished runs are kept: after an interrupt the same settings go on.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "protocol",
                    options=list(PROTOCOLS),
                    default="sds",
                    tooltip="sds is Fig. 7, shares 4, latent 10, pixels 11, the last four 12a to d; truth has every measure.",
                ),
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    default=ANALYTIC,
                    tooltip="analytic knows its objects and errs on purpose; embedded is the shipped network, which latent, "
                    "pixels and shares need.",
                ),
                io.Int.Input("objects", default=2, min=1, max=100, tooltip="Procedural objects; they are the samples."),
                io.Int.Input("seeds", default=1, min=1, max=100, tooltip="Runs of every object, from seed 0 on."),
                io.Int.Input("iterations", default=5, min=1, max=1000, tooltip="SIR's K."),
                io.Int.Input(
                    "sds_steps",
                    default=60,
                    min=1,
                    max=100_000,
                    tooltip="Updates of SDS. K = 20 takes 400 steps of reconstruction; not 100, 200 or 300, right after which "
                    "Gaussians look worse than they are.",
                ),
                io.String.Input(
                    "folder",
                    default="report",
                    tooltip="Where page and runs go, below microdreamer in the host's output folder.",
                ),
                io.Combo.Input(
                    "representation",
                    options=list(REPRESENTATIONS),
                    default="gaussians",
                    tooltip="What is optimised in sds, truth, shares and latent; the others are on Gaussians. A NeRF takes "
                    "about eight times as long.",
                ),
            ],
            outputs=[
                io.String.Output(id="report_out", display_name="report", tooltip="What reproduces, and by which numbers."),
                io.Image.Output(id="pictures_out", display_name="pictures", tooltip="The page's plots and contact sheets."),
                io.String.Output(id="path_out", display_name="path", tooltip="The page, below the host's output folder."),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        protocol: str = "sds",
        model: str = ANALYTIC,
        objects: int = 2,
        seeds: int = 1,
        iterations: int = 5,
        sds_steps: int = 60,
        folder: str = "report",
        representation: str = "gaussians",
    ) -> io.NodeOutput:
        chosen = (
            ("protocol", protocol, PROTOCOLS),
            ("model", model, MODELS),
            ("representation", representation, REPRESENTATIONS),
        )
        for name, value, allowed in chosen:
            if value not in allowed:
                raise InputError(f"The {name} must be one of {', '.join(allowed)}, got {value!r}.")
        place = _inside(folder)
        sizes = {"objects": objects, "seeds": seeds, "iterations": iterations, "sds_steps": sds_steps}
        setup, missing = make_setup(place, model=model, representations=REPRESENTATIONS[representation], **sizes)
        bar = ProgressBar(1)
        report = make_report(
            setup, (protocol,), missing=missing, workers=1, quiet=True, check=interrupt_check, on_run=bar.update_absolute
        )
        text = "\n".join([*claim_lines(report.sections), summary(report.sections), *report.impossible])
        path = report.page.relative_to(output_folder()).as_posix()
        return io.NodeOutput(text, _pictures(report.figures), path, ui={"text": [f"{text}\n{path}"]})


def _inside(folder: str):
    """The folder below the pack's own in the host's output folder.

    Raises:
        InputError: it lies elsewhere.
    """
    base = (output_folder() / FOLDER).resolve()
    place = (base / folder.strip()).resolve()
    if place == base or not place.is_relative_to(base):
        raise InputError(f"The folder must lie below {FOLDER} in the host's output folder, got {folder!r}; give a plain name.")
    return place


def _pictures(paths) -> Tensor:
    """[N,H,W,3]: every picture at one width, on white at the height of the highest."""
    images = [on_white(read_picture(path)) for path in paths]
    sized = [_at_width(image) for image in images]
    height = max(image.shape[0] for image in sized)
    return torch.stack([F.pad(image, (0, 0, 0, 0, 0, height - image.shape[0]), value=1.0) for image in sized])


def _at_width(image: Tensor) -> Tensor:
    height = max(1, round(image.shape[0] * _WIDTH / image.shape[1]))
    channels_first = image.permute(2, 0, 1)[None]
    sized = F.interpolate(channels_first, (height, _WIDTH), mode="bilinear", antialias=True, align_corners=False)
    return sized[0].permute(1, 2, 0).clamp(0, 1)


NODES = (Report,)
