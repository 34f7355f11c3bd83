"""What weights, strata and clusters do to the precision of a survey's shares."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mop_jax.survey.answers import Answers


def design_effect(answers: Answers) -> float:
    """Variance of the survey's shares over that of a simple random sample of as many people.

    Of an option's share p̂ = Σ w y / Σ w the variance is that of its linearised residuals
    u = w (y − p̂) / Σ w, summed by primary sampling unit and compared within strata (Taylor
    linearisation; Kish 1965, Särndal, Swensson and Wretman 1992, section 5.5):

        Σ_h n_h / (n_h − 1) Σ_j (u_hj − ū_h)²

    Respondents are units of their own where the survey names none. A stratum with one unit is
    compared with the whole survey. Variances are added up over options and questions before they
    are divided, so that rare options, whose own ratios are noisy, count as little as they vary.

    Returns:
        The ratio; 1 where nobody's answers vary.
    """
    total, simple = 0.0, 0.0
    for _, frame in answers.frame.groupby("question"):
        weight = frame["weight"].to_numpy()
        people = frame["respondent"]
        unit = people if answers.psu is None else people.map(answers.psu)
        stratum = pd.Series("", people.index)
        if answers.strata is not None:
            stratum = people.map(answers.strata)
        for option in np.unique(frame["option"]):
            chosen = (frame["option"] == option).to_numpy(float)
            share = np.average(chosen, weights=weight)
            residual = pd.Series(weight * (chosen - share) / weight.sum(), people.index)
            total += _between_units(residual, stratum, unit)
            simple += share * (1 - share) / max(len(frame) - 1, 1)
    return total / simple if simple > 0 else 1.0


def _between_units(residual: pd.Series, stratum: pd.Series, unit: pd.Series) -> float:
    # Units are numbered anew in each stratum by some surveys: a pair names one.
    sums = residual.groupby([stratum, unit]).sum()
    strata = sums.groupby(level=0)
    number = strata.transform("size")
    # The residuals of the whole survey sum to zero, which is what a lonely unit is compared with.
    centre = strata.transform("mean").where(number > 1, 0.0)
    factor = (number / (number - 1).where(number > 1, number)).astype(float)
    return float((factor * (sums - centre) ** 2).sum())
