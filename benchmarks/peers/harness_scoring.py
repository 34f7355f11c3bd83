"""lm-evaluation-harness's own loglikelihood of given token ids."""

from __future__ import annotations

from importlib.metadata import version

from lm_eval.models.huggingface import HFLM
from serve import Score, serve


def load(folder: str, device: str) -> Score:
    """The harness's model in float32."""
    lm = HFLM(pretrained=folder, dtype="float32", device=device, batch_size=1)

    def score(contexts: list[list[int]], responses: list[list[int]], batch_size: int):
        lm.batch_size_per_gpu = batch_size
        # `loglikelihood` does the same after it has encoded its texts; it sorts by length itself.
        requests = [(("", ""), c, r) for c, r in zip(contexts, responses)]
        return [value for value, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]

    return score


if __name__ == "__main__":
    serve(load, {"lm_eval": version("lm_eval")})
