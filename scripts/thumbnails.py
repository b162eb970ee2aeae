"""Makes workflows/*.jpg, the pictures that hosts show beside their templates, out of what the workflows really give.

    python scripts/thumbnails.py http://127.0.0.1:8188 [NAME ...]     # a running ComfyUI with this pack

Graphs that need weights which are not shipped get a drawing of their plan in place of a result.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
SIZE = WIDTH, HEIGHT = 640, 360
INK, PAPER, ACCENT, PALE = "#20303c", "#ffffff", "#3f789e", "#cfdde6"
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
        # copies of a node in a loop have ids like 14.20.13: the loop, the pass, the node
        keys = [tuple(map(int, key.split("."))) for key in history["outputs"]]
        last = ".".join(map(str, max(key for key in keys if key[-1] == node)))
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


def drawing(plan, title: str, lines: tuple[str, ...]) -> Image.Image:
    """A plan as a picture: its noise levels over its rounds, its cameras from above, and words."""
    canvas, draw = _canvas(title)
    times = [time.t2 for time in plan.times(0)]
    left, top, right, bottom = 60, BAND + 40, 390, HEIGHT - 60
    draw.line([(left, top - 10), (left, bottom), (right, bottom)], INK, 2)
    points = [(left + (right - left) * (k + 0.5) / len(times), bottom - (bottom - top) * t / 1000) for k, t in enumerate(times)]
    draw.line(points, ACCENT, 3)
    for x, y in points:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), ACCENT)
    draw.text((left - 8, top - 14), "t2", INK, _font(18), anchor="rm")
    draw.text((right, bottom + 18), f"round 1 to {len(times)}", INK, _font(17), anchor="rm")
    x, y, radius = 515, BAND + 120, 75
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=PALE, width=3)
    for i in range(plan.views):
        angle = 2 * math.pi * i / plan.views
        cx, cy = x + radius * math.sin(angle), y + radius * math.cos(angle)
        draw.line((cx, cy, x, y), PALE, 3)
        draw.ellipse((cx - 9, cy - 9, cx + 9, cy + 9), INK)
    draw.ellipse((x - 14, y - 14, x + 14, y + 14), ACCENT)
    for i, text in enumerate((f"{plan.views} views a round", *lines)):
        draw.text((x, y + radius + 36 + 22 * i), text, INK, _font(16), anchor="mm")
    return canvas


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
    return row([(of(30)[0], "picture"), *shown], "One picture to a textured 3D object")


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
    return row([(of(30)[0], "picture"), *shown], "A NeRF in place of Gaussians")


def sir_against_sds(of: Outputs) -> Image.Image:
    pictures = [(of(30)[0], "picture"), (of(45)[1], "SIR"), (of(46)[1], "SDS")]
    return row(pictures, "SIR against SDS, 768 evaluations each")


RESULTS = {
    "00_hello": hello,
    "01_image_to_3d_stages": stages,
    "02_swap_the_sampler": samplers,
    "03_texture_and_mesh": texture,
    "04_refine_existing_splat": splat,
    "05_resume": resume,
    "06_nerf": nerf,
    "07_sir_against_sds": sir_against_sds,
}


def drawings() -> dict[str, Image.Image]:
    """Pictures of the graphs that need other weights."""
    sys.path.insert(0, str(ROOT))
    from microdreamer_core.sir.presets import get_plan

    zero123, imagedream = get_plan("stable-zero123-gaussians"), get_plan("imagedream-gaussians")
    mvdream = get_plan("mvdream-gaussians", iterations=30, discretization=20)
    return {
        "10_stable_zero123": drawing(zero123, "Stable Zero123: picture to 3D", ("needs its checkpoint",)),
        "11_imagedream": drawing(imagedream, "ImageDream: picture and words to 3D", ("needs its checkpoint",)),
        "12_mvdream_text": drawing(mvdream, "MVDream: words to 3D", ("needs its checkpoint",)),
        "13_native_model": drawing(zero123, "Models that ComfyUI has loaded", ("needs MODEL, VAE", "and CLIP_VISION or CLIP")),
    }


def save(picture: Image.Image, name: str) -> None:
    """Write a thumbnail as good as its size may be."""
    for quality in (90, 85, 80, 70, 60):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() < LIMIT:
            break
    (FOLDER / f"{name}.jpg").write_bytes(buffer.getvalue())
    sys.stdout.write(f"{name}.jpg {buffer.tell()} bytes\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="address of a running ComfyUI with this pack")
    parser.add_argument("names", nargs="*", help="workflows; all of them by default")
    arguments = parser.parse_args()
    drawn = drawings()
    for name in arguments.names or [*RESULTS, *drawn]:
        picture = drawn[name] if name in drawn else RESULTS[name](run(arguments.url.rstrip("/"), name))
        save(picture, name)


if __name__ == "__main__":
    main()
