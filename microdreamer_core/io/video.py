"""Videos and contact sheets of anything that can be rendered."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..util.atomic import replace_file
from ..util.hooks import Hook
from ..util.images import from_uint8, to_uint8
from .pictures import write_picture

log = logging.getLogger(__name__)

_BATCH = 4
_CAPTION_HEIGHT = 18
_GIF_LARGEST = 256


def render_frames(
    render: Callable[[Cameras], Tensor],
    cameras: Cameras,
    progress: Callable[[int, int], None] | None = None,
    check: Hook | None = None,
) -> Tensor:
    """Render the frames of a video, a few cameras at a time to limit memory.

    Args:
        render: a few cameras -> [v,H,W,3] in [0,1].
        progress: called with (done, total) frames.
        check: called before each batch; raises to stop.

    Returns:
        [F,H,W,3] float32 on the CPU.
    """
    frames = []
    for start in range(0, len(cameras), _BATCH):
        if check is not None:
            check()
        with torch.no_grad():
            frames.append(render(cameras[start : start + _BATCH]).detach().float().cpu().clamp(0, 1))
        if progress is not None:
            progress(min(start + _BATCH, len(cameras)), len(cameras))
    return torch.cat(frames)


def write_video(path: str | Path, frames: Tensor, fps: int = 24) -> Path:
    """Write a video: H.264 in .mp4, or a looping .gif if the path says so or ffmpeg is missing.

    Args:
        path: .mp4 or .gif.
        frames: [F,H,W,3] in [0,1]; for mp4, the last row or column of an odd size is repeated.

    Returns:
        The file written: its suffix is .gif if ffmpeg is missing.

    Raises:
        InputError: an unknown suffix, no frames, or a missing folder.
    """
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise InputError(f"Films are written as .mp4 or .gif, got {path.name!r}; change the suffix.")
    if frames.ndim != 4 or frames.shape[0] == 0 or frames.shape[3] != 3:
        raise InputError(f"A film needs frames of shape [F,H,W,3] with at least one frame, got {list(frames.shape)}.")
    if path.suffix.lower() == ".gif":
        return _write_gif(path, frames, fps)
    ffmpeg = _ffmpeg()
    if ffmpeg is None:
        log.warning("There is no ffmpeg here (pip install imageio-ffmpeg); writing a GIF instead of %s.", path.name)
        return _write_gif(path.with_suffix(".gif"), frames, fps)
    return _write_mp4(ffmpeg, path, frames, fps)


def _ffmpeg() -> ModuleType | None:
    """The imageio_ffmpeg module if it finds an ffmpeg, otherwise None."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None
    return imageio_ffmpeg


def _write_mp4(ffmpeg: ModuleType, path: Path, frames: Tensor, fps: int) -> Path:
    pixels = _bytes(frames)
    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
    size = (pixels.shape[2], pixels.shape[1])
    with replace_file(path) as temporary:
        options = {"fps": fps, "codec": "libx264", "pix_fmt_out": "yuv420p", "macro_block_size": 2, "quality": 8}
        writer = ffmpeg.write_frames(str(temporary), size, ffmpeg_log_level="error", **options)
        writer.send(None)
        try:
            for frame in pixels:
                writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()
    return path


def _write_gif(path: Path, frames: Tensor, fps: int) -> Path:
    """Write a GIF of at most 256 pixels, because GIFs have 256 colours a frame and grow quickly."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in _bytes(frames)]
    for picture in pictures:
        picture.thumbnail((_GIF_LARGEST, _GIF_LARGEST), Image.Resampling.LANCZOS)
    with replace_file(path) as temporary:
        duration = max(20, round(1000 / fps))
        pictures[0].save(temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return path


def contact_sheet(frames: Tensor, columns: int | None = None, captions: Sequence[str] | None = None, gap: int = 4) -> Tensor:
    """Arrange frames in a grid on white, each with its caption below.

    Args:
        frames: [F,H,W,3] in [0,1].
        columns: frames in a row; a roughly square sheet if None.
        captions: one per frame.

    Returns:
        [H',W',3] in [0,1].
    """
    count, height, width = frames.shape[:3]
    if count == 0:
        raise InputError("A contact sheet needs at least one frame, got none.")
    if captions is not None and len(captions) != count:
        raise InputError(f"A contact sheet needs one caption for each of its {count} frames, got {len(captions)}.")
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    below = _CAPTION_HEIGHT if captions is not None else 0
    rows = math.ceil(count / columns)
    sheet = torch.ones(rows * (height + below + gap) + gap, columns * (width + gap) + gap, 3)
    for i, frame in enumerate(frames.detach().float().cpu().clamp(0, 1)):
        top, left = gap + (i // columns) * (height + below + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = frame
        if captions is not None:
            sheet[top + height : top + height + below, left : left + width] = _caption(captions[i], width)
    return sheet


def write_contact_sheet(
    path: str | Path, frames: Tensor, columns: int | None = None, captions: Sequence[str] | None = None
) -> Path:
    """Write a ``contact_sheet`` as PNG."""
    return write_picture(path, contact_sheet(frames, columns, captions))


def _caption(text: str, width: int) -> Tensor:
    """[18,width,3] black text on white."""
    from PIL import Image, ImageDraw

    strip = Image.new("L", (width, _CAPTION_HEIGHT), 255)
    ImageDraw.Draw(strip).text((2, 2), text, fill=0)
    return from_uint8(np.asarray(strip))[..., None].expand(-1, -1, 3)


def _bytes(frames: Tensor) -> np.ndarray:
    return to_uint8(frames)
