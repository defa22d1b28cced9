"""Image data sets behind one call, `load(name)`, held as uint8 and normalised batch by batch.

    dataset = load("mnist")                               # downloads what is missing, checks it, reads it
    train, validation = dataset.split(validation_fraction=0.1, seed=0)
    x, y = train.batch(torch.arange(64), flatten=True)    # float32 in [-1, 1], int64
"""

from fdfa_core.data.dataset import Dataset, Split
from fdfa_core.data.registry import available_datasets, load

__all__ = ["Dataset", "Split", "available_datasets", "load"]
