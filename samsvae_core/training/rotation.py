"""The basis of the latent space in which the effects of perturbations are sparse.

The basal prior is the same in every direction, so while all masks are on, every rotation of the
latent space fits equally well, and training ends in any of them. Masks cannot rotate it later: an
effect that is sparse in one basis is dense in most others, so switching off one entry always costs.
The basis is therefore chosen once, after a decoder has been learned and before evidence is asked:
the one with the smallest sum of absolute effects. This step is ours (docs/model.md); the criterion
is that of Jennrich 2006, "Rotation to simple loadings using component loss functions".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

STARTS = 8  # the current basis and random ones, as the sum has local minima
STEPS = 500
LEARNING_RATE = 0.05  # about radians; falls to 0


def sparsest_rotation(effects: Float[Tensor, "T K"]) -> Float[Tensor, "K K"]:
    """Return the orthogonal R with the smallest sum of |effects R|, the best of several starts.

    From each start Q, R = Q exp(W - W^T), with W found by Adam. The same effects give the same R.
    """
    effects = effects.detach().double()
    n_latent = effects.shape[1]
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(STARTS - 1, n_latent, n_latent, generator=generator).double()
    starts = torch.cat([torch.eye(n_latent).double()[None], torch.linalg.qr(random)[0]])
    turned = effects @ starts.to(effects)  # (STARTS, T, K)
    W = torch.zeros_like(starts).to(effects).requires_grad_()
    optimizer = torch.optim.Adam([W], LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        loss = (turned @ torch.linalg.matrix_exp(W - W.mT)).abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    R = torch.linalg.matrix_exp(W - W.mT).detach()
    best = (turned @ R).abs().sum((1, 2)).argmin()
    return (starts.to(effects)[best] @ R[best]).float()
