"""Image data sets behind one call, `load(name)`, held as uint8 and normalised batch by batch.

    dataset = load("mnist")                               # downloads what is missing, checks it, reads it
    train, validation = dataset.split(validation_fraction=0.1, seed=0)
    x, y = train.batch(torch.arange(64), flatten=True)    # float32 in [-1, 1], int64
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
