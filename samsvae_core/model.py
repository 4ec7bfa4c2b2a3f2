"""The SAMS-VAE: generative model and variational posterior in one class.

    mask_t      ~ Bernoulli(sigmoid(-evidence_t))         per perturbation t and mechanism k
    embedding_t ~ Normal(0, embedding_scale)
    z_basal_i   ~ Normal(0, 1)                            per cell i
    z_i         = z_basal_i + sum_t D_it * mask_t * embedding_t
    x_i         ~ NegativeBinomial(library_i * softmax(decoder(z_i)), concentration)

    q(mask, embedding) = product of Bernoullis and Normals
    q(z_basal_i | x_i) = Normal(encoder(x_i, shift_i))

Source: Bereket & Karaletsos, "Modelling cellular perturbations with the sparse additive mechanism
shift variational autoencoder", NeurIPS 2023, sections 3 and 4. Ours: the prior of the mask, stated
as the evidence an active mechanism must bring (docs/model.md).

Axes: S Monte Carlo samples, N cells, T perturbations, K mechanisms (latent dimensions), G genes.
Knows nothing of files, training or pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import leaky_relu, linear, softplus

MASK_START = 2.0  # logit of the masks at the start: on (0.88), and still able to move
MIN_EVIDENCE = 5.0  # nats in all: below it a handful of cells could switch a mechanism on
SCALE_FLOOR = 1e-2  # of ln(1 + x): a gene of very few training cells is not blown up further
PER_TEN_THOUSAND = 1e4  # transcripts: the usual unit of single-cell expression
EMPTY_CELL = 1e-8  # library of a cell without counts: its likelihood is 1 whatever the decoder says


@dataclass(frozen=True)
class ModelConfig:
    """What the model is. Saved with the weights; how it is trained is `TrainConfig`."""

    n_genes: int
    n_perturbations: int
    n_latent: int = 20
    n_hidden: int = 400
    embedding_scale: float = 1.0  # prior standard deviation of an embedding entry
    mask_evidence: float | None = 0.16  # nats per training cell an active mechanism must bring
    mask_prior: float = 0.05  # published setting, used where mask_evidence is None
    other_genes: bool = False  # one more outcome: the transcriptome outside the panel


class Effects(NamedTuple):
    """Samples of the latents that all cells share, and the price of knowing them."""

    mask: Float[Tensor, "S T K"]
    embedding: Float[Tensor, "S T K"]
    kl: Float[Tensor, ""]  # KL(q || p) of mask and embedding, in nats, for the whole data set

    def shift(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "S N K"]:
        """Where the perturbations move each cell: its dosages times the masked embeddings."""
        return D @ (self.mask * self.embedding)


class NegativeBinomials(NamedTuple):
    """p(x | z) of every cell and gene, up to its library."""

    log_proportion: Float[Tensor, "S N G"]
    log_concentration: Float[Tensor, " G"]
    log_library: Float[Tensor, "N 1"]

    def log_prob(self, x: Float[Tensor, "N G"]) -> Float[Tensor, "S N"]:
        """Log p(x | z), summed over genes, in nats.

        With a = log(mean / concentration) and r = concentration,
        log NB(x) = x a - (x + r) softplus(a) + [lgamma(x + r) - lgamma(r) - lgamma(x + 1)];
        the bracket does not depend on the sample and is computed once per cell.
        """
        concentration = self.log_concentration.exp()
        per_cell = (
            torch.lgamma(x + concentration) - torch.lgamma(concentration) - torch.lgamma(x + 1)
        ).sum(-1)  # (N,)
        a = self.log_proportion + (self.log_library - self.log_concentration)  # (S, N, G)
        return (x * a - (x + concentration) * softplus(a)).sum(-1) + per_cell

    def sample(self) -> Float[Tensor, "S N G"]:
        """Counts. Only posterior predictive checks ask for them; training never does."""
        mean = (self.log_proportion + self.log_library).exp()
        concentration = self.log_concentration.exp()
        rate = torch.distributions.Gamma(
            concentration.expand_as(mean), concentration / mean.clamp_min(1e-12)
        ).sample()
        return torch.poisson(rate)


class MLP(nn.Module):
    """One hidden layer, as in the paper's experiments."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(n_in, n_hidden)
        self.out = nn.Linear(n_hidden, n_out)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return self.out(leaky_relu(self.hidden(x)))


