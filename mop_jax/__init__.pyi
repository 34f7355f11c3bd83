from . import (
    components,
    distributions,
    encoder,
    evaluation,
    inference,
    likelihoods,
    lm,
    models,
    pipeline,
    plots,
    population,
)
from .components.components import Components
from .components.personas import Persona
from .config import RunConfig, load_config
from .distributions.mixture import PersonaMixture
from .encoder.encoder import SentenceEncoder
from .errors import DataError, FaultError, MopError
from .lm.base import TemperatureGrid
from .lm.flax_lm import FlaxLM
from .pipeline.pipeline import evaluate, figures, fit, personas, run, score, simulate
from .population.population import Population
from .prompts import PromptBuilder, PromptTemplate

__version__: str

__all__ = [
    "Components",
    "DataError",
    "FaultError",
    "FlaxLM",
    "MopError",
    "Persona",
    "PersonaMixture",
    "Population",
    "PromptBuilder",
    "PromptTemplate",
    "RunConfig",
    "SentenceEncoder",
    "TemperatureGrid",
    "components",
    "distributions",
    "encoder",
    "evaluate",
    "evaluation",
    "figures",
    "fit",
    "inference",
    "likelihoods",
    "lm",
    "load_config",
    "models",
    "personas",
    "pipeline",
    "plots",
    "population",
    "run",
    "score",
    "simulate",
]
