"""The SAMS-VAE: generative model and variational posterior in one class.

    mask_t      ~ Bernoulli(sigmoid(-evidence_t))         per perturbation t and mechanism k
    embedding_t ~ Normal(0, embedding_scale)
    z_basal_i   ~ Normal(0, 1)                            per cell i
    z_i         = z_basal_i + sum_t D_it * mask_t * embedding_t
    x_i         ~ NegativeBinomial(library_i * softmax(decoder(z_i)), concentration)

    q(mask, embedding) = product of Bernoullis and Normals
    q(z_basal_i | x_i) = Normal(encoder(x_i, shift_i))

For data that are not counts, x_i ~ Normal(decoder(z_i), noise) can be chosen instead.

Source: Bereket & Karaletsos, "Modelling cellular perturbations with the sparse additive mechanism
shift variational autoencoder", NeurIPS 2023, sections 3 and 4. The prior of the mask is ours: it is
given as the evidence an active mechanism must bring (docs/model.md).

Axes: S Monte Carlo samples, N cells, T perturbations, R dosages (of these, then at each level of a
context: `contexts`), K mechanisms (latent dimensions), G genes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import leaky_relu, linear, pad

from samsvae_core.models.config import ModelConfig as ModelConfig
from samsvae_core.models.contexts import Differences, with_differences, with_levels
from samsvae_core.models.direct import DirectEffects, DirectSample
from samsvae_core.models.distributions import (
    MLP,
    NOISE_FLOOR,
    NegativeBinomials,
    Normals,
    expression_level,
    fit_noise,
    mask_kl,
    rotate_columns,
    rotate_moments,
    straight_through_bernoulli,
)
from samsvae_core.models.effects import EffectSample as EffectSample
from samsvae_core.models.level_offsets import LevelOffsets

ACTIVE = 0.5  # posterior probability above which a perturbation uses a mechanism
MASK_START = 2.0  # first logit of the masks: on (0.88), but still able to switch off
MIN_EVIDENCE = 5.0  # least total nats, so that a handful of cells cannot switch a mechanism on
SCALE_FLOOR = 1e-2  # least scale of ln(1 + x), lest genes seen in few cells be inflated
EMPTY_CELL = 1e-8  # library of a cell without counts; its likelihood is then 1 for any decoder


class SAMSVAE(nn.Module):
    """Sparse additive mechanism shift VAE.

    A variant overrides `build_effects`, `effects`, `encode` or `state`, and says of itself what
    it is called, what it is (`summary`, `introduction`, `masks_guide`) and what it lacks.
    """

    title = "SAMS-VAE"
    # In one line, where a kind of model is chosen; as what it has learned, where it is shown; and
    # how a map of its masks is read
    summary = "a sparse set of mechanisms for each perturbation; combinations add up"
    introduction = (
        "This model (SAMS-VAE) has learned from single cells that a perturbed cell is its own "
        "basal state plus, for each perturbation, a shift along a few mechanisms. Which few: its "
        "**mask**."
    )
    masks_guide = (
        "Rows are perturbations, columns are mechanisms. A filled cell means: this perturbation "
        "moves this mechanism. Perturbations with the same columns act alike."
    )
    fixed_mask_prior = ""  # in words, where no setting changes it
    has_masks = True  # each perturbation has a 0/1 mask over mechanisms
    can_ask_evidence = True  # mask entries can have to bring evidence
    has_shifts = True  # perturbations shift the latent state, and shifts add up
    has_posterior = True  # the effects of perturbations have a posterior
    composes = True  # perturbations can be combined
    direct_by_default = "sparse"  # direct effects outside the mechanisms; "none" where it has none
    moment_error = 0.0  # relative difference of `effect_moments` between machines, if sampled

    noise_floor: Tensor
    x_loc: Tensor
    x_scale: Tensor
    evidence: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.build_effects()
        n_read = config.n_genes + (self.n_shift if config.encoder == "correlated" else 0)
        self.encoder = MLP(n_read, config.n_hidden, 2 * config.n_latent)
        n_outcomes = config.n_genes + int(config.other_genes)
        self.decoder = MLP(self.n_state, config.n_hidden, n_outcomes)
        self.direct = None
        if config.direct_effects != "none":
            self.direct = DirectEffects(config.n_perturbations, config.n_genes)
        self.level_offsets = None
        if config.levels:
            self.level_offsets = LevelOffsets(config.levels, config.n_genes, config.n_hidden)
        self.contexts = None if config.context is None else Differences(config)
        spread = torch.zeros(config.n_genes)  # per gene: the counts' or the noise's
        if config.likelihood == "counts":
            self.log_concentration = nn.Parameter(spread)
        else:
            self.log_noise = nn.Parameter(spread)
            self.register_buffer("noise_floor", torch.full((config.n_genes,), NOISE_FLOOR))
        self.register_buffer("x_loc", torch.zeros(config.n_genes))
        self.register_buffer("x_scale", torch.ones(config.n_genes))
        self.register_buffer("evidence", torch.full((config.n_perturbations,), MIN_EVIDENCE))

    def build_effects(self) -> None:
        """Create the posterior of the latents that all cells share."""
        shape = self.config.n_perturbations, self.config.n_latent
        start = 0.0 if self.config.mask_evidence is None else MASK_START  # the paper starts at 0.5
        self.mask_logits = nn.Parameter(torch.full(shape, start))
        self.embedding_loc = nn.Parameter(torch.zeros(shape))
        self.embedding_log_scale = nn.Parameter(torch.zeros(shape))

    @property
    def n_shift(self) -> int:
        """Width of what `EffectSample.latent_shift` returns."""
        return self.config.n_latent

    @property
    def n_state(self) -> int:
        """Width of what the decoder reads."""
        return self.config.n_latent

    @property
    def device(self) -> torch.device:
        return self.x_loc.device

    @property
    def asks_evidence(self) -> bool:
        """Whether mask entries have to bring evidence, to which their prior is annealed."""
        return self.can_ask_evidence and self.config.mask_evidence is not None

    @property
    def has_shares(self) -> bool:
        """Whether decoded means are shares of the transcripts, from a softmax."""
        return self.config.likelihood == "counts"

    def mask_parameters(self) -> list[nn.Parameter]:
        """Return the parameters trained at the learning rate of the masks."""
        return [self.mask_logits]

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Return the parameters trained at the learning rate of the embeddings."""
        return [self.embedding_loc, self.embedding_log_scale]

    def fit_buffers(
        self,
        loc: Float[Tensor, " G"],
        scale: Float[Tensor, " G"],
        cells_per_perturbation: Float[Tensor, " T"],
        n_cells: int,
    ) -> None:
        """Store what training cells determine: the encoder's standardisation and the mask prior.

        `loc` and `scale` are mean and standard deviation per gene of what the encoder reads
        (`readable`). It ignores genes that are constant in training, since weights for them are
        never learned. The prior log-odds of an active mechanism are minus the evidence it must
        bring, in nats.
        """
        self.x_loc.copy_(loc)
        if self.config.likelihood == "gaussian":
            start = self.log_noise, self.noise_floor, self.decoder.out.bias
            spread = fit_noise(*start, loc, scale)
            if self.level_offsets is not None:
                self.level_offsets.unit.copy_(spread)
        else:
            scale = scale.clamp_min(SCALE_FLOOR).masked_fill(scale == 0, 0)
        self.x_scale.copy_(scale.masked_fill(scale == 0, torch.inf))
        if self.config.mask_evidence is None:
            self.evidence.fill_(-torch.tensor(self.config.mask_prior).logit().item())
        else:
            evidence = self.config.mask_evidence * cells_per_perturbation
            self.evidence.copy_(evidence.clamp_min(MIN_EVIDENCE))

    def effects(
        self,
        n_samples: int,
        anneal: float | Tensor = 1.0,
        D: Float[Tensor, "N T"] | None = None,
    ) -> EffectSample:
        """Draw mask and embedding from q; `anneal` in [0, 1] scales the evidence asked for.

        `D` holds the dosages of a mini-batch, for variants that draw only what its cells need.
        """
        q_embedding = Normal(
            self.embedding_loc, self.embedding_log_scale.exp(), validate_args=False
        )  # `fit` reports a training that diverges
        kl = mask_kl(self.mask_logits, anneal * self.evidence[:, None]).sum()
        kl = kl + kl_divergence(q_embedding, Normal(0.0, self.config.embedding_scale)).sum()
        return EffectSample(
            straight_through_bernoulli(self.mask_logits, n_samples),
            q_embedding.rsample(torch.Size([n_samples])),
            kl,
            *self.other_samples(n_samples),
        )

    def given(
        self, D: Float[Tensor, "N T"], levels: Int[Tensor, "N V"] | None = None
    ) -> Float[Tensor, "N R"]:
        """Return dosages with those of contexts behind them, if there are any (`contexts`)."""
        context, offsets = self.config.context, self.level_offsets
        if context is None or offsets is None or D.shape[1] > self.config.n_perturbations:
            return D
        share = offsets.blocks(offsets.share)[context]
        return with_levels(D, share, None if levels is None else levels[:, context])

    def other_samples(self, n_samples: int) -> tuple[DirectSample | None, Tensor | None]:
        """Return draws of direct effects (their means while training) and of differences."""
        direct = None if self.direct is None else self.direct.sample(n_samples)
        return direct, None if self.contexts is None else self.contexts.draw(n_samples)

    def sample_latent_shift(
        self, t: int, n_samples: int, random: torch.Generator
    ) -> Float[Tensor, "S C"]:
        """Return posterior draws of the latent shift of perturbation number `t` at dosage 1."""
        shape = n_samples, self.config.n_latent
        uniform, normal = (
            draw(shape, generator=random, device=self.device) for draw in (torch.rand, torch.randn)
        )
        mask = (uniform < self.mask_probability()[t]).to(normal)
        return mask * self.drawn_embedding(t, mask, normal)

    def drawn_embedding(
        self, t: int, mask: Float[Tensor, "S K"], normal: Float[Tensor, "S K"]
    ) -> Float[Tensor, "*S K"]:
        """Return an embedding for each drawn mask, from standard normal numbers."""
        return self.embedding_loc[t] + self.embedding_log_scale[t].exp() * normal

    def mask_probability(self) -> Float[Tensor, "T K"]:
        """Return the posterior probability that a perturbation uses a mechanism."""
        return self.mask_logits.sigmoid()

    def effect_moments(self) -> tuple[Float[Tensor, "T K"], Float[Tensor, "T K"]]:
        """Return mean and standard deviation of mask x embedding under the posterior.

        With q the mask's probability and m, s the embedding's mean and standard deviation, the mean
        is q m and the variance q (s^2 + m^2) - (q m)^2.
        """
        q, m = self.mask_logits.double().sigmoid(), self.embedding_loc.double()
        s = self.embedding_log_scale.double().exp()
        return q * m, (q * (s**2 + m**2) - (q * m) ** 2).clamp_min(0).sqrt()

    def moments_of(self, which: Tensor) -> tuple[Float[Tensor, "P K"], Float[Tensor, "P K"]]:
        """Return `effect_moments` of the perturbations numbered `which`."""
        mean, sd = self.effect_moments()
        return mean[which], sd[which]

    def modal_shift(self, D: Float[Tensor, "N R"]) -> Float[Tensor, "N C"]:
        """Return the latent shift of these dosages at the most probable masks."""
        own = (self.mask_probability() > ACTIVE).to(D) * self.embedding_at_mode()
        return self.given(D) @ with_differences(own, self.contexts, modal=True)

    def embedding_at_mode(self) -> Float[Tensor, "T K"]:
        """Return the posterior mean of the embedding at the most probable mask."""
        return self.embedding_loc

    def mean_shift(self, D: Float[Tensor, "N R"]) -> Float[Tensor, "N C"]:
        """Return the posterior mean latent shift of these dosages."""
        return self.given(D) @ with_differences(self.effect_moments()[0].to(D), self.contexts)

    def mean_offset(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "N G"] | None:
        """Return the posterior mean of what direct effects add to the logits at these dosages."""
        return None if self.direct is None else self.direct.mean_offset(D)

    def state(
        self, z_basal: Float[Tensor, "*S K"], shift: Float[Tensor, "*S C"]
    ) -> Float[Tensor, "*S L"]:
        """Return what the decoder reads for a basal state and a latent shift."""
        return z_basal + shift

    def readable(self, x: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
        """Return what the encoder standardises and reads: ln(1 + x) for counts, else the values."""
        return x.log1p() if self.config.likelihood == "counts" else x

    def encode(
        self,
        x: Float[Tensor, "N G"],
        shift: Float[Tensor, "S N C"],
        offset: Float[Tensor, "N G"] | None = None,
        levels: Int[Tensor, "N V"] | None = None,
    ) -> Normal:
        """Return q(z_basal | x, shift), batch shape (S, N, K); `offset` are mean direct effects.

        What direct effects change of a gene is taken off again before it is read. `levels` are
        those of covariates; without them the mean level is read.

        The first layer's product with x is computed once per cell, that with the latent shift per
        sample. A mean-field encoder does not read the shift, so the samples share one result.
        """
        x = (self.readable(x) - self.x_loc + self.undone(offset)) / self.x_scale
        first = self.encoder.hidden
        from_x = first.weight[:, : self.config.n_genes]
        hidden = linear(x, from_x, first.bias)
        if self.level_offsets is not None and levels is not None:
            read = self.level_offsets.centred(levels)
            hidden = torch.addmm(hidden, read, self.level_offsets.read)
        if self.config.encoder == "correlated":
            from_shift = first.weight[:, self.config.n_genes :]
            hidden = hidden + linear(shift, from_shift)  # (S, N, H)
        loc, log_scale = self.encoder.out(leaky_relu(hidden)).chunk(2, -1)
        shape = torch.Size([*shift.shape[:-1], self.config.n_latent])
        return Normal(loc.expand(shape), log_scale.exp().expand(shape), validate_args=False)

    def undone(self, offset: Float[Tensor, "N G"] | None) -> Float[Tensor, "N G"] | float:
        """Return what direct effects take from a mean value of each gene, as the encoder reads it.

        It is ln(1 + m) - ln(1 + m exp(offset)), with ln(1 + m) the mean of training cells.
        """
        if offset is None:
            return 0.0
        if self.config.likelihood == "gaussian":
            return -offset
        return self.x_loc - (self.x_loc.expm1() * offset.exp()).log1p()

    def penalty(self) -> Float[Tensor, ""] | float:
        """Return minus the log prior of what is estimated as a point, in nats: of covariates."""
        return 0.0 if self.level_offsets is None else self.level_offsets.penalty()

    def of_levels(self, levels: Int[Tensor, "N V"] | None) -> Float[Tensor, "N G"] | None:
        """Return what covariates add to the logits of cells at these levels; None for none."""
        if self.level_offsets is None or levels is None:
            return None
        return self.level_offsets.added(levels)

    def decode(
        self,
        z: Float[Tensor, "S N L"],
        library: Float[Tensor, "N 1"],
        offset: Float[Tensor, "_ N G"] | None = None,
        levels: Int[Tensor, "N V"] | None = None,
    ) -> NegativeBinomials | Normals:
        """Return p(x | z), batch shape (S, N, G); `offset` are direct effects (`EffectSample`).

        `levels` are those of covariates; without them the mean level is meant.
        """
        outcomes = self.decoder(z)
        if offset is not None:
            outcomes = outcomes.add_(pad(offset, (0, outcomes.shape[-1] - offset.shape[-1])))
        if self.level_offsets is not None and levels is not None:
            outcomes = self.level_offsets.onto(outcomes, levels)
        if self.config.likelihood == "gaussian":
            noise = (self.log_noise.exp() + self.noise_floor).log()
            return Normals(outcomes, noise)
        return NegativeBinomials(
            outcomes,
            self.log_concentration,
            library.clamp_min(EMPTY_CELL).log(),
        )

    def decoded_means(
        self, z: Float[Tensor, "R K"], shift: Float[Tensor, "*B C"]
    ) -> Float[Tensor, "*B R G"]:
        """Return the mean of each gene at every basal state with every latent shift.

        For counts this is the share of the cell's transcripts, softmax(decoder(z + shift)). The
        first layer is linear, so its product is computed once per state and once per shift.
        """
        first, nowhere = self.decoder.hidden, shift.new_zeros(self.n_shift)
        at_state = first(self.state(z, nowhere.expand(len(z), -1)))  # (R, H)
        moved = linear(shift, first.weight[:, -self.n_shift :])  # the shift's columns are last
        outcomes = self.decoder.out(leaky_relu(at_state + moved[..., None, :], inplace=True))
        if self.config.likelihood == "gaussian":
            return outcomes
        return outcomes.softmax(-1)[..., : self.config.n_genes]

    def level(self, mean: Float[Tensor, "*B G"]) -> Float[Tensor, "*B G"]:
        """Return means on the scale of levels: log2(1 + 1e4 p) for counts, else unchanged."""
        return expression_level(mean) if self.config.likelihood == "counts" else mean

    @torch.no_grad()
    def rotate(self, R: Float[Tensor, "K K"]) -> None:
        """Rotate the latent space, z to z R with R orthogonal, in every tensor that has its axis.

        Means, and so predictions at given effects, do not change, because the basal prior is the
        same in every direction. Mask logits and log scales cannot rotate; they become means
        weighted by R squared, which is exact if R only permutes and flips.
        """
        self.rotate_effects(R)
        if self.contexts is not None:
            self.contexts.rotate(R)
        rotate_columns(self.decoder.hidden.weight, 0, R)
        if self.config.encoder == "correlated" and self.has_shifts:
            rotate_columns(self.encoder.hidden.weight, self.config.n_genes, R)
        rotate_moments(self.encoder.out, R)

    def rotate_effects(self, R: Float[Tensor, "K K"]) -> None:
        for parameter in (self.mask_logits, self.embedding_log_scale):
            parameter.copy_(parameter @ R.square())
        self.embedding_loc.copy_(self.embedding_loc @ R)
