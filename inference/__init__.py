"""Inference: fitting the gate, drawing from its posterior, predicting, exporting, simulating."""

from mop_jax.inference.arviz_export import to_inference_data, write_netcdf
from mop_jax.inference.files import load_posterior, save_posterior
from mop_jax.inference.nuts import fit_nuts
from mop_jax.inference.posterior import (
    GateDraws,
    Posterior,
    gate_at,
    make_posterior,
    posterior_draws,
)
from mop_jax.inference.predictive import (
    log_likelihood_draws,
    persona_responsibilities,
    posterior_predictive_log_prob,
    responsibilities,
    uniform_log_prob,
)
from mop_jax.inference.simulation import (
    ComponentDraws,
    SimulatedResponse,
    draw_components,
    simulate,
)
from mop_jax.inference.svi import (
    ConvergenceReport,
    SVIFit,
    convergence_report,
    default_optimizer,
    fit_svi,
)

__all__ = [
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
