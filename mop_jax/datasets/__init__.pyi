from .loading import DATASETS, Dataset, Records, load_dataset, register

__all__ = ["DATASETS", "Dataset", "Records", "load_dataset", "register"]
