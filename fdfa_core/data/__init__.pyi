from .dataset import Dataset, Split
from .registry import available_datasets, load

__all__ = ["Dataset", "Split", "available_datasets", "load"]
