from .convergence import ConvergenceReport, convergence_report
from .criticism.comparison import compare, loo_errors
from .criticism.cross_validation import HeldOutScores, kfold, loo
from .criticism.diagnostics import ChainReport, diagnose, identified_quantities
from .criticism.importance import ImportanceReport, importance_resample, pareto_k
from .criticism.prior import PriorGate, prior_draws, prior_predictive_gate
from .criticism.summaries import gate_summary, persona_shares, responsibility_table
from .criticism.unexplained import unexplained_records
from .export.arviz_export import to_inference_data, write_netcdf
from .files import load_posterior, save_posterior
from .guides import GUIDES, AutoWhitenedNormal
from .nuts import fit_nuts
from .posterior import GateDraws, Posterior, gate_at, make_posterior, posterior_draws
from .predictive import (
    log_likelihood_draws,
    persona_responsibilities,
    posterior_predictive_log_prob,
    responsibilities,
    uniform_log_prob,
)
from .simulation import ComponentDraws, SimulatedResponse, draw_components, simulate
from .svi import SVIFit, default_optimizer, fit_svi

__all__ = [
    "GUIDES",
    "AutoWhitenedNormal",
    "ChainReport",
    "ComponentDraws",
    "ConvergenceReport",
    "GateDraws",
    "HeldOutScores",
    "ImportanceReport",
    "Posterior",
    "PriorGate",
    "SVIFit",
    "SimulatedResponse",
    "compare",
    "convergence_report",
    "default_optimizer",
    "diagnose",
    "draw_components",
    "fit_nuts",
    "fit_svi",
    "gate_at",
    "gate_summary",
    "identified_quantities",
    "importance_resample",
    "kfold",
    "load_posterior",
    "log_likelihood_draws",
    "loo",
    "loo_errors",
    "make_posterior",
    "pareto_k",
    "persona_responsibilities",
    "persona_shares",
    "posterior_draws",
    "posterior_predictive_log_prob",
    "prior_draws",
    "prior_predictive_gate",
    "responsibilities",
    "responsibility_table",
    "save_posterior",
    "simulate",
    "to_inference_data",
    "unexplained_records",
    "uniform_log_prob",
    "write_netcdf",
]
