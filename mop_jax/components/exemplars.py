"""The exemplar pool: J real records, stratified so that every part of the population has a say.

Strata are usually clusters × labels (or groups). Exemplars with the same text would be the same
component twice, so no text enters the pool twice.

An exemplar that is a record's own text would only be copied by the language model (design: leave
one out). Which exemplars must not serve a record is decided by what is known of the record *beside*
its response, since the probabilities p(y | x) of all responses y sum to one only if one and the
same mask stands behind them all:

- Records that the pool was drawn from (`leave_out_mask`): the exemplar that is the record itself.
  A short answer that others gave too stays: "Yes" under the same question is another person's. A
  long response that is rare in the population is nobody else's, so where it stands in the pool
  under whatever context, it is the record itself, written down twice. The long options of a closed
  question are not rare, and count as short answers (`mop_jax.population.twin_keys`).
- Held-out records and new contexts (`group_mask`): no exemplar is one of them, so nothing is left
  out by its text. `refuse_twins` makes sure of it.
- By group, either side leaves out the exemplars of the record's own group (a respondent, a film),
  which is known before the response.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from mop_jax.errors import DataError
from mop_jax.population.population import Population
from mop_jax.population.splits import apportion

Allocation = Literal["proportional", "equal"]
LeaveOut = Literal["record", "group"]


def select_exemplars(
    population: Population,
    strata: Sequence[Hashable] | np.ndarray,
    num_exemplars: int,
    *,
    allocation: Allocation = "proportional",
    seed: int = 0,
) -> np.ndarray:
    """Draws J records at random within strata, no two with the same text.

    Args:
        population: N records.
        strata: N values; records with equal values form a stratum. `cross_strata` makes them.
        num_exemplars: J.
        allocation: "proportional" to the strata's numbers of distinct texts, by largest remainders;
            or "equal", where a stratum too small for its share gives all it has and the others
            share the rest. Ties are settled at random.
        seed: of the draw.

    Returns:
        int64 [J], sorted indices into the population.

    Raises:
        DataError: if there are fewer than J distinct records, or one stratum value per record is
            not given.
    """
    if len(strata) != len(population):
        raise DataError(f"{len(strata)} strata are given for {len(population)} records.")
    if num_exemplars < 1:
        raise DataError(f"num_exemplars is {num_exemplars}; accepted is a positive integer.")
    rng = np.random.default_rng(seed)
    # A random one of the records that share a text stands for them all.
    distinct: dict[str, int] = {}
    for row in rng.permutation(len(population)).tolist():
        distinct.setdefault(population.text_keys[row], row)
    if num_exemplars > len(distinct):
        raise DataError(
            f"{num_exemplars} exemplars were asked for, but the population has only "
            f"{len(distinct)} distinct records."
        )
    members: dict[Hashable, list[int]] = {}
    for row in sorted(distinct.values()):
        members.setdefault(strata[row], []).append(row)
    sizes = np.array([len(rows) for rows in members.values()])
    if allocation == "proportional":
        places = apportion(sizes, num_exemplars, rng)
    elif allocation == "equal":
        places = _equal(sizes, num_exemplars, rng)
    else:
        raise DataError(f"allocation is {allocation!r}; accepted are proportional and equal.")
    drawn = [
        rng.choice(rows, size=n, replace=False)
        for rows, n in zip(members.values(), places, strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def cross_strata(
    clusters: Sequence[int] | np.ndarray, *others: Sequence[Hashable] | None
) -> list[Hashable]:
    """Clusters × labels × groups: one tuple per record; an absent factor (None) is passed over.

    Example:
        >>> cross_strata([0, 0, 1], ["fresh", "rotten", "fresh"], None)
        [(0, 'fresh'), (0, 'rotten'), (1, 'fresh')]
    """
    factors: list[list[Hashable]] = [
        [int(c) for c in clusters],
        *(list(f) for f in others if f is not None),
    ]
    if len({len(factor) for factor in factors}) != 1:
        raise DataError("The factors of the strata have different lengths; one value per record.")
    return list(zip(*factors, strict=True))


def leave_out_mask(
    population_records: Population,
    exemplar_records: Population,
    *,
    by: LeaveOut = "record",
) -> np.ndarray:
    """Which exemplars must not serve which of the records that the pool was drawn from.

    Args:
        population_records: N records.
        exemplar_records: J of them.
        by: "record": the record itself (the same id and text), and its twins, those with the same
            rare long response (`twin_keys`) whatever the context; "group": all of the record's
            own group as well.

    Returns:
        bool [N, J], True where exemplar j must not serve record i.

    Raises:
        DataError: by "group", if either side has no groups.
    """
    # Ids alone do not do: they are row numbers by default, and two files have the same ones.
    mask = _equal_keys(population_records.ids, exemplar_records.ids)
    mask &= _equal_keys(population_records.text_keys, exemplar_records.text_keys)
    mask |= _equal_keys(population_records.response_keys, exemplar_records.response_keys)
    return mask | group_mask(population_records, exemplar_records, by=by)


def group_mask(
    population_records: Population, exemplar_records: Population, *, by: LeaveOut = "record"
) -> np.ndarray:
    """Which exemplars must not serve which held-out records, whatever these answered.

    Args:
        population_records: N records; of their texts nothing is looked at.
        exemplar_records: J records.
        by: "record": none; "group": those of the record's own group.

    Returns:
        bool [N, J].

    Raises:
        DataError: by "group", if either side has no groups.
    """
    if by == "record":
        return np.zeros((len(population_records), len(exemplar_records)), bool)
    if by != "group":
        raise DataError(f"by is {by!r}; accepted are record and group.")
    if population_records.groups is None or exemplar_records.groups is None:
        raise DataError("Leaving out by group needs groups; name the group column.")
    return _equal_keys(population_records.groups, exemplar_records.groups)


def refuse_twins(held_out: Population, exemplar_records: Population) -> None:
    """Refuses held-out records whose long response is an exemplar's: they are not held out.

    `Population.split` never leaves such a pair on two sides. Short answers and the options of a
    closed question are no twins.

    Raises:
        DataError: naming the first such record and its exemplar.
    """
    twins = _equal_keys(held_out.response_keys, exemplar_records.response_keys)
    if twins.any():
        record, exemplar = (int(found[0]) for found in np.nonzero(twins))
        raise DataError(
            f"Held-out record {held_out.ids[record]} has the same long response as exemplar "
            f"{exemplar_records.ids[exemplar]}, so it is not held out; leave it out (as "
            "Population.split does), or score it as one of the records that the pool comes from."
        )


def _equal_keys(rows: Sequence[str | None], columns: Sequence[str | None]) -> np.ndarray:
    # None equals nothing.
    codes: dict[str, int] = {}
    left = np.array([-1 if key is None else codes.setdefault(key, len(codes)) for key in rows])
    right = np.array([-2 if key is None else codes.setdefault(key, len(codes)) for key in columns])
    return left[:, None] == right[None, :]


def _equal(sizes: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    places = np.zeros_like(sizes)
    while (left := total - int(places.sum())) > 0:
        open_strata = np.flatnonzero(places < sizes)
        share = left // len(open_strata)
        if share == 0:
            places[rng.permutation(open_strata)[:left]] += 1
        else:
            places[open_strata] += np.minimum(share, (sizes - places)[open_strata])
    return places
