"""What calibration measured as a picture: cosines of both sorts of pairs, and the errors of every bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation.calibration.bounds import Finding, Proposal
from stages.calibration import Pairs, Tail

SAME, DIFFERENT = "tab:green", "tab:red"
ROW = (11.0, 3.4)
"""Width and height of a row in inches."""
BINS = np.linspace(-0.5, 1, 61)


def draw(proposal: Proposal, file: Path) -> None:
    """Write a PNG with a row per category and embedding."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    findings = proposal.findings
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure((ROW[0], ROW[1] * max(1, len(findings))), layout="constrained")
        axes = figure.subplots(max(1, len(findings)), 2, squeeze=False, width_ratios=(2, 1))
        for finding, (cosines, curve) in zip(findings, axes, strict=False):
            _draw_cosines(finding, cosines)
            _draw_curve(finding, proposal.rate, curve)
        if not findings:
            axes[0, 0].set_title("no pairs")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="png", dpi=110)


def _draw_cosines(finding: Finding, axes: Any) -> None:
    for pairs, colour, name in ((finding.different, DIFFERENT, "different"), (finding.same, SAME, "same")):
        if len(pairs):
            label = f"{name}: {len(pairs)}"
            axes.hist(_shown(pairs), BINS, weights=_shares(pairs), color=colour, alpha=0.45, label=label)
    calibration = finding.calibration
    if calibration.tail is not None:
        axes.plot(*_density(calibration.tail), color=DIFFERENT, linewidth=1.2, label="different, as modelled")
    marks = [(calibration.min, "black", "min"), (finding.max, "tab:blue", "max")]
    if calibration.roc is not None:
        marks.append((calibration.roc.equal_error[1], "grey", "equal error"))
    for value, colour, name in marks:
        if value is not None:
            axes.axvline(value, color=colour, linestyle="--", linewidth=1.2, label=f"{name} {value:.3g}")
    faces = f", faces from {finding.min_face:g}" if finding.min_face else ""
    axes.set_title(f"{finding.category} by {finding.by}{faces}", loc="left", weight="bold")
    if calibration.min is None:
        axes.set_title("no bound", loc="right", color="tab:red")
    axes.set(xlabel="cosine", ylabel="share per bin", xlim=(BINS[0], BINS[-1]))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", frameon=False, fontsize=8)


def _draw_curve(finding: Finding, rate: float, axes: Any) -> None:
    calibration = finding.calibration
    if calibration.roc is None:
        axes.axis("off")
        axes.text(0.5, 0.5, "no pairs of both sorts", ha="center", va="center", color="grey")
        return
    curve = calibration.roc
    floor = min(rate, 1 / max(1, calibration.different)) / 3
    axes.step(np.maximum(curve.false_accept, floor), 1 - curve.false_reject, where="pre", color="tab:purple")
    error, _ = curve.equal_error
    axes.plot(max(error, floor), 1 - error, "o", color="grey", label=f"equal error {error:.2%}")
    if calibration.min is not None:
        point = max(calibration.false_accept, floor), 1 - calibration.false_reject
        axes.plot(*point, "o", color="black", label=f"min {calibration.min:g}, expected")
    axes.set(xscale="log", xlim=(floor, 1.2), ylim=(-0.02, 1.05), xlabel="false accepts", ylabel="same pairs found")
    axes.set_title(f"area {curve.area:.4f}", loc="left")
    axes.legend(loc="lower right", frameon=False, fontsize=8)


def _shown(pairs: Pairs) -> Any:
    return np.clip(pairs.scores, BINS[0], BINS[-1])


def _shares(pairs: Pairs) -> Any:
    return pairs.weights / pairs.weights.sum()


def _density(tail: Tail) -> tuple[Any, Any]:
    """Share of the different pairs per bin by the model: the difference of its tail at the bin's ends."""
    beyond: Sequence[float] = [tail.beyond(float(value)) for value in BINS]
    return (BINS[1:] + BINS[:-1]) / 2, -np.diff(beyond)
