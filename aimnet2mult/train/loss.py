"""Class paths of the settings; the code is in `aimnet2mult.training.loss`."""

from aimnet2mult.training.loss import MTLoss, energy_loss_fn, peratom_loss_fn

__all__ = ["MTLoss", "energy_loss_fn", "peratom_loss_fn"]
