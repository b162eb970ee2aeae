"""The texture of a mesh as a field: its geometry and texture coordinates stay, its texels are optimised.

A step distributes the error of each pixel smoothly to all texels that it shows, and divides it by the weight of the views that
see a texel (SIRT, Gilbert 1972), so that detail finer than the views stays. (Adam moves every texel by about its learning rate
whatever its error, and leaves speckles wherever texels outnumber pixels.) Views are weighted by cos⁴ of the viewing angle;
pixels on the silhouette, and those beside it that mix in background, are ignored, because a model's silhouette never quite
matches the mesh's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError, NumericalError
from ..mesh import Mesh, SurfaceMaps, face_normals
from ..render.mesh import (
    TextureView,
    interpolate,
    pool_pixels,
    rasterize,
    render_mesh,
    supersample_cameras,
    view_of_fragments,
)
from ..render.protocol import Render
from ..render.texels import (
    Texels,
    TexelVisibility,
    blend_textures,
    fill_from_surface,
    fill_nearest,
    gather,
    texel_map,
    texel_visibility,
)
from ..util.colors import decode_srgb, encode_srgb
from ..util.images import resize
from ..util.processes import free_memory_mb
from ..util.settings import check_settings, setting
from .protocol import WHITE, StepRange
from .texture_faults import find_fault

TextureStart = Literal["mesh", "grey", "noise"]
TEXTURE_STARTS: tuple[str, ...] = get_args(TextureStart)
"""What a texture starts from: the mesh's own texture or vertex colours, grey, or smooth noise."""
TEXTURE_SIZES = 16, 8192
"""Smallest and largest side of a texture in texels."""

_GREY = 0.5
_TEXELS_A_SAMPLE = 2.0  # the width of the bilinear filter
_SAMPLES = 4, 16
"""Least and most samples along a side of a pixel; the least only up to pictures of this size."""
_LEAST_PICTURE = 512
_COVERED = 0.999
_LEAST_RIM, _PIXELS_A_RIM = 2, 64
"""Least width of a silhouette's rim in pixels, and one more in so many of the image's side."""
_MIXED, _IN_LINE = 0.1, 0.25
"""An error mixes background into a colour that moves it by more than this share of the way there, and by no more than that one
to the side."""
_GUTTER = 2
"""Rings of texels around the charts that follow them at every step, because bilinear samples reach them."""
_AROUND = (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)
_LARGEST_STEP = 1.0
_WAVES, _LONGEST, _SHORTEST = 32, 0.5, 0.06  # of the noise; lengths as shares of the mesh's diagonal
_HALF_TRUST = 0.1
"""Share of the median texel's weight at which half of a texel's colour is its own: what is seen at grazing angles alone is
mostly background and old colours."""
_REACH = 0.04
"""Distance at which texels are no neighbours, as a share of the mesh's diagonal, where perpendicular ones are compared."""
_BYTES = 200
"""Memory of a texel of a whole atlas, as measured (``benchmarks/texture_field.py --sizes``)."""
_EXACT = 1 << 24
"""Whole numbers up to it are exact in float32, the type of saved states."""
_FILLED_IN: Any = None  # default of what ``__post_init__`` computes
_MAP_IMAGES = ("metallic_roughness", "normal", "occlusion", "emissive")


@dataclass(frozen=True)
class TextureSettings:
    """How the texels follow their views; ranges and meaning of the fields are their :class:`~..util.settings.Setting`.

    Attributes:
        step_size: with the squared loss; the ℓ1 loss moves a texel by half of it where all its views agree on the direction.
    """

    step_size: float = setting(0.5, "share of a texel's mean error that one step takes off", 1e-6, 1)
    fading: bool = setting(True, "steps shrink to 0 towards the end of an iteration, so that noise averages out")

    def __post_init__(self):
        check_settings(self, "the texture")


