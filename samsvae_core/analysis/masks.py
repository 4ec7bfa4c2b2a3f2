"""What each perturbation and each mechanism does: masks, effects and loadings, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from samsvae_core.bundle.bundle import Bundle, Reference
from samsvae_core.data.cells import CellData, some
from samsvae_core.evaluation.metrics import pearson
from samsvae_core.models.bounds import Cells
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE

CELLS_AT_ONCE = 2048  # dense rows held in memory
STEPS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)  # of loading curves, in typical effects
STEPS_IN_WORDS = {0.5: "half the step", -1.0: "the opposite direction", 2.0: "twice the step"}
LINEAR_R, LINEAR_RATIO = 0.95, 1.25  # least r, and largest ratio of sizes either way
NO_LOADING = 1e-5  # root mean square: rounding, and no effect on any gene
MOST_NODES, MOST_EDGES = 150, 150  # of a network that can be read
FEW_NODES = 60  # of a part that is laid out with more care
LAYOUT_SEED = 0


class Tree(NamedTuple):
    """A clustering: its leaves in the order in which they are drawn, and the tree as one line.

    `line` has columns place (0 is the first leaf) and height (the distance at which two groups
    join), three strokes for each joint, parted by NaN.
    """

    order: pd.Index
    line: pd.DataFrame


class Network(NamedTuple):
    """Perturbations and the mechanisms they use, as nodes and edges.

    `nodes`: kind ("perturbation" or "mechanism"), name, degree (edges that end there), x, y.
    `edges`: the rows of the mask table that are drawn. `left_out`: edges that are not, the weakest.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    left_out: int


def mask_table(model: SAMSVAE, perturbations: list[str]) -> pd.DataFrame:
    """One row per perturbation and mechanism: probability, effect, effect_sd, active.

    `effect` is E[mask x embedding], in prior standard deviations of the basal state, `effect_sd`
    its standard deviation, both under the posterior. No row where the model has no latent shifts.
    """
    with torch.inference_mode():
        q = model.mask_probability().double().cpu().numpy()
        effect, sd = (moment.cpu().numpy() for moment in model.effect_moments())
    n_latent = q.shape[1]
    return pd.DataFrame(
        {
            "perturbation": np.repeat(perturbations, n_latent),
            "mechanism": np.tile(np.arange(n_latent), len(perturbations)),
            "probability": q.ravel(),
            "effect": effect.ravel(),
            "effect_sd": sd.ravel(),
            "active": (q > ACTIVE).ravel(),
        }
    )


def matrix(masks: pd.DataFrame, column: str = "probability") -> pd.DataFrame:
    """A column of the mask table as perturbations x mechanisms."""
    wide = masks.pivot(index="perturbation", columns="mechanism", values=column)  # noqa: PD010
    return wide.loc[masks["perturbation"].drop_duplicates()]


def active_mechanisms(masks: pd.DataFrame) -> list[int]:
    """Mechanisms that at least one perturbation uses."""
    return sorted(int(k) for k in masks.loc[masks["active"], "mechanism"].unique())


@torch.inference_mode()
def loadings(model: SAMSVAE, reference: Reference, genes: list[str]) -> pd.DataFrame:
    """What one mechanism does to the level of each gene, per prior standard deviation.

    With y(z) = log2(1 + 1e4 softmax(decoder(z))), the loading of mechanism k on gene g is the mean
    over reference control cells of [y_g(z + s e_k) - y_g(z)] / s, the basal states z held at their
    posterior means; `se` is its standard error over those cells. The decoder is not linear, so the
    step s is as far as perturbations go: the mean size of the active effects, in the direction they
    have on average. Where that is below 1 or nobody uses the mechanism: [y_g(z + e_k) -
    y_g(z - e_k)] / 2, told as step 0. Values that are not counts are not transformed. Columns
    mechanism, gene, loading, se, step.
    """
    z, nowhere = reference.loc, torch.zeros(model.n_shift)
    steps = typical_effects(model)
    frames = []
    for k in range(z.shape[1]):
        axis = torch.zeros_like(z[0])
        axis[k] = 1
        ends = (steps[k], 0.0) if steps[k] else (1.0, -1.0)
        far, near = (model.level(model.moved_means(z + end * axis, nowhere)) for end in ends)
        mean, se = mean_slope(far, near, ends[0] - ends[1])
        frames.append(
            pd.DataFrame(
                {"mechanism": k, "gene": genes, "loading": mean, "se": se, "step": steps[k]}
            )
        )
    return pd.concat(frames, ignore_index=True)


