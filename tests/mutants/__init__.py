"""Mutations: bugs planted in every family that they apply to, which parity must catch."""

from .configs import CONFIGS
from .forward import FUNCTIONS
from .generation import GENERATION_BUGS
from .training import TRAINING_BUGS
from .weights import WEIGHTS
from .wiring import WIRING

MUTATIONS = (*WEIGHTS, *CONFIGS, *WIRING, *FUNCTIONS, *TRAINING_BUGS, *GENERATION_BUGS)
