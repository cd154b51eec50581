"""The plots of the paper's Figure 2; matplotlib is imported only when a plot is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor


def figure2(
    before: Float[Tensor, "parameters parameters"],
    after: Float[Tensor, "parameters parameters"],
    conditions: Mapping[str, Sequence[float]],
) -> Any:
    """Draw Figure 2: |F| before and after the first reparametrisation, and conditioning.

    Args:
        before: Fisher matrix, or the block of one layer, before the reparametrisation.
        after: the same matrix afterwards.
        conditions: by method, condition numbers during training; they are drawn in per cent of the
            method's first one.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, matrix, title in (
        (axes[0], before, "before"),
        (axes[1], after, "after the first reparametrisation"),
    ):
        image = axis.imshow(matrix.detach().abs().cpu().numpy(), cmap="viridis")
        axis.set_title(f"|F| {title}")
        figure.colorbar(image, ax=axis)
    for name, values in conditions.items():
        axes[2].plot([100 * value / values[0] for value in values], label=name)
    axes[2].set(yscale="log", xlabel="measurement", ylabel="condition number, % of the first")
    axes[2].legend()
    return figure


def spectra(values: Mapping[str, Float[Tensor, "groups in"]]) -> Any:
    """Draw eigenvalue spectra, one line per layer.

    Args:
        values: by layer, eigenvalues, largest first.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, eigenvalues in values.items():
        flat = eigenvalues.detach().flatten().sort(descending=True).values.clamp(min=1e-12)
        axis.plot(range(1, len(flat) + 1), flat.cpu().numpy(), label=name)
    axis.set(xscale="log", yscale="log", xlabel="index", ylabel="eigenvalue of the covariance")
    axis.legend()
    return figure
