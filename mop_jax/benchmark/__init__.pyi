from .ablations import ABLATIONS, Ablation, register
from .layouts import TABLES, Layout
from .responses import METHODS, Options, Responses, respond
from .tables import make_table
from .transfer import TRANSFERS
from .writing import markdown

__all__ = [
    "ABLATIONS",
    "METHODS",
    "TABLES",
    "TRANSFERS",
    "Ablation",
    "Layout",
    "Options",
    "Responses",
    "make_table",
    "markdown",
    "register",
    "respond",
]
