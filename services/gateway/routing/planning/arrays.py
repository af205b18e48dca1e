"""The array type of the planner: numbers over lengths or over thresholds."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
