from .arviz_export import to_inference_data, write_netcdf
from .convergence import ConvergenceReport, convergence_report
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
    "ComponentDraws",
    "ConvergenceReport",
    "GateDraws",
    "Posterior",
    "SVIFit",
    "SimulatedResponse",
    "convergence_report",
    "default_optimizer",
    "draw_components",
    "fit_nuts",
    "fit_svi",
    "gate_at",
    "load_posterior",
    "log_likelihood_draws",
    "make_posterior",
    "persona_responsibilities",
    "posterior_draws",
    "posterior_predictive_log_prob",
    "responsibilities",
    "save_posterior",
    "simulate",
    "to_inference_data",
    "uniform_log_prob",
    "write_netcdf",
]
