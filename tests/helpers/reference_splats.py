"""The truth that splat renderers are held to: every pixel against every Gaussian, in float64, by autograd.

Written apart from the package (covariance matrices instead of factors, no culling by extents, no tiles), after the
published equations: Kerbl et al. 2023 (Eq. 2 to 6) with gsplat's constants, Mip-Splatting (Yu et al. 2024, Eq. 9).
"""

import torch

# Float32 cannot tell on which side of a threshold a pixel lies when it is this close (relative).
CLOSE_ALPHA, CLOSE_TRANSMITTANCE = 1e-4, 2e-3


def rotations(quats):
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    zero = torch.zeros_like(w)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    return torch.eye(3, dtype=quats.dtype) + 2 * w[:, None, None] * cross + 2 * cross @ cross  # Rodrigues' formula


def project(means, quats, scales, viewmat, intrinsics, width, height):
    """Projected means, 2D covariances without blur, depths."""
    rotation = viewmat[:3, :3]
    x, y, z = (means @ rotation.T + viewmat[:3, 3]).unbind(-1)
    factor = rotations(quats) * scales[:, None, :]
    covariance = rotation @ factor @ factor.mT @ rotation.T
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    tx = z * (x / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
    ty = z * (y / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
    jacobian = torch.zeros(len(z), 2, 3, dtype=z.dtype)
    jacobian[:, 0, 0], jacobian[:, 0, 2] = fx / z, -fx * tx / z**2
    jacobian[:, 1, 1], jacobian[:, 1, 2] = fy / z, -fy * ty / z**2
    return torch.stack([fx * x / z + cx, fy * y / z + cy], -1), jacobian @ covariance @ jacobian.mT, z


def render_view(splats, viewmat, intrinsics, width, height, background, antialiased, probe):
    """(rgb [H,W,3], alpha [H,W,1], depth [H,W,1], clear [H,W,1]): clear marks the pixels away from every threshold."""
    front = (splats.means.detach() @ viewmat[2, :3] + viewmat[2, 3] > 0.01).nonzero()[:, 0]
    chosen = (t[front] for t in (splats.means, splats.quats, splats.scales))
    means2d, sharp, z = project(*chosen, viewmat, intrinsics, width, height)
    means2d = means2d + probe[front]
    blurred = sharp + 0.3 * torch.eye(2, dtype=z.dtype)
    opacity = splats.opacities[front]
    if antialiased:
        opacity = opacity * (torch.linalg.det(sharp) / torch.linalg.det(blurred)).sqrt()

    order = torch.argsort(z, stable=True)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns, rows], -1).reshape(-1, 1, 2) + 0.5
    offset = pixels - means2d[order]
    sigma = 0.5 * torch.einsum("pni,nij,pnj->pn", offset, torch.linalg.inv(blurred)[order], offset)
    free = opacity[order] * torch.exp(-sigma)
    alpha = torch.where(free >= 1 / 255, free.clamp(max=0.999), 0.0)

    with torch.no_grad():
        after = torch.cumprod(1 - alpha, 1)
        live = after > 1e-4
        reached = torch.cat([torch.ones_like(live[:, :1]), live[:, :-1]], 1)  # what lies behind cannot be on a threshold
        close = ((free * 255 - 1).abs() < CLOSE_ALPHA) | ((free / 0.999 - 1).abs() < CLOSE_ALPHA)
        close |= (after / 1e-4 - 1).abs() < CLOSE_TRANSMITTANCE
        clear = ~(close & reached).any(1)
    after = torch.cumprod(1 - alpha * live, 1)
    weight = alpha * live * torch.cat([torch.ones(len(after), 1, dtype=z.dtype), after[:, :-1]], 1)
    left = 1 - weight.sum(1, keepdim=True)
    rgb = weight @ splats.colors[front][order] + left * background
    pictures = (rgb, 1 - left, weight @ z[order][:, None], clear[:, None])
    return tuple(picture.reshape(height, width, -1) for picture in pictures)


def render(splats, cameras, background, antialiased, probe):
    """rgb, alpha, depth and clear, [V,H,W,...], for float64 splats; ``probe`` [V,N,2] is added to the projected means."""
    size = cameras.width, cameras.height
    views = zip(cameras.viewmats.double(), cameras.Ks.double(), background.expand(len(cameras), 3), probe, strict=True)
    pictures = [render_view(splats, v, k, *size, colour, antialiased, moved) for v, k, colour, moved in views]
    return tuple(torch.stack(p) for p in zip(*pictures, strict=True))
