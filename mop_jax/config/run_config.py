"""A whole run's configuration: its sections, and what one of them demands of another."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mop_jax.config.sections import (
    CandidatesConfig,
    EncoderConfig,
    EvaluationConfig,
    ExemplarsConfig,
    InferenceConfig,
    LanguageModelConfig,
    ModelConfig,
    PersonasConfig,
    PopulationConfig,
    PromptConfig,
    Section,
    SimulationConfig,
    SplitConfig,
    TemperatureConfig,
)
from mop_jax.config.survey import SurveyConfig

SURVEY_DEFAULTS: dict[str, dict[str, Any]] = {
    # Every component is asked in several orders.
    "candidates": {"num_candidates": 8},
    # Options are few and small language models far too sure of whole ones: the temperature may be 7
    # as well as 1, or what they say of a question that nobody has answered yet is taken for known.
    "model": {"temperature_prior_scale": 1.0, "temperature_spread": 0.5},
    # Counts of hundreds make the ELBO steep and noisy: with the defaults of free texts fits of the
    # CES got worse again, with these they settle.
    "inference": {"learning_rate": 0.003, "num_particles": 16},
}
"""What a survey's run has otherwise than one of free texts, unless it is given."""


class RunConfig(Section):
    """A whole run; one read from a file is named after it unless it says its name.

    With `survey` it is a run of closed answers, whose `population` is the survey's file.
    """

    name: str = Field("run", min_length=1)
    seed: int = Field(0, ge=0)
    population: PopulationConfig
    survey: SurveyConfig | None = None
    split: SplitConfig = SplitConfig()
    language_model: LanguageModelConfig
    encoder: EncoderConfig
    personas: PersonasConfig = PersonasConfig()
    exemplars: ExemplarsConfig = ExemplarsConfig()
    prompt: PromptConfig = PromptConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    temperatures: TemperatureConfig = TemperatureConfig()
    model: ModelConfig = ModelConfig()
    inference: InferenceConfig = InferenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    simulation: SimulationConfig = SimulationConfig()

    @model_validator(mode="before")
    @classmethod
    def _population_of_the_survey(cls, values: Any) -> Any:
        """The survey's file is the run's population, so that all who ask for its file find it."""
        if not isinstance(values, dict) or values.get("survey") is None:
            return values
        survey = _as_fields(values["survey"])
        if not isinstance(survey, dict):
            return values
        filled = dict(values)
        for section, defaults in SURVEY_DEFAULTS.items():
            given = _as_fields(values.get(section, {}))
            if isinstance(given, dict):
                filled[section] = {**defaults, **given}
        if "population" not in values:
            from mop_jax.survey.samples import SAMPLES  # pandas is slow to load

            sample = SAMPLES.get(str(survey.get("sample")))
            path = survey.get("path") if sample is None else sample.path
            columns = {"context": survey.get("covariates") or ["-"], "response": "-"}
            filled["population"] = {"path": path, **columns}
        return filled

    @model_validator(mode="before")
    @classmethod
    def _split_as_the_data_set(cls, values: Any) -> Any:
        """Puts into `split` what the data set says of it, so that all who ask find it there."""
        if not isinstance(values, dict):
            return values
        # In Python they may be sections already.
        population, split = (_as_fields(values.get(key, {})) for key in ("population", "split"))
        name = population.get("dataset") if isinstance(population, dict) else None
        if not isinstance(name, str) or not isinstance(split, dict):
            return values
        from mop_jax.datasets import DATASETS

        if name not in DATASETS:
            return values
        its: dict[str, Any] = {"by": DATASETS[name].split_by}
        if DATASETS[name].has_split:
            its["test_size"] = None
        return {**values, "split": {**its, **split}}

    @model_validator(mode="after")
    def _split_is_possible(self) -> RunConfig:
        name = self.population.dataset
        if name is None:
            if self.split.test_size is None:
                raise ValueError("split.test_size may be null only for a data set with a split")
            return self
        from mop_jax.datasets import DATASETS

        if self.split.by != DATASETS[name].split_by:
            raise ValueError(
                f"split.by is {self.split.by}, but the data set {name} is split by "
                f"{DATASETS[name].split_by}; leave out split.by"
            )
        return self

    @model_validator(mode="after")
    def _starts_where_it_was_scored(self) -> RunConfig:
        start, grid = self.inference.initial_temperature, self.temperatures
        ends = [1 / (multiple * grid.step) for multiple in grid.multiples if multiple > 0]
        # Beyond the grid the likelihood is constant in τ: a fit would never leave its start.
        if start is not None and not min(ends) <= start <= max(ends):
            raise ValueError(
                f"inference.initial_temperature is {start:g}, and temperatures are scored from "
                f"{min(ends):.3g} to {max(ends):.3g}; choose one of these, or other multiples"
            )
        return self

    @model_validator(mode="after")
    def _has_a_posterior_of_its_scales(self) -> RunConfig:
        field = self.model.learns_scales
        guide = self.inference.guide
        if field is not None and guide in ("AutoDelta", "AutoLaplaceApproximation"):
            raise ValueError(
                f"model.{field} is {getattr(self.model, field)}, which learns the scale of a "
                "prior, and its mode is no estimate of it: it runs away; take another "
                f"inference.guide than {guide}"
            )
        return self

    @model_validator(mode="after")
    def _components_can_be_bare(self) -> RunConfig:
        if self.candidates.bare == "none":
            return self
        if self.survey is not None:
            raise ValueError("candidates.bare belongs to free texts; a survey has no such field")
        if self.candidates.method == "renormalised":
            raise ValueError(
                "candidates.bare adds components that are always scored, and a renormalised gate "
                "lives on the scored ones: nearly all would be bare; take another "
                "candidates.method, or leave out bare"
            )
        if self.exemplars.num_exemplars == 0:
            raise ValueError(
                "candidates.bare adds components without an exemplar, and with "
                "exemplars.num_exemplars: 0 all are; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _options_have_one_temperature_a_persona(self) -> RunConfig:
        if self.survey is not None and self.model.temperature in ("pooled", "contextual"):
            raise ValueError(
                f"model.temperature is {self.model.temperature}; a survey accepts true or false"
            )
        return self


def _as_fields(section: Any) -> Any:
    """The fields that were given to a section; whatever else it is as it is."""
    return section.model_dump(exclude_unset=True) if isinstance(section, Section) else section
