"""What can be asked of a drawing once it is laid out."""

import numpy as np
from matplotlib.path import Path


def covered(axes) -> list[str]:
    """The lines of these axes that their legend stands on, by label."""
    axes.figure.draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    paths = {line.get_label(): axes.transData.transform(line.get_xydata()) for line in axes.lines}
    return [name for name, points in paths.items() if Path(points).intersects_bbox(box, False)]


def outside(axes) -> int:
    """How many points of the lines of these axes cannot be seen."""
    points = np.concatenate([line.get_xydata() for line in axes.lines if len(line.get_xydata())])
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = points[np.isfinite(points).all(axis=1)].T
    return int(((x < left) | (x > right) | (y < low) | (y > high)).sum())
