"""Names that say what a value is."""

import re
from typing import Final

__all__ = ["model_name", "weights_name"]

_WEIGHTS: Final = re.compile(
    r"(?:\w+_)?(?:weights?|coefs?|coefficients|intercepts?|embeddings?|state_dict|theta|checkpoint)"
    r"|parameters|params",
    re.IGNORECASE,
)
_MODEL: Final = re.compile(
    r"model|net|network|estimator|classifier|regressor|booster|clf|pipeline", re.IGNORECASE
)


def weights_name(name: str) -> bool:
    """Return whether `name` is what people call a model's weights."""
    return _WEIGHTS.fullmatch(name.strip("_")) is not None


def model_name(name: str) -> bool:
    """Return whether `name` is what people call a model."""
    return _MODEL.fullmatch(name.strip("_")) is not None
