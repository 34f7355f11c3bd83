"""Ancestral sampling from the posterior predictive: draw → persona → exemplar → response.

Sample s has random keys of its own, from the seed and s: with one it picks a posterior draw θ, a
persona from π(x; θ) and an exemplar from Ω_k(x; θ), with the other, `fold_in(seed, s)`, the
language model draws the response at temperature τ_k(θ). Nothing of it depends on which other
samples are drawn with it.

With L components in a prompt, L pairs are drawn independently under the same θ. The prompt has the
persona and the temperature of the first, and the exemplars of all, in the order drawn; one that is
drawn again is not shown again, since the language model would take to repeating it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mop_jax import progress
from mop_jax.errors import DataError
from mop_jax.inference.posterior import GateDraws, Posterior, gate_at
from mop_jax.lm.base import NO_TRUNCATION, Generation, SamplingModel, Truncation
from mop_jax.prompts import ConversationBuilder, Prompt, PromptBuilder

_COMPONENT_STREAM = 2**31
# Exemplars' logits of all draws at a time, about.
_GATE_BYTES = 2**28


class ComponentDraws(NamedTuple):
    """The path of each of M samples down to its component.

    Attributes:
        sample: the sample's number s, int [M].
        context: index of its context, int [M].
        draw: posterior draw, int [M].
        persona: int [M].
        exemplar: int [M].
        temperature: τ of the (first) component under the draw, float [M].
        log_prob: log π_k + log Ω_kj, nats, float [M].
        further: exemplars of the L − 1 components after the first, int [M, L − 1].
    """

    sample: np.ndarray
    context: np.ndarray
    draw: np.ndarray
    persona: np.ndarray
    exemplar: np.ndarray
    temperature: np.ndarray
    log_prob: np.ndarray
    further: np.ndarray

    def exemplars_of(self, row: int) -> list[int]:
        """The distinct exemplars in the prompt of a sample, in the order drawn."""
        return list(dict.fromkeys([int(self.exemplar[row]), *self.further[row].tolist()]))


class SimulatedResponse(NamedTuple):
    """One simulated response and how it came about.

    Attributes:
        sample: the sample's number s.
        seed: with `sample`, reproduces everything below.
        context_index: which of the contexts it responds to.
        context: the context's text.
        draw: index of the posterior draw.
        persona: index of the persona.
        exemplar: index of the exemplar.
        temperature: of the language model.
        text: the response.
        finished: whether the response ended by itself within `max_new_tokens`.
        component_log_prob: log π_k(x) + log Ω_kj(x) of the (first) component under the draw, nats.
        response_log_prob: log p(response | prompt) at the temperature, untruncated, nats.
        further_exemplars: those that stand in the prompt after the first; none for one component.
    """

    sample: int
    seed: int
    context_index: int
    context: str
    draw: int
    persona: int
    exemplar: int
    temperature: float
    text: str
    finished: bool
    component_log_prob: float
    response_log_prob: float
    further_exemplars: tuple[int, ...] = ()


def draw_components(
    posterior: Posterior,
    context_embeddings: np.ndarray,
    context_index: np.ndarray,
    *,
    seed: int,
    sample_ids: np.ndarray | None = None,
    leave_out: np.ndarray | None = None,
    num_components: int = 1,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    member_of: Mapping[str, np.ndarray] | None = None,
) -> ComponentDraws:
    """Draws (posterior draw, persona, exemplar) for each sample.

    Args:
        posterior: draws of the gate.
        context_embeddings: h(x), [N, D].
        context_index: the context of each sample, int [M].
        seed: with the sample's number, decides everything.
        sample_ids: the samples' numbers, int [M]; 0 … M − 1 by default.
        leave_out: bool [N, J], exemplars that must not serve a context.
        num_components: L, components of each sample; the first is the same whatever L is.
        labels: codes of the contexts' labels, int [N]; see `gate_at`.
        groups: codes of the contexts' groups, int [N].
        member_of: codes of the levels of groupings that contexts are of, int [N]; see `gate_at`.
    """
    context_index = np.asarray(context_index, int)
    samples = np.arange(len(context_index)) if sample_ids is None else np.asarray(sample_ids)
    num_draws = posterior.num_draws
    # Not the samples' own keys, from which the language model draws their tokens.
    root = jax.random.fold_in(jax.random.key(seed), _COMPONENT_STREAM)
    keys = jax.vmap(lambda s: jax.random.fold_in(root, s))(samples.astype(np.uint32))

    def uniform(keys: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(jax.vmap(lambda key: jax.random.uniform(key, shape))(keys), np.float64)

    uniforms = uniform(keys, (3,))
    more = np.zeros((len(samples), 0, 2))
    if num_components > 1:
        # A key for each of them: what the l-th is does not depend on how many there are.
        of = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        more = np.stack([uniform(of(keys, n), (2,)) for n in range(1, num_components)], axis=1)
    further = np.zeros(more.shape[:2], int)
    used, place = np.unique(context_index, return_inverse=True)
    embeddings = np.asarray(context_embeddings)[used]
    mask = None if leave_out is None else np.asarray(leave_out, bool)
    given = {"leave_out": mask, "labels": labels, "groups": groups}
    known = {k: np.asarray(values)[used] for k, values in given.items() if values is not None}
    members = {name: np.asarray(codes)[used] for name, codes in (member_of or {}).items()}
    drawn = [np.zeros(len(samples), kind) for kind in (int, int, int, float, float)]
    num_kept = posterior.model_kwargs.get("num_kept")
    # Logits of all draws, contexts and exemplars together would take gigabytes.
    row_bytes = 4 * num_draws * posterior.data.num_exemplars
    size = min(len(used), max(1, int(_GATE_BYTES // row_bytes)))
    for begin in range(0, len(used), size):
        # Every block as large as the others, so that one program serves all.
        rows = np.minimum(np.arange(begin, begin + size), len(used) - 1)
        gate = gate_at(
            posterior,
            embeddings[rows],
            **{k: v[rows] for k, v in known.items()},
            member_of={name: codes[rows] for name, codes in members.items()},
        )
        host: Any = jax.tree.map(np.asarray, gate)
        inside = (place >= begin) & (place < begin + size)
        for i in np.flatnonzero(inside):
            path = _draw_path(host, place[i] - begin, uniforms[i], num_kept)
            for values, value in zip(drawn, path, strict=True):
                values[i] = value
            if _is_zero_shot(posterior, path[1]):
                further[i] = path[2]  # which stands for none
                continue
            for m, (u, v) in enumerate(more[i]):
                further[i, m] = _draw_component(host, path[0], place[i] - begin, u, v, num_kept)[1]
    return ComponentDraws(samples, context_index, *[*drawn, further])


def _is_zero_shot(posterior: Posterior, persona: int) -> bool:
    bare = posterior.data.bare
    return bare is not None and bare.no_persona is not None and bool(bare.no_persona[persona])


def _draw_path(
    gate: GateDraws, n: int, uniforms: np.ndarray, num_kept: int | None
) -> tuple[int, int, int, float, float]:
    """Draw, persona, exemplar, temperature and log-probability of one sample in context n."""
    num_draws = len(gate.temperature)
    u_draw, u_persona, u_exemplar = uniforms
    s = min(int(u_draw * num_draws), num_draws - 1)
    k, j, log_prob = _draw_component(gate, s, n, u_persona, u_exemplar, num_kept)
    return s, k, j, float(gate.component_temperature(s, n, k, j)), log_prob


def _draw_component(
    gate: GateDraws, s: int, n: int, u_persona: float, u_exemplar: float, num_kept: int | None
) -> tuple[int, int, float]:
    """Persona, exemplar and log-probability of one component in context n under draw s.

    With `num_kept` one of as many components as the gate prefers in this context, of all.
    """
    if num_kept is not None:
        joint = np.asarray(gate.exemplar_record_logits[s, n] + gate.exemplar_persona_logits[s])
        joint = joint - np.logaddexp.reduce(joint, axis=1, keepdims=True)
        joint = (joint + np.asarray(gate.persona_log_probs[s, n])[:, None]).ravel()
        kept = np.argsort(-joint, kind="stable")[:num_kept]
        log_probs = joint[kept] - np.logaddexp.reduce(joint[kept])
        chosen = _invert(log_probs, u_persona)
        k, j = divmod(int(kept[chosen]), gate.exemplar_persona_logits.shape[-1])
        return k, j, float(log_probs[chosen])
    k = _invert(np.asarray(gate.persona_log_probs[s, n]), u_persona)
    omega = np.asarray(gate.exemplar_record_logits[s, n] + gate.exemplar_persona_logits[s, k])
    omega = omega - np.logaddexp.reduce(omega)
    j = _invert(omega, u_exemplar)
    return k, j, float(gate.persona_log_probs[s, n, k] + omega[j])


def simulate(
    posterior: Posterior,
    language_model: SamplingModel,
    prompts: PromptBuilder,
    *,
    personas: Sequence[str | None],
    exemplars: Sequence[tuple[str, str] | None],
    contexts: Sequence[str],
    context_embeddings: np.ndarray,
    num_samples: int,
    seed: int = 0,
    leave_out: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    member_of: Mapping[str, np.ndarray] | None = None,
    truncation: Truncation = NO_TRUNCATION,
    max_new_tokens: int = 96,
    num_components: int = 1,
    skip: Collection[int] = (),
    on_responses: Callable[[list[SimulatedResponse]], None] = lambda responses: None,
) -> list[SimulatedResponse]:
    """Simulates responses to contexts; sample s answers context s mod N.

    Args:
        posterior: draws of the gate and the temperatures.
        language_model: samples the responses.
        prompts: builds prompts for that language model.
        personas: K texts, in the posterior's order; None for the zero-shot component.
        exemplars: J (context, response) texts, in the posterior's order; None where none is shown.
        contexts: N texts.
        context_embeddings: h(x), [N, D], from the encoder of the fit.
        num_samples: how many responses.
        seed: decides every draw together with the sample's number.
        leave_out: bool [N, J], exemplars that must not serve a context.
        labels: codes of the contexts' labels, int [N]; see `gate_at`.
        groups: codes of the contexts' groups, int [N].
        member_of: codes of the levels of groupings that contexts are of, int [N]; see `gate_at`.
        truncation: which tokens may be drawn; by default all, so that the model itself is sampled.
        max_new_tokens: longest response, end token included.
        num_components: L, components in each prompt; see above.
        skip: samples that are not needed (an interrupted simulation has them).
        on_responses: called with responses as they are finished.

    Returns:
        The responses that were not skipped, in the order of their samples.

    Raises:
        DataError: if `contexts` is one text, or the numbers of personas, exemplars or embeddings do
            not fit the posterior.

    References:
        Bui et al. (2025), section 3 ("persona → exemplar → response").
    """
    refuse_one_text(contexts)
    for name, found, wanted in (
        ("personas", len(personas), posterior.data.num_personas),
        ("exemplars", len(exemplars), posterior.data.num_exemplars),
        ("context embeddings", len(context_embeddings), len(contexts)),
    ):
        if found != wanted:
            raise DataError(f"There are {found} {name}; the posterior and contexts need {wanted}.")
    if num_samples < 1:
        raise DataError(f"num_samples is {num_samples}; at least 1 is needed.")
    if num_components < 1:
        raise DataError(f"num_components is {num_components}; at least 1 is needed.")
    samples = np.arange(num_samples)
    paths = draw_components(
        posterior,
        context_embeddings,
        samples % len(contexts),
        seed=seed,
        leave_out=leave_out,
        num_components=num_components,
        labels=labels,
        groups=groups,
        member_of=member_of,
    )
    built = _prompts(prompts, paths, personas, exemplars, contexts)
    prefixes = list(dict.fromkeys(prompt.prefix for prompt in built))
    place = {prefix: i for i, prefix in enumerate(prefixes)}
    skipped = np.isin(samples, list(skip))
    responses: list[SimulatedResponse] = []

    def collect(indices: np.ndarray, generation: Generation) -> None:
        fresh = [
            SimulatedResponse(
                sample=int(n),
                seed=seed,
                context_index=int(paths.context[n]),
                context=contexts[paths.context[n]],
                draw=int(paths.draw[n]),
                persona=int(paths.persona[n]),
                exemplar=int(paths.exemplar[n]),
                temperature=float(paths.temperature[n]),
                text=generation.texts[row].strip(),
                finished=bool(generation.finished[row]),
                component_log_prob=float(paths.log_prob[n]),
                response_log_prob=float(generation.log_probs[row]),
                further_exemplars=tuple(paths.exemplars_of(n)[1:]),
            )
            for row, n in enumerate(indices)
            if not skipped[n]
        ]
        responses.extend(fresh)
        on_responses(fresh)
        advance(len(fresh))

    with progress.task("Simulating responses", num_samples, found=int(skipped.sum())) as advance:
        language_model.sample_pairs(
            prefixes,
            [prompt.request for prompt in built],
            np.asarray([(place[prompt.prefix], s) for s, prompt in enumerate(built)]),
            seed=seed,
            temperature=paths.temperature,
            sample_ids=samples,
            end_ids=[prompts.end_ids],
            truncation=truncation,
            max_new_tokens=max_new_tokens,
            skip=skipped,
            on_generated=collect,
        )
    return sorted(responses, key=lambda response: response.sample)


def _prompts(
    prompts: PromptBuilder,
    paths: ComponentDraws,
    personas: Sequence[str | None],
    exemplars: Sequence[tuple[str, str] | None],
    contexts: Sequence[str],
) -> list[Prompt]:
    """The prompt of each sample."""
    if paths.further.shape[1] == 0:
        return [
            prompts.component(personas[k], exemplars[j], contexts[i])
            for i, k, j in zip(paths.context, paths.persona, paths.exemplar, strict=True)
        ]
    writer = ConversationBuilder(prompts)
    built = []
    for row, (i, k) in enumerate(zip(paths.context, paths.persona, strict=True)):
        shown = [exemplars[j] for j in paths.exemplars_of(row)]
        pairs = [pair for pair in shown if pair is not None]
        built.append(writer.component(personas[k], pairs, contexts[i]))
    return built


def _invert(log_probs: np.ndarray, uniform: float) -> int:
    # Inverse distribution function; float64 sums, and never past the last possible value.
    probs = np.exp(np.asarray(log_probs, np.float64))
    upper = np.cumsum(probs)
    index = int(np.searchsorted(upper, uniform * upper[-1], side="right"))
    return min(index, int(np.flatnonzero(probs)[-1]))


def refuse_one_text(contexts: Sequence[str]) -> None:
    """A text is a sequence of texts, its characters; nobody means that."""
    if isinstance(contexts, str):
        raise DataError("contexts takes a list of texts; put the one text in a list.")
