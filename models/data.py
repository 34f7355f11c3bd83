"""What a mixture-of-personas model is fitted to: arrays only, gathered in one pytree.

`MixtureData` holds a population as the model sees it: sentence embeddings of contexts, personas and
exemplars, which components were scored for which record, and what the language model said of them.
It carries the linear maps from embeddings to the gate's features too, fitted once on the training
records, so that contexts met later (held-out, simulated) pass through the very same maps, and what
contexts are compared with exemplars by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mop_jax.errors import DataError
from mop_jax.models import checks
from mop_jax.models.bare_places import BareComponents
from mop_jax.models.choice_data import Choices, make_choices
from mop_jax.models.feature_maps import FeatureMaps, fit_feature_maps
from mop_jax.models.groupings import make_designs, unknown_designs
from mop_jax.models.similarity import SimilarityMap, fit_similarity_map

Array = Any  # numpy or jax array: MixtureData travels through jit

_PER_RECORD = (
    "context_embeddings",
    "leave_out",
    "weights",
    "persona_index",
    "exemplar_index",
    "log_weight",
    "log_likelihood",
    "labels",
    "groups",
)


class MixtureData(NamedTuple):
    """A population's embeddings and likelihood table, [N records, C candidates, G temperatures].

    Build it with `mixture_data`, which checks it, or `full_table_data`; padded candidates have
    `log_weight` −∞ and any finite log-likelihood.
    """

    context_embeddings: Array  # float32 [N, D]
    persona_embeddings: Array  # float32 [K, D]
    exemplar_embeddings: Array  # float32 [J, D]
    leave_out: Array  # bool [N, J], True where exemplar j must not serve record i
    weights: Array  # float32 [N], positive
    persona_index: Array  # int32 [N, C]
    exemplar_index: Array  # int32 [N, C]
    log_weight: Array  # float32 [N, C]
    log_likelihood: Array  # float32 [N, C, G], nats
    temperature_grid: Array  # float32 [G], increasing
    feature_maps: FeatureMaps
    labels: Array | None = None  # int32 [N], code of each record's label; −1 if not known
    groups: Array | None = None  # int32 [N], code of each record's group; −1 if not known
    similarity: SimilarityMap | None = None
    choices: Choices | None = None  # closed answers; `log_likelihood` is zero then
    groupings: dict[str, Array] | None = None  # by name, float32 [N, L + 1]; see `groupings`
    bare: BareComponents | None = None  # which personas and exemplars stand for none

    @property
    def observed(self) -> Array:
        """What the model's site `response` observes: the table [N, C, G], or counts [N, M]."""
        return self.log_likelihood if self.choices is None else self.choices.counts

    @property
    def num_records(self) -> int:
        """N."""
        return self.context_embeddings.shape[0]

    @property
    def num_personas(self) -> int:
        """K."""
        return self.persona_embeddings.shape[0]

    @property
    def num_exemplars(self) -> int:
        """J."""
        return self.exemplar_embeddings.shape[0]

    def take(self, index: Array) -> MixtureData:
        """The records `index` (integers [n] or a slice), personas, exemplars and maps unchanged."""
        per_record = {name: getattr(self, name) for name in _present(self)}
        if isinstance(index, jax.Array):  # NumPy cannot be indexed by a traced array
            per_record = {name: jnp.asarray(values) for name, values in per_record.items()}
        taken = {name: values[index] for name, values in per_record.items()}
        if self.choices is not None:
            taken["choices"] = self.choices.take(index)
        if self.groupings is not None:
            as_array = jnp.asarray if isinstance(index, jax.Array) else np.asarray
            taken["groupings"] = {k: as_array(v)[index] for k, v in self.groupings.items()}
        return self._replace(**taken)

    def at_contexts(
        self,
        context_embeddings: Array,
        leave_out: Array | None = None,
        *,
        labels: Array | None = None,
        groups: Array | None = None,
        member_of: Mapping[str, Array] | None = None,
    ) -> MixtureData:
        """The same personas and exemplars before new contexts [M, D] whose responses are unknown.

        Each new record gets one placeholder candidate, so that the model runs and its gate can be
        read; its log-likelihoods mean nothing. Labels and groups, codes [M], are unknown (−1) where
        they are not given; so are levels of the groupings (`member_of`, codes by grouping), whose
        effects on personas are then those of a group that no record was of.
        """
        num_records = len(context_embeddings)
        if member_of and self.choices is None and self.groupings is None:
            raise DataError("member_of says what groups people are in; these data have none.")
        codes: dict[str, Any] = {"labels": None, "groups": None}
        if self.similarity is not None:
            unknown = np.full(num_records, -1, np.int32)
            codes["labels"] = (
                unknown if labels is None else checks.codes("labels", labels, num_records)
            )
            codes["groups"] = (
                unknown if groups is None else checks.codes("groups", groups, num_records)
            )
        if leave_out is None:
            leave_out = np.zeros((num_records, self.num_exemplars), bool)
        elif self.bare is not None:
            leave_out = self.bare.extended(leave_out)
        if self.groupings is not None:
            codes["groupings"] = unknown_designs(self.groupings, num_records, member_of)
        return self._replace(
            context_embeddings=context_embeddings,
            leave_out=leave_out,
            weights=np.ones(num_records, np.float32),
            persona_index=np.zeros((num_records, 1), np.int32),
            exemplar_index=np.zeros((num_records, 1), np.int32),
            log_weight=np.zeros((num_records, 1), np.float32),
            log_likelihood=np.zeros((num_records, 1, len(self.temperature_grid)), np.float32),
            choices=None if self.choices is None else self.choices.unknown(num_records, member_of),
            **codes,
        )