@dataclass(frozen=True, eq=False, repr=False)
class TextureField:
    """A :class:`~.protocol.Field` whose parameters are the texels of a mesh. Its tensors are on the CPU; renders are where the
    cameras are.

    Attributes:
        surface: the mesh with uvs, without overlap; with a mask it holds the texture [T,T,3] from before.
        texture: [T,T,3] the optimised texels.
        settings: of the steps.
        mask: [T,T,1] in [0,1], how much of a texel may change, None for all; texels at 0 stay bit for bit.
        seen: [T,T,1] total weight of the views that a texel was fitted to.
        step: updates so far.
        texels: the surface point of each texel; computed when None is given.

    Raises:
        InputError: shapes disagree.
    """

    kind: ClassVar[str] = "texture"

    surface: Mesh
    texture: Tensor
    settings: TextureSettings = TextureSettings()
    mask: Tensor | None = None
    seen: Tensor = _FILLED_IN
    step: int = 0
    texels: Texels = _FILLED_IN

    def __post_init__(self):
        size = len(self.texture)
        for name, channels in (("texture", 3), ("mask", 1), ("seen", 1)):
            value = getattr(self, name)
            if value is not None and list(value.shape) != [size, size, channels]:
                raise InputError(f"The {name} must have shape {[size, size, channels]}, got {list(value.shape)}; resize it.")
        if self.mask is not None and (self.surface.texture is None or self.surface.texture.shape != self.texture.shape):
            raise InputError("A mask needs the texture from before in the same size; give the mesh with its texture.")
        if self.seen is None:
            object.__setattr__(self, "seen", torch.zeros(size, size, 1))
        if self.texels is None:
            object.__setattr__(self, "texels", texel_map(self.surface, size))

    def __repr__(self) -> str:
        return f"TextureField({self.summary()} after {self.step} updates)"

    @property
    def size(self) -> int:
        """T, texels a side."""
        return len(self.texture)

    @property
    def device(self) -> torch.device:
        return self.texture.device

    @property
    def mesh(self) -> Mesh:
        """The mesh with its texture as it is now: geometry, uvs and other maps are those of the mesh that was given."""
        return replace(self.surface, texture=_blend(self.surface.texture, self.texture, self.mask))

    def render(self, cameras: Cameras, background: Tensor | None = None) -> Render:
        """Render the textured mesh, supersampled so that texels finer than pixels do not alias.

        Args:
            background: [3] or [V,3], white when None.
        """
        background = None if background is None else background.cpu()
        samples = _supersampling(self.surface, self.texels, cameras)
        return _to_device(render_mesh(self.mesh, cameras.to("cpu"), background, samples), cameras.c2w.device)

    def clone(self) -> TextureField:
        """Return a deep copy of what is optimised; the geometry, which nothing changes, is shared."""
        return replace(self, texture=self.texture.clone(), seen=self.seen.clone())

    def to(self, device: torch.device | str) -> TextureField:
        """Return the field itself: textures are optimised on the CPU, whatever the device of the model."""
        return self

    def summary(self) -> str:
        """Return sizes in words."""
        masked = "" if self.mask is None else f", {100 * float((self.mask > 0).float().mean()):.0f} % of them free"
        return f"texture of {self.size}x{self.size} texels on {len(self.surface.faces)} faces{masked}"

    def optimizer(self, stretch: StepRange | None = None) -> TextureOptimizer:
        """Create an optimiser on a private copy; steps fade out over ``stretch``, if it is known."""
        return TextureOptimizer(self, stretch)

    def resize(self, size: int) -> TextureField:
        """Return the field with [size,size] texels, for a run of growing sizes.

        Raises:
            InputError: the size is out of range.
        """
        _check_size(size)
        mask = None if self.mask is None else _resize(self.mask, size)
        surface = self.surface
        if surface.texture is not None:
            surface = replace(surface, texture=_resize(surface.texture, size))
        return TextureField(surface, _resize(self.texture, size), self.settings, mask, _resize(self.seen, size), self.step)

    def complete(self) -> TextureField:
        """Return the field with colours where no view saw well: those of the nearest texels on the surface that were seen.

        Near means in position and in normal direction, so that neither the seams of the texture nor the other side of a thin
        part count.
        """
        weight = self.seen[self.texels.used][:, 0]
        seen = weight[weight > 0]
        trust = weight / (weight + (_HALF_TRUST * float(seen.median()) if len(seen) else 1.0))
        texture = self.texture.clone()
        texture[self.texels.used] = fill_from_surface(
            self.texels, self.texture[self.texels.used], trust, _REACH * self.surface.diagonal
        )
        return replace(self, texture=fill_nearest(texture, self.texels.used))

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors by name, and all other values as JSON: the content of a saved state (``io/state.py``).

        Raises:
            InputError: the mesh has more vertices than the file's numbers can name.
        """
        surface, maps = self.surface, self.surface.maps
        if len(surface.vertices) > _EXACT:
            raise InputError(
                f"A state keeps meshes of at most {_EXACT} vertices, got {len(surface.vertices)}; decimate it first."
            )
        tensors = {"texture": self.texture, "seen": self.seen, "mask": self.mask, "before": surface.texture}
        tensors |= {name: getattr(surface, name) for name in ("vertices", "uvs", "normals", "colors")}
        tensors["faces"] = surface.faces.float()
        values: dict[str, Any] = {"settings": asdict(self.settings), "step": self.step, "maps": None}
        if maps is not None:
            tensors |= {f"maps.{name}": getattr(maps, name) for name in _MAP_IMAGES}
            values["maps"] = {
                name: getattr(maps, name)
                for name in ("metallic", "roughness", "normal_scale", "occlusion_strength", "emission")
            }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}, values

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> TextureField:
        """Restore a field from :meth:`to_state`.

        Raises:
            InputError: a value is missing or invalid.
        """
        try:
            maps = values["maps"]
            if maps is not None:
                images: dict[str, Any] = {name: tensors.get(f"maps.{name}") for name in _MAP_IMAGES}
                maps = SurfaceMaps(**{**maps, "emission": tuple(maps["emission"])}, **images)
            optional = {name: tensors.get(name) for name in ("normals", "colors")}
            surface = Mesh(
                tensors["vertices"],
                tensors["faces"].long(),
                tensors["uvs"],
                texture=tensors.get("before"),
                maps=maps,
                **optional,
            )
            settings, step = TextureSettings(**values["settings"]), int(values["step"])
            return cls(surface, tensors["texture"], settings, tensors.get("mask"), tensors["seen"], step)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The state of the texture is incomplete or of another version ({error!r}); save it again."
            ) from error


def texture_field(
    mesh: Mesh,
    size: int | None = 1024,
    start: TextureStart = "mesh",
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
    settings: TextureSettings = TextureSettings(),  # noqa: B008 - immutable
) -> TextureField:
    """Create the texture of a mesh as the start field of a run.

    Args:
        mesh: with uvs that do not overlap (``meshing.atlas.lay_out_texture`` makes such of any mesh).
        size: T, texels a side; None for the size of the mesh's own texture.
        start: ``"mesh"``, its texture, else its vertex colours, else grey; ``"grey"``; or ``"noise"``, smooth in space.
        generator: of the noise; seeded with 0 if None.
        mask: [T,T,1] or [T,T] in [0,1], how much of a texel may change; the start is the mesh's own outside of it.

    Raises:
        InputError: the mesh has no faces, no uvs or uvs that are not finite or overlap; a size, a start or a mask that does
            not exist or fit.
    """
    if size is None:
        size = max(mesh.require_texture().shape[:2])
    _check_size(size)
    if start not in TEXTURE_STARTS:
        raise InputError(f"A texture starts from one of {', '.join(TEXTURE_STARTS)}, got {start!r}.")
    mesh.texture_coordinates()
    if fault := find_fault(mesh, size):
        raise InputError(f"{fault}; unwrap the mesh again.")
    linear = None if mesh.colors is None else decode_srgb(mesh.colors)
    _check_memory(size)
    texels = texel_map(replace(mesh, colors=linear), size)
    before = None if mask is None else _own_texture(mesh, texels, size)
    texture = before if start == "mesh" and before is not None else _start_texture(mesh, texels, size, start, generator)
    if mask is not None:
        mask = _as_mask(mask, size)
    return TextureField(replace(mesh, texture=before), texture, settings, mask, texels=replace(texels, colors=None))


class TextureOptimizer:
    """The optimiser of :class:`TextureField`, on a working copy (a :class:`~.protocol.FieldOptimizer`)."""

    def __init__(self, field: TextureField, stretch: StepRange | None = None):
        self._field, self._stretch = field, stretch
        self._texels = field.texels
        self._texture = field.texture.detach().clone()
        self._before, self._mask = field.surface.texture, field.mask
        self._place, self._source = _with_gutter(self._texels.used)
        self._colors = self._texture[self._texels.used]
        self._shots: dict[tuple, _Shot] = {}
        self._rendered: list[tuple[_Shot, Tensor, Tensor, Tensor]] = []
        self._weight = torch.zeros(len(self._colors))
        self._steps = 0

    def render(
        self,
        cameras: Cameras,
        background: Tensor | None = None,
        *,
        colors_only: bool = False,
        weights: Tensor | None = None,
    ) -> Render:
        """Render the current texture; the image is a leaf, whose gradient :meth:`step` carries to the texels.

        Args:
            weights: [V,H,W,1] how much pixels count against those of other renders of the same step; 1 if None. The loss
                must be weighted alike.
        """
        shot = self._shot(cameras)
        background = WHITE if background is None else background.detach().cpu()
        with torch.no_grad():
            rgb = shot.view.render(_blend(self._before, self._texture, self._mask), background).to(cameras.c2w.device)
        rgb.requires_grad_()
        self._rendered.append((shot, rgb, background, torch.ones(1) if weights is None else weights.cpu()))
        device = cameras.c2w.device
        return Render(rgb, shot.view.alpha.to(device), shot.depth.to(device))

    def step(self, loss: Tensor, render: Render) -> None:
        """Take the gradient of the images and move each texel by the mean over all renders since the last step.

        Raises:
            NumericalError: the gradient is not finite; the texture is unchanged.
        """
        rendered, self._rendered = self._rendered, []
        gradients = torch.autograd.grad(loss, [rgb for _, rgb, *_ in rendered], allow_unused=True)
        total, weight = torch.zeros_like(self._colors), torch.zeros_like(self._weight)
        for (shot, rgb, background, weights), gradient in zip(rendered, gradients, strict=True):
            if gradient is None:
                continue
            if not bool(gradient.isfinite().all()):
                raise NumericalError(f"The gradient of the images is not finite at update {self._count + 1} of the texture.")
            # the squared loss is a mean over the views, whose gradient is twice the error
            down = gradient.cpu() * (-0.5 * len(gradient))
            trusted = shot.trusted(rgb.detach().cpu(), down / weights.clamp_min(1e-6), background)
            sums = gather(shot.seen, torch.cat([down * trusted, trusted * weights], -1), len(total))
            total += sums[0]
            weight += sums[1]
        # where nothing is seen, the sum is 0
        change = total.div_(weight.clamp_min(1e-9)[:, None]).clamp_(-_LARGEST_STEP, _LARGEST_STEP).mul_(self._rate())
        self._colors.add_(change).clamp_(0, 1)
        self._texture.view(-1, 3)[self._place] = self._colors[self._source]
        self._weight, self._steps = torch.maximum(self._weight, weight), self._steps + 1

    def finish(self) -> TextureField:
        """Return the optimised field, independent of this optimiser, which may continue."""
        seen = self._field.seen.clone()
        seen[self._texels.used] += self._weight[:, None]
        return replace(self._field, texture=self._texture.clone(), seen=seen, step=self._count)

    @property
    def _count(self) -> int:
        return self._field.step + self._steps

    def _rate(self) -> float:
        settings, planned = self._field.settings, self._stretch.steps if self._stretch is not None else 0
        if not settings.fading or not planned:
            return settings.step_size
        return settings.step_size * max(planned - self._steps, 1) / planned

    def _shot(self, cameras: Cameras) -> _Shot:
        """Rasterise each set of cameras once."""
        key = (cameras.c2w.cpu().numpy().tobytes(), cameras.fov_y, cameras.width, cameras.height)
        if key not in self._shots:
            self._shots[key] = _Shot.of(self._field.surface, self._texels, cameras.to("cpu"))
        return self._shots[key]


@dataclass(frozen=True)
class _Shot:
    """All that stays fixed while a texture is seen by V cameras.

    Attributes:
        view: texture coordinates of all samples. depth: [V,H,W,1] accumulated.
        seen: the visible texels of each view.
    """

    view: TextureView
    depth: Tensor
    seen: list[TexelVisibility]

    @classmethod
    def of(cls, mesh: Mesh, texels: Texels, cameras: Cameras) -> _Shot:
        """Rasterise view by view, because supersampled fragments are large."""
        samples = _supersampling(mesh, texels, cameras)
        uvs, pixels, alphas, depths, seen = [], [], [], [], []
        for i in range(len(cameras)):
            fine = supersample_cameras(cameras[i : i + 1], samples)
            fragments = rasterize(mesh.vertices, mesh.faces, fine)
            view = view_of_fragments(fragments, interpolate(mesh.texture_coordinates(), mesh.faces, fragments), samples)
            uvs.append(view.uvs)
            pixels.append(view.pixels + i * cameras.height * cameras.width)
            alphas.append(view.alpha)
            depths.append(pool_pixels(torch.where(fragments.hit, fragments.depth, 0.0)[..., None], samples))
            seen += texel_visibility(mesh, texels, fine, fragments.depth)
        view = TextureView(torch.cat(uvs), torch.cat(pixels), torch.cat(alphas), samples**2)
        return cls(view, torch.cat(depths), seen)

    @cached_property
    def covered(self) -> Tensor:
        """[V,H,W,1] 1 where a pixel shows nothing but the surface."""
        return (self.view.alpha > _COVERED).float()

    @cached_property
    def rim(self) -> Tensor:
        """[V,H,W,1] whether a pixel lies beside the silhouette."""
        width = max(_LEAST_RIM, self.view.alpha.shape[1] // _PIXELS_A_RIM)
        outside = 1 - self.covered.movedim(-1, 1)
        return F.max_pool2d(outside, 2 * width + 1, 1, width).movedim(1, -1) > 0

    def trusted(self, rgb: Tensor, error: Tensor, background: Tensor) -> Tensor:
        """[V,H,W,1] 1 where an error [V,H,W,3] is one of the surface: beside the silhouette a model mixes background into it.

        Taken as colours, these would look like background to the next iteration, and spread over all that is seen at grazing
        angles alone.

        Args:
            rgb: [V,H,W,3] the render; background: [3] or [V,3].
        """
        behind = background.expand(len(rgb), 3)[:, None, None] - rgb
        distance = behind.square().sum(-1, keepdim=True).clamp_min(1e-6)
        share = (error * behind).sum(-1, keepdim=True) / distance
        beside = (error - share * behind).norm(dim=-1, keepdim=True) / distance.sqrt()
        return self.covered * (1 - (self.rim & (share > _MIXED) & (beside < _IN_LINE)).float())


def _supersampling(mesh: Mesh, texels: Texels, cameras: Cameras) -> int:
    """Samples along a side of a pixel, so that none is wider than two texels and small pictures have smooth outlines."""
    area = float(face_normals(mesh.vertices, mesh.faces).norm(dim=1).sum()) / 2
    texel = math.sqrt(area / max(len(texels.positions), 1))
    needed = float(cameras.pixel_size()) / max(_TEXELS_A_SAMPLE * texel, 1e-12)
    least, most = _SAMPLES
    least = min(least, math.ceil(_LEAST_PICTURE / max(cameras.width, cameras.height)))
    return min(max(least, math.ceil(needed)), most)


def _with_gutter(used: Tensor) -> tuple[Tensor, Tensor]:
    """Return flat indices of the used texels and of those around them, and the used texel whose colour each takes."""
    number = torch.full((used.shape[0] + 2, used.shape[1] + 2), -1)
    inner = number[1:-1, 1:-1]
    inner[used] = torch.arange(int(used.sum()))
    for _ in range(_GUTTER):
        before = number.clone()
        for row, column in _AROUND:
            there = before[1 + row : len(number) - 1 + row, 1 + column : number.shape[1] - 1 + column]
            inner.copy_(torch.where(inner < 0, there, inner))
    place = (inner.reshape(-1) >= 0).nonzero()[:, 0]
    return place, inner.reshape(-1)[place]


def _blend(before: Tensor | None, texture: Tensor, mask: Tensor | None) -> Tensor:
    """The texture inside the mask and what was before it outside; exactly that where the mask is 0."""
    if mask is None:
        return texture
    assert before is not None
    return blend_textures(before, texture, mask)


def _start_texture(mesh: Mesh, texels: Texels, size: int, start: TextureStart, generator: torch.Generator | None) -> Tensor:
    if start == "mesh":
        return _own_texture(mesh, texels, size)
    if start == "grey":
        return torch.full((size, size, 3), _GREY)
    return _spread(texels, _smooth_noise(texels.positions / max(mesh.diagonal, 1e-12), generator))


def _own_texture(mesh: Mesh, texels: Texels, size: int) -> Tensor:
    """[T,T,3] the mesh's texture, else its vertex colours (linear in ``texels``), else grey."""
    if mesh.texture is not None:
        return _resize(mesh.texture.detach().cpu().float().clamp(0, 1), size)
    if texels.colors is not None:
        return _spread(texels, encode_srgb(texels.colors).clamp(0, 1))
    return torch.full((size, size, 3), _GREY)


