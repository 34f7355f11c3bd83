"""The configuration of a run: what `config.yaml` may say, and how it is read."""

from mop_jax.config.files import FILES, load_config, parse_config, shipped_configs
from mop_jax.config.run_config import RunConfig
from mop_jax.config.sections import (
    CandidatesConfig,
    EncoderConfig,
    EvaluationConfig,
    ExemplarsConfig,
    GuideName,
    InferenceConfig,
    LanguageModelConfig,
    ModelConfig,
    PersonasConfig,
    PopulationConfig,
    PromptConfig,
    SimulationConfig,
    SplitConfig,
    TemperatureConfig,
)
from mop_jax.config.survey import QuestionConfig, SurveyConfig

__all__ = [
    "FILES",
    "CandidatesConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "ExemplarsConfig",
    "GuideName",
    "InferenceConfig",
    "LanguageModelConfig",
    "ModelConfig",
    "PersonasConfig",
    "PopulationConfig",
    "PromptConfig",
    "QuestionConfig",
    "RunConfig",
    "SimulationConfig",
    "SplitConfig",
    "SurveyConfig",
    "TemperatureConfig",
    "load_config",
    "parse_config",
    "shipped_configs",
]