def mean_slope(
    far: Float[Tensor, "R G"], near: Float[Tensor, "R G"], step: float
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """(far - near) / step of each gene: its mean and standard error over reference cells."""
    slope, n = ((far - near) / step).double(), len(far)
    mean = slope.mean(0)
    spread = torch.linalg.vector_norm(slope - mean, dim=0)  # three times as fast as std
    return mean.numpy(), (spread / (n * (n - 1)) ** 0.5).numpy()


@torch.inference_mode()
def loading_curves(
    model: SAMSVAE,
    reference: Reference,
    genes: list[str],
    mechanisms: Sequence[int] | None = None,
    steps: Sequence[float] = STEPS,
) -> pd.DataFrame:
    """Loadings of mechanisms (of all, unless named) in both directions and at several steps.

    [y_g(z + s e_k) - y_g(z)] / s as in `loadings`, with s each of `steps` times the typical effect
    on the mechanism (times 1 where that is 0: there the loading itself is the mean of multiples 1
    and -1). Of a linear decoder all are the same. Columns mechanism, gene, multiple, step, loading,
    se; `multiple` is the entry of `steps` and `step` is s, in prior standard deviations.
    """
    chosen = range(model.config.n_latent) if mechanisms is None else mechanisms
    if any(k not in range(model.config.n_latent) for k in chosen):
        raise ValueError(
            f"Mechanisms are {list(chosen)}; this model has 0 to {model.config.n_latent - 1}."
        )
    if not steps or not np.isfinite(steps).all() or 0 in steps:
        raise ValueError(f"Steps are {list(steps)}; expected finite numbers other than 0.")
    z, nowhere, typical = reference.loc, torch.zeros(model.n_shift), typical_effects(model)
    near = model.level(model.moved_means(z, nowhere))
    at = [(k, multiple, multiple * (typical[k] or 1.0)) for k in chosen for multiple in steps]
    found = np.empty((2, len(at), len(genes)))
    for row, (k, _, step) in enumerate(at):
        moved = z.clone()
        moved[:, k] += step
        found[:, row] = mean_slope(model.level(model.moved_means(moved, nowhere)), near, step)
    which, multiples, moves = np.array(at).reshape(-1, 3).T.repeat(len(genes), axis=1)
    return pd.DataFrame(
        {
            "mechanism": which.astype(int),
            "gene": np.tile(np.array(genes, dtype=object), len(at)),
            "multiple": multiples,
            "step": moves,
            "loading": found[0].ravel(),
            "se": found[1].ravel(),
        },
        copy=False,
    )


def linearity(curves: pd.DataFrame) -> pd.DataFrame:
    """How far the decoder is from linear along each mechanism, from `loading_curves`.

    A row per mechanism. For each multiple m but 1, `r m` and `ratio m`: the correlation over genes
    of the loadings there with those at multiple 1 (NaN where either are constant), and the ratio of
    their sizes (root mean square). `linear`: r of at least 0.95 and a ratio of 0.8 to 1.25 at every
    multiple from -1 to 1, so that the loadings of one step rank the genes for all of them and tell
    sizes to a quarter. `words` says so, for a card.
    """
    rows = {}
    for k, curve in curves.groupby("mechanism", sort=False):
        at = {float(m): part["loading"].to_numpy() for m, part in curve.groupby("multiple")}
        if 1.0 not in at:
            raise ValueError(f"The curves have the multiples {list(at)}; 1 is needed to compare.")
        size = {m: float(np.sqrt(np.mean(loading**2))) for m, loading in at.items()}
        others = [m for m in at if m != 1]
        found = {m: pearson(at[1.0], at[m]) for m in others}
        r = {m: np.nan if value is None else value for m, value in found.items()}
        ratio = {m: size[m] / max(size[1.0], NO_LOADING) for m in others}
        still = max(size.values()) < NO_LOADING
        linear = still or all(
            r[m] >= LINEAR_R and 1 / LINEAR_RATIO <= ratio[m] <= LINEAR_RATIO
            for m in others
            if abs(m) <= 1
        )
        step = curve.loc[curve["multiple"] == 1, "step"].iloc[0]
        told = "; ".join(
            f"{words} r {r[m]:.2f}, {ratio[m]:.2f} times the size"
            for m, words in STEPS_IN_WORDS.items()
            if m in others
        )
        verdict = "Nearly linear" if linear else "Not linear"
        words = f"{verdict}. Against the loadings of the whole step ({step:+.2f}): {told}."
        rows[k] = {
            **{f"r {m:g}": r[m] for m in others},
            **{f"ratio {m:g}": ratio[m] for m in others},
            "linear": linear,
            "words": "No gene moves." if still else words,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("mechanism")


def typical_effects(model: SAMSVAE) -> list[float]:
    """Per mechanism, how far and in which direction its users move; 0 where that is below 1."""
    effect = model.effect_moments()[0]
    if not effect.shape[1]:
        return [0.0] * model.config.n_latent
    active = (model.mask_probability() > ACTIVE).to(effect)
    size = (effect.abs() * active).sum(0) / active.sum(0).clamp_min(1)
    signed = torch.where((effect * active).sum(0) < 0, -size, size)
    return [float(step) for step in torch.where(size < 1, 0.0, signed)]


def loading_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Loadings as genes x mechanisms, genes in the order of the table."""
    wide = table.pivot(index="gene", columns="mechanism", values="loading")  # noqa: PD010
    return wide.loc[table["gene"].drop_duplicates()]


def orient(model: SAMSVAE) -> None:
    """Fix what the likelihood leaves open: the order and the sign of the mechanisms, in place.

    Mechanisms used by most perturbations come first, and each points where its active effects (all
    effects, if none is active) point on average. Encoder, decoder and posterior are permuted and
    flipped together, so that every prediction stays as it was.
    """
    with torch.inference_mode():
        q = model.mask_probability()
        if not q.shape[1]:
            return  # no perturbation has a direction
        effect = model.effect_moments()[0].to(q)
        active = (q > ACTIVE).to(q)
        strength = (effect.abs() * active).sum(0)
        order = torch.tensor(
            sorted(range(len(strength)), key=lambda k: (-active[:, k].sum(), -strength[k], k))
        )
        used = torch.where(active.any(0), active, torch.ones_like(active))
        sign = torch.where((effect * used).sum(0) < 0, -1.0, 1.0)[order]
        model.rotate(torch.eye(len(order)).to(q)[:, order] * sign)


def similar_perturbations(masks: pd.DataFrame, perturbation: str) -> pd.DataFrame:
    """Other perturbations by shared mechanisms: Jaccard index of active sets, cosine of effects.

    The Jaccard index is 0 where either set is empty.
    """
    active = matrix(masks, "active").astype(bool)
    effect = matrix(masks, "effect")
    here, direction = active.loc[perturbation], effect.loc[perturbation]
    shared, either = (active & here).sum(axis=1), (active | here).sum(axis=1)
    norm = np.linalg.norm(effect, axis=1) * np.linalg.norm(direction)
    frame = pd.DataFrame(
        {
            "jaccard": shared / either.clip(lower=1),
            "cosine": (effect @ direction) / np.maximum(norm, 1e-12),
            "shared": shared,
        }
    )
    return frame.drop(index=perturbation).sort_values(["jaccard", "cosine"], ascending=False)


def similar_shifts(effects: pd.DataFrame, perturbation: str) -> pd.DataFrame:
    """Other perturbations by their shifts of expression, from a whole `genes.effect_table`.

    As `similar_rows` says.
    """
    names = [str(name) for name in effects["perturbation"].unique()]
    predicted, observed = (
        effects[column].to_numpy(float).reshape(len(names), -1) for column in ("shift", "observed")
    )
    cells = effects["n_observed"].to_numpy().reshape(len(names), -1)[:, 0]
    return similar_rows(names, predicted, observed, cells, perturbation)


def similar_rows(
    names: list[str],
    predicted: Float[np.ndarray, "P G"],
    observed: Float[np.ndarray, "P G"],
    cells: np.ndarray,
    perturbation: str,
) -> pd.DataFrame:
    """Other perturbations by the shifts of genes in their rows, most alike first.

    Indexed by perturbation: `r_predicted`, Pearson r over genes between the mean predicted shifts;
    `r_observed`, between those measured, all splits; `n_observed`, cells of the other perturbation
    alone. NaN where a side was not measured or moves no gene. Measured shifts share their control
    cells, whose sampling error lifts `r_observed`; their own lowers it.
    """
    if perturbation not in names:
        raise ValueError(
            f"{perturbation!r} is none of the {len(names)} perturbations in this table of effects."
        )
    place = names.index(perturbation)
    columns = {
        "r_predicted": pearson_of_rows(predicted, place),
        "r_observed": pearson_of_rows(observed, place),
        "n_observed": cells,
    }
    frame = pd.DataFrame(columns, index=pd.Index(names, name="perturbation"))
    return frame.drop(index=perturbation).sort_values("r_predicted", ascending=False, kind="stable")


def pearson_of_rows(rows: Float[np.ndarray, "P G"], place: int) -> Float[np.ndarray, " P"]:
    """Pearson r of one row with each, over what both have; NaN where either is constant there."""
    known = np.isfinite(rows) & np.isfinite(rows[place])
    n = known.sum(1, keepdims=True).clip(1)
    sides, varies = [], np.full(len(rows), True)
    for side in (np.broadcast_to(rows[place], rows.shape), rows):
        varies &= side.max(1, where=known, initial=-np.inf) > side.min(
            1, where=known, initial=np.inf
        )
        side = np.where(known, side, 0.0)
        sides.append(np.where(known, side - side.sum(1, keepdims=True) / n, 0.0))
    x, y = sides
    products = (np.einsum("pg,pg->p", a, b) for a, b in ((x, y), (x, x), (y, y)))
    xy, xx, yy = (np.where(varies, product, np.nan) for product in products)
    return np.asarray(xy / np.sqrt(xx * yy))


def strengths(masks: pd.DataFrame) -> pd.DataFrame:
    """How far each perturbation moves the latent state, the farthest first.

    Indexed by perturbation: `strength`, the length of its mean effects over all mechanisms, in
    prior standard deviations of the basal state, and `sd`, the posterior standard deviation of that
    length to first order, with mechanisms independent: sqrt(sum (effect x effect_sd)^2) / strength.
    """
    effect, sd = masks["effect"], masks["effect_sd"]
    squares = pd.DataFrame({"strength": effect**2, "sd": (effect * sd) ** 2})
    found = squares.groupby(masks["perturbation"], sort=False).sum() ** 0.5
    found["sd"] /= found["strength"].clip(lower=1e-12)
    return found.sort_values("strength", ascending=False, kind="stable")


def near_misses(masks: pd.DataFrame) -> pd.DataFrame:
    """Entries that are off though held-out cells speak for them, most evidence first.

    Their evidence is above two of its standard errors. Of many entries tried some pass by chance:
    two and a half in a hundred.
    """
    off = masks[~masks["active"] & (masks["evidence"] > 2 * masks["evidence_se"])]
    return off.sort_values("evidence", ascending=False)


def in_use_in_words(masks: pd.DataFrame) -> str:
    """How many mechanisms and entries are active, and which of them lack held-out evidence.

    Evidence is held-out if it is above two of its standard errors. Nothing is said of entries whose
    evidence was not taken (bundles made before, perturbations without held-out cells).
    """
    active = masks[masks["active"].astype(bool)]
    mechanisms = active["mechanism"].nunique()
    found = f"{mechanisms} mechanism{'s' * (mechanisms != 1)} in use, {len(active)} active "
    found += f"mask entr{'ies' if len(active) != 1 else 'y'}"
    tried = active[active["evidence"].notna() & active["evidence_se"].notna()]
    bare = tried[~(tried["evidence"] > 2 * tried["evidence_se"])]
    if bare.empty:
        return f"{found}."
    named = some((f"{row.perturbation} in M{row.mechanism}" for row in bare.itertuples()), 6)
    only = sorted(set(active["mechanism"]) - set(active.drop(bare.index)["mechanism"]))
    found += f". Of these, {len(bare)} {'has' if len(bare) == 1 else 'have'} no evidence on "
    found += f"held-out cells ({named})"
    if only:
        rests = "rests" if len(only) == 1 else "rest"
        found += f"; {some((f'M{k}' for k in only), 6)} {rests} on such entries alone"
    return f"{found}."


def used_by(bundle: Bundle, mechanism: int) -> pd.DataFrame:
    """Perturbations that use a mechanism, strongest first, with their effect and its sd."""
    rows = bundle.masks[(bundle.masks["mechanism"] == mechanism) & bundle.masks["active"]]
    return rows.sort_values("effect", key=np.abs, ascending=False).drop(columns="mechanism")


@torch.inference_mode()
def embed(bundle: Bundle, data: CellData) -> dict[str, Float[np.ndarray, "N K"]]:
    """Posterior mean states of cells: "basal", and "shifted" (basal plus their mean shift).

    The two are one where the model has no latent shifts.
    """
    cells = Cells(bundle.align(data), torch.device("cpu"))
    return states(bundle.model, cells)


@torch.inference_mode()
def states(model: SAMSVAE, cells: Cells) -> dict[str, Float[np.ndarray, "N K"]]:
    """`embed` for cells already on a device, in batches."""
    basal, shifts = [], []
    for index in torch.arange(len(cells), device=cells.device).split(CELLS_AT_ONCE):
        batch = cells.batch(index)
        shift = model.mean_shift(batch.D)
        basal.append(model.encode(batch.x, shift[None]).loc[0])
        shifts.append(shift if model.has_shifts else torch.zeros_like(basal[-1]))
    start, move = torch.cat(basal).cpu().numpy(), torch.cat(shifts).cpu().numpy()
    return {"basal": start, "shifted": start + move}


@torch.inference_mode()
def decoded_values(bundle: Bundle, gene: str) -> Float[np.ndarray, " N"] | None:
    """The level of a gene that the decoder gives each of `bundle.cells` at its shifted state.

    log2(1 + 1e4 p) of counts, p the decoded share: what the model expects of the cell, with none of
    the noise of a measurement. None where the bundle does not hold the whole state.
    """
    states = [f"shifted M{k}" for k in range(bundle.model.config.n_latent)]
    if not set(states) <= set(bundle.cells):
        return None
    z, place = torch.from_numpy(bundle.cells[states].to_numpy()), bundle.genes.index(gene)
    nowhere, model = torch.zeros(bundle.model.n_shift), bundle.model
    parts = [model.level(model.moved_means(part, nowhere))[:, place] for part in z.split(256)]
    return torch.cat(parts).numpy()


def clustered(wide: pd.DataFrame, by: pd.DataFrame) -> pd.DataFrame:
    """Rows of `wide` with similar rows of `by` together (average linkage), fullest group first."""
    return wide.loc[tree(by).order]


def tree(by: pd.DataFrame) -> Tree:
    """Rows of `by` clustered (average linkage of Euclidean distances), fullest group first.

    One or two rows stay as they are, without a tree.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    n, line = len(by), pd.DataFrame({"place": [], "height": []}, dtype=float)
    if n < 3:
        return Tree(by.index, line)
    values = by.to_numpy(float)
    joints = linkage(values, method="average", optimal_ordering=True)
    order = leaves_list(joints)
    if values[order[: n // 2]].sum() < values[order[::-1][: n // 2]].sum():
        order = order[::-1]
    place, height = np.zeros(2 * n - 1), np.zeros(2 * n - 1)
    place[order] = np.arange(n)
    strokes = []
    for i, (left, right, distance, _) in enumerate(joints, start=n):
        ends = [int(left), int(right)]
        place[i], height[i] = place[ends].mean(), distance
        (a, b), (low, other) = place[ends], height[ends]
        strokes += [(a, low), (a, distance), (b, distance), (b, other), (np.nan, np.nan)]
    return Tree(by.index[order], pd.DataFrame(strokes, columns=list(line)))


def pairs(masks: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Every two of these perturbations, most alike first: first, second, shared, jaccard, cosine.

    As `similar_perturbations`: shared mechanisms, Jaccard index of active sets, cosine of effects.
    """
    rows, columns = masks[masks["perturbation"].isin(names)], ["shared", "jaccard", "cosine"]
    alike = {name: similar_perturbations(rows, name) for name in names}
    found = [[a, b, *alike[a].loc[b, columns]] for a, b in combinations(names, 2)]
    table = pd.DataFrame(found, columns=["first", "second", *columns]).astype({"shared": int})
    return table.sort_values(["jaccard", "cosine"], ascending=False).reset_index(drop=True)


def network(
    masks: pd.DataFrame,
    perturbations: Iterable[str] | None = None,
    threshold: float = ACTIVE,
    most_nodes: int = MOST_NODES,
    most_edges: int = MOST_EDGES,
    seed: int = LAYOUT_SEED,
) -> Network:
    """Perturbations (all, unless named) and the mechanisms they use, laid out in the plane.

    An edge is an entry with a probability above the threshold. Where there are more nodes or edges
    than can be read, those with the largest effects are kept. Connected parts are laid out each for
    itself, by the forces of Fruchterman and Reingold from a fixed seed, the smaller then by the
    springs of Kamada and Kawai, and are set beside each other, the largest first.
    """
    on = masks["probability"] > threshold
    if perturbations is not None:
        on &= masks["perturbation"].isin(list(perturbations))
    used = masks[on].sort_values("effect", key=np.abs, ascending=False, kind="stable")
    kept: list[bool] = []
    seen: set[tuple[str, str]] = set()
    for perturbation, mechanism in zip(used["perturbation"], used["mechanism"], strict=True):
        ends = {("perturbation", str(perturbation)), ("mechanism", f"M{mechanism}")}
        room = len(seen | ends) <= most_nodes and sum(kept) < most_edges
        kept.append(room)
        seen |= ends if room else set()
    edges = used[np.array(kept, dtype=bool)]
    return Network(_placed(edges, seed), edges, len(used) - len(edges))


def _placed(edges: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The nodes at the ends of edges and where they are drawn; one unit is room for a node."""
    import networkx as nx

    graph = nx.Graph()
    for perturbation, mechanism in zip(edges["perturbation"], edges["mechanism"], strict=True):
        graph.add_edge(("perturbation", str(perturbation)), ("mechanism", f"M{mechanism}"))
    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    widest = 2 * max([1.0, *(len(part) ** 0.5 for part in parts)])
    rows, x, y, deepest = [], 0.0, 0.0, 0.0
    for part in parts:
        inside = nx.Graph()  # of sorted nodes, as a layout depends on their order
        inside.add_nodes_from(sorted(part))
        inside.add_edges_from(graph.edges(part))
        radius = len(part) ** 0.5
        if x and x + 2 * radius > 2 * widest:
            x, y, deepest = 0.0, y - deepest, 0.0
        centre = np.array([x + radius, y - radius])
        found = nx.spring_layout(inside, seed=seed, iterations=300)
        if len(part) <= FEW_NODES:
            found = nx.kamada_kawai_layout(inside, pos=found)
        found = nx.rescale_layout_dict(found, radius)
        rows += [
            {"kind": kind, "name": name, "degree": graph.degree[kind, name], "x": px, "y": py}
            for (kind, name), (px, py) in sorted((n, at + centre) for n, at in found.items())
        ]
        x, deepest = x + 2 * radius + 1, max(deepest, 2 * radius + 1)
    return pd.DataFrame(rows, columns=["kind", "name", "degree", "x", "y"])
