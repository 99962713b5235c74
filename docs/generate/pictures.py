"""The pictures of docs/concepts.md, and the training curves of the shipped experts, from their logs.

`python docs/generate/pictures.py` draws them into docs/pictures/, and beside the experts. Matrices are random and small
where they are no expert's; what is drawn is computed, not sketched.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from experts import ExpertLibrary
from experts.expert import read_config
from experts.outside.plots import GREY, SERIES, diverging, heat_map, look
from experts.shipped import shipped_library
from experts.training.card import plot_curve
from experts.training.log import Log

FOLDER = Path(__file__).parents[1] / "pictures"
BASE, ONE, OTHER = "#4c566a", SERIES[1], SERIES[0]


def what_z_does() -> None:
    """The circle of inputs, and what W makes of it when z turns one singular value up and another off."""
    turn, other = rotation(0.5), rotation(-0.3)
    s = np.array([2.0, 1.0])
    circle = np.array([np.cos(angles := np.linspace(0, 2 * np.pi, 200)), np.sin(angles)])  # [2, points]
    _, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharex=True, sharey=True)
    for ax, z, title in zip(
        axes, ([1, 1], [1.4, 1], [1, 0.3]), ("z = (1, 1): the base", "z = (1.4, 1)", "z = (1, 0.3)"), strict=True
    ):
        ax.plot(*(turn * s @ other.T @ circle), color=GREY, linestyle="--", linewidth=1)
        ax.plot(*(turn * (s * z) @ other.T @ circle), color=BASE if z == [1, 1] else ONE, linewidth=2)
        for direction, length, color in zip(turn.T, s * z, (ONE, OTHER), strict=True):
            ax.annotate("", direction * length, (0, 0), arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2})
        ax.set(title=title, aspect="equal", xlabel="first output")
    axes[0].set_ylabel("second output")
    save("what_z_does")


def two_passes() -> None:
    """From a prompt to an answer."""
    _, ax = plt.subplots(figsize=(10, 3.2))
    ax.set(xlim=(0, 10), ylim=(0, 3.2))
    ax.axis("off")
    box(ax, 0.1, 1.1, 1.7, "prompt", BASE)
    box(ax, 2.6, 1.1, 2.0, "first pass:\na dispatcher\nreads the prompt", ONE)
    box(ax, 5.4, 1.1, 2.0, "mixture α,\none weight\nan expert", OTHER)
    box(ax, 8.1, 1.1, 1.8, "second pass:\nthe base answers\nunder α", ONE)
    for start, end in ((1.85, 2.5), (4.7, 5.3), (7.5, 8.0)):
        arrow(ax, (start, 1.65), (end, 1.65))
    ax.plot([0.95, 0.95, 9.0], [1.0, 0.5, 0.5], color=GREY, linewidth=1)
    arrow(ax, (9.0, 0.5), (9.0, 1.0))
    ax.text(5.0, 0.2, "the same prompt, read again", ha="center", color=GREY)
    rule = "z = 1 + α₁ (z₁ − 1) + α₂ (z₂ − 1) + …      what is left of Σα = 1 belongs to the base"
    ax.text(5.0, 2.75, rule, ha="center", color=BASE)
    save("two_passes")


def limited_rank_is_a_lora() -> None:
    """W' − W of an expert that adapts the first r singular values: three thin factors, two of which are LoRA's."""
    rng, size, rank = np.random.default_rng(0), 24, 4
    u, s, vt = np.linalg.svd(rng.normal(size=(size, size)))
    z = 1 + np.array([0.5, -0.4, 0.3, -0.3])
    b, a = u[:, :rank] * (s[:rank] * (z - 1)), vt[:rank]  # [24, 4], [4, 24]
    _, axes = plt.subplots(1, 5, figsize=(10, 3.6), width_ratios=[6, 1, 4, 1, 6])
    matrices = {"W′ − W": b @ a, "B = U diag(s(z − 1))": b, "A = Vᵀ": a}
    for ax, (title, matrix) in zip(axes[::2], matrices.items(), strict=True):
        most = np.abs(matrix).max()
        heat_map(ax, matrix, cmap=diverging(), vmin=-most, vmax=most)
        ax.set(title=f"{title}\n{matrix.shape[0]} × {matrix.shape[1]}", xticks=[], yticks=[])
    for ax, sign in zip(axes[1::2], "=·", strict=True):
        ax.axis("off")
        ax.text(0.5, 0.5, sign, ha="center", va="center", fontsize=24)
    save("limited_rank_is_a_lora")


def rows_of_a_batch() -> None:
    """Four prompts in one batch: z of one matrix differs from row to row."""
    rng = np.random.default_rng(1)
    stories, groups = 1 + 0.4 * rng.normal(size=24), 1 + 0.4 * rng.normal(size=24)
    mixtures = {"stories 1": (1, 0), "groups 1": (0, 1), "stories ½, groups ½": (0.5, 0.5), "base": (0, 0)}
    rows = np.array([1 + a * (stories - 1) + b * (groups - 1) for a, b in mixtures.values()])
    figure, ax = plt.subplots(figsize=(9, 2.6))
    drawn = heat_map(ax, rows, cmap=diverging(), vmin=0, vmax=2, aspect="auto")
    ax.set(yticks=range(4), yticklabels=[f"row {row}: {name}" for row, name in enumerate(mixtures)])
    ax.set(xlabel="singular value, the largest first", xticks=[])
    figure.colorbar(drawn, label="z", ticks=[0, 1, 2])
    save("rows_of_a_batch")


def curves() -> None:
    """How the shipped experts learned; pages show two of them."""
    shipped = shipped_library("smollm2-135m").parent
    for config in sorted(shipped.glob("*/*/adapter_config.json")):
        folder = config.parent
        title = read_config(folder).domain or folder.name
        plot_curve(Log(folder / "training_log.jsonl").entries(), title, folder / "curve.png")
    for folder in ("smollm2-135m/stories", "qwen2.5-coder-0.5b-instruct/arc_easy"):
        shutil.copyfile(shipped / folder / "curve.png", FOLDER / f"{Path(folder).name}.png")


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def box(ax: Axes, x: float, y: float, width: float, text: str, color: str) -> None:
    ax.add_patch(FancyBboxPatch((x, y), width, 1.1, "round,pad=0.08", facecolor="white", edgecolor=color, linewidth=2))
    ax.text(x + width / 2, y + 0.55, text, ha="center", va="center")


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="->", mutation_scale=18, color=BASE, linewidth=2))


def save(name: str) -> None:
    plt.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close()


if __name__ == "__main__":
    with look():
        what_z_does()
        two_passes()
        limited_rank_is_a_lora()
        rows_of_a_batch()
    ExpertLibrary.open(shipped_library("smollm2-135m")).plot("groups", FOLDER / "groups.png")
    curves()
