"""The picture of a recording shows rates however short it is."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from pragnosia.measure import raster
from pragnosia.spiking.recording import Recording


@pytest.mark.parametrize(("steps", "points"), [(1, 1), (4, 4), (19, 17), (400, 381)])
def test_rates_are_drawn(steps: int, points: int) -> None:
    nothing, moments = np.zeros(0, np.int32), np.arange(steps)
    recording = Recording(
        dt_ms=np.array(1.0),
        regions=np.array(["cortex"]),
        sizes=np.array([10]),
        spike_steps=nothing,
        spike_neurons=nothing,
        counts=(moments % 2)[:, None].astype(np.int32),
        traced=nothing,
        membranes_mv=np.zeros((steps, 0), np.float32),
        modulators=np.zeros(0, np.str_),
        levels=np.zeros((steps, 0), np.float32),
    )
    axes = Figure().add_subplot()
    raster._rates(recording, axes)
    (line,) = axes.lines
    assert len(np.asarray(line.get_ydata())) == points
    assert line.get_marker() == "." or points > 1
    assert line.get_linestyle() == "-" or points == 1
