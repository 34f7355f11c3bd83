"""Softmax regression, and how much each of its training examples helps on a validation set.

The influence function (Koh and Liang 2017) says, to first order, how the validation loss would
change if a training example were left out:

    Δᵢ ≈ (1/n) ∇L(W)ᵀ H⁻¹ ∇ℓᵢ(W),     H = (1/n) Σᵢ ∇²ℓᵢ(W) + λ I,

at the minimum W of (1/n) Σᵢ ℓᵢ(W) + λ/2 ‖W‖². Examples with a positive Δ help. With a linear
classifier over embeddings the Hessian is small enough to be solved with exactly, where the
original approximates it for a deep one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import log_softmax
from scipy.special import softmax as softmax_of

from mop_jax.errors import DataError, FaultError

# Beyond this many weights the Hessian is solved by conjugate gradients, never formed.
_DENSE = 4096
_CG_STEPS, _CG_TOLERANCE = 500, 1e-8


class SoftmaxRegression(NamedTuple):
    """A fitted classifier.

    Attributes:
        weights: float64 [C, D + 1]; the last column is the intercept, which is penalised too.
        classes: C labels, sorted.
        penalty: λ.
    """

    weights: np.ndarray
    classes: list[str]
    penalty: float

    def log_prob(self, features: np.ndarray) -> np.ndarray:
        """Log p(class | features), [n, C]."""
        return log_softmax(with_intercept(features) @ self.weights.T, axis=1)

    def codes(self, labels: list[str]) -> np.ndarray:
        """Positions of labels among the classes, int [n].

        Raises:
            DataError: for a label that is no class.
        """
        place = {label: c for c, label in enumerate(self.classes)}
        unknown = [label for label in labels if label not in place]
        if unknown:
            raise DataError(
                f"The label {unknown[0]!r} is none of the classifier's: {', '.join(self.classes)}."
            )
        return np.asarray([place[label] for label in labels], int)


def with_intercept(features: np.ndarray) -> np.ndarray:
    """Features and a column of ones, float64 [n, D + 1]."""
    features = np.asarray(features, np.float64)
    return np.hstack([features, np.ones((len(features), 1))])


def fit_softmax(
    features: np.ndarray, labels: list[str], *, penalty: float = 1e-3
) -> SoftmaxRegression:
    """Minimises the mean negative log-likelihood plus λ/2 ‖W‖².

    Args:
        features: float [n, D].
        labels: n of them.
        penalty: λ, positive; it makes the minimum unique.

    Raises:
        DataError: if there are fewer than two classes, or a feature is not finite.
        FaultError: if the minimum is not found.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise DataError(f"A classifier needs at least two labels; there is {len(classes)}.")
    if not np.isfinite(features).all():
        raise DataError("A feature of the classifier is not finite.")
    x, num_classes = with_intercept(features), len(classes)
    place = {label: c for c, label in enumerate(classes)}
    y = np.asarray([place[label] for label in labels], int)
    one_hot = np.eye(num_classes)[y]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(num_classes, -1)
        log_prob = log_softmax(x @ w.T, axis=1)
        loss = -log_prob[np.arange(len(y)), y].mean() + penalty / 2 * (flat**2).sum()
        gradient = (np.exp(log_prob) - one_hot).T @ x / len(y) + penalty * w
        return float(loss), gradient.ravel()

    start = np.zeros(num_classes * x.shape[1])
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    if not np.isfinite(found.fun):
        raise FaultError("The classifier of generated texts could not be fitted.")
    return SoftmaxRegression(found.x.reshape(num_classes, -1), classes, penalty)


def influence(
    classifier: SoftmaxRegression,
    features: np.ndarray,
    labels: list[str],
    validation: np.ndarray,
    validation_labels: list[str],
) -> np.ndarray:
    """How much the mean validation loss would rise without each training example, nats, [n].

    Args:
        classifier: fitted to these features and labels.
        features: float [n, D].
        labels: n of them.
        validation: float [m, D].
        validation_labels: m of them.

    References:
        Koh and Liang (2017), Understanding Black-box Predictions via Influence Functions, ICML.
    """
    x, v = with_intercept(features), with_intercept(validation)
    residual = _residual(classifier, features, labels)
    v_residual = _residual(classifier, validation, validation_labels)
    slope = (v_residual.T @ v / len(v)).ravel()
    probs = np.exp(classifier.log_prob(features))
    direction = _solve(probs, x, classifier.penalty, slope).reshape(classifier.weights.shape)
    # ∇ℓᵢ = (pᵢ − yᵢ) xᵢᵀ, so the inner product needs no [n, C, D] array.
    return np.einsum("nc,nc->n", residual, x @ direction.T) / len(x)


def _residual(classifier: SoftmaxRegression, features: np.ndarray, labels: list[str]) -> np.ndarray:
    probs = softmax_of(classifier.log_prob(features), axis=1)
    return probs - np.eye(len(classifier.classes))[classifier.codes(labels)]


def _solve(probs: np.ndarray, x: np.ndarray, penalty: float, right: np.ndarray) -> np.ndarray:
    """H⁻¹ right for the Hessian at the class probabilities [n, C] of features [n, D]."""
    if right.size <= _DENSE:
        return cho_solve(cho_factor(hessian(probs, x, penalty)), right)

    def product(flat: np.ndarray) -> np.ndarray:
        w = flat.reshape(probs.shape[1], -1)
        scores = x @ w.T
        centred = probs * (scores - (probs * scores).sum(1, keepdims=True))
        return (centred.T @ x / len(x) + penalty * w).ravel()

    operator = LinearOperator((right.size, right.size), matvec=product, dtype=np.float64)
    solution, _ = cg(operator, right, rtol=_CG_TOLERANCE, maxiter=_CG_STEPS)
    return solution


def hessian(probs: np.ndarray, x: np.ndarray, penalty: float) -> np.ndarray:
    """The Hessian of the objective, [C·D, C·D], row by row of the weights.

    Args:
        probs: class probabilities, [n, C].
        x: features with intercept, [n, D].
        penalty: λ.
    """
    (n, num_classes), width = probs.shape, x.shape[1]
    blocks = np.empty((num_classes, width, num_classes, width))
    for c in range(num_classes):
        for d in range(c, num_classes):
            weight = probs[:, c] * ((c == d) - probs[:, d])
            block = (x * weight[:, None]).T @ x / n
            blocks[c, :, d], blocks[d, :, c] = block, block.T
    flat = blocks.reshape(num_classes * width, num_classes * width)
    return flat + penalty * np.eye(len(flat))
