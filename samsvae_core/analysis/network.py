"""The network of perturbations and mechanisms, laid out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from samsvae_core.models.samsvae import ACTIVE

MOST_NODES, MOST_EDGES = 150, 150  # of a network that can be read
FEW_NODES = 60  # of a part that is laid out with more care
LAYOUT_SEED = 0


class Network(NamedTuple):
    """Perturbations and the mechanisms they use, as nodes and edges.

    `nodes`: kind ("perturbation" or "mechanism"), name, degree (edges that end there), x, y.
    `edges`: the rows of the mask table that are drawn. `left_out`: edges that are not, the weakest.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    left_out: int


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
