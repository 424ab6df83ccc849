"""Non-finite floats become null at any depth; all other values are kept."""

import json
import math

import numpy as np

from jaxllm.strict_json import replace_nonfinite


def test_non_finite_floats_become_null():
    data = {
        "kept": [1, -2.5, True, None, "NaN", 1e308],
        "lost": (math.nan, {"deep": [math.inf, (-math.inf, 3)]}, np.float64("nan")),
    }
    wanted = {
        "kept": [1, -2.5, True, None, "NaN", 1e308],
        "lost": [None, {"deep": [None, [None, 3]]}, None],
    }
    assert replace_nonfinite(data) == wanted
    assert json.loads(json.dumps(replace_nonfinite(data), allow_nan=False)) == wanted
    assert math.isnan(data["lost"][0]), "the input is not modified"
