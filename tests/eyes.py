"""Colours as they are seen, also by those who lack one kind of cones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

# Machado, Oliveira and Fernandes (2009), on linear RGB: who lacks one kind of cones.
SEEN = {
    "all": np.eye(3),
    "no long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no medium": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(1)


def lab(color: str, seen: str = "all") -> np.ndarray:
    """CIELAB [3] of what is seen of a colour."""
    rgb = np.array(to_rgb(color))
    linear = np.clip(np.array(SEEN[seen]) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    share = XYZ @ linear / WHITE
    f = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colors: Sequence[str], seen: str) -> float:
    """The smallest distance of two of the colours, ΔE of 1976; 2 is the least that is seen at all."""
    pairs = itertools.combinations([lab(color, seen) for color in colors], 2)
    return min(float(np.linalg.norm(one - other)) for one, other in pairs)
