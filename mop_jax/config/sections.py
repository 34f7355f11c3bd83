"""The sections of a configuration, with every default in one place.

Unknown fields are refused by name, so that a misspelt setting cannot be passed over in silence.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from mop_jax.prompts import DEFAULT_DATE, DEFAULT_INSTRUCTION, PROMPT_FORMS

GuideName = Literal[
    "AutoWhitenedNormal",
    "AutoBNAFNormal",
    "AutoDAIS",
    "AutoDelta",
    "AutoDiagonalNormal",
    "AutoIAFNormal",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "AutoNormal",
]
"""Names of `mop_jax.inference.guides.GUIDES`; written out, since reading them imports JAX."""


def _separator(value: str) -> str:
    from mop_jax.population.text_tables import check_separator  # pandas is slow to load

    return check_separator(value)


def _encoding(value: str) -> str:
    from mop_jax.population.encodings import check_encoding

    return check_encoding(value)


Separator = Annotated[str, AfterValidator(_separator)]
"""What parts the columns of a text file."""
Encoding = Annotated[str, AfterValidator(_encoding)]
"""How a text file's bytes are to be read."""


class Section(BaseModel):
    """Named fields and no others, which nobody changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PopulationConfig(Section):
    """Where the records are and which columns mean what; see `Population.from_file`.

    Or a data set by its name, which brings columns, requests and a split of its own; only
    `max_words`, behind which its responses are cut, may be given with it; see `load_dataset`.
    """

    dataset: str | None = None
    max_words: int | None = Field(None, ge=1)
    path: str | None = Field(None, validate_default=True)
    context: str | list[str] | None = Field(None, validate_default=True)
    response: str | None = Field(None, validate_default=True)
    template: str | None = None
    id: str | None = None
    label: str | None = None
    group: str | None = None
    weight: str | None = None
    query: str | None = None
    limit: int | None = Field(None, ge=2)
    drop_missing: bool = False
    separator: Separator | None = None
    encoding: Encoding | None = None
    quoting: Literal["auto", "standard", "none"] = "auto"
    skip_rows: Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=1)]] | None = None
    header_row: int = Field(1, ge=1)
    sheet: str | int | None = None
    value_labels: bool = True

    @field_validator("dataset")
    @classmethod
    def _is_a_data_set(cls, name: str | None) -> str | None:
        from mop_jax.datasets import DATASETS  # pandas is slow to load

        if name is not None and name not in DATASETS:
            raise ValueError(
                f"there is no data set {name!r}; accepted are {', '.join(DATASETS)}, or give path, "
                "context and response of a file"
            )
        return name

    @field_validator("path", "context", "response")
    @classmethod
    def _is_required_of_a_file(cls, value: Any, info: ValidationInfo) -> Any:
        # Where the data set's name itself is at fault, that is what is said.
        if value is None and info.data.get("dataset", "") is None:
            raise PydanticKnownError("missing")
        return value

    @model_validator(mode="after")
    def _is_a_file_or_a_data_set(self) -> PopulationConfig:
        own = {"dataset", "max_words"}
        if self.dataset is None:
            if self.max_words is not None:
                raise ValueError("max_words belongs to a dataset; a file's texts stay as they are")
            return self
        fields = type(self).model_fields.items()
        others = [n for n, f in fields if n not in own and getattr(self, n) != f.default]
        if others:
            raise ValueError(
                f"dataset {self.dataset} brings its own records, requests and columns; leave out "
                f"{' and '.join(others)}, or dataset"
            )
        return self


class SplitConfig(Section):
    """Training and held-out records; see `Population.split`.

    A data set by name says itself by what it is split; where it has a training and a held-out part
    of its own, sizes are of these, and without sizes they are taken whole (`test_size: null`).
    """

    by: Literal["record", "stratified", "group"] = "record"
    test_size: int | float | None = 0.25
    train_size: int | float | None = None


class LanguageModelConfig(Section):
    """The frozen language model; see `FlaxLM.from_pretrained`.

    `auto` is float32 on CPU and bfloat16 on accelerators, and a mesh of all devices. `memory_gib`
    bounds the keys and values of prompts' prefixes, and of responses being drawn, on each device;
    by default a share of what the machine has.
    """

    path: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    mesh: str = Field("auto", pattern=r"^(auto|[1-9]\d*x[1-9]\d*)$")
    memory_gib: float | None = Field(None, gt=0)


class EncoderConfig(Section):
    """The frozen sentence encoder; see `SentenceEncoder.from_pretrained`."""

    path: str


class PersonasConfig(Section):
    """Personas synthesised from clusters, read from a file of the user's, or written here as texts.

    `described_from: random_records` shows the language model records at random in place of those
    nearest each cluster's centre. Exemplars are stratified over the clusters all the same, of which
    there are `num_personas`, or as many as a file has personas.
    """

    num_personas: int = Field(8, ge=1)
    path: str | None = None
    texts: list[Annotated[str, Field(min_length=1)]] | None = Field(None, min_length=1)
    described_from: Literal["clusters", "random_records"] = "clusters"
    records_per_persona: int = Field(8, ge=1)
    max_new_tokens: int = Field(80, ge=8)

    @model_validator(mode="after")
    def _has_one_source(self) -> PersonasConfig:
        if self.texts is not None:
            if self.path is not None:
                raise ValueError("path and texts both say what the personas are; give one")
            if len(set(self.texts)) < len(self.texts):
                raise ValueError("texts repeat themselves; personas must differ")
        if self.described_from != "clusters" and (self.texts or self.path):
            raise ValueError(
                "described_from belongs to synthesised personas, without path or texts"
            )
        return self


class ExemplarsConfig(Section):
    """The exemplar pool; see `select_exemplars` and `leave_out_mask`.

    With `num_exemplars: 0` prompts show none: a component is a persona alone.
    """

    num_exemplars: int = Field(32, ge=0)
    allocation: Literal["proportional", "equal"] = "proportional"
    stratify_labels: bool = True
    leave_out: Literal["record", "group"] | None = None

    @field_validator("num_exemplars")
    @classmethod
    def _leaves_one_to_others(cls, number: int) -> int:
        # The only exemplar could not serve the record that it is.
        if number == 1:
            raise ValueError("a single exemplar cannot serve its own record; give 0, or 2 or more")
        return number


class PromptConfig(Section):
    """How prompts are built; `auto` is the chat form where the model has a chat template.

    `date` is the day that a chat template is told which writes today's: prompts must not change
    from day to day. `template_arguments` are further arguments of the chat template, by name;
    `enable_thinking` is off unless it is among them. Both hold for the prompts that synthesise
    personas too.
    """

    form: str = "auto"
    instruction: str = DEFAULT_INSTRUCTION
    component: str | None = None
    persona_only: str | None = None
    zero_shot: str | None = None
    end: str | None = None
    date: datetime.date = DEFAULT_DATE
    template_arguments: dict[str, Any] = {}

    @property
    def chat_settings(self) -> dict[str, Any]:
        """How the model's chat template is rendered; see `mop_jax.prompts.ChatTemplate`."""
        return {"date": self.date, "arguments": self.template_arguments}

    @field_validator("form")
    @classmethod
    def _is_a_form(cls, name: str) -> str:
        if name not in ("auto", *PROMPT_FORMS):
            accepted = ", ".join(("auto", *PROMPT_FORMS))
            raise ValueError(f"there is no prompt form {name!r}; accepted are {accepted}")
        return name

    @model_validator(mode="after")
    def _custom_is_whole(self) -> PromptConfig:
        texts = (self.component, self.persona_only, self.zero_shot, self.end)
        if self.form == "custom" and None in texts:
            raise ValueError("form custom needs component, persona_only, zero_shot and end")
        if self.form in ("auto", "chat") and any(texts):
            raise ValueError("component, persona_only, zero_shot and end belong to form custom")
        return self


