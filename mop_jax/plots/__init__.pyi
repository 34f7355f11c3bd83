from .evidence import candidate_convergence, held_out_comparison
from .fit import elbo_trace, running_mean
from .gate import omega_heatmap, persona_shares, persona_weights
from .likeness import effective_sizes, embedding_map
from .methods import method_comparison
from .style import save_figure
from .surveys import cells_learning_curve, group_answers, interval_calibration, persona_groups

__all__ = [
    "candidate_convergence",
    "cells_learning_curve",
    "effective_sizes",
    "elbo_trace",
    "embedding_map",
    "group_answers",
    "held_out_comparison",
    "interval_calibration",
    "method_comparison",
    "omega_heatmap",
    "persona_groups",
    "persona_shares",
    "persona_weights",
    "running_mean",
    "save_figure",
]
