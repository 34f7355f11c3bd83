from .likelihood_table import LikelihoodTable, rotten_tomatoes_table
from .loading import DATASETS, Dataset, Records, load_dataset, register

__all__ = [
    "DATASETS",
    "Dataset",
    "LikelihoodTable",
    "Records",
    "load_dataset",
    "register",
    "rotten_tomatoes_table",
]
