from .choice import ChoiceCounts, ChoiceMixture
from .mixing import MixingDistribution, log_matmul_exp, log_weight_vector
from .mixture import PersonaMixture, RenormalisedPersonaMixture
from .temperature import spline_weights

__all__ = [
    "ChoiceCounts",
    "ChoiceMixture",
    "MixingDistribution",
    "PersonaMixture",
    "RenormalisedPersonaMixture",
    "log_matmul_exp",
    "log_weight_vector",
    "spline_weights",
]
