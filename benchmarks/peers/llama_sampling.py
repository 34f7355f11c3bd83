"""llama.cpp on the GGUF as it is, quantised, with slots that are refilled as soon as they are free.

What its server does for several clients at once, without the server: every slot is a sequence of
its own in the cache; shared prefixes are run once and their keys and values copied into the slot;
one call decodes a token of every slot. Each response is drawn at temperature 1 from the whole
vocabulary by llama.cpp's own sampler.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp as llama
from obey import Draw, obey

# One cache for all sequences; a cache for each was 5 to 15 % slower here (64 responses).
UNIFIED_CACHE = True


class Slots:
    """A context of llama.cpp with `slots` sequences, and one more for each shared prefix."""

    def __init__(self, model, work: dict, indices: list[int], slots: int, threads: int):
        prompts, lengths = work["prompts"], work["prefix_lengths"]
        self.longest = work["settings"]["max_new_tokens"]
        prefixes = list(dict.fromkeys(tuple(prompts[i][: lengths[i]]) for i in indices))
        self.sequence_of = {prefix: slots + n for n, prefix in enumerate(prefixes)}
        sequences = slots + len(prefixes)
        room = max(len(prompts[i]) for i in indices) + self.longest
        room = -(-room // 256) * 256
        settings = llama.llama_context_default_params()
        settings.n_ctx = room * sequences
        settings.n_seq_max = sequences
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = UNIFIED_CACHE
        settings.no_perf = True
        self.context = llama.llama_init_from_model(model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(512, 0, 1)
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(1.0))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(0))
        self.sampler = chain
        for prefix, sequence in self.sequence_of.items():
            for begin in range(0, len(prefix), 512):
                part = prefix[begin : begin + 512]
                self.run([(t, begin + n, sequence, False) for n, t in enumerate(part)])

    def run(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Decodes tokens, each with its place, its sequence, and whether its logits are wanted."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for n, (token, place, sequence, wanted) in enumerate(tokens):
            batch.token[n], batch.pos[n], batch.logits[n] = token, place, wanted
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
        if llama.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def begin(self, slot: int, prompt: list[int], prefix_length: int) -> int:
        """Puts a prompt into a slot and draws its first token."""
        prefix = tuple(prompt[:prefix_length])
        llama.llama_memory_seq_rm(self.memory, slot, -1, -1)
        llama.llama_memory_seq_cp(self.memory, self.sequence_of[prefix], slot, -1, -1)
        rest = prompt[prefix_length:]
        last = len(rest) - 1
        self.run([(t, prefix_length + n, slot, n == last) for n, t in enumerate(rest)])
        return self.drawn(last)

    def drawn(self, row: int) -> int:
        """A token from the logits of a row of the last batch."""
        return llama.llama_sampler_sample(self.sampler, self.context, row)

    def free(self) -> None:
        """Gives the memory back."""
        llama.llama_batch_free(self.batch)
        llama.llama_sampler_free(self.sampler)
        llama.llama_free(self.context)


def load(path: Path, work: dict, threads: int) -> Draw:
    """The model as it is in the file."""
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, ctypes.c_void_p())
    load.quiet = quiet  # llama.cpp goes on calling it
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    end = work["settings"]["end_id"]

    def draw(indices: list[int], batch_size: int) -> dict:
        slots = Slots(model, work, indices, batch_size, threads)
        # Long prompts first, so that none is left over at the end.
        waiting = sorted(range(len(indices)), key=lambda n: len(work["prompts"][indices[n]]))
        counts, steps = [0] * len(indices), 0
        # By slot: the response, its last token, and that token's place.
        busy: dict[int, tuple[int, int, int]] = {}

        def over(n: int, token: int) -> bool:
            counts[n] += 1
            return token == end or counts[n] == slots.longest

        while waiting or busy:
            for slot in range(batch_size):
                while waiting and slot not in busy:
                    n = waiting.pop()
                    prompt = work["prompts"][indices[n]]
                    token = slots.begin(slot, prompt, work["prefix_lengths"][indices[n]])
                    if not over(n, token):
                        busy[slot] = n, token, len(prompt)
            if not busy:
                break
            rows = list(busy.items())
            slots.run([(token, place, slot, True) for slot, (_, token, place) in rows])
            steps += batch_size
            for row, (slot, (n, _, place)) in enumerate(rows):
                token = slots.drawn(row)
                if over(n, token):
                    del busy[slot]
                else:
                    busy[slot] = n, token, place + 1
        slots.free()
        # The first token of each response takes no step of its own.
        return {"counts": counts, "slot_steps": steps + len(indices)}

    return draw


if __name__ == "__main__":
    obey(load, {"llama-cpp-python": llama.__version__})
