"""What a comparison refuses, and what it warns of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import Comparison, Sample, measure
from mop_jax.evaluation.metrics.comparison import directions, ngrams, words
from tests.evaluation.samples import gaussian, sample

VECTORS = gaussian(6, 3, 0)
TEXTS = [f"text {i}" for i in range(6)]


def spoilt(row: int, value: float) -> np.ndarray:
    vectors = VECTORS.copy()
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sample([], np.zeros((0, 3))), "A sample has no texts"),
        (lambda: Sample(TEXTS, np.zeros(6)), r"Embeddings have the shape \[6\]"),
        (lambda: Sample(TEXTS[:5], VECTORS), "A sample has 5 texts and 6 embeddings"),
        (lambda: Sample(TEXTS, VECTORS, labels=["a"]), "6 texts and 1 labels"),
        (lambda: Sample(TEXTS, VECTORS, groups=["a"] * 7), "6 texts and 7 groups"),
        (lambda: Sample(TEXTS, VECTORS, shown=[["a"]] * 2), "6 texts and 2 shown"),
        (lambda: Sample(TEXTS, VECTORS, shown=["one string"] * 6), "accepted is a list of strings"),
        (lambda: Sample(TEXTS, spoilt(4, np.nan)), "1 of 6 embeddings .* that of text 4"),
        (lambda: Sample(TEXTS, spoilt(2, np.inf)), "1 of 6 embeddings .* that of text 2"),
        (lambda: directions(Sample(TEXTS, VECTORS * [[1], [1], [0], [1], [1], [1]])),
         "The embedding of text 2 is zero"),
    ],
)  # fmt: skip
def test_bad_samples_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_widths_that_differ_are_refused():
    with pytest.raises(DataError, match=r"differ in width \(real 3, simulated 2\)"):
        Comparison(sample(VECTORS, "a"), sample(VECTORS[:, :2], "b"))
    with pytest.raises(DataError, match=r"\(real 3, simulated 3, train 1\)"):
        Comparison(sample(VECTORS, "a"), sample(VECTORS, "b"), sample(VECTORS[:, :1], "c"))


def test_the_same_list_twice_is_refused():
    with pytest.raises(DataError, match="The 6 simulated texts are the real texts"):
        Comparison(sample(VECTORS), sample(VECTORS))


def test_a_few_answers_to_a_closed_question_may_agree():
    answers = ["Yes", "No", "Yes"]
    with pytest.warns(UserWarning, match="100% of the 3 simulated texts .* short answers"):
        Comparison(Sample(answers, VECTORS[:3]), Sample(answers, VECTORS[3:]))


def test_swapped_samples_are_refused():
    simulated = sample(VECTORS, "simulated", shown=[["an exemplar"]] * 6)
    with pytest.raises(DataError, match="are the two swapped"):
        Comparison(simulated, sample(VECTORS, "real"))


@pytest.mark.parametrize(("copied", "warned"), [(5, True), (2, True), (0, False)])
def test_copies_of_real_texts_are_warned_of(copied, warned):
    simulated = Sample([*TEXTS[:copied], *[f"new {i}" for i in range(6 - copied)]], VECTORS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Comparison(Sample(TEXTS, VECTORS), simulated)
    messages = [str(warning.message) for warning in caught]
    assert bool(messages) == warned
    assert (
        not warned or f"{copied / 6:.0%} of the 6 simulated texts are exact copies" in messages[0]
    )


def test_copies_of_training_records_are_warned_of_on_either_side():
    train = Sample(TEXTS, VECTORS)
    other = sample(VECTORS, "other")
    with pytest.warns(UserWarning, match="100% of the 6 simulated texts .* of training records"):
        Comparison(other, Sample(TEXTS[::-1], VECTORS), train)
    with pytest.warns(UserWarning, match="100% of the 6 real texts .* of training records"):
        Comparison(Sample(TEXTS[::-1], VECTORS), other, train)


def test_texts_that_are_all_equal_are_warned_of():
    with pytest.warns(UserWarning, match=r"All 6 simulated texts are equal \('same'\)"):
        Comparison(sample(VECTORS), Sample(["same"] * 6, VECTORS))


def test_taking_keeps_fields_together():
    fields = {"labels": list("abcdef"), "groups": list("uvwxyz"), "shown": [[t] for t in TEXTS]}
    taken = Sample(TEXTS, VECTORS, **fields).take([4, 1])
    assert taken.texts == ("text 4", "text 1")
    assert taken.labels == ("e", "b")
    assert taken.groups == ("y", "v")
    assert taken.shown == (("text 4",), ("text 1",))
    np.testing.assert_array_equal(taken.embeddings, VECTORS[[4, 1]])


@pytest.mark.filterwarnings("ignore:MAUVE of 40:UserWarning")
def test_metrics_are_measured_that_the_texts_allow():
    rng = np.random.default_rng(0)
    labels = ["a", "b"] * 20

    def made(prefix: str, **fields) -> Sample:
        texts = [f"{prefix} {' '.join(rng.choice(list('abcdefg'), 6))}" for _ in labels]
        return Sample(texts, gaussian(40, 3, len(prefix)), **fields)

    plain = measure(Comparison(made("real"), made("simulated")))
    assert {"fid", "mauve", "kl_cosine", "energy_distance", "self_bleu", "mean_words"} <= set(plain)
    assert not {"downstream_f1", "copied_4grams", "held_out_log_prob"} & set(plain)
    full = measure(
        Comparison(
            made("real", labels=labels),
            made("simulated", labels=labels, shown=[["an exemplar of a few words"]] * 40),
            made("train"),
        )
    )
    assert set(full) - set(plain) == {
        "copied_4grams", "longest_copied_run", "longest_copied_share", "nearest_train_similarity",
        "downstream_f1",
    }  # fmt: skip
    assert all(isinstance(value, float) for value in full.values())


def test_words_and_ngrams_by_hand():
    assert words("The film,  THE Film") == ("the", "film,", "the", "film")
    assert ngrams(("a", "b", "c"), 2) == [("a", "b"), ("b", "c")]
    assert ngrams(("a", "b"), 3) == []
