"""torch `transformers`' own `generate`, batched with left padding, as a process that obeys.

Commands come as JSON lines on stdin, answers go as JSON lines to the original stdout; whatever
libraries print goes to stderr. Runs in an environment of its own, without the package.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def sample(model, prompts: list[list[int]], batch_size: int, settings: dict) -> dict:
    """Samples a response to each prompt, in batches of prompts of about the same length."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    counts, slot_steps, prompt_tokens = [0] * len(prompts), 0, 0
    for first in range(0, len(order), batch_size):
        members = order[first : first + batch_size]
        length = len(prompts[members[0]])
        tokens = torch.zeros(len(members), length, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, i in enumerate(members):
            tokens[row, length - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, length - len(prompts[i]) :] = 1
        output = model.generate(
            tokens.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=settings["max_new_tokens"],
            eos_token_id=settings["end_id"],
            pad_token_id=settings["end_id"],
        )[:, length:].cpu()
        slot_steps += output.numel()
        prompt_tokens += tokens.numel()
        for row, i in enumerate(members):
            ends = (output[row] == settings["end_id"]).nonzero()
            counts[i] = int(ends[0]) + 1 if len(ends) else output.shape[1]
    return {"counts": counts, "slot_steps": slot_steps, "prompt_tokens": prompt_tokens}


def main() -> None:
    """Loads the model and obeys until stdin closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder with the weights")
    parser.add_argument("--gguf-file", help="name of the GGUF file in it, if it is one")
    parser.add_argument("--prompts", required=True, help="JSON file of prompts and settings")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    work = json.loads(Path(options.prompts).read_text())
    gguf = {"gguf_file": options.gguf_file} if options.gguf_file else {}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, **gguf).eval()
    torch.manual_seed(0)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"versions": versions}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        prompts = [work["prompts"][i] for i in command["indices"]]
        start, processor = time.perf_counter(), time.process_time()
        found = sample(model, prompts, command["batch_size"], work["settings"])
        found["seconds"] = time.perf_counter() - start
        found["processor_seconds"] = time.process_time() - processor
        print(json.dumps(found), file=answers)


if __name__ == "__main__":
    main()
