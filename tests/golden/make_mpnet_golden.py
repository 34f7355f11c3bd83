"""Writes encoder_mpnet.npz: a small random MPNet with its embeddings by sentence_transformers.

Needs torch, transformers and sentence_transformers, which the package itself does not:

    python tests/golden/make_mpnet_golden.py [--out FOLDER]

The file holds the JSON files of the encoder's folder, its weights (float16 values, so that float32
holds them exactly), texts with their token ids, hidden states and embeddings, and the bucket of
every relative position. Sizes are unequal and mostly prime, so that no transposed or swapped axis
can hide. Weights are large enough that attention is far from uniform and every bias matters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import MPNetConfig, MPNetModel, PreTrainedTokenizerFast
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = [f"w{i}" for i in range(49)]
# 161 positions: beyond 128 tokens all distances share a bucket.
CONFIG = MPNetConfig(
    vocab_size=len(SPECIAL) + len(WORDS),
    hidden_size=21,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=37,
    max_position_embeddings=163,
    layer_norm_eps=1e-2,
)
MAX_LENGTH = 161
# Words per text: none, one bucket per distance, widening buckets, and beyond the limit.
LENGTHS = (0, 1, 5, 7, 17, 31, 95, 163)
REACH = 600


def random_weights(model: MPNetModel) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "relative_attention_bias" in name:
                drawn = 2 * noise
            elif "LayerNorm.weight" in name:
                drawn = 1 + 0.3 * noise
            elif name.endswith("bias"):
                drawn = 0.3 * noise
            elif "embeddings" in name:
                drawn = 0.7 * noise
            else:
                drawn = noise * (1.5 / parameter.shape[1] ** 0.5)
            parameter.copy_(drawn.half().float())


def write_tokenizer(folder: str) -> None:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def make_texts() -> list[str]:
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(WORDS, length)) for length in LENGTHS]
    # Padding that is spelt out inside a text is a token without a position.
    return [*texts, "w3 <pad> w4 <pad> <pad> w5 nothing w6", "<pad>"]


@torch.no_grad()
def main(out: Path) -> None:
    torch.set_num_threads(1)
    texts = make_texts()
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as folder:
        network = MPNetModel(CONFIG)
        random_weights(network)
        network.save_pretrained(base)
        write_tokenizer(base)
        transformer = Transformer(base, max_seq_length=MAX_LENGTH)
        pooling = Pooling(CONFIG.hidden_size, pooling_mode="mean")
        modules = [transformer, pooling, Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(folder)
        model = SentenceTransformer(folder, device="cpu")
        files = {
            str(path.relative_to(folder)): path.read_text("utf-8")
            for path in sorted(Path(folder).rglob("*.json"))
        }
        weights = {
            f"weights/{name}": value.numpy().astype(np.float16)
            for name, value in load_file(Path(folder) / "model.safetensors").items()
        }
    # One text at a time: no padding, hence the reference for every padded batch.
    embeddings = np.stack([model.encode([text])[0] for text in texts])
    token_ids, hidden = [], []
    for text in texts:
        inputs = model.tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        assert inputs["attention_mask"].all()
        token_ids.append(inputs["input_ids"][0].numpy())
        hidden.append(model[0].auto_model(**inputs).last_hidden_state[0].numpy())
    np.testing.assert_allclose(model.encode(texts), embeddings, atol=1e-5)
    target = out / "encoder_mpnet.npz"
    np.savez_compressed(
        target,
        files=np.array(json.dumps(files)),
        texts=np.array(texts),
        lengths=np.array([len(ids) for ids in token_ids]),
        token_ids=np.concatenate(token_ids),
        hidden=np.concatenate(hidden),
        embeddings=embeddings,
        buckets=MPNetEncoder.relative_position_bucket(torch.arange(-REACH, REACH + 1)).numpy(),
        versions=np.array(
            [
                f"sentence_transformers {sentence_transformers.__version__}",
                f"transformers {transformers.__version__}",
                f"torch {torch.__version__}",
            ]
        ),
        **weights,
    )
    print(target.name, target.stat().st_size, list(files), [len(ids) for ids in token_ids])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    main(parser.parse_args().out)
