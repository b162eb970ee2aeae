"""Makes workflows/*.jpg, the pictures that hosts show beside their templates, out of what the workflows really give.

    python scripts/thumbnails.py http://127.0.0.1:8188 [NAME ...]     # a running ComfyUI with this pack

Graphs that need weights which are not shipped show the way from what goes in to what comes out, with objects of the pack's own
model, and say which file they need.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from workflow_graphs import TITLES

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.io.splats import read_splat
from microdreamer_core.render.hints import depth_hint

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
SIZE = WIDTH, HEIGHT = 640, 360
INK, PAPER, ACCENT, NEED = "#20303c", "#ffffff", "#3f789e", "#f6dfa0"
MARGIN, BAND = 16, 44
LIMIT = 60_000

Outputs = Callable[[int], list[Image.Image]]


def run(url: str, name: str) -> Outputs:
    """Queue a workflow and wait for it; gives the pictures of a node by its id, films as their frames.

    Raises:
        RuntimeError: it did not succeed.
    """
    graph = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    # a node that ComfyUI takes from its cache is not always in the history
    _ask(f"{url}/free", json.dumps({"free_memory": True}).encode())
    number = json.loads(_ask(f"{url}/prompt", json.dumps({"prompt": graph}).encode()))["prompt_id"]
    while not (history := json.loads(_ask(f"{url}/history/{number}"))):
        time.sleep(1)
    history = history[number]
    if history["status"]["status_str"] != "success":
        raise RuntimeError(f"{name} ended with {history['status']['messages'][-1]}")

    def pictures(node: int) -> list[Image.Image]:
        # 52:31 is a node in a subgraph, 14.20.13 a copy in a loop: the loop, the pass, the node
        keys = [key for key in history["outputs"] if re.split("[.:]", key)[-1] == str(node)]
        last = max(keys, key=lambda key: list(map(int, re.findall(r"\d+", key))))
        files = [_ask(f"{url}/view?{urllib.parse.urlencode(file)}") for file in history["outputs"][last]["images"]]
        return [frame for file in files for frame in _frames(Image.open(io.BytesIO(file)))]

    return pictures


def _ask(url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=600) as answer:
        return answer.read()


def _frames(picture: Image.Image) -> list[Image.Image]:
    frames = []
    for i in range(getattr(picture, "n_frames", 1)):
        picture.seek(i)
        frames.append(picture.convert("RGB"))
    return frames


def row(pictures: list[tuple[Image.Image, str]], title: str, between: str = "") -> Image.Image:
    """Pictures side by side with captions, and ``between`` them an arrow or nothing."""
    canvas, draw = _canvas(title)
    gap = 44 if between else MARGIN
    width = (WIDTH - 2 * MARGIN - gap * (len(pictures) - 1)) // len(pictures)
    height = HEIGHT - BAND - 2 * MARGIN - 26
    for i, (picture, caption) in enumerate(pictures):
        x, y = MARGIN + i * (width + gap), BAND + MARGIN
        fitted = ImageOps.contain(picture, (width, height), Image.Resampling.LANCZOS)
        canvas.paste(fitted, (x + (width - fitted.width) // 2, y + (height - fitted.height) // 2))
        draw.text((x + width // 2, HEIGHT - MARGIN - 8), caption, INK, _font(17), anchor="mm")
        if between and i:
            draw.text((x - gap // 2, y + height // 2), between, ACCENT, _font(30), anchor="mm")
    return canvas


def illustration(pictures: list[tuple[Image.Image, str]], title: str, needs: str) -> Image.Image:
    """A row with arrows, and below it what the graph needs that the pack has not."""
    picture = row(pictures, title, ">")
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((MARGIN, BAND + 10, WIDTH - MARGIN, BAND + 40), 6, NEED)
    draw.text((WIDTH // 2, BAND + 25), f"{needs} (drawn with the model of the pack)", INK, _font(16), anchor="mm")
    return picture


def words(text: str) -> Image.Image:
    """A prompt as a picture."""
    canvas = Image.new("RGB", (384, 384), PAPER)
    ImageDraw.Draw(canvas).multiline_text((192, 192), text, INK, _font(46), anchor="mm", align="center")
    return canvas


def example() -> Image.Image:
    """The picture that the graphs begin with, on white."""
    return Image.alpha_composite(Image.new("RGBA", (64, 64), PAPER).resize(_bird().size), _bird()).convert("RGB")


def depth() -> Image.Image:
    """The rough splat as a control network for depth is shown it."""
    cameras = orbit_cameras(0.0, torch.tensor([45.0]), 2.0, 40.0, 384)
    hint = depth_hint(read_splat(ROOT / "samples" / "bird_rough.ply").render(cameras, WHITE), cameras)
    return Image.fromarray((hint[0] * 255).round().byte().numpy())


def _bird() -> Image.Image:
    return Image.open(ROOT / "samples" / "bird.png").convert("RGBA")


def _canvas(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, WIDTH, BAND), ACCENT)
    draw.text((MARGIN, BAND // 2), title, PAPER, _font(22), anchor="lm")
    return canvas, draw


def _font(size: int):
    return ImageFont.load_default(size)


def hello(of: Outputs) -> Image.Image:
    film = of(32)
    shown = [(film[0], "front"), (film[len(film) // 8], "45 degrees"), (film[len(film) * 3 // 8], "135 degrees")]
    return row([(example(), "picture"), *shown], "One picture to a textured 3D object")


def stages(of: Outputs) -> Image.Image:
    film = of(32)
    return row([(of(13)[-1], "renders above targets, last pass"), (film[len(film) // 8], "result")], "Every stage a node", ">")


def samplers(of: Outputs) -> Image.Image:
    names = ("A  DDIM", "B  Euler ancestral", "C  DPM++ 2M")
    return row([(of(46 + i)[1], name) for i, name in enumerate(names)], "Swap the sampler")


def texture(of: Outputs) -> Image.Image:
    pictures = [(of(40)[0], "baked"), (of(41)[0], "refined"), (of(45)[0], "result")]
    return row(pictures, "From Gaussians to mesh and texture", ">")


def splat(of: Outputs) -> Image.Image:
    before, after = of(13), of(14)
    return row([(film[len(film) // 8], name) for film, name in ((before, "before"), (after, "after"))], "Refine a splat", ">")


def resume(of: Outputs) -> Image.Image:
    film = of(32)
    return row(
        [(of(13)[-1], "stopped after 2 of 21 passes"), (film[len(film) // 8], "gone on to the end")], "Stop and go on", ">"
    )


def nerf(of: Outputs) -> Image.Image:
    film = of(32)
    shown = [(of(45)[1], "NeRF"), (of(46)[1], "as Gaussians"), (film[len(film) // 8], "textured mesh")]
    return row([(example(), "picture"), *shown], "A NeRF in place of Gaussians")


def sir_against_sds(of: Outputs) -> Image.Image:
    pictures = [(example(), "picture"), (of(45)[1], "SIR"), (of(46)[1], "SDS")]
    return row(pictures, "SIR against SDS, 768 evaluations each")


def retexture(of: Outputs) -> Image.Image:
    film, eighth = of(32), len(of(32)) // 8
    shown = [(of(44)[0], "mesh"), (film[0], "textured"), (film[eighth], "45 degrees")]
    return row([(example(), "picture"), *shown], "A new texture for a mesh")


def recolour(of: Outputs) -> Image.Image:
    before, after = of(13), of(14)
    return row(
        [(film[len(film) // 8], name) for film, name in ((before, "before"), (after, "after"))], "New colours for a splat", ">"
    )


RESULTS = {
    "00_hello": hello,
    "01_image_to_3d_stages": stages,
    "02_swap_the_sampler": samplers,
    "03_texture_and_mesh": texture,
    "04_refine_existing_splat": splat,
    "05_resume": resume,
    "06_nerf": nerf,
    "07_sir_against_sds": sir_against_sds,
    "17_retexture_a_mesh": retexture,
    "19_refine_a_splat": recolour,
}


def any_checkpoint(of: Outputs) -> Image.Image:
    """The picture of 18_retexture_any_checkpoint, from the results of 17_retexture_a_mesh."""
    pictures = [(of(44)[0], "mesh"), (words("any words,\nany MODEL"), "and its depth"), (of(32)[0], "textured")]
    return illustration(pictures, "A new texture by any checkpoint", "needs a checkpoint and ControlNet, 2.9 GB")


def needing_weights(hello: Outputs, splat: Outputs) -> dict[str, Image.Image]:
    """Pictures of the graphs that need other weights, from the results of 00_hello and 04_refine_existing_splat."""
    film, before, after = hello(32), splat(13), splat(14)
    eighth = len(film) // 8
    made = [(film[eighth], "mesh"), (film[3 * eighth], "from behind")]
    grey = ImageOps.autocontrast(film[eighth].convert("L"), cutoff=2).point(
        lambda value: 120 + value // 2 if value < 250 else 255
    )
    said = words("a toy bird,\n3d asset")
    return {
        "10_stable_zero123": illustration(
            [(example(), "picture"), *made], "Stable Zero123: picture to 3D", "needs stable_zero123.ckpt, 8.6 GB"
        ),
        "11_imagedream": illustration(
            [(example(), "picture"), (said, "words"), made[0]],
            "ImageDream: picture and words to 3D",
            "needs sd-v2.1-base-4view-ipmv.pt, 8.1 GB",
        ),
        "12_mvdream_text": illustration(
            [(said, "words"), *made], "MVDream: words to 3D", "needs sd-v2.1-base-4view.pt, 5.2 GB"
        ),
        "13_native_model": illustration(
            [(words("MODEL\nVAE\nCLIP"), "of ComfyUI's loaders"), (before[eighth], "rough"), (after[eighth], "refined")],
            "Models that ComfyUI has loaded",
            "needs checkpoints of ComfyUI, 8.6 GB",
        ),
        "14_any_checkpoint_refines_a_splat": illustration(
            [(words("Z-Image\nFlux\nQwen ..."), "any checkpoint"), (before[eighth], "rough"), (after[eighth], "refined")],
            "Any checkpoint refines a splat",
            "needs Z-Image Turbo, 21 GB",
        ),
        "15_control_from_renders": illustration(
            [(before[eighth], "rough"), (depth(), "what the network sees"), (after[eighth], "refined")],
            "Control from renders",
            "needs SD 1.5 and a depth network, 2.9 GB",
        ),
        "16_camera_words": illustration(
            [(example(), "picture"), (words("left side view,\neye-level shot"), "camera in words"), made[0]],
            "Camera words: picture to 3D",
            "needs Qwen-Image-Edit 2511, 32 GB",
        ),
        "20_refine_triposplat": illustration(
            [(example(), "picture"), (before[eighth], "splat"), (after[eighth], "refined by SIR")],
            "Refine a TripoSplat",
            "needs ComfyUI 0.33 and TripoSplat, 4 GB",
        ),
        "21_refine_trellis_or_hunyuan_mesh": illustration(
            [(example(), "picture"), (grey.convert("RGB"), "mesh without colours"), made[0]],
            "Refine a mesh of Hunyuan3D or TRELLIS",
            "needs hunyuan_3d_v2.1.safetensors, 4.9 GB",
        ),
    }


def save(picture: Image.Image, name: str) -> None:
    """Write a thumbnail as good as its size may be."""
    for quality in (90, 85, 80, 70, 60):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() < LIMIT:
            break
    (FOLDER / f"{TITLES[name]}.jpg").write_bytes(buffer.getvalue())
    sys.stdout.write(f"{name}.jpg {buffer.tell()} bytes\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="address of a running ComfyUI with this pack")
    parser.add_argument("names", nargs="*", help="workflows; all of them by default")
    arguments = parser.parse_args()
    ran = functools.cache(lambda name: run(arguments.url.rstrip("/"), name))
    for name in arguments.names or TITLES:
        if name in RESULTS:
            save(RESULTS[name](ran(name)), name)
        elif name == "18_retexture_any_checkpoint":
            save(any_checkpoint(ran("17_retexture_a_mesh")), name)
        else:
            save(needing_weights(ran("00_hello"), ran("04_refine_existing_splat"))[name], name)


if __name__ == "__main__":
    main()
