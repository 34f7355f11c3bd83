"""The first step of a run: records split and embedded, personas written, exemplars drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mop_jax.components.components import Components
from mop_jax.components.personas import (
    Persona,
    cluster_records,
    read_personas,
    record_texts,
    synthesise_personas,
    write_personas,
)
from mop_jax.pipeline.workspace import Workspace, write_arrays, write_parquet
from mop_jax.resources import resolve_path


def make_personas(space: Workspace) -> None:
    """Writes personas, exemplars, records of both sides and all embeddings."""
    config, seed = space.config, space.config.seed
    train, test = space.read_population()
    vectors: dict[str, np.ndarray] = {}
    for side, records in (("train", train), ("test", test)):
        vectors[f"{side}_context"] = space.encoder.encode(records.contexts)
        vectors[f"{side}_record"] = space.encoder.encode(record_texts(records))
    section = config.personas
    if section.path is not None or section.texts is not None:
        made = [Persona(text) for text in section.texts or ()]
        if section.path is not None:
            made = read_personas(resolve_path(section.path))
        # Texts leave the exemplar pool as it would be with synthesised personas.
        number = section.num_personas if section.texts is not None else len(made)
        clusters = cluster_records(vectors["train_record"], number, seed).labels
    else:
        made, clusters = synthesise_personas(
            train,
            vectors["train_record"],
            space.language_model,
            section.num_personas,
            seed=seed,
            records_per_persona=section.records_per_persona,
            max_new_tokens=section.max_new_tokens,
            chat_settings=config.prompt.chat_settings,
            described_from=section.described_from,
        )
    components = Components.assemble(
        train,
        vectors["train_record"],
        made,
        clusters,
        space.encoder,
        num_exemplars=config.exemplars.num_exemplars,
        seed=seed,
        allocation=config.exemplars.allocation,
        stratify_labels=config.exemplars.stratify_labels,
    )
    vectors["persona"] = components.persona_embeddings
    vectors["exemplar"] = components.exemplar_embeddings
    pool = components.exemplars
    cluster_of = dict(zip(train.ids, np.asarray(clusters).tolist(), strict=True))
    pool_frame = pool.frame.assign(
        cluster=[cluster_of[i] for i in pool.ids], text_key=pool.text_keys
    )
    sides = [
        train.frame.assign(split="train", cluster=clusters),
        test.frame.assign(split="test", cluster=-1),
    ]
    write_personas(space.path / "personas.json", made)
    write_parquet(space.path / "exemplars.parquet", pool_frame)
    write_parquet(space.path / "records.parquet", pd.concat(sides, ignore_index=True))
    write_arrays(space.path / "embeddings.safetensors", vectors)
