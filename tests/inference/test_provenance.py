"""Models are known by their code: layout does not matter, meaning does, names prove nothing."""

import importlib
import itertools
import sys
from functools import partial

import numpy as np
import pytest

from mop_jax.distributions import PersonaMixture, RenormalisedPersonaMixture
from mop_jax.inference.provenance import code_hash, identity_of
from mop_jax.models import mixture_of_personas

_number = itertools.count()

SOURCE = '''
"""A model of one's own."""
import numpyro
import numpyro.distributions as dist

SCALE = 1.0


def helper(x):
    return 2 * x


class Gate:
    def __call__(self, x):
        return helper(x)


def model(data):
    """The model."""
    x = numpyro.sample("x", dist.Normal(0, SCALE))
    return Gate()(x)
'''


@pytest.fixture
def define(tmp_path, monkeypatch):
    """Defines a module from source and returns it; `(old, new)` pairs are replaced."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(*changes, source=SOURCE):
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        name = f"own_model_{next(_number)}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_layout_is_no_difference(define):
    plain = define().model
    changed = define(
        ('"""The model."""', '"""Another docstring."""\n\n    # a comment'),
        ("def model(data):", "def model(\n    data: dict,\n) -> int:"),
        ("2 * x", "(2   *   x)"),
    ).model
    assert code_hash(plain) == code_hash(changed)


@pytest.mark.parametrize(
    "change",
    [
        ("SCALE = 1.0", "SCALE = 2.0"),
        ("return 2 * x", "return 3 * x"),
        ("return helper(x)", "return -helper(x)"),
        ("dist.Normal(0, SCALE)", "dist.Normal(1, SCALE)"),
        ("def model(data)", "def model(data, more=1)"),
    ],
)
def test_what_changes_a_result_changes_the_hash(define, change):
    assert code_hash(define().model) != code_hash(define(change).model)


def test_closures_and_partial_applications_hold_values():
    def make(scale):
        def model(data):
            return scale

        return model

    assert code_hash(make(1.0)) == code_hash(make(1.0))
    assert code_hash(make(1.0)) != code_hash(make(2.0))
    assert code_hash(make(np.zeros(2))) != code_hash(make(np.ones(2)))
    assert code_hash(partial(make, scale=1)) != code_hash(partial(make, scale=2))
    assert code_hash(partial(make, scale=1)) == code_hash(partial(make, scale=1))


def test_code_without_a_source_is_told_apart():
    def typed(text):
        scope = {"__name__": "__main__"}
        exec(text, scope)
        return scope["model"]

    one, again, other = (typed(f"def model(data): return {n} + data") for n in (1, 1, 2))
    assert code_hash(one) == code_hash(again)
    assert code_hash(one) != code_hash(other)


def test_only_the_very_function_is_a_shipped_one():
    def renamed(data):
        return mixture_of_personas(data)

    renamed.__name__ = renamed.__qualname__ = "mixture_of_personas"
    assert identity_of(mixture_of_personas).shipped
    assert not identity_of(renamed).shipped
    assert not identity_of(partial(mixture_of_personas, gate_width=2)).shipped
    assert identity_of(PersonaMixture).shipped
    assert identity_of(PersonaMixture).code != identity_of(RenormalisedPersonaMixture).code