class SAMSVAE(nn.Module):
    """Sparse additive mechanism shift VAE.

    A variant overrides `effects`, `encode` or `decode`.
    """

    x_loc: Tensor
    x_scale: Tensor
    evidence: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.n_perturbations, config.n_latent
        start = 0.0 if config.mask_evidence is None else MASK_START  # the paper starts at 0.5
        self.mask_logits = nn.Parameter(torch.full(shape, start))
        self.embedding_loc = nn.Parameter(torch.zeros(shape))
        self.embedding_log_scale = nn.Parameter(torch.zeros(shape))
        self.encoder = MLP(config.n_genes + config.n_latent, config.n_hidden, 2 * config.n_latent)
        n_outcomes = config.n_genes + int(config.other_genes)
        self.decoder = MLP(config.n_latent, config.n_hidden, n_outcomes)
        self.log_concentration = nn.Parameter(torch.zeros(config.n_genes))
        self.register_buffer("x_loc", torch.zeros(config.n_genes))
        self.register_buffer("x_scale", torch.ones(config.n_genes))
        self.register_buffer("evidence", torch.full((config.n_perturbations,), MIN_EVIDENCE))

    def fit_buffers(
        self,
        log_loc: Float[Tensor, " G"],
        log_scale: Float[Tensor, " G"],
        cells_per_perturbation: Float[Tensor, " T"],
    ) -> None:
        """Keep what the training cells fix: the encoder's standardisation and the mask prior.

        `log_loc` and `log_scale` are mean and standard deviation of ln(1 + x) per gene. The encoder
        does not read a gene that is constant in training: its weights for it are never learned.
        The prior log-odds of an active mechanism are minus the evidence it must bring, in nats.
        """
        self.x_loc.copy_(log_loc)
        self.x_scale.copy_(log_scale.clamp_min(SCALE_FLOOR).masked_fill(log_scale == 0, torch.inf))
        if self.config.mask_evidence is None:
            self.evidence.fill_(-torch.tensor(self.config.mask_prior).logit().item())
        else:
            evidence = self.config.mask_evidence * cells_per_perturbation
            self.evidence.copy_(evidence.clamp_min(MIN_EVIDENCE))

    def effects(self, n_samples: int, anneal: float = 1.0) -> Effects:
        """Draw mask and embedding from q. `anneal` in [0, 1] scales the evidence asked for."""
        q_embedding = Normal(
            self.embedding_loc, self.embedding_log_scale.exp(), validate_args=False
        )  # where training diverges, `fit` says so
        kl = mask_kl(self.mask_logits, anneal * self.evidence[:, None]).sum()
        kl = kl + kl_divergence(q_embedding, Normal(0.0, self.config.embedding_scale)).sum()
        return Effects(
            straight_through_bernoulli(self.mask_logits, n_samples),
            q_embedding.rsample(torch.Size([n_samples])),
            kl,
        )

    def encode(self, x: Float[Tensor, "N G"], shift: Float[Tensor, "S N K"]) -> Normal:
        """q(z_basal | x, shift), batch shape (S, N, K).

        The first layer's product with x is taken once per cell, that with the shift per sample.
        """
        x = (x.log1p() - self.x_loc) / self.x_scale
        first = self.encoder.hidden
        from_x, from_shift = first.weight.split([self.config.n_genes, self.config.n_latent], dim=1)
        hidden = linear(x, from_x, first.bias) + linear(shift, from_shift)  # (S, N, H)
        loc, log_scale = self.encoder.out(leaky_relu(hidden)).chunk(2, -1)
        return Normal(loc, log_scale.exp(), validate_args=False)

    def decode(self, z: Float[Tensor, "S N K"], library: Float[Tensor, "N 1"]) -> NegativeBinomials:
        """p(x | z), batch shape (S, N, G)."""
        return NegativeBinomials(
            self.log_proportions(z),
            self.log_concentration,
            library.clamp_min(EMPTY_CELL).log(),
        )

    def log_proportions(self, z: Float[Tensor, "*B K"]) -> Float[Tensor, "*B G"]:
        """Log of the share of each gene in the cell's transcripts."""
        return self.decoder(z).log_softmax(-1)[..., : self.config.n_genes]

    def moved_proportions(
        self, z: Float[Tensor, "R K"], shift: Float[Tensor, "*B K"]
    ) -> Float[Tensor, "*B R G"]:
        """Share of each gene at every state moved by every shift: softmax(decoder(z + shift)).

        The first layer is linear, so its product is taken once per state and once per shift.
        """
        first = self.decoder.hidden
        hidden = first(z) + linear(shift, first.weight)[..., None, :]  # (*B, R, H)
        outcomes = self.decoder.out(leaky_relu(hidden, inplace=True))
        return outcomes.softmax(-1)[..., : self.config.n_genes]


def mask_kl(logits: Float[Tensor, "T K"], evidence: Float[Tensor, "T 1"]) -> Float[Tensor, "T K"]:
    """KL(Bernoulli(q) || Bernoulli(sigmoid(-evidence))) in nats, with q = sigmoid(logits).

    Written as q e + softplus(-e) - H(q), with H(q) = softplus(f) - q f at logit f: never through
    the prior probability, which is 0 in float32 from e = 104 on.
    """
    q = logits.sigmoid()
    return q * (evidence + logits) + softplus(-evidence) - softplus(logits)


def straight_through_bernoulli(
    logits: Float[Tensor, "T K"], n_samples: int, temperature: float = 1.0
) -> Float[Tensor, "S T K"]:
    """Hard 0/1 samples whose gradient is that of the binary concrete relaxation."""
    uniform = torch.rand(n_samples, *logits.shape, device=logits.device)
    soft = torch.sigmoid((logits + uniform.clamp(1e-6, 1 - 1e-6).logit()) / temperature)
    return (soft > 0.5).to(soft) + (soft - soft.detach())


def expression_level(proportion: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """log2(1 + 1e4 p): the one scale of levels, shifts and loadings (p = share of transcripts)."""
    return torch.log2(1 + PER_TEN_THOUSAND * proportion)
