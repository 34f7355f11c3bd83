"""What a baseline is: fit on training records, respond to contexts; and the registry of them all.

A baseline is one way to simulate responses. It is one class and one `register`; what it may use is
a `Setting`, what it gives are `Response`s. Most baselines only choose a prompt for each sample:
they write that one function and leave the sampling to `PromptedResponder`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mop_jax import progress
from mop_jax.errors import DataError
from mop_jax.lm.base import NO_TRUNCATION, Ends, Generation, LanguageModel, Truncation
from mop_jax.population.population import Population
from mop_jax.prompts import Prompt, PromptBuilder
from mop_jax.registry import check_name

# Streams of random numbers of a sample: what stands in its prompt, and how its answer is read.
_WRITING, _READING = 1, 2


@dataclass(frozen=True, eq=False)
class Setting:
    """What every baseline has, so that they differ in what they make of it only.

    Attributes:
        train: the records that anything may be fitted to or shown. Where contexts belong to groups,
            none of their groups is in it (`Population.split(by="group")`), so that no exemplar is
            of a context's own group.
        language_model: scores and samples.
        prompts: builds prompts for it; decides between chat turns and plain text.
        encode: n texts → embeddings, float [n, D].
        personas: K texts, those of the mixture.
        exemplars: J records, the mixture's pool; all of `train` by default.
        seed: decides every draw.
        cache: a folder that keeps what fitting generated, named by content, so that a fit that was
            killed goes on where it was; None keeps nothing.
        truncation: which tokens of a response may be drawn.
        max_new_tokens: longest response, end token included.
        temperature: of the language model, for responses.
    """

    train: Population
    language_model: LanguageModel
    prompts: PromptBuilder
    encode: Callable[[Sequence[str]], np.ndarray]
    personas: Sequence[str] = ()
    exemplars: Population | None = None
    seed: int = 0
    cache: Path | None = None
    truncation: Truncation = NO_TRUNCATION
    max_new_tokens: int = 96
    temperature: float = 1.0


class Response(NamedTuple):
    """One simulated response and how it came about.

    Attributes:
        sample: the sample's number s.
        context_index: which of the contexts it responds to.
        text: the response.
        finished: whether it ended by itself within the tokens that it was given.
        shown: the responses that stood in its prompt as examples; memorisation is measured by them.
        details: what else there is to know, as JSON values.
    """

    sample: int
    context_index: int
    text: str
    finished: bool
    shown: tuple[str, ...]
    details: dict[str, Any]


OnResponses = Callable[[list[Response]], None]


def _nothing(responses: list[Response]) -> None:
    """Reports to nobody."""


class Responder(Protocol):
    """A fitted baseline."""

    @property
    def report(self) -> Mapping[str, Any]:
        """What came of the fit, as JSON values."""
        ...

    def respond(
        self,
        contexts: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        num_samples: int,
        skip: Collection[int] = (),
        on_responses: OnResponses = _nothing,
    ) -> list[Response]:
        """Responses to contexts; sample s answers context s mod N.

        Sample s draws from keys of its own, made of the seed and s: its text is the same whatever
        else is drawn, skipped or batched with it.

        Args:
            contexts: N texts.
            labels: of the contexts, N; needed where `Baseline.needs_labels`.
            num_samples: how many responses.
            skip: samples that are not needed (an interrupted job has them).
            on_responses: called with responses as they are finished.

        Returns:
            The responses that were not skipped, in the order of their samples.

        Raises:
            DataError: if contexts, labels or num_samples are none.
        """
        ...


class Baseline(Protocol):
    """One way to simulate responses."""

    @property
    def name(self) -> str:
        """In files: letters, digits and underscores."""
        ...

    @property
    def title(self) -> str:
        """In tables and figures."""
        ...

    @property
    def reference(self) -> str:
        """Where it was proposed, author and year."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether training records and contexts need labels."""
        ...

    def fit(self, setting: Setting) -> Responder:
        """Prepares whatever does not depend on the contexts that will be asked."""
        ...


BASELINES: dict[str, Baseline] = {}
"""Every baseline by name, in the order of tables and figures."""


def register(baseline: Baseline) -> None:
    """Adds a baseline to those that benchmarks compare.

    Raises:
        DataError: if its name is taken or no plain word.
    """
    check_name("baseline", baseline.name, BASELINES)
    BASELINES[baseline.name] = baseline


def refuse_without_labels(name: str, labels: Sequence[str] | None, whose: str) -> Sequence[str]:
    """The labels, where there are some.

    Raises:
        DataError: if there are none; names the baselines that need them.
    """
    if labels is None:
        need = ", ".join(other.name for other in BASELINES.values() if other.needs_labels)
        raise DataError(
            f"Baseline {name!r} needs labels, and the {whose} have none; name the label column, or "
            f"leave out the baselines that need labels ({need or name})."
        )
    return labels


def refuse_unknown_label(name: str, label: str, known: Collection[str]) -> str:
    """The label, if the fit has seen it.

    Raises:
        DataError: if it has not.
    """
    if label not in known:
        raise DataError(
            f"Baseline {name!r} has nothing of the label {label!r}; the training records have "
            f"{', '.join(sorted(known))}."
        )
    return label


