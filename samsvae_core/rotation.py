"""The basis of the latent space in which the effects of perturbations are sparse.

The prior of a basal state is the same in every direction, so as long as all masks are on, every
rotation of the latent space fits as well, and training ends in any of them. Masks cannot turn it
afterwards: an effect that is sparse in one basis is dense in most others, and switching off an
entry of it always costs. So the basis is chosen once, when a decoder has been learned and before
evidence is asked: the one with the smallest sum of absolute effects. Ours (docs/model.md); the
criterion is that of Jennrich 2006, "Rotation to simple loadings using component loss functions".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

STEPS = 1000
LEARNING_RATE = 0.05  # radians, about; falls to 0


def sparsest_rotation(effects: Float[Tensor, "T K"]) -> Float[Tensor, "K K"]:
    """The rotation R with the smallest sum of |effects R|, as exp(W - W^T) with W found by Adam.

    Found from every start that was tried, where effects are sparse in some basis; no other start
    than the present basis is tried here.
    """
    effects = effects.detach().double()
    W = effects.new_zeros(effects.shape[1], effects.shape[1]).requires_grad_()
    optimizer = torch.optim.Adam([W], LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        loss = (effects @ torch.linalg.matrix_exp(W - W.T)).abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.linalg.matrix_exp(W - W.T).detach().float()
