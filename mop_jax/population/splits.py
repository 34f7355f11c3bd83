"""Seeded splits into training and held-out records: by record, stratified, or by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mop_jax.errors import DataError

SplitBy = Literal["record", "stratified", "group"]


def split_rows(
    num_records: int,
    test_size: int | float,
    *,
    by: SplitBy,
    labels: Sequence[str] | None,
    groups: Sequence[str] | None,
    seed: int,
    train_size: int | float | None,
    twins: Sequence[str | None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted row numbers of the training and the test records; see `Population.split`.

    Records with equal `twins` are the same record twice; None equals nothing.

    Raises:
        DataError: if there are too few records, or no labels or groups to split by.
    """
    num_test = part_size("test_size", test_size, num_records)
    num_train = None if train_size is None else part_size("train_size", train_size, num_records)
    if num_test + (num_train or 1) > num_records:
        raise DataError(
            f"{num_records} records are too few for {num_test} test and at least "
            f"{num_train or 1} training records."
        )
    rng = np.random.default_rng(seed)
    if by == "record":
        order = rng.permutation(num_records)
        test, rest = order[:num_test], order[num_test:]
        train = rest[:num_train]
    elif by == "stratified":
        if labels is None:
            raise DataError("A stratified split needs labels; name the label column.")
        stratum = _codes(labels)
        test = _stratified(stratum, np.arange(num_records), num_test, rng)
        train = np.setdiff1d(np.arange(num_records), test)
        if num_train is not None:
            train = _stratified(stratum, train, num_train, rng)
    elif by == "group":
        if groups is None:
            raise DataError("A split by group needs groups; name the group column.")
        train, test = _grouped(_codes(groups), num_test, num_train, rng)
    else:
        raise DataError(f"by is {by!r}; accepted are record, stratified and group.")
    if twins is not None:
        apart = np.ones(num_records, bool)
        if by == "group":
            codes = _codes(groups or [])
            apart = ~np.isin(codes, codes[test])
        train = _without_twins(train, test, twins, np.flatnonzero(apart), rng)
    return np.sort(train), np.sort(test)


def _without_twins(
    train: np.ndarray,
    test: np.ndarray,
    twins: Sequence[str | None],
    eligible: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Exchanges training records that are held out under another context for unused ones."""
    held_out = {twins[i] for i in test} - {None}
    kept = np.asarray([i for i in train if twins[i] not in held_out], int)
    if len(kept) == len(train):
        return train
    unused = np.setdiff1d(eligible, np.concatenate([train, test]))
    spare = np.asarray([i for i in unused if twins[i] not in held_out], int)
    missing = min(len(train) - len(kept), len(spare))
    if len(kept) + missing == 0:
        raise DataError(
            f"No training record is left: the {len(train)} that the split would give have the same "
            f"long responses as the {len(test)} that are held out, so they are the same records "
            "written twice; more distinct records or a smaller test_size are needed."
        )
    return np.concatenate([kept, rng.choice(spare, size=missing, replace=False)])


def apportion(
    sizes: Sequence[int] | np.ndarray, total: int, rng: np.random.Generator
) -> np.ndarray:
    """Shares `total` places among strata in proportion to their sizes, by largest remainders.

    Equal remainders are settled at random. No stratum gets more places than its size.

    Args:
        sizes: int [S], non-negative.
        total: at most the sum of sizes.
        rng: settles ties.

    Returns:
        int64 [S], summing to `total`.
    """
    size = np.asarray(sizes, dtype=np.int64)
    quota = total * size / size.sum()
    places = np.floor(quota).astype(np.int64)
    # A remainder that is zero but for rounding must tie with the other zeros.
    remainder = np.round(quota - places, 9)
    order = np.lexsort((rng.random(len(size)), -remainder))
    order = order[places[order] < size[order]]
    places[order[: total - places.sum()]] += 1
    return places


def _codes(values: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(values, dtype=str), return_inverse=True)[1]


def _stratified(
    stratum: np.ndarray, rows: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws `size` of `rows`, from each stratum in proportion to its share of them."""
    num_strata = int(stratum.max()) + 1
    places = apportion(np.bincount(stratum[rows], minlength=num_strata), size, rng)
    members = (rows[stratum[rows] == s] for s in range(num_strata))
    drawn = [rng.permutation(m)[:n] for m, n in zip(members, places, strict=True)]
    return np.concatenate(drawn)


def _grouped(
    group: np.ndarray, num_test: int, num_train: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.bincount(group)
    if len(sizes) < 2:
        raise DataError("A split by group needs at least two groups; all records are in one.")
    order = rng.permutation(len(sizes))
    if num_train is None:
        held_out = _groups_that_fit(sizes, order, num_test)
    else:
        held_out = order[: _num_held_out(sizes[order], num_test, num_train)]
    is_test = np.isin(group, held_out)
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    if num_train is not None:
        if num_train > len(train):
            raise DataError(
                f"{num_train} training records were asked for, but only {len(train)} of "
                f"{len(group)} records are left outside the {len(held_out)} groups that "
                f"{num_test} test records take."
            )
        train = rng.choice(train, size=num_train, replace=False)
        test = rng.choice(test, size=num_test, replace=False)
    return train, test


def _num_held_out(sizes: np.ndarray, num_test: int, num_train: int) -> int:
    """How many of the groups, in this order, to hold out where records are left over anyway.

    Their share of all records is that of `num_test` in `num_test + num_train`, so that both sides
    draw their records from many groups: 200 records of 8 films say little about other films.
    """
    taken = np.cumsum(sizes)
    wanted = max(num_test, round(taken[-1] * num_test / (num_test + num_train)))
    least, number = (int(np.argmax(taken >= n)) + 1 for n in (num_test, wanted))
    while number > least and taken[-1] - taken[number - 1] < num_train:
        number -= 1
    return number


def _groups_that_fit(sizes: np.ndarray, order: np.ndarray, num_test: int) -> np.ndarray:
    chosen: list[int] = []
    room = num_test
    for candidate in order.tolist():
        if sizes[candidate] <= room:
            chosen.append(candidate)
            room -= int(sizes[candidate])
    if not chosen:
        raise DataError(
            f"The smallest group has {sizes.min()} records, more than the {num_test} test records "
            "asked for; ask for more, or split by record."
        )
    return np.array(chosen)


def part_size(name: str, size: int | float, num_records: int) -> int:
    """A number of records, given as such or as a fraction of all.

    Raises:
        DataError: if it is neither; names the argument.
    """
    if isinstance(size, float) and 0 < size < 1:
        return max(1, round(size * num_records))
    if np.isfinite(size) and size == int(size) and size >= 1:
        return int(size)
    raise DataError(f"{name} is {size}; accepted is a count from 1 or a fraction between 0 and 1.")