class Pending(NamedTuple):
    """A response that is to be drawn.

    Attributes:
        number: s.
        context: the text that it answers.
        label: of the context, if there are labels.
        rng: its own source of random numbers.
    """

    number: int
    context: str
    label: str | None
    rng: np.random.Generator


class Request(NamedTuple):
    """What a sample asks of the language model.

    Attributes:
        prompt: built for it.
        shown: see `Response`.
        details: see `Response`.
    """

    prompt: Prompt
    shown: tuple[str, ...] = ()
    details: Mapping[str, Any] = {}


class Reading(NamedTuple):
    """What was found in an answer.

    Attributes:
        text: the response.
        finished: whether it is whole.
        details: added to those of the request.
    """

    text: str
    finished: bool
    details: Mapping[str, Any] = {}


def as_written(answer: str, finished: bool, sample: Pending) -> Reading:
    """The whole answer is the response."""
    return Reading(answer.strip(), finished)


@dataclass(frozen=True, eq=False)
class PromptedResponder:
    """Draws each sample from a prompt of its own, all of them in one job.

    Attributes:
        setting: see `Setting`.
        write: sample → what it asks. It draws from the sample's own random numbers only.
        read: (answer, finished, sample) → response; the sample's random numbers are fresh ones.
        end_ids: what ends an answer; by default what ends a response in the setting's prompts.
        max_new_tokens: longest answer; by default the setting's longest response.
        report: see `Responder`.
    """

    setting: Setting
    write: Callable[[Pending], Request]
    read: Callable[[str, bool, Pending], Reading] = as_written
    end_ids: Ends | None = None
    max_new_tokens: int | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    def respond(
        self,
        contexts: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        num_samples: int,
        skip: Collection[int] = (),
        on_responses: OnResponses = _nothing,
    ) -> list[Response]:
        """See `Responder.respond`."""
        check_asked(contexts, labels, num_samples)
        setting = self.setting

        def sample(s: int, stream: int) -> Pending:
            index = s % len(contexts)
            label = None if labels is None else labels[index]
            return Pending(s, contexts[index], label, sample_rng(setting.seed, s, stream))

        # Those that are skipped too: the language model plans its batches as if they were needed.
        requests = [self.write(sample(s, _WRITING)) for s in range(num_samples)]
        place = {
            prefix: i for i, prefix in enumerate(dict.fromkeys(r.prompt.prefix for r in requests))
        }
        skipped = np.isin(np.arange(num_samples), list(skip))
        responses: list[Response] = []

        def collect(indices: np.ndarray, generation: Generation) -> None:
            fresh = []
            for row, s in enumerate(map(int, indices)):
                if skipped[s]:
                    continue
                finished = bool(generation.finished[row])
                reading = self.read(generation.texts[row], finished, sample(s, _READING))
                details = {**requests[s].details, **reading.details}
                index = s % len(contexts)
                shown = requests[s].shown
                fresh.append(Response(s, index, reading.text, reading.finished, shown, details))
            responses.extend(fresh)
            on_responses(fresh)
            advance(len(fresh))

        with progress.task("Sampling responses", num_samples, found=int(skipped.sum())) as advance:
            setting.language_model.sample_pairs(
                list(place),
                [request.prompt.request for request in requests],
                np.asarray([(place[r.prompt.prefix], s) for s, r in enumerate(requests)]),
                seed=setting.seed,
                temperature=np.full(num_samples, setting.temperature),
                sample_ids=np.arange(num_samples),
                end_ids=[setting.prompts.end_ids] if self.end_ids is None else self.end_ids,
                truncation=setting.truncation,
                max_new_tokens=self.max_new_tokens or setting.max_new_tokens,
                skip=skipped,
                on_generated=collect,
            )
        return sorted(responses, key=lambda response: response.sample)


def check_asked(contexts: Sequence[str], labels: Sequence[str] | None, num_samples: int) -> None:
    """Refuses what no responses can be given to.

    Raises:
        DataError: if contexts are none or one text, there is not one label per context, or
            `num_samples` is not positive.
    """
    if isinstance(contexts, str):
        raise DataError("contexts takes a list of texts; put the one text in a list.")
    if not len(contexts):
        raise DataError("There are no contexts; at least one is needed.")
    if labels is not None and len(labels) != len(contexts):
        raise DataError(f"There are {len(labels)} labels for {len(contexts)} contexts; one each.")
    if num_samples < 1:
        raise DataError(f"num_samples is {num_samples}; at least 1 is needed.")


def sample_rng(seed: int, sample: int, stream: int) -> np.random.Generator:
    """A sample's own random numbers, apart from the keys that its tokens are drawn with."""
    return np.random.default_rng([seed, stream, sample])


def derived_seed(seed: int, *stream: int) -> int:
    """A seed for what a fit draws, apart from those of responses and of neighbouring seeds."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1)[0] >> 1)


def draw_records(population: Population, number: int, rng: np.random.Generator) -> list[int]:
    """Positions of distinct records, drawn in proportion to their weights.

    Raises:
        DataError: if there are fewer.
    """
    if number > len(population):
        raise DataError(
            f"{number} exemplars were asked for, but there are only {len(population)} training "
            "records."
        )
    share = population.weights / population.weights.sum()
    return rng.choice(len(population), size=number, replace=False, p=share).tolist()
