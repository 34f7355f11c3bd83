"""The tokenizer that belongs to a checkpoint: from its folder, or built from GGUF metadata."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mop_jax.errors import DataError, FaultError
from mop_jax.lm.gguf import GGUFFile

# GGUF token types (llama.cpp): 3 is a control token, 4 one that users added.
_CONTROL, _USER_DEFINED = 3, 4


def load_tokenizer(folder: Path) -> Any | None:
    """The Hugging Face tokenizer of a checkpoint folder, or None where it has none.

    Raises:
        FaultError: if tokenizer files are there but cannot be read.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the loader raises whatever its backends raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FaultError(f"{folder}: its tokenizer could not be read: {reason}") from error


def gguf_tokenizer(file: GGUFFile) -> Any:
    """Builds a fast tokenizer from the vocabulary and chat template of a GGUF file.

    Raises:
        DataError: for a tokenizer model or pre-tokenizer that is not supported, by name.
        FaultError: if the vocabulary is missing or damaged.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    model, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "gpt-2")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if model not in builders:
        raise DataError(
            f"{file.path}: GGUF tokenizer {model!r} is not supported; supported: "
            f"{', '.join(builders)}. Load the model from a folder with its tokenizer.json."
        )
    tokens: list[str] = _metadata(file, "tokens")
    types: list[int] = _metadata(file, "token_type")
    backend = builders[model](file, tokens, types, pre)
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    added = [t for t, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    backend.add_tokens([AddedToken(t, normalized=False) for t in added])

    def named(key: str) -> str | None:
        index = file.get(f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[int(index)]

    bos = named("bos")
    # llama.cpp begins texts of Llama and Llama 3 with the token unless the file says otherwise.
    usual = pre == "llama-bpe" or model == "llama"
    if bos is not None and file.get("tokenizer.ggml.add_bos_token", usual):
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", bos, "$B"],
            special_tokens=[(bos, tokens.index(bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        chat_template=file.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=int(file.setting("context_length", 0)) or None,
    )


def _byte_level(file: GGUFFile, tokens: list[str], types: list[int], pre: str) -> Any:
    """Byte-level BPE, as GPT-2 and most since; the pre-tokenizer goes by its name in llama.cpp."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # Llama 3's published split pattern.
    llama3 = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    splitters = {
        "gpt-2": gpt2,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "llama-bpe": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(llama3, "isolated"), byte_level]
        ),
    }
    if pre not in splitters:
        raise DataError(
            f"{file.path}: GGUF pre-tokenizer {pre!r} is not supported; supported: "
            f"{', '.join(splitters)}. Load the model from a folder with its tokenizer.json."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in _metadata(file, "merges")]
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # tokenizers raises plain exceptions
        raise FaultError(f"{file.path}: its tokenizer could not be built: {error}.") from error
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = splitters[pre]
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GGUFFile, tokens: list[str], types: list[int], pre: str) -> Any:
    """SentencePiece BPE (Llama 2, Gemma): blanks are ▁, unknown characters fall back to bytes.

    The file holds no merges but a score for each piece: the pair with the best-scored union merges
    first. Pieces that users defined come before all others.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.convert_slow_tokenizer import generate_merges

    scores: list[float] = _metadata(file, "scores")
    vocab = {token: i for i, token in enumerate(tokens)}
    kinds = zip(tokens, scores, types, strict=True)
    ranked = {t: 0.0 if kind == _USER_DEFINED else s for t, s, kind in kinds if kind != _CONTROL}
    merges = generate_merges(vocab, ranked)
    unknown = file.get("tokenizer.ggml.unknown_token_id")
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=None if unknown is None else tokens[int(unknown)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    blanks: list[Any] = [normalizers.Replace(" ", "▁")]
    ends: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.get("tokenizer.ggml.add_space_prefix", True):
        if _USER_DEFINED in types:  # tokenizers would put the blank behind each of them too
            raise DataError(
                f"{file.path}: a GGUF tokenizer that begins texts with a blank and has pieces that "
                "users defined is not supported; load the model from a folder with its "
                "tokenizer.json."
            )
        blanks.insert(0, normalizers.Prepend("▁"))
        ends.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(blanks)
    backend.decoder = decoders.Sequence(ends)
    return backend


def _metadata(file: GGUFFile, key: str) -> Any:
    value = file.get(f"tokenizer.ggml.{key}")
    if value is None:
        raise FaultError(f"{file.path} lacks the metadata field tokenizer.ggml.{key}.")
    return value


def continuation_decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """Decodes ids that go on from other text.

    Tokenizers that put a blank before a text take one away from the first piece that they decode;
    that of a response may be its own. Nothing is cleaned up: a response is the text that was drawn.
    """

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    blank = next(
        (i for piece, i in tokenizer.get_vocab().items() if re.fullmatch("▁[a-z]+", piece)), None
    )
    if blank is None or decode([blank]).startswith(" "):
        return decode
    before = decode([blank])

    def decode_behind(ids: list[int]) -> str:
        text = decode([blank, *ids])
        return text[len(before) :] if text.startswith(before) else decode(ids)

    return decode_behind


def tokenizer_fingerprint(tokenizer: Any | None) -> str:
    """SHA-256 over all that decides how texts become ids, the chat template included."""
    if tokenizer is None:
        return hashlib.sha256(b"no tokenizer").hexdigest()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab()))
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(
        json.dumps([body, template, str(tokenizer.special_tokens_map)]).encode()
    ).hexdigest()
