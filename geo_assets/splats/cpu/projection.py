"""From Gaussians in space to ellipses on the image, and the gradient back (EWA splatting, Zwicker et al. 2001).

The formulas: a mean m is q = R m + t in the camera and u = fx qx/qz + cx, v = fy qy/qz + cy on the image. With M =
(rotation of the quaternion) diag(scales), J the Jacobian of the projection at q and T = J R, the covariance on the
image is S = (T M)(T M)^T + 0.3 I; its inverse is the conic. The 0.3 is a blur of about half a pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geo_assets.splats.cameras import Camera
from geo_assets.splats.cpu.compiled import f32, kernel, parallel_kernel, prange
from geo_assets.splats.gaussians import MEAN, OPACITY, QUAT, SCALE, SH, Floats

TILE_PX = 16
BLUR_PX2 = f32(0.3)
NEAR = f32(0.01)
LEAST_ALPHA = f32(1 / 255)
MOST_ALPHA = f32(0.99)
LOG_255 = f32(5.541263545158426)  # at an exponent below -LOG_255 even an opaque Gaussian is below LEAST_ALPHA

CENTRE, CONIC, LOG_OPACITY, RED, GREEN, BLUE, REACH, LEVEL, ELLIPSE_FLOATS = 0, 2, 5, 6, 7, 8, 9, 11, 12
"""First column of each part of an ellipse, a row of the table that :func:`project` fills: column and row of the centre
[px]; inverse covariance xx, xy, yy [1/px2]; logarithm of the opacity; colour; how far it reaches beside and above the
centre [px]; and d conic d where alpha falls to 1/255, d being a place relative to the centre."""

# Constants of the spherical harmonics, signs as in the paper's own code.
SH_C0 = f32(0.28209479177387814)
SH_C1 = f32(0.4886025119029199)
SH_C2 = (f32(1.0925484305920792), f32(0.31539156525252005), f32(0.5462742152960396))
SH_C3 = (
    f32(0.5900435899266435),
    f32(2.890611442640554),
    f32(0.4570457994644658),
    f32(0.3731763325901154),
    f32(1.445305721320277),
)


class Pinhole(NamedTuple):
    """A camera as the kernels take it, in single precision."""

    rotation: Floats
    translation: Floats
    centre: Floats
    fx: np.float32
    fy: np.float32
    cx: np.float32
    cy: np.float32
    width: int
    height: int

    @classmethod
    def of(cls, camera: Camera) -> Pinhole:
        """The camera in single precision."""
        rotation, translation, centre = (
            np.ascontiguousarray(a, np.float32) for a in (camera.rotation, camera.translation, camera.centre)
        )
        lens = (f32(camera.fx), f32(camera.fy), f32(camera.cx), f32(camera.cy))
        return cls(rotation, translation, centre, *lens, camera.width, camera.height)


@kernel
def in_camera(camera, x, y, z):
    """Camera coordinates of a point."""
    r, t = camera.rotation, camera.translation
    return (
        r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + t[0],
        r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + t[1],
        r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + t[2],
    )


@kernel
def unit_quaternion(row):
    """The quaternion of a Gaussian, made unit, and the inverse of its length."""
    w, x, y, z = row[QUAT], row[QUAT + 1], row[QUAT + 2], row[QUAT + 3]
    inverse = f32(1) / math.sqrt(w * w + x * x + y * y + z * z + f32(1e-12))
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@kernel
def rotation_matrix(w, x, y, z):
    """Rotation of a unit quaternion, nine numbers row by row."""
    one, two = f32(1), f32(2)
    return (
        one - two * (y * y + z * z),
        two * (x * y - w * z),
        two * (x * z + w * y),
        two * (x * y + w * z),
        one - two * (x * x + z * z),
        two * (y * z - w * x),
        two * (x * z - w * y),
        two * (y * z + w * x),
        one - two * (x * x + y * y),
    )


@kernel
def clamped_slopes(camera, qx, qy, inverse_depth):
    """Slopes qx/qz and qy/qz, held within 1.3 of the image so that the linearisation stays sane beside it."""
    limit_x = f32(0.65) * f32(camera.width) / camera.fx
    limit_y = f32(0.65) * f32(camera.height) / camera.fy
    return min(max(qx * inverse_depth, -limit_x), limit_x), min(max(qy * inverse_depth, -limit_y), limit_y)


@kernel
def image_axes(camera, slope_x, slope_y, inverse_depth):
    """T = J R, the two image axes in the world, six numbers row by row."""
    r = camera.rotation
    jx, jy = camera.fx * inverse_depth, camera.fy * inverse_depth
    jxz, jyz = -jx * slope_x, -jy * slope_y
    return (
        jx * r[0, 0] + jxz * r[2, 0],
        jx * r[0, 1] + jxz * r[2, 1],
        jx * r[0, 2] + jxz * r[2, 2],
        jy * r[1, 0] + jyz * r[2, 0],
        jy * r[1, 1] + jyz * r[2, 1],
        jy * r[1, 2] + jyz * r[2, 2],
    )


@kernel
def harmonics(degree, x, y, z):
    """The sixteen spherical harmonics of a unit direction, zero above the degree."""
    o = f32(0)
    b1 = b2 = b3 = b4 = b5 = b6 = b7 = b8 = b9 = b10 = b11 = b12 = b13 = b14 = b15 = o
    if degree > 0:
        b1, b2, b3 = -SH_C1 * y, SH_C1 * z, -SH_C1 * x
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        b4, b5, b7 = SH_C2[0] * x * y, -SH_C2[0] * y * z, -SH_C2[0] * x * z
        b6, b8 = SH_C2[1] * (f32(2) * zz - xx - yy), SH_C2[2] * (xx - yy)
        if degree > 2:
            b9 = -SH_C3[0] * y * (f32(3) * xx - yy)
            b10 = SH_C3[1] * x * y * z
            b11 = -SH_C3[2] * y * (f32(4) * zz - xx - yy)
            b12 = SH_C3[3] * z * (f32(2) * zz - f32(3) * xx - f32(3) * yy)
            b13 = -SH_C3[2] * x * (f32(4) * zz - xx - yy)
            b14 = SH_C3[4] * z * (xx - yy)
            b15 = -SH_C3[0] * x * (xx - f32(3) * yy)
    return SH_C0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15


@kernel
def view_direction(camera, x, y, z):
    """Unit direction from the camera to a point, and the inverse of the distance."""
    dx, dy, dz = x - camera.centre[0], y - camera.centre[1], z - camera.centre[2]
    inverse = f32(1) / math.sqrt(dx * dx + dy * dy + dz * dz + f32(1e-12))
    return dx * inverse, dy * inverse, dz * inverse, inverse


@parallel_kernel
def project(rows, degree, camera, table, depths):
    """Where each Gaussian falls on the image.

    Args:
        rows: the Gaussians [N, 11 + 3 K].
        degree: highest degree of harmonics to use.
        camera: the camera.
        table: result [N, ELLIPSE_FLOATS]; rows of Gaussians that are not visible are left as they were.
        depths: result [N]; 0 where not visible.
    """
    n_harmonics = (degree + 1) * (degree + 1)
    for n in prange(rows.shape[0]):
        depths[n] = f32(0)
        row = rows[n]
        x, y, z = row[MEAN], row[MEAN + 1], row[MEAN + 2]
        qx, qy, depth = in_camera(camera, x, y, z)
        if depth < NEAR:
            continue
        log_opacity = -math.log(f32(1) + math.exp(-row[OPACITY]))
        if log_opacity <= -LOG_255:
            continue
        inverse_depth = f32(1) / depth
        u = camera.fx * qx * inverse_depth + camera.cx
        v = camera.fy * qy * inverse_depth + camera.cy

        w, i, j, k, _ = unit_quaternion(row)
        r00, r01, r02, r10, r11, r12, r20, r21, r22 = rotation_matrix(w, i, j, k)
        s0, s1, s2 = math.exp(row[SCALE]), math.exp(row[SCALE + 1]), math.exp(row[SCALE + 2])
        slope_x, slope_y = clamped_slopes(camera, qx, qy, inverse_depth)
        t00, t01, t02, t10, t11, t12 = image_axes(camera, slope_x, slope_y, inverse_depth)
        a0 = (t00 * r00 + t01 * r10 + t02 * r20) * s0
        a1 = (t00 * r01 + t01 * r11 + t02 * r21) * s1
        a2 = (t00 * r02 + t01 * r12 + t02 * r22) * s2
        b0 = (t10 * r00 + t11 * r10 + t12 * r20) * s0
        b1 = (t10 * r01 + t11 * r11 + t12 * r21) * s1
        b2 = (t10 * r02 + t11 * r12 + t12 * r22) * s2
        xx = a0 * a0 + a1 * a1 + a2 * a2 + BLUR_PX2
        xy = a0 * b0 + a1 * b1 + a2 * b2
        yy = b0 * b0 + b1 * b1 + b2 * b2 + BLUR_PX2
        determinant = xx * yy - xy * xy
        if not determinant > f32(1e-12):
            continue

        # A faint Gaussian reaches less far: alpha falls below 1/255 where the exponent is ln(255 opacity).
        level = f32(2) * (LOG_255 + log_opacity)
        reach_x, reach_y = math.sqrt(level * xx), math.sqrt(level * yy)
        if u + reach_x <= 0 or u - reach_x >= camera.width or v + reach_y <= 0 or v - reach_y >= camera.height:
            continue
        depths[n] = depth
        ellipse = table[n]
        ellipse[CENTRE], ellipse[CENTRE + 1] = u, v
        ellipse[CONIC], ellipse[CONIC + 1], ellipse[CONIC + 2] = yy / determinant, -xy / determinant, xx / determinant
        ellipse[LOG_OPACITY], ellipse[LEVEL] = log_opacity, level
        ellipse[REACH], ellipse[REACH + 1] = reach_x, reach_y

        dx, dy, dz, _ = view_direction(camera, x, y, z)
        basis = harmonics(degree, dx, dy, dz)
        red = green = blue = f32(0.5)
        for h in range(n_harmonics):
            red += basis[h] * row[SH + 3 * h]
            green += basis[h] * row[SH + 3 * h + 1]
            blue += basis[h] * row[SH + 3 * h + 2]
        ellipse[RED], ellipse[GREEN], ellipse[BLUE] = max(red, f32(0)), max(green, f32(0)), max(blue, f32(0))


@parallel_kernel
def project_backward(hands, order, tiles, slot_sums, rows, degree, camera, table, gradients, pull):
    """Gradient of the loss in the rows of the visible Gaussians.

    Args:
        hands: in how many parts the threads share the Gaussians; each takes every ``hands``-th, since near ones
            have more entries.
        order: visible Gaussians [V].
        tiles: their entries.
        slot_sums: what ``blend_backward`` summed over each entry's pixels.
        rows: the Gaussians [N, 11 + 3 K].
        degree: highest degree of harmonics in use.
        camera: the camera.
        table: the ellipses that :func:`project` found.
        gradients: result [N, 11 + 3 K], rows of visible Gaussians are overwritten.
        pull: result [N]: length of the gradient in the centre, in units of half the image; large where detail lacks.
    """
    for hand in prange(hands):
        sums = np.empty(slot_sums.shape[1], np.float32)
        for index in range(hand, order.shape[0], hands):
            n = order[index]
            sums[:] = f32(0)
            for p in range(tiles.slot_starts[index], tiles.slot_starts[index + 1]):
                entry = slot_sums[tiles.slots[p]]
                for k in range(sums.shape[0]):
                    sums[k] += entry[k]
            pull[n] = gaussian_backward(sums, rows[n], degree, camera, table[n], gradients[n])


@kernel
def gaussian_backward(sums, row, degree, camera, ellipse, out):
    """Gradient in one Gaussian's row from the sums over its pixels; returns the pull on its centre."""
    red, green, blue, s_0, s_x, s_y, s_xx, s_xy, s_yy = (
        sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7], sums[8],
    )  # fmt: skip
    n_harmonics = (degree + 1) * (degree + 1)
    # The exponent is -d conic d / 2 with d from the centre to the pixel.
    cxx, cxy, cyy = ellipse[CONIC], ellipse[CONIC + 1], ellipse[CONIC + 2]
    g_cxx, g_cxy, g_cyy = f32(-0.5) * s_xx, -s_xy, f32(-0.5) * s_yy
    g_u, g_v = cxx * s_x + cxy * s_y, cyy * s_y + cxy * s_x

    # Colour: harmonics, and the view direction that they depend on.
    red = f32(0) if ellipse[RED] == 0 else red
    green = f32(0) if ellipse[GREEN] == 0 else green
    blue = f32(0) if ellipse[BLUE] == 0 else blue
    x, y, z = row[MEAN], row[MEAN + 1], row[MEAN + 2]
    dx, dy, dz, inverse_distance = view_direction(camera, x, y, z)
    basis = harmonics(degree, dx, dy, dz)
    for h in range(n_harmonics):
        out[SH + 3 * h] = basis[h] * red
        out[SH + 3 * h + 1] = basis[h] * green
        out[SH + 3 * h + 2] = basis[h] * blue
    for h in range(SH + 3 * n_harmonics, out.shape[0]):
        out[h] = f32(0)
    g_x = g_y = g_z = f32(0)
    if degree > 0:
        g_dx, g_dy, g_dz = direction_gradient(row, degree, dx, dy, dz, red, green, blue)
        along = g_dx * dx + g_dy * dy + g_dz * dz
        g_x = (g_dx - along * dx) * inverse_distance
        g_y = (g_dy - along * dy) * inverse_distance
        g_z = (g_dz - along * dz) * inverse_distance

    # The exponent holds the logarithm of the opacity.
    out[OPACITY] = s_0 * (f32(1) - math.exp(ellipse[LOG_OPACITY]))

    # The covariance on the image, as in `project`.
    qx, qy, depth = in_camera(camera, x, y, z)
    inverse_depth = f32(1) / depth
    w, i, j, k, inverse_length = unit_quaternion(row)
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = rotation_matrix(w, i, j, k)
    s0, s1, s2 = math.exp(row[SCALE]), math.exp(row[SCALE + 1]), math.exp(row[SCALE + 2])
    m00, m01, m02 = r00 * s0, r01 * s1, r02 * s2
    m10, m11, m12 = r10 * s0, r11 * s1, r12 * s2
    m20, m21, m22 = r20 * s0, r21 * s1, r22 * s2
    slope_x, slope_y = clamped_slopes(camera, qx, qy, inverse_depth)
    t00, t01, t02, t10, t11, t12 = image_axes(camera, slope_x, slope_y, inverse_depth)
    a0, a1, a2 = (
        t00 * m00 + t01 * m10 + t02 * m20,
        t00 * m01 + t01 * m11 + t02 * m21,
        t00 * m02 + t01 * m12 + t02 * m22,
    )
    b0, b1, b2 = (
        t10 * m00 + t11 * m10 + t12 * m20,
        t10 * m01 + t11 * m11 + t12 * m21,
        t10 * m02 + t11 * m12 + t12 * m22,
    )

    # d(conic) = -conic dS conic. The xy entry stands for two equal entries of the symmetric matrix.
    half = f32(0.5) * g_cxy
    p00, p01 = g_cxx * cxx + half * cxy, g_cxx * cxy + half * cyy
    p10, p11 = half * cxx + g_cyy * cxy, half * cxy + g_cyy * cyy
    g_xx = -(cxx * p00 + cxy * p10)
    g_xy = -(cxx * p01 + cxy * p11) - (cxy * p00 + cyy * p10)
    g_yy = -(cxy * p01 + cyy * p11)

    # S = A A^T with the rows a and b of A = T M.
    two = f32(2)
    g_a0, g_a1, g_a2 = two * g_xx * a0 + g_xy * b0, two * g_xx * a1 + g_xy * b1, two * g_xx * a2 + g_xy * b2
    g_b0, g_b1, g_b2 = two * g_yy * b0 + g_xy * a0, two * g_yy * b1 + g_xy * a1, two * g_yy * b2 + g_xy * a2

    # M: scales are the lengths of its columns, the quaternion turns them.
    g_m00, g_m01, g_m02 = t00 * g_a0 + t10 * g_b0, t00 * g_a1 + t10 * g_b1, t00 * g_a2 + t10 * g_b2
    g_m10, g_m11, g_m12 = t01 * g_a0 + t11 * g_b0, t01 * g_a1 + t11 * g_b1, t01 * g_a2 + t11 * g_b2
    g_m20, g_m21, g_m22 = t02 * g_a0 + t12 * g_b0, t02 * g_a1 + t12 * g_b1, t02 * g_a2 + t12 * g_b2
    out[SCALE] = g_m00 * m00 + g_m10 * m10 + g_m20 * m20
    out[SCALE + 1] = g_m01 * m01 + g_m11 * m11 + g_m21 * m21
    out[SCALE + 2] = g_m02 * m02 + g_m12 * m12 + g_m22 * m22
    e00, e10, e20 = g_m00 * s0, g_m10 * s0, g_m20 * s0
    e01, e11, e21 = g_m01 * s1, g_m11 * s1, g_m21 * s1
    e02, e12, e22 = g_m02 * s2, g_m12 * s2, g_m22 * s2
    g_w = two * (i * (e21 - e12) + j * (e02 - e20) + k * (e10 - e01))
    g_i = two * (-two * i * (e11 + e22) + j * (e01 + e10) + k * (e02 + e20) + w * (e21 - e12))
    g_j = two * (i * (e01 + e10) - two * j * (e00 + e22) + k * (e12 + e21) + w * (e02 - e20))
    g_k = two * (i * (e02 + e20) + j * (e12 + e21) - two * k * (e00 + e11) + w * (e10 - e01))
    along = g_w * w + g_i * i + g_j * j + g_k * k
    out[QUAT] = (g_w - along * w) * inverse_length
    out[QUAT + 1] = (g_i - along * i) * inverse_length
    out[QUAT + 2] = (g_j - along * j) * inverse_length
    out[QUAT + 3] = (g_k - along * k) * inverse_length

    # T = J R: the Jacobian depends on the place of the mean, as the centre does.
    r = camera.rotation
    g_t00, g_t01, g_t02 = (
        g_a0 * m00 + g_a1 * m01 + g_a2 * m02,
        g_a0 * m10 + g_a1 * m11 + g_a2 * m12,
        g_a0 * m20 + g_a1 * m21 + g_a2 * m22,
    )
    g_t10, g_t11, g_t12 = (
        g_b0 * m00 + g_b1 * m01 + g_b2 * m02,
        g_b0 * m10 + g_b1 * m11 + g_b2 * m12,
        g_b0 * m20 + g_b1 * m21 + g_b2 * m22,
    )
    g_jx = g_t00 * r[0, 0] + g_t01 * r[0, 1] + g_t02 * r[0, 2]
    g_jxz = g_t00 * r[2, 0] + g_t01 * r[2, 1] + g_t02 * r[2, 2]
    g_jy = g_t10 * r[1, 0] + g_t11 * r[1, 1] + g_t12 * r[1, 2]
    g_jyz = g_t10 * r[2, 0] + g_t11 * r[2, 1] + g_t12 * r[2, 2]
    fx_depth2, fy_depth2 = camera.fx * inverse_depth * inverse_depth, camera.fy * inverse_depth * inverse_depth
    g_qx, g_qy = g_u * camera.fx * inverse_depth, g_v * camera.fy * inverse_depth
    g_depth = -g_u * fx_depth2 * qx - g_v * fy_depth2 * qy - g_jx * fx_depth2 - g_jy * fy_depth2
    if slope_x == qx * inverse_depth:
        g_qx -= g_jxz * fx_depth2
        g_depth += two * g_jxz * fx_depth2 * slope_x
    else:  # a clamped slope does not depend on the mean
        g_depth += g_jxz * fx_depth2 * slope_x
    if slope_y == qy * inverse_depth:
        g_qy -= g_jyz * fy_depth2
        g_depth += two * g_jyz * fy_depth2 * slope_y
    else:
        g_depth += g_jyz * fy_depth2 * slope_y
    out[MEAN] = g_x + r[0, 0] * g_qx + r[1, 0] * g_qy + r[2, 0] * g_depth
    out[MEAN + 1] = g_y + r[0, 1] * g_qx + r[1, 1] * g_qy + r[2, 1] * g_depth
    out[MEAN + 2] = g_z + r[0, 2] * g_qx + r[1, 2] * g_qy + r[2, 2] * g_depth
    half_width, half_height = f32(0.5) * f32(camera.width), f32(0.5) * f32(camera.height)
    return math.sqrt((g_u * half_width) ** 2 + (g_v * half_height) ** 2)


