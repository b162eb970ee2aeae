"""Overlay the reference image on finished Gaussians, as small discs on the visible surface."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, orbit_cameras
from ..errors import InputError
from ..fields.gaussians import SH_C0, Gaussians, Parameters
from ..fields.protocol import WHITE
from ..render.protocol import Splats
from ..util.images import resize
from .mesh_to_gaussians import quats_from_normals

_WIDTH = 0.65  # standard deviation of a disc as a share of the pixels' spacing, as in ``mesh_to_gaussians``
_THICKNESS = 0.15  # of a disc as a share of its width
_STEEPEST = 0.4  # cosine down to which discs grow to cover a turned surface
_SIDE_SIZE = 128
_DARK = 0.05  # added to what is seen of a disc: those hardly seen must not take extreme colours


@dataclass(frozen=True)
class DiscSettings:
    """How the reference is converted to discs.

    Attributes:
        size: side in pixels of the image whose pixels become discs.
        opacity: opacity of a fully trusted disc.
        grazing, facing: cosines between the surface's normal and the direction to the camera at which trust begins and is full.
        rim: pixels along the silhouette over which trust falls to 0.
        step: largest depth difference, in world units, between a disc and the surface around it; beyond it trust is 0.
        lift: offset of the discs towards the camera, in world units, so that soft Gaussians do not hide them.
        hardness: the Gaussians' opacities o are replaced by 1 - (1 - o)^hardness to locate their surface.
        steps: corrections of the discs' colours for the Gaussians in front of them.
        correction: largest deviation of a fully trusted disc's colour from the image's.
    """

    size: int = 192
    opacity: float = 0.9
    grazing: float = 0.25
    facing: float = 0.55
    rim: int = 3
    step: float = 0.04
    lift: float = 0.01
    hardness: float = 4.0
    steps: int = 4
    correction: float = 0.25

    def __post_init__(self):
        if self.size < 16 or self.rim < 1 or self.steps < 0:
            raise InputError(
                f"Discs need an image of at least 16 pixels, a rim of at least 1 and no negative steps, got {self.size}, "
                f"{self.rim} and {self.steps}; 192, 3 and 4 are usual."
            )
        if not (0 < self.opacity < 1 and 0 <= self.grazing < self.facing <= 1):
            raise InputError(
                f"Discs need an opacity within 0..1 and 0 <= grazing < facing <= 1, got {self.opacity}, {self.grazing} and "
                f"{self.facing}."
            )


def lay_image_over(
    field: Gaussians,
    cameras: Cameras,
    image: Tensor,
    alpha: Tensor,
    settings: DiscSettings = DiscSettings(),  # noqa: B008 - immutable
) -> Gaussians:
    """Add an image of an object to its Gaussians, so that a render from the image's camera shows the image.

    SIR at 64 pixels knows the object's shape and its colours from all sides, but nothing as fine as the user's image. Each
    pixel of the image becomes a flat, nearly opaque Gaussian on the surface that the field shows there. The discs fade where
    the surface turns away, at its silhouette, at steps in depth, and where they would stand beside the field's outlines from
    other sides. The field's own Gaussians stay as they are: other sides look as before.

    Args:
        field: finished Gaussians (``fields.clean.clean``); not changed.
        cameras: the image's one camera.
        image: [1,H,W,3] in [0,1] on white; alpha: [1,H,W,1] coverage.

    Returns:
        The field with the discs appended after its own Gaussians; the field itself if it shows nothing of the image.

    Raises:
        InputError: not exactly one camera.
    """
    if len(cameras) != 1:
        raise InputError(f"One image of one camera is laid over Gaussians, got {len(cameras)} cameras; take the front one.")
    # nodes run in inference mode, which has no gradients
    with torch.inference_mode(False), torch.no_grad():
        size = min(settings.size, image.shape[1])
        cameras = cameras.to(field.device).resize(size, size)
        image, alpha = (resize(x.detach().to(field.device).clone(), size) for x in (image, alpha))
        own = field.clone()
        discs = _make_discs(own, cameras, image[0], alpha[0, ..., 0], settings)
        if discs is None:
            return field
        parameters, shown = discs
        both = Parameters(*(torch.cat(pair) for pair in zip(own.parameters, parameters, strict=True)))
        both = both._replace(dc=_correct_colors(_replace_parameters(own, both), cameras, image, shown, len(own), settings))
        return _replace_parameters(own, both)


def _replace_parameters(field: Gaussians, parameters: Parameters) -> Gaussians:
    """The field with other Gaussians and no optimiser state."""
    moments = {"exp_avg": None, "exp_avg_sq": None, "grad_sum": None, "views_seen": None}
    return replace(field, parameters=parameters, **moments)


def _make_discs(
    field: Gaussians, cameras: Cameras, image: Tensor, alpha: Tensor, settings: DiscSettings
) -> tuple[Parameters, Tensor] | None:
    """(discs, [S,S] bool where the image is trusted at all); None if there are no discs."""
    # 1. the surface, as depth along the viewing axis
    splats = field.splats()
    hard = replace(splats, opacities=1 - (1 - splats.opacities) ** settings.hardness)
    render = field.renderer()(hard, cameras, WHITE.to(image), antialiased=True)
    covered = (render.alpha[0, ..., 0] > 0.5) & (alpha > 0.5)
    depth = render.depth[0, ..., 0] / render.alpha[0, ..., 0].clamp_min(1e-6)
    calm = _smooth_depth(depth, covered)
    # 2. its points and normals, in the camera's axes (x right, y down, z forward)
    rays = cameras.rays()
    points = rays * (calm - settings.lift)[..., None]
    normals = F.normalize(torch.linalg.cross(_slope(points, 0), _slope(points, 1)), dim=-1)
    normals = torch.where(normals[..., 2:] > 0, -normals, normals)
    # 3. how far the image is trusted there
    facing = -(normals * F.normalize(rays, dim=-1)).sum(-1)
    inner = _inside_weight(covered, settings.rim)
    trust = inner * ((facing - settings.grazing) / (settings.facing - settings.grazing)).clamp(0, 1)
    trust = trust * (2 - 2 * (calm - depth).abs() / settings.step).clamp(0, 1)
    view = cameras.viewmats[0]
    world = (points - view[:3, 3]) @ view[:3, :3]
    trust = trust * (2 * _least_coverage(field, cameras, world)).clamp(0, 1)
    chosen = trust > 0.05
    if not bool(chosen.any()):
        return None
    # 4. discs in the world
    width = _WIDTH * calm[chosen] / cameras.focal / facing[chosen].clamp_min(_STEEPEST).sqrt()
    opacity = settings.opacity * trust[chosen]
    parameters = Parameters(
        world[chosen],
        torch.stack([width, width, _THICKNESS * width], 1).log(),
        quats_from_normals(normals[chosen] @ view[:3, :3]),
        torch.logit(opacity),
        (image[chosen] - 0.5) / SH_C0,
    )
    return parameters, inner > 0


def _correct_colors(
    field: Gaussians, cameras: Cameras, image: Tensor, shown: Tensor, first: int, settings: DiscSettings
) -> Tensor:
    """[N,3] spherical harmonics of all Gaussians, with those from ``first`` on fitted to the image [1,S,S,3].

    Each step adds to every disc the mean error of the pixels where it is visible (SIRT, Gilbert 1972), within the limits.
    """
    splats = field.splats()
    wanted, seen, colors = splats.colors[first:], None, splats.colors[first:]
    limit = settings.correction * splats.opacities[first:, None] / settings.opacity
    for _ in range(settings.steps):
        with torch.enable_grad():
            colors = colors.detach().requires_grad_()
            all_colors = torch.cat([splats.colors[:first], colors])
            probe = Splats(splats.means, splats.quats, splats.scales, splats.opacities, all_colors)
            rgb = field.renderer()(probe, cameras, WHITE.to(image), antialiased=field.settings.antialiased).rgb
            # of numbers: given the gradients of a tensor, torch would import its compiler
            if seen is None:
                (seen,) = torch.autograd.grad(rgb.sum(), colors, retain_graph=True)
            (missing,) = torch.autograd.grad((rgb * (image - rgb.detach()) * shown[..., None]).sum(), colors)
        colors = colors.detach() + 1.5 * missing / (seen + _DARK)
        colors = torch.clamp(colors, wanted - limit, wanted + limit).clamp(0, 1)
    return torch.cat([field.parameters.dc[:first], (colors.detach() - 0.5) / SH_C0])


def _least_coverage(field: Gaussians, cameras: Cameras, points: Tensor) -> Tensor:
    """[S,S] least coverage of the field at points [S,S,3] over five views from the sides and above, 0 beside its outlines."""
    place = cameras.c2w[0, :3, 3]
    distance, azimuth = float(place.norm()), math.degrees(math.atan2(float(place[0]), float(place[2])))
    turns = azimuth + torch.tensor([-90.0, -45.0, 45.0, 90.0, 0.0])
    sides = orbit_cameras([0.0] * 4 + [70.0], turns, distance, cameras.fov_y, _SIDE_SIZE).to(field.device)
    alpha = field.render(sides, WHITE).alpha.permute(0, 3, 1, 2)
    pixels, _ = sides.project(points.reshape(-1, 3))
    grid = pixels.view(len(sides), *points.shape[:2], 2) * 2 / _SIDE_SIZE - 1
    return F.grid_sample(alpha, grid, align_corners=False)[:, 0].amin(0)


def _smooth_depth(depth: Tensor, covered: Tensor) -> Tensor:
    """[S,S] depth without the Gaussians' roughness: median filters within the silhouette, which keep depth edges, then a mean
    filter."""
    reach = math.ceil(len(depth) / 64)
    inside = depth.masked_fill(~covered, torch.nan)[None, None]
    windows = F.unfold(F.pad(inside, (reach,) * 4, value=torch.nan), 2 * reach + 1)[0]
    depth = windows.nanmedian(0).values.view_as(depth).nan_to_num()
    share = F.avg_pool2d(covered[None, None].float(), 3, 1, 1)[0, 0].clamp_min(1e-6)
    return F.avg_pool2d((depth * covered)[None, None], 3, 1, 1)[0, 0] / share


def _slope(points: Tensor, axis: int) -> Tensor:
    """[S,S,3] central differences, 0 along the border."""
    slope = torch.zeros_like(points)
    middle = [slice(None)] * 2
    middle[axis] = slice(1, -1)
    size = points.shape[axis]
    slope[tuple(middle)] = points.narrow(axis, 2, size - 2) - points.narrow(axis, 0, size - 2)
    return slope


def _inside_weight(covered: Tensor, rim: int) -> Tensor:
    """[S,S] 0 outside and along the silhouette, rising to 1 over ``rim`` pixels."""
    left = covered[None, None].float()
    inner = torch.zeros_like(left[0, 0])
    for _ in range(rim):
        left = -F.max_pool2d(-left, 3, 1, 1)
        inner = inner + left[0, 0] / rim
    return inner