def _present(data: MixtureData) -> list[str]:
    """Names of the arrays by record that there are."""
    return [name for name in _PER_RECORD if getattr(data, name) is not None]


def concatenated(parts: Sequence[MixtureData]) -> MixtureData:
    """Records of several data sets one below the other; personas and all else are the first's.

    Args:
        parts: data sets with equally many candidates, labels and groups in all or in none.
    """
    per_record: dict[str, Any] = {
        name: np.concatenate([np.asarray(getattr(part, name)) for part in parts])
        for name in _present(parts[0])
    }
    for name in ("choices", "groupings"):
        found = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        if found:
            per_record[name] = jax.tree.map(lambda *each: np.concatenate(each), *found)
    return parts[0]._replace(**per_record)


def mixture_data(
    *,
    context_embeddings: Array,
    persona_embeddings: Array,
    exemplar_embeddings: Array,
    persona_index: Array,
    exemplar_index: Array,
    log_weight: Array,
    log_likelihood: Array,
    temperature_grid: Array = (1.0,),
    leave_out: Array | None = None,
    weights: Array | None = None,
    feature_maps: FeatureMaps | None = None,
    exemplar_contexts: Array | None = None,
    labels: Array | None = None,
    exemplar_labels: Array | None = None,
    groups: Array | None = None,
    exemplar_groups: Array | None = None,
    similarity: SimilarityMap | None = None,
    choices: Choices | None = None,
    member_of: Mapping[str, Array] | None = None,
    num_levels: Mapping[str, int] | None = None,
    groupings: Mapping[str, Array] | None = None,
    bare: BareComponents | None = None,
    max_features: int = 32,
    dtype: Any = np.float32,
) -> MixtureData:
    """Checks and gathers the arrays that a model is fitted to.

    Args:
        context_embeddings: h(x_i), [N, D].
        persona_embeddings: h(g_k), [K, D].
        exemplar_embeddings: h(x_j, y_j), [J, D].
        persona_index: persona of each candidate, integers [N, C].
        exemplar_index: exemplar of each candidate, integers [N, C].
        log_weight: log importance weight of each candidate, [N, C]; −∞ for padding. Candidates that
            `leave_out` forbids get −∞ here whatever the caller says.
        log_likelihood: nats per response on the temperature grid, [N, C, G] (or [N, C] with G = 1).
        temperature_grid: increasing temperatures, [G].
        leave_out: True where exemplar j must not serve record i, [N, J]; nothing by default.
        weights: positive weight of each record, [N]; ones by default. They are scaled to a mean of
            one: weights say whom a record stands for, not how many records there are, and
            unscaled survey weights would make every posterior as narrow as the whole population's.
        feature_maps: the maps of an earlier data set; by default `fit_feature_maps` of this one.
        exemplar_contexts: h(x_j) without the response, [J, D]; without it Ω does not know how alike
            two contexts are.
        labels: code of each record's label, integers [N], −1 if not known. Only labels that are
            known before the response belong here: the gate is conditioned on them.
        exemplar_labels: codes of the exemplars' labels, [J].
        groups: code of each record's group, [N], −1 if not known.
        exemplar_groups: codes of the exemplars' groups, [J].
        similarity: the map of an earlier data set; by default `fit_similarity_map` of this one,
            which says when a term is left out.
        choices: closed answers of the same records (`choice_data` makes them).
        member_of: codes of each grouping's levels by its name, integers [N]; −1 where the level is
            not known, whose record has no effect of it. Personas have effects of them; see
            `mop_jax.models.group_effects`.
        num_levels: how many levels each grouping has; by default those that are here.
        groupings: designs of the same records, in place of `member_of`.
        bare: which personas and exemplars of the arrays stand for none; `with_bare_components` adds
            them to data that have none.
        max_features: the most features per map when they are fitted here.
        dtype: floating-point type of the arrays made.

    Raises:
        DataError: naming the array that is at fault.
    """
    contexts = checks.finite("context_embeddings", context_embeddings, dtype, 2)
    personas = checks.finite("persona_embeddings", persona_embeddings, dtype, 2)
    exemplars = checks.finite("exemplar_embeddings", exemplar_embeddings, dtype, 2)
    for name, array in (("persona_embeddings", personas), ("exemplar_embeddings", exemplars)):
        if array.shape[1] != contexts.shape[1]:
            raise DataError(
                f"{name} has width {array.shape[1]} but context_embeddings {contexts.shape[1]}; "
                "all three must come from one encoder."
            )
    num_records, num_exemplars = len(contexts), len(exemplars)
    grid = checks.finite("temperature_grid", temperature_grid, dtype, 1)
    if (grid <= 0).any() or (np.diff(grid) <= 0).any():
        raise DataError("temperature_grid must be positive and strictly increasing.")

    table = np.asarray(log_likelihood)
    table = checks.finite(
        "log_likelihood", table[..., None] if table.ndim == 2 else table, dtype, 3
    )
    pairs = (num_records, table.shape[1])
    checks.check_shape("log_likelihood", table, (*pairs, len(grid)))
    persona_index = checks.index("persona_index", persona_index, pairs, len(personas))
    exemplar_index = checks.index("exemplar_index", exemplar_index, pairs, num_exemplars)

    leave_out = np.zeros((num_records, num_exemplars)) if leave_out is None else leave_out
    leave_out = np.asarray(leave_out, bool)
    checks.check_shape("leave_out", leave_out, (num_records, num_exemplars))
    log_weight = np.asarray(log_weight, dtype)
    checks.check_shape("log_weight", log_weight, pairs)
    if np.isnan(log_weight).any() or (log_weight == np.inf).any():
        raise DataError(
            "log_weight must be below +inf everywhere and never NaN; -inf marks padding."
        )
    log_weight = np.where(np.take_along_axis(leave_out, exemplar_index, 1), -np.inf, log_weight)
    empty = np.flatnonzero(~(log_weight > -np.inf).any(1))
    if empty.size:
        raise DataError(
            f"Record {empty[0]} (and {empty.size - 1} more) has no candidate component left: all "
            f"{pairs[1]} listed are padding or left out; every record needs at least one."
        )
    weights = np.ones(num_records) if weights is None else weights
    weights = checks.finite("weights", weights, dtype, 1)
    checks.check_shape("weights", weights, (num_records,))
    if (weights <= 0).any():
        raise DataError(f"weights[{int(np.argmax(weights <= 0))}] must be positive.")
    weights = (weights / weights.mean()).astype(dtype)
    maps = feature_maps or fit_feature_maps(
        contexts, personas, exemplars, max_features=max_features
    )
    labels, groups = (
        checks.optional_codes("labels", labels, num_records),
        checks.optional_codes("groups", groups, num_records),
    )
    if similarity is None:
        if exemplar_contexts is not None:
            exemplar_contexts = checks.finite("exemplar_contexts", exemplar_contexts, dtype, 2)
            checks.check_shape("exemplar_contexts", exemplar_contexts, exemplars.shape)
        similarity = fit_similarity_map(
            contexts,
            maps.context.mean,
            leave_out,
            exemplar_contexts=exemplar_contexts,
            labels=labels,
            exemplar_labels=checks.optional_codes(
                "exemplar_labels", exemplar_labels, num_exemplars
            ),
            groups=groups,
            exemplar_groups=checks.optional_codes(
                "exemplar_groups", exemplar_groups, num_exemplars
            ),
        )
    return MixtureData(
        contexts,
        personas,
        exemplars,
        leave_out,
        weights,
        persona_index,
        exemplar_index,
        log_weight.astype(dtype),
        table,
        grid,
        maps,
        labels,
        groups,
        similarity,
        choices,
        _designs(groupings, member_of, num_levels or {}, num_records, dtype),
        bare,
    )