@kernel
def weighted(row, harmonic, red, green, blue):
    """A harmonic's coefficients weighted by the gradient in the colour."""
    first = SH + 3 * harmonic
    return row[first] * red + row[first + 1] * green + row[first + 2] * blue


@kernel
def direction_gradient(row, degree, x, y, z, red, green, blue):
    """Gradient of the colour in the view direction, from degree 1."""
    g_x = -SH_C1 * weighted(row, 3, red, green, blue)
    g_y = -SH_C1 * weighted(row, 1, red, green, blue)
    g_z = SH_C1 * weighted(row, 2, red, green, blue)
    if degree > 1:
        two = f32(2)
        c4 = SH_C2[0] * weighted(row, 4, red, green, blue)
        c5 = -SH_C2[0] * weighted(row, 5, red, green, blue)
        c6 = SH_C2[1] * weighted(row, 6, red, green, blue)
        c7 = -SH_C2[0] * weighted(row, 7, red, green, blue)
        c8 = SH_C2[2] * weighted(row, 8, red, green, blue)
        g_x += c4 * y - two * c6 * x + c7 * z + two * c8 * x
        g_y += c4 * x + c5 * z - two * c6 * y - two * c8 * y
        g_z += c5 * y + two * two * c6 * z + c7 * x
    if degree > 2:
        three, four, six, eight = f32(3), f32(4), f32(6), f32(8)
        xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
        c9, c15 = SH_C3[0] * weighted(row, 9, red, green, blue), SH_C3[0] * weighted(row, 15, red, green, blue)
        c10, c12 = SH_C3[1] * weighted(row, 10, red, green, blue), SH_C3[3] * weighted(row, 12, red, green, blue)
        c11, c13 = SH_C3[2] * weighted(row, 11, red, green, blue), SH_C3[2] * weighted(row, 13, red, green, blue)
        c14 = SH_C3[4] * weighted(row, 14, red, green, blue)
        g_x += c10 * yz - six * (c9 * xy + c12 * xz) + two * (c11 * xy + c14 * xz)
        g_x += c13 * (three * xx + yy - four * zz) + three * c15 * (yy - xx)
        g_y += c10 * xz - six * (c12 * yz - c15 * xy) + two * (c13 * xy - c14 * yz)
        g_y += c11 * (xx + three * yy - four * zz) + three * c9 * (yy - xx)
        g_z += c10 * xy - eight * (c11 * yz + c13 * xz)
        g_z += three * c12 * (two * zz - xx - yy) + c14 * (xx - yy)
    return g_x, g_y, g_z
