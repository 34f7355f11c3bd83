from .pipeline import (
    evaluate,
    figures,
    fit,
    likeness,
    personas,
    read_config,
    run,
    score,
    simulate,
    step_titles,
)
from .population_shares import ask, poststratify
from .run_folder import RunFolder
from .steps import STEPS, Step
from .workspace import Workspace

__all__ = [
    "STEPS",
    "RunFolder",
    "Step",
    "Workspace",
    "ask",
    "evaluate",
    "figures",
    "fit",
    "likeness",
    "personas",
    "poststratify",
    "read_config",
    "run",
    "score",
    "simulate",
    "step_titles",
]