def _spread(texels: Texels, colors: Tensor) -> Tensor:
    """[T,T,3] of colours [P,3] of the used texels, the others like the nearest."""
    texture = torch.zeros(*texels.used.shape, 3)
    texture[texels.used] = colors
    return fill_nearest(texture, texels.used)


def _smooth_noise(points: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sum random waves in space at points [P,3], so that no seam shows; [P,3] in [0,1]."""
    rng = torch.Generator().manual_seed(0) if generator is None else generator
    direction = F.normalize(torch.randn(3, _WAVES, 3, generator=rng), dim=-1)
    length = _LONGEST * (_SHORTEST / _LONGEST) ** torch.rand(3, _WAVES, 1, generator=rng)
    phase = 2 * math.pi * torch.rand(3, _WAVES, generator=rng)
    waves = [torch.sin(2 * math.pi * points @ (d / n).T + p).sum(1) for d, n, p in zip(direction, length, phase, strict=True)]
    return (_GREY + torch.stack(waves, 1) * (0.2 / math.sqrt(_WAVES / 2))).clamp(0, 1)


def _as_mask(mask: Tensor, size: int) -> Tensor:
    """[T,T,1] in [0,1].

    Raises:
        InputError: another size, or numbers that are not finite.
    """
    shape = list(mask.shape)
    if shape not in ([size, size], [size, size, 1]):
        raise InputError(f"The mask of a texture of {size}x{size} texels must have that size, got {shape}; resize one of them.")
    if not bool(mask.isfinite().all()):
        raise InputError("The mask holds NaN or infinite numbers; paint it again.")
    return mask.detach().cpu().float().reshape(size, size, 1).clamp(0, 1)


def _check_size(size: int) -> None:
    low, high = TEXTURE_SIZES
    if not low <= size <= high:
        raise InputError(f"A texture has {low} to {high} texels a side, got {size}; 1024 is usual.")


def _check_memory(size: int) -> None:
    """Refuse a size for which the free memory, where the system reports it, does not suffice."""
    need, free = size * size * _BYTES >> 20, free_memory_mb()
    if free is not None and need > free:
        raise InputError(
            f"A texture of {size}x{size} texels takes about {need} MB while it is optimised ({_BYTES} bytes a texel: colours, "
            f"surface points, and what four views see), and {free} MB are free; choose a smaller size."
        )


def _resize(image: Tensor, size: int) -> Tensor:
    return resize(image[None], size)[0]


def _to_device(render: Render, device: torch.device) -> Render:
    return Render(render.rgb.to(device), render.alpha.to(device), render.depth.to(device))
