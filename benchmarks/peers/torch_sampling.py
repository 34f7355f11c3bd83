"""torch `transformers`' own `generate`, batched with left padding."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from obey import Draw, obey
from transformers import AutoModelForCausalLM


def load(path: Path, work: dict, threads: int) -> Draw:
    """The model in float32."""
    torch.set_num_threads(threads)
    folder, gguf = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **gguf).eval()
    torch.manual_seed(0)
    settings = work["settings"]

    @torch.inference_mode()
    def draw(indices: list[int], batch_size: int) -> dict:
        # In batches of prompts of about the same length.
        prompts = [work["prompts"][i] for i in indices]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        counts, slot_steps = [0] * len(prompts), 0
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
            for row, i in enumerate(members):
                ends = (output[row] == settings["end_id"]).nonzero()
                counts[i] = int(ends[0]) + 1 if len(ends) else output.shape[1]
        return {"counts": counts, "slot_steps": slot_steps}

    return draw


if __name__ == "__main__":
    obey(load, {"torch": torch.__version__, "transformers": transformers.__version__})