class CandidatesConfig(Section):
    """Which components are scored for which training record (design: `full`, `importance`, …).

    `num_candidates` is what is scored for a record in all. `importance` candidates come in rounds:
    a first one by similarity, a second by what that scored, and `refresh` more (one by default),
    each proposed by the gate fitted to those before. These end early when one tightens the bound by
    less than `refresh_tolerance` nats per record (see `RoundReport`). `renormalised` candidates, of
    which `num_candidates` are chosen anew in each round, have none by default.
    """

    method: Literal["importance", "full", "renormalised"] = "importance"
    num_candidates: int = Field(32, ge=1)
    uniform_share: float = Field(0.5, gt=0, le=1)
    similarity_temperature: float = Field(0.2, gt=0)
    refresh: int | None = Field(None, ge=0)
    refresh_tolerance: float = Field(0.02, ge=0)
    num_kept: int | None = Field(None, ge=1)
    bare: Literal["none", "persona_only", "zero_shot"] = "none"

    @model_validator(mode="after")
    def _keeps_some_of_the_whole_world(self) -> CandidatesConfig:
        if self.num_kept is not None and self.method != "renormalised":
            raise ValueError(
                f"num_kept belongs to method: renormalised; with method: {self.method} the gate "
                "lives on all components"
            )
        return self

    @property
    def num_refreshes(self) -> int:
        """How many rounds may follow the first."""
        return int(self.method == "importance") if self.refresh is None else self.refresh


