"""torch `transformers` at its best: sorted by length, projected at response positions only."""

from __future__ import annotations

import torch
import transformers
from serve import Score, serve
from transformers import AutoModelForCausalLM


def load(folder: str, device: str) -> Score:
    """The model in float32 with torch's fused attention."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    model = model.to(device).eval()

    @torch.inference_mode()
    def score(contexts: list[list[int]], responses: list[list[int]], batch_size: int):
        # The last token is no input: nothing after it is asked for.
        inputs = [(c + r)[:-1] for c, r in zip(contexts, responses)]
        order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
        found = [0.0] * len(inputs)
        for first in range(0, len(order), batch_size):
            members = order[first : first + batch_size]
            length = len(inputs[members[0]])
            tokens = torch.zeros(len(members), length, dtype=torch.long)
            rows, columns, targets = [], [], []
            for row, i in enumerate(members):
                size = len(inputs[i])
                tokens[row, :size] = torch.tensor(inputs[i])
                rows += [row] * len(responses[i])
                columns += range(size - len(responses[i]), size)
                targets += responses[i]
            # Padding stands behind all real tokens, where causal attention never looks: no mask
            # is needed, and torch's fastest attention may be used.
            hidden = model.model(tokens.to(device), use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[torch.tensor(rows), torch.tensor(columns)])
            wanted = torch.tensor(targets, device=device)
            log_probs = -torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
            for row, value in zip(rows, log_probs.double().tolist()):
                found[members[row]] += value
        return found

    return score


if __name__ == "__main__":
    serve(load, {"transformers": transformers.__version__})
