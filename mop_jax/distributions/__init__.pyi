from .mixing import MixingDistribution, log_matmul_exp, log_weight_vector
from .mixture import PersonaMixture, RenormalisedPersonaMixture
from .temperature import spline_weights

__all__ = [
    "MixingDistribution",
    "PersonaMixture",
    "RenormalisedPersonaMixture",
    "log_matmul_exp",
    "log_weight_vector",
    "spline_weights",
]
