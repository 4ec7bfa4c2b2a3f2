"""The network of perturbations and mechanisms, with a layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from samsvae_core.models.samsvae import ACTIVE

MOST_NODES, MOST_EDGES = 150, 150  # a larger network cannot be read
FEW_NODES = 60  # parts up to this size get the slower layout
LAYOUT_SEED = 0


class Network(NamedTuple):
    """Perturbations and the mechanisms they use, as nodes and edges.

    `nodes` has kind ("perturbation" or "mechanism"), name, degree (number of edges), x and y.
    `edges` holds the rows of the mask table that are drawn. `left_out` is the number of edges not
    drawn, the weakest.
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
    """Return the network of perturbations (all, unless named) and mechanisms, laid out in 2D.

    An edge is an entry with a probability above the threshold. If there are more nodes or edges
    than can be read, those with the largest effects are kept. Each connected part is laid out by
    itself (Fruchterman and Reingold from a fixed seed; small parts then by Kamada and Kawai), and
    the parts are placed side by side, the largest first.

    Parameters
    ----------
    masks
        The mask table of a bundle.
    perturbations
        Perturbations to draw; all if None.
    threshold
        Least posterior probability of an edge.
    most_nodes, most_edges
        Largest size of the network.
    seed
        Seed of the layout.
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
    """Return the nodes of the edges with their coordinates; one unit is room for a node."""
    import networkx as nx

    graph = nx.Graph()
    for perturbation, mechanism in zip(edges["perturbation"], edges["mechanism"], strict=True):
        graph.add_edge(("perturbation", str(perturbation)), ("mechanism", f"M{mechanism}"))
    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    widest = 2 * max([1.0, *(len(part) ** 0.5 for part in parts)])
    rows, x, y, deepest = [], 0.0, 0.0, 0.0
    for part in parts:
        inside = nx.Graph()  # nodes sorted, because a layout depends on their order
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
