"""The largest singular triplets of a matrix, without the others: block Golub-Kahan-Lanczos bidiagonalisation.

From a random block Q₁ of b orthonormal columns, A Q_j = U_{j−1} R_{j−1}ᵀ + U_j S_j and Aᵀ U_j = Q_j S_jᵀ + Q_{j+1} R_j
make orthonormal bases with A Q = U B, where B [k, k] is small. Its singular values approach those of A from below, the
largest first, and the error is known without another product: ‖Aᵀu − s v‖ = ‖R x‖ with the last b entries x of a left
singular vector of B. Only Q, on the shorter side, is kept and held orthogonal to rounding; this is enough for both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # columns: fewer take fewer products with A in all, more make each product faster
TOLERANCE = 1e-4  # ‖Aᵀu − s v‖ / s; the error of s is about its square
CHECKED = 1.1  # B is decomposed each time it has grown by this factor


def largest_triplets(
    weight: Tensor, rank: int, u0: Tensor, s0: Tensor, vt0: Tensor, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, rank], s [rank] and Vᵀ [rank, n] of the largest singular values; the first of them are the ones given.

    The result is always the same on one machine, whatever else runs: the first block has its own random generator.

    Args:
        weight: W [m, n], float32 or float64, finite.
        u0: [m, r0], of the largest triplets, which are known already; r0 = 0 if none are.
        s0: [r0].
        vt0: [r0, n].
        tolerance: the largest ‖Wᵀu − s v‖ / s of any triplet.
    """
    if weight.shape[0] < weight.shape[1]:
        v, s, ut = largest_triplets(weight.T, rank, vt0.T, s0, u0.T, tolerance)
        return ut.T, s, v.T
    right = _right_vectors(weight, rank - len(s0), u0, vt0.T, tolerance)
    # Computed once more from W itself, so that what U lost to rounding on the way does not enter the result.
    q, r = _orthogonal(weight @ right, u0)
    x, s, yt = torch.linalg.svd(r)
    # s still decreases where the last known value and the first new one are equal but for rounding.
    s = torch.cat([s0, s]).cummin(0).values
    return torch.cat([u0, q @ x], 1), s, torch.cat([vt0, (right @ yt.T).T])


def _right_vectors(a: Tensor, rank: int, u0: Tensor, v0: Tensor, tolerance: float) -> Tensor:
    """V [n, rank] of A − U₀ U₀ᵀ A, for A [m, n] with m ≥ n; its columns are orthogonal to V₀ [n, r0]."""
    known = v0.shape[1]
    size = a.shape[1] - known
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(len(v0), min(BLOCK, size), generator=generator, dtype=a.dtype).to(a.device)
    q, _ = _orthogonal(block, v0)
    right = v0  # [n, r0 + k]
    b = a.new_zeros(0, 0)
    u, r = a.new_zeros(len(a), 0), a.new_zeros(q.shape[1], 0)
    checked = 2 * rank
    noise = 8 * torch.finfo(a.dtype).eps
    while True:
        k, width = len(b) + q.shape[1], q.shape[1]
        right = torch.cat([right, q], 1)
        y = a @ q
        y = y - u0 @ (u0.T @ y) - u @ r[:width].T
        b = F.pad(b, (0, width, 0, width))
        b[k - width - u.shape[1] : k - width, -width:] = r[:width].T
        u, b[-width:, -width:] = torch.linalg.qr(y)
        q, r = _orthogonal((u.T @ a).T, right)
        if k >= min(checked, size):
            checked = int(CHECKED * k)
            x, s, yt = torch.linalg.svd(b)
            missing = (r @ x[-width:, :rank]).norm(dim=0)
            if k == size or (missing <= (tolerance * s[:rank]).clamp(min=noise * s[0])).all():
                return right[:, known:] @ yt[:rank].T
        q = q[:, : size - k]


def _orthogonal(z: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Q R of the part of z [n, b] outside the span of orthonormal columns [n, k]; Q is whole even if that is zero."""
    z, r = torch.linalg.qr(z - basis @ (basis.T @ z))
    for _ in range(2):  # twice is enough for what is left of z, thrice for columns that are nothing but rounding
        z, again = torch.linalg.qr(z - basis @ (basis.T @ z))
        r = again @ r
    return z, r