class TemperatureConfig(Section):
    """The grid on which ℓ is scored: inverse temperatures multiple · step."""

    step: float = Field(0.125, gt=0)
    multiples: list[int] = [13, 12, 11, 10, 9, 8, 7, 6, 5]

    @model_validator(mode="after")
    def _holds_unity(self) -> TemperatureConfig:
        if not any(abs(m * self.step - 1) < 1e-9 for m in self.multiples):
            raise ValueError(
                f"the grid must hold τ = 1, at which baselines are scored: one of the multiples "
                f"must be 1 / step = {1 / self.step:g}"
            )
        return self


class ModelConfig(Section):
    """Arguments of `mixture_of_personas`; those left out keep the model's defaults."""

    gate: str = "linear"
    gate_width: int = Field(8, ge=1)
    prior_scale: float = Field(1.0, gt=0)
    temperature: bool | str = True
    temperature_prior_scale: float = Field(0.3, gt=0)
    temperature_spread: float = Field(0.1, gt=0)
    exemplar_context: bool = True
    exemplars: bool = True
    uniform_gate: bool = False
    similarity: bool = False
    similarity_prior_scale: float = Field(1.0, gt=0)
    sparse_personas: bool = False
    sparse_scale: float = Field(1.0, gt=0)

    @property
    def learns_scales(self) -> str | None:
        """The field for which the scale of a prior is learnt, if any."""
        if self.gate == "hierarchical" and not self.uniform_gate:
            return "gate"
        if self.temperature in ("pooled", "contextual"):
            return "temperature"
        return "sparse_personas" if self.sparse_personas and not self.uniform_gate else None

    @field_validator("temperature", mode="before")
    @classmethod
    def _temperature_is_registered(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        try:
            return TypeAdapter(bool).validate_python(value)  # "yes", as for other switches
        except ValidationError:
            from mop_jax.models.temperatures import TEMPERATURES  # imports JAX

            if isinstance(value, str) and value in TEMPERATURES:
                return value
            raise ValueError(
                f"there is no temperature {value!r}; accepted are true, false, "
                f"{', '.join(TEMPERATURES)}"
            ) from None

    @field_validator("gate")
    @classmethod
    def _gate_is_registered(cls, name: str) -> str:
        if name != cls.model_fields["gate"].default:  # the registry imports JAX
            from mop_jax.models.gates import GATES

            if name not in GATES:
                raise ValueError(f"there is no gate {name!r}; accepted are {', '.join(GATES)}")
        return name


class InferenceConfig(Section):
    """Arguments of `fit_svi` and `posterior_draws`; without `num_steps`, until it has settled.

    `maximum_likelihood` drops the prior from what is maximised, and `initial_temperature` is the
    τ_k of a fit's start, by default a draw from the prior.
    """

    guide: GuideName = "AutoWhitenedNormal"
    maximum_likelihood: bool = False
    initial_temperature: float | None = Field(None, gt=0)
    num_steps: int | None = Field(None, ge=10)
    learning_rate: float = Field(0.01, gt=0)
    batch_size: int | None = Field(None, ge=1)
    num_particles: int = Field(4, ge=1)
    num_draws: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _is_a_point(self) -> InferenceConfig:
        if self.maximum_likelihood and self.guide != "AutoDelta":
            raise ValueError("maximum_likelihood is a point estimate and needs guide: AutoDelta")
        return self


class EvaluationConfig(Section):
    """Held-out evaluation, with `num_candidates` components scored for each record in all.

    The first half is proposed by the fitted gate and by similarity, the second by what the first
    scored too; how far the second moves the result says whether they are enough.
    """

    num_candidates: int = Field(64, ge=2)


class SimulationConfig(Section):
    """Ancestral sampling for the held-out contexts.

    With `num_components` of more than one, each prompt shows the exemplars of as many components,
    drawn independently, under the persona and temperature of the first; see `inference.simulate`.
    """

    num_samples: int = Field(64, ge=1)
    num_components: int = Field(1, ge=1)
    max_new_tokens: int = Field(96, ge=1)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float = Field(0.0, ge=0, le=1)
