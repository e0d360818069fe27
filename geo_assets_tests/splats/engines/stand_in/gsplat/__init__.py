# pyright: reportMissingImports=false
"""A stand-in for gsplat on a CPU, for scenes of a hundred Gaussians: every Gaussian is blended into every pixel.

It takes and gives what the real one does, in the same shapes, as far as our trainer uses it.
"""

from __future__ import annotations

import torch


def rasterization(
    means,
    quats,
    scales,
    opacities,
    colors,
    viewmats,
    Ks,
    width,
    height,
    *,
    sh_degree,
    packed,
    backgrounds,
    rasterize_mode,
):
    assert colors.shape == (len(means), colors.shape[1], 3) and opacities.shape == (len(means),)
    assert viewmats.shape == (1, 4, 4) and Ks.shape == (1, 3, 3) and backgrounds.shape == (1, 3)
    assert sh_degree <= 1 and (sh_degree + 1) ** 2 <= colors.shape[1]
    rotation, shift = viewmats[0, :3, :3], viewmats[0, :3, 3]
    local = means @ rotation.T + shift
    kept = (local[:, 2] > 0.1).nonzero()[:, 0]
    kept = kept[local[kept, 2].argsort()]
    local, x, y, z = local[kept], *local[kept].T
    fx, fy, cx, cy = Ks[0, 0, 0], Ks[0, 1, 1], Ks[0, 0, 2], Ks[0, 1, 2]
    zero = torch.zeros_like(z)
    slope = torch.stack([fx / z, zero, -fx * x / z**2, zero, fy / z, -fy * y / z**2], -1).view(-1, 2, 3)
    spread = rotations(quats[kept]) * scales[kept][:, None]
    spread = slope @ rotation @ spread
    covariance = spread @ spread.transpose(1, 2) + 0.3 * torch.eye(2)
    inverse = torch.linalg.inv(covariance)
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    middle = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    away = torch.stack([columns.flatten(), rows.flatten()], -1)[None] - middle[:, None]
    power = -0.5 * torch.einsum("npi,nij,npj->np", away, inverse, away)
    alpha = (opacities[kept][:, None] * torch.exp(power)).clamp(max=0.999)
    through = torch.cumprod(torch.cat([torch.ones(1, alpha.shape[1]), 1 - alpha]), 0)
    colour = 0.5 + 0.28209479 * colors[kept, 0]
    if sh_degree:
        d = torch.nn.functional.normalize(means[kept] + rotation.T @ shift, dim=-1)
        basis = 0.48860251 * torch.stack([-d[:, 1], d[:, 2], -d[:, 0]], -1)
        colour = colour + (basis[..., None] * colors[kept, 1:4]).sum(1)
    image = (alpha * through[:-1]).T @ colour.clamp(min=0) + through[-1][:, None] * backgrounds[0]
    return image.view(1, height, width, 3), (1 - through[-1]).view(1, height, width, 1), {}


def rotations(quats):
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).T
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).view(-1, 3, 3)