def _designs(
    groupings: Mapping[str, Array] | None,
    member_of: Mapping[str, Array] | None,
    num_levels: Mapping[str, int],
    num_records: int,
    dtype: Any,
) -> dict[str, Array] | None:
    if groupings is None:
        if not member_of:
            return None
        designs = make_designs(member_of, num_levels, num_records, dtype)
        for name, design in designs.items():
            # The last column is for levels that are new, not for what nobody knows.
            design[np.asarray(member_of[name]) < 0] = 0
        return designs
    for name, design in groupings.items():
        checks.finite(f"groupings[{name!r}]", design, dtype, 2)
        checks.check_shape(f"groupings[{name!r}]", design, (num_records, np.shape(design)[1]))
    return dict(groupings)


def full_table_data(*, log_likelihood: Array, **arrays: Any) -> MixtureData:
    """`mixture_data` of a table in which every component was scored.

    Args:
        log_likelihood: nats per response, [N, K, J] or, on a temperature grid, [N, K, J, G].
        **arrays: the other arguments of `mixture_data`, less the candidates.
    """
    table = np.asarray(log_likelihood)
    if table.ndim not in (3, 4):
        raise DataError(f"log_likelihood must be [N, K, J] or [N, K, J, G], not {table.shape}.")
    num_records, num_personas, num_exemplars = table.shape[:3]
    pairs = (num_records, num_personas * num_exemplars)
    persona, exemplar = np.divmod(np.arange(pairs[1]), num_exemplars)
    return mixture_data(
        log_likelihood=table.reshape(*pairs, *table.shape[3:]),
        persona_index=np.broadcast_to(persona, pairs),
        exemplar_index=np.broadcast_to(exemplar, pairs),
        log_weight=np.zeros(pairs),
        **arrays,
    )


