"""What the decoder needs to know of an architecture, as sizes, constants and switches.

One decoder serves all families; `mop_jax.lm.families` says which of these settings a family uses
and reads them from a checkpoint's configuration, value by value. One that the decoder does not
implement is refused by name: an ignored setting would corrupt every likelihood without a sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from mop_jax.errors import DataError


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    Attributes:
        kind: `default` (none), `linear` (all frequencies divided by `factor`), `llama3` (only the
            slow ones, with a smooth transition; Llama 3.1's scheme) or `factors` (each divided by
            its own, as GGUF files tell).
        factor: the stretch.
        low_freq_factor: `llama3`: wavelengths above original/low are stretched in full.
        high_freq_factor: `llama3`: wavelengths below original/high are kept.
        original_max_position: `llama3`: the context length before stretching, tokens.
        factors: `factors`: a divisor for each rotated pair, [E / 2].
    """

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes, constants and switches of a decoder-only transformer; defaults are the Llama family's.

    Attributes:
        vocab_size: V, rows of the embedding.
        hidden_size: D, width of the residual stream.
        intermediate_size: width of the feed-forward block.
        num_layers: L.
        num_heads: query heads.
        num_kv_heads: key and value heads, shared by groups of query heads.
        head_dim: width of one head.
        max_position: context window, tokens.
        norm_eps: added to the mean square in normalisations.
        rope_theta: base of the rotary frequencies.
        rope_scaling: see `RopeScaling`.
        local_rope_theta: base in sliding layers, unscaled, where it differs (Gemma 3).
        learned_positions: an embedding of absolute positions in place of rotation (GPT-2).
        tie_embeddings: whether the output projection is the embedding itself.
        attention_bias: biases on the q, k and v projections.
        attention_output_bias: a bias on the o projection.
        mlp_bias: biases in the feed-forward block.
        activation: of the feed-forward block, `silu` or `gelu_tanh`.
        gated_mlp: down(act(gate x) · up x) rather than down(act(up x)).
        norm: `rms` (scale w), `rms_offset` (scale 1 + w; Gemma) or `layer` (mean removed, bias).
        qk_norm: queries and keys normalised head by head before rotation.
        post_norms: a normalisation behind attention and behind the feed-forward block too (Gemma).
        attention_scale: factor of the attention scores; 1/√head_dim by default.
        attention_softcap: c in c · tanh(score / c), before the mask.
        logit_softcap: the same for the final logits.
        sliding_window: tokens that a sliding layer sees, itself included.
        sliding_layers: which layers slide, [L]; all False by default.
        embedding_scale: factor of the token embeddings.
        eos_token_ids: ids that end a text or a turn, as the checkpoint declares them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = RopeScaling()
    local_rope_theta: float | None = None
    learned_positions: bool = False
    tie_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    gated_mlp: bool = True
    norm: str = "rms"
    qk_norm: bool = False
    post_norms: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    embedding_scale: float = 1.0
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit together."""
        if self.num_heads % self.num_kv_heads:
            raise DataError(
                f"num_attention_heads = {self.num_heads} is not a multiple of "
                f"num_key_value_heads = {self.num_kv_heads}."
            )
        if self.head_dim % 2 and not self.learned_positions:
            raise DataError(f"head_dim = {self.head_dim} is odd; rotary positions need it even.")
        if self.sliding_layers and len(self.sliding_layers) != self.num_layers:
            raise DataError(
                f"layer_types names {len(self.sliding_layers)} layers; there are {self.num_layers}."
            )
        if any(self.sliding_layers) and not self.sliding_window:
            raise DataError("Layers that slide need sliding_window, a number of tokens.")
