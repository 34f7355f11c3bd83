from .averages import by_group, by_item, by_question, overall
from .base import Fitted, SurveyMethod, register_method
from .fidelity import population_fidelity
from .floors import noise_floor
from .interval_coverage import calibration, coverage, sample_shares
from .intervals import Estimate, compare, estimate, paired_difference
from .learning import learning_curve
from .logistic import MultinomialLogistic
from .marginals import PooledMarginal, Uniform
from .measures import (
    between_group_structure,
    brier,
    jensen_shannon,
    log_score,
    normalized_wasserstein,
    sd_ratio,
    total_variation,
    variance_ratio,
)
from .methods import SURVEY_METHODS
from .mrp import MRP
from .registry import SURVEY_MEASURES, SurveyMeasure, register_measure
from .shares import effective_counts, group_means, group_shares, predictive_shares

__all__ = [
    "MRP",
    "SURVEY_MEASURES",
    "SURVEY_METHODS",
    "Estimate",
    "Fitted",
    "MultinomialLogistic",
    "PooledMarginal",
    "SurveyMeasure",
    "SurveyMethod",
    "Uniform",
    "between_group_structure",
    "brier",
    "by_group",
    "by_item",
    "by_question",
    "calibration",
    "compare",
    "coverage",
    "effective_counts",
    "estimate",
    "group_means",
    "group_shares",
    "jensen_shannon",
    "learning_curve",
    "log_score",
    "noise_floor",
    "normalized_wasserstein",
    "overall",
    "paired_difference",
    "population_fidelity",
    "predictive_shares",
    "register_measure",
    "register_method",
    "sample_shares",
    "sd_ratio",
    "total_variation",
    "variance_ratio",
]
