"""The other models, each as its difference from the SAMS-VAE.

They share networks, likelihood and training, so a comparison is of the idea and not of the effort.
Source: Bereket & Karaletsos 2023, sections 3.3 and 5; docs/model.md says what differs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import leaky_relu, softplus

from samsvae_core.models.distributions import (
    mask_kl,
    rotate_columns,
    rotate_moments,
    straight_through_bernoulli,
)
from samsvae_core.models.samsvae import SAMSVAE, EffectSample

EMBEDDING_HIDDEN = 200  # units between a mask and its embedding
MOMENT_DRAWS = 512  # draws of the mask, for moments of the effect without a closed form
SPARSITY = 2.0  # SVAE+: mask probabilities have the prior Beta(1, SPARSITY)


class CorrelatedSAMSVAE(SAMSVAE):
    """The embedding's posterior depends on the mask: q(mask) q(embedding | mask).

    It is Normal(network(mask_t, t)) with one hidden layer: a vector per perturbation plus a linear
    map of its mask. The published code feeds a one-hot t through a dense layer; a lookup is the
    same and cheaper. Its networks are deeper: two layers of 200 units (Replogle), four of 400
    (Norman).
    """

    title = "SAMS-VAE, correlated"
    summary = "as SAMS-VAE, and how far a shift goes may depend on its mask"
    introduction = (
        "This model (SAMS-VAE, correlated) has learned from single cells that a perturbed cell is "
        "its own basal state plus, for each perturbation, a shift along a few mechanisms. Which "
        "few: its **mask**; how far may depend on which."
    )
    moment_error = 4 / MOMENT_DRAWS  # machines may differ in a draw or two of a mask

    cells: Tensor

    def build_effects(self) -> None:
        super().build_effects()
        del self.embedding_loc, self.embedding_log_scale
        n_perturbations, n_latent = self.config.n_perturbations, self.config.n_latent
        self.of_perturbation = nn.Embedding(n_perturbations, EMBEDDING_HIDDEN)
        self.of_mask = nn.Linear(n_latent, EMBEDDING_HIDDEN)
        self.embedding_out = nn.Linear(EMBEDDING_HIDDEN, 2 * n_latent)
        self.register_buffer("cells", torch.ones(n_perturbations + 1))  # the last: all cells

    def embedding_parameters(self) -> list[nn.Parameter]:
        return []  # they are networks and learn at their rate

    def fit_buffers(
        self,
        loc: Float[Tensor, " G"],
        scale: Float[Tensor, " G"],
        cells_per_perturbation: Float[Tensor, " T"],
        n_cells: int,
    ) -> None:
        super().fit_buffers(loc, scale, cells_per_perturbation, n_cells)
        self.cells[:-1], self.cells[-1] = cells_per_perturbation.clamp_min(1), n_cells

    def embedding_given(self, mask: Float[Tensor, "S P K"], which: Tensor) -> Normal:
        """Return q(embedding | mask) of the perturbations numbered `which`."""
        hidden = self.of_perturbation(which) + self.of_mask(mask)
        loc, log_scale = self.embedding_out(leaky_relu(hidden)).chunk(2, -1)
        return Normal(loc, log_scale.exp(), validate_args=False)

    def effects(
        self,
        n_samples: int,
        anneal: float | Tensor = 1.0,
        D: Float[Tensor, "N T"] | None = None,
    ) -> EffectSample:
        """Draw mask and embedding; with `D`, only embeddings of the mini-batch's perturbations.

        Their KL is then weighted by cells in the batch over cells in training (the paper's equation
        7), so that its expectation is the sum over all.
        """
        mask = straight_through_bernoulli(self.mask_logits, n_samples)
        everyone = torch.arange(self.config.n_perturbations, device=self.device)
        which, weight = everyone, torch.ones_like(everyone, dtype=mask.dtype)
        if D is not None:
            count = (D != 0).sum(0)
            if D.device.type == "cpu":  # on a GPU this would wait for the device, so all are drawn
                which = count.nonzero()[:, 0]
            weight = count[which] / len(D) * self.cells[-1] / self.cells[which]
        q_embedding = self.embedding_given(mask[:, which], which)
        prior = Normal(0.0, self.config.embedding_scale)
        kl = (weight * kl_divergence(q_embedding, prior).sum(-1)).sum(-1).mean()
        kl = kl + mask_kl(self.mask_logits, anneal * self.evidence[:, None]).sum()
        embedding = torch.zeros_like(mask).index_copy(1, which, q_embedding.rsample())
        return EffectSample(mask, embedding, kl, *self.other_samples(n_samples))

    def drawn_embedding(
        self, t: int, mask: Float[Tensor, "S K"], normal: Float[Tensor, "S K"]
    ) -> Float[Tensor, "S K"]:
        q = self.embedding_given(mask[:, None], torch.tensor([t], device=self.device))
        return q.loc[:, 0] + q.scale[:, 0] * normal

    def effect_moments(self) -> tuple[Float[Tensor, "T K"], Float[Tensor, "T K"]]:
        """Return moments from MOMENT_DRAWS draws of the mask, the same at every call."""
        return self.moments_of(torch.arange(self.config.n_perturbations, device=self.device))

    def moments_of(self, which: Tensor) -> tuple[Float[Tensor, "P K"], Float[Tensor, "P K"]]:
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(MOMENT_DRAWS, *self.mask_logits.shape, generator=generator)
        uniform = uniform[:, which.cpu()].to(self.device)
        mask = (uniform < self.mask_probability()[which]).float()
        q = self.embedding_given(mask, which)
        mean, second = (mask * q.loc).double(), (mask * (q.loc**2 + q.scale**2)).double()
        return mean.mean(0), (second.mean(0) - mean.mean(0) ** 2).clamp_min(0).sqrt()

    def embedding_at_mode(self) -> Float[Tensor, "T K"]:
        everyone = torch.arange(self.config.n_perturbations, device=self.device)
        return self.embedding_given((self.mask_logits > 0).float()[None], everyone).loc[0]

    def rotate_effects(self, R: Float[Tensor, "K K"]) -> None:
        self.mask_logits.copy_(self.mask_logits @ R.square())
        rotate_columns(self.of_mask.weight, 0, R.square())
        rotate_moments(self.embedding_out, R)


class CPAVAE(SAMSVAE):
    """Additive but not sparse: every perturbation shifts every latent dimension.

    It is not the published CPA: no adversary, no covariates, no dose curves (paper, section 5).
    """

    title = "CPA-VAE"
    summary = "a dense shift for each perturbation, without masks"
    introduction = (
        "This model (CPA-VAE) has learned that a perturbed cell is its own basal state plus a "
        "shift for each perturbation, along every latent dimension at once: shifts add up, but "
        "there is **no mask**, so nothing tells mechanisms apart."
    )
    masks_guide = (
        "**CPA-VAE has no mask: every perturbation moves every latent dimension**, so there is "
        "nothing to say about which ones it uses. What can be shown is how far: rows are "
        "perturbations, columns are latent dimensions."
    )
    has_masks = False
    can_ask_evidence = False

    def build_effects(self) -> None:
        super().build_effects()
        del self.mask_logits

    def mask_parameters(self) -> list[nn.Parameter]:
        return []

    def effects(
        self,
        n_samples: int,
        anneal: float | Tensor = 1.0,
        D: Float[Tensor, "N T"] | None = None,
    ) -> EffectSample:
        q_embedding = Normal(
            self.embedding_loc, self.embedding_log_scale.exp(), validate_args=False
        )
        kl = kl_divergence(q_embedding, Normal(0.0, self.config.embedding_scale)).sum()
        embedding = q_embedding.rsample(torch.Size([n_samples]))
        on = torch.ones_like(embedding)
        return EffectSample(on, embedding, kl, *self.other_samples(n_samples))

    def mask_probability(self) -> Float[Tensor, "T K"]:
        """Return ones, by construction."""
        return torch.ones_like(self.embedding_loc)

    def effect_moments(self) -> tuple[Float[Tensor, "T K"], Float[Tensor, "T K"]]:
        return self.embedding_loc.double(), self.embedding_log_scale.double().exp()

    def rotate_effects(self, R: Float[Tensor, "K K"]) -> None:
        self.embedding_loc.copy_(self.embedding_loc @ R)
        self.embedding_log_scale.copy_(self.embedding_log_scale @ R.square())


class SVAEPlus(SAMSVAE):
    """Sparse, with one treatment per cell and a posterior of the whole state.

    p(z | t) = Normal(mask_t x embedding_t, 1) and q(z | x). This is the SAMS-VAE with z_basal = z -
    shift and p(z_basal) = Normal(0, 1), so only the posterior differs. Embeddings are free
    parameters. The mask's probability is held at its mode under Beta(1, SPARSITY), a penalty so
    weak that masks are hardly sparse, as in the published baseline. Combinations are treatments of
    their own. Source: Lopez et al. 2023, as re-implemented by Bereket & Karaletsos 2023, section 5.
    """

    title = "SVAE+"
    summary = "a sparse shift for each whole treatment; it composes nothing"
    introduction = (
        "This model (SVAE+) has learned a sparse shift for each **whole treatment**: a "
        "combination is a treatment of its own, so it cannot put perturbations together."
    )
    masks_guide = (
        "**SVAE+ takes each treatment whole** (a combination is a treatment of its own), and asks "
        "so little of a mask entry that masks are hardly sparse: read the effects and the "
        "evidence rather than which cells are filled. Rows are treatments, columns are mechanisms."
    )
    fixed_mask_prior = f"Beta(1, {SPARSITY:g}) on each probability, as published"
    can_ask_evidence = False
    composes = False
    direct_by_default = "none"

    def build_effects(self) -> None:
        super().build_effects()
        self.mask_logits.data.zero_()
        del self.embedding_log_scale

    def embedding_parameters(self) -> list[nn.Parameter]:
        return [self.embedding_loc]

    def effects(
        self,
        n_samples: int,
        anneal: float | Tensor = 1.0,
        D: Float[Tensor, "N T"] | None = None,
    ) -> EffectSample:
        mask = straight_through_bernoulli(self.mask_logits, n_samples)
        # -log Beta(p; 1, b) = -log b - (b - 1) log(1 - p), and -log(1 - sigmoid(f)) = softplus(f)
        penalty = (SPARSITY - 1) * softplus(self.mask_logits).sum()
        return EffectSample(mask, self.embedding_loc.expand_as(mask), penalty)

    def effect_moments(self) -> tuple[Float[Tensor, "T K"], Float[Tensor, "T K"]]:
        q, m = self.mask_logits.double().sigmoid(), self.embedding_loc.double()
        return q * m, (q * (1 - q)).sqrt() * m.abs()

    def drawn_embedding(
        self, t: int, mask: Float[Tensor, "S K"], normal: Float[Tensor, "S K"]
    ) -> Float[Tensor, " K"]:
        return self.embedding_loc[t]

    def encode(
        self,
        x: Float[Tensor, "N G"],
        shift: Float[Tensor, "S N K"],
        offset: Float[Tensor, "N G"] | None = None,
        levels: Int[Tensor, "N V"] | None = None,
    ) -> Normal:
        q_z = super().encode(x, torch.zeros_like(shift), levels=levels)
        return Normal(q_z.loc - shift, q_z.scale, validate_args=False)

    def rotate_effects(self, R: Float[Tensor, "K K"]) -> None:
        self.mask_logits.copy_(self.mask_logits @ R.square())
        self.embedding_loc.copy_(self.embedding_loc @ R)


class Dosages(EffectSample):
    """The dosages themselves, which the networks read in place of a latent shift."""

    def latent_shift(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "S N T"]:
        return D.expand(len(self.mask), -1, -1)


class ConditionalVAE(SAMSVAE):
    """No latent shift: encoder and decoder read the dosages beside x and z."""

    title = "Conditional VAE"
    summary = "no latent shifts: it predicts, and does not say through what"
    introduction = (
        "This model (conditional VAE) has learned to decode a cell from its own state and its "
        "perturbations, with **no shift and no mask** between: it predicts, but does not say "
        "through what."
    )
    has_masks = False
    can_ask_evidence = False
    has_shifts = False
    has_posterior = False
    direct_by_default = "none"

    def build_effects(self) -> None:
        """Create nothing: cells share only the networks."""

    @property
    def n_shift(self) -> int:
        return self.config.n_perturbations

    @property
    def n_state(self) -> int:
        return self.config.n_latent + self.config.n_perturbations

    def mask_parameters(self) -> list[nn.Parameter]:
        return []

    def embedding_parameters(self) -> list[nn.Parameter]:
        return []

    def effects(
        self, n_samples: int, anneal: float | Tensor = 1.0, D: Float[Tensor, "N T"] | None = None
    ) -> Dosages:
        nothing = self.mask_probability().expand(n_samples, -1, -1)
        return Dosages(nothing, nothing, nothing.sum())

    def sample_latent_shift(
        self, t: int, n_samples: int, random: torch.Generator
    ) -> Float[Tensor, "S T"]:
        """Return the dosage of the perturbation, which is certain."""
        return torch.eye(self.config.n_perturbations, device=self.device)[t].expand(n_samples, -1)

    def mask_probability(self) -> Float[Tensor, "T 0"]:
        """Return a table without mechanisms."""
        return self.x_loc.new_zeros(self.config.n_perturbations, 0)

    def effect_moments(self) -> tuple[Float[Tensor, "T 0"], Float[Tensor, "T 0"]]:
        return self.mask_probability(), self.mask_probability()

    def modal_shift(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        return D

    def mean_shift(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        return D

    def state(
        self, z_basal: Float[Tensor, "*S K"], shift: Float[Tensor, "*S T"]
    ) -> Float[Tensor, "*S L"]:
        return torch.cat([z_basal, shift], -1)

    def rotate_effects(self, R: Float[Tensor, "K K"]) -> None:
        """Do nothing: no shared latent is on the latent axis."""


MODELS: dict[str, type[SAMSVAE]] = {  # by name in a bundle and in the command line
    "sams-vae": SAMSVAE,
    "correlated-sams-vae": CorrelatedSAMSVAE,
    "cpa-vae": CPAVAE,
    "svae-plus": SVAEPlus,
    "conditional-vae": ConditionalVAE,
}
