from . import metrics
from .held_out import candidate_check, mean_and_error, summarise
from .predictors import PREDICTORS, Fitted, HeldOut, Predictor, Prompted, Uniform

__all__ = [
    "PREDICTORS",
    "Fitted",
    "HeldOut",
    "Predictor",
    "Prompted",
    "Uniform",
    "candidate_check",
    "mean_and_error",
    "metrics",
    "summarise",
]