def choice_data(
    *,
    option_log_likelihood: Array,
    counts: Array,
    question: Array,
    option_mask: Array | None = None,
    option_offset: Array | None = None,
    option_preference: Array | None = None,
    num_questions: int | None = None,
    member_of: Mapping[str, Array] | None = None,
    num_levels: Mapping[str, int] | None = None,
    dtype: Any = np.float32,
    **arrays: Any,
) -> MixtureData:
    """`mixture_data` of closed answers: one record an item, such as a cell's to a question.

    Args:
        option_log_likelihood: nats of each option's text after each candidate, [N, C, M].
        counts: people who chose each option, [N, M]; weighted ones are fractions.
        question: which question an item is of, integers [N].
        option_mask: which places hold an option, bool [N, M]; all by default.
        option_offset: nats that are known to belong to an option, [N, M]; zeros by default.
        option_preference: what the language model prefers of the question's options whoever
            answers, nats up to a constant, [N, M].
        num_questions: Q, those of held-out items included.
        member_of: codes of each grouping's levels by its name, integers [N]; −1 for a level unseen.
        num_levels: how many levels each grouping has, those of held-out items included.
        dtype: floating-point type of the arrays made.
        **arrays: the other arguments of `mixture_data`, the candidates among them.

    Raises:
        DataError: naming the array that is at fault.
    """
    choices = make_choices(
        option_log_likelihood=option_log_likelihood,
        counts=counts,
        question=question,
        option_mask=option_mask,
        option_offset=option_offset,
        option_preference=option_preference,
        num_questions=num_questions,
        groups=member_of,
        num_levels=num_levels,
        dtype=dtype,
    )
    table = np.zeros(choices.option_log_likelihood.shape[:2], dtype)
    return mixture_data(log_likelihood=table, choices=choices, dtype=dtype, **arrays)
