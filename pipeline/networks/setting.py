"""What a training run is, apart from all that trains it."""

from dataclasses import dataclass

# A learning rate means nothing without it.
LOSS = "1/2 |f - y|^2, summed over outputs, mean over the batch"


@dataclass(frozen=True)
class Setting:
    """What a run is: the network, its data being given, and how it is trained. See `exact_ntk.config.CnnColumn`."""

    readout: str
    depth: int
    width: int
    kappa: float
    train_first: bool
    train_last: bool
    seed: int
    lr: float
    momentum: float
    batch_size: int
    epochs: int
    settle: int
    zero_output: bool
    precision: str
