"""Which gene sets a mechanism moves, up or down: preranked GSEA through gseapy, and top genes.

*gsea* walks the n genes from the highest loading s to the lowest. For a set of m genes,

    running_i = sum(|s_j|, j <= i in the set) / sum(|s_j|, in the set) - (not in it, <= i) / (n - m)

ES is its largest deviation from 0; p, by multilevel sampling (fgsea), compares with ES of the same
sign, and NES divides by their mean. *ora* asks, by the hypergeometric distribution, whether a set
has more of the top genes than chance; the universe is the measured genes that any set has.

`fdr` is Benjamini-Hochberg over all tested sets of a mechanism and collection, both directions in
one pool, sets without overlap included; `fdr_all` is the same over all mechanisms of the call. The
units of both tests are genes, and genes go together: neither says that a result would replicate.
"""

import hashlib
import inspect
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
import xlsxwriter

from samsvae_core.files import OutputError, atomic_write
from samsvae_core.gene_sets import Collection, match, overlap, usable_sets

COLUMNS = ["mechanism", "collection", "method", "direction", "term", "size", "overlap", "es", "nes"]
COLUMNS += ["odds_ratio", "p_value", "fdr", "fdr_all", "leading_edge"]
NUMBERS = COLUMNS[5:-1]
LOGGER = logging.getLogger(__name__)
FDR = "Benjamini-Hochberg over a mechanism's sets of one collection, both directions in one pool"
FORMATS = dict.fromkeys(["es", "nes", "odds_ratio", "tied"], "0.000")
FORMATS |= dict.fromkeys(["p_value", "fdr", "fdr_all"], "0.00E+00")
MIN_GENES = 15  # with fewer, a ranking has next to nothing to say of a collection
MANY_TIES = 0.2  # share of tied genes from which a reader is told
FLAT = 1e-9  # spread over size below which a mechanism does nothing
RECIPE = 1  # to be raised when results change, so that cached ones are made again
CELL = 32_767  # characters that Excel takes
SECONDS = 600  # for one mechanism; GO biological process on 8,000 genes takes 30


class Enrichment(NamedTuple):
    """Results, and one row of notes per mechanism.

    `status` is "done", "constant" (nothing to rank), "no set", or how it failed. `dropped` counts
    genes without a finite loading, `duplicated` the weaker rows of genes that have several, `tied`
    is the share of genes with the loading of another.
    """

    table: pd.DataFrame
    notes: pd.DataFrame


class Question(NamedTuple):
    """One mechanism: finite scores in the order of genes, its sets, and what to note of it."""

    scores: pd.Series
    sets: dict[str, tuple[str, ...]]
    note: dict[str, object]


def rank_enrichment(
    loadings: pd.DataFrame | pd.Series,
    collection: Collection,
    min_size: int = 5,
    max_size: int = 500,
    seed: int = 0,
    n_processes: int = 1,
) -> Enrichment:
    """GSEA of each mechanism: a column of loadings (genes x mechanisms), or one series."""
    sizes = _sizes(collection, loadings.index, min_size, max_size)
    questions = [_question(scores, collection, sizes, None) for scores in _mechanisms(loadings)]
    asked = [question for question in questions if question.note["status"] == "done"]
    rankings = [_ranked(question.scores, seed) for question in asked]
    answers = _ask(map(partial(_job, seed=seed), asked, rankings), n_processes)
    tables = []
    for question, ranked, answer in zip(asked, rankings, answers, strict=True):
        if isinstance(answer, str):
            question.note["status"] = answer
        else:
            tables.append(_gsea_rows(question, ranked, answer))
    return _enrichment(tables, questions, "gsea")


def _gsea_rows(question: Question, ranked: pd.Series, answer: list[list]) -> pd.DataFrame:
    es, nes, p_value, edges = zip(*answer, strict=True)
    edge_genes = [[str(ranked.index[rank]) for rank in edge] for edge in edges]
    return pd.DataFrame(
        {
            **question.note,
            "direction": ["up" if score >= 0 else "down" for score in es],
            "term": list(question.sets),
            "size": [len(genes) for genes in question.sets.values()],
            "overlap": [len(edge) for edge in edges],
            "es": es,
            "nes": nes,
            "odds_ratio": np.nan,
            "p_value": p_value,
            "leading_edge": [";".join(genes) for genes in edge_genes],
        }
    )


def over_representation(
    loadings: pd.DataFrame | pd.Series,
    collection: Collection,
    n_top: int = 50,
    min_size: int = 5,
    max_size: int = 500,
    universe: Iterable[str] | None = None,
) -> Enrichment:
    """Sets with more than their share of the `n_top` highest (up) or lowest (down) genes.

    Only genes above 0 are up, and only genes below are down. Of a `universe` of one's own, too,
    the genes that belong to any set count.
    """
    chosen = None if universe is None else frozenset(universe)
    sizes = _sizes(collection, loadings.index if chosen is None else chosen, min_size, max_size)
    questions = [_question(scores, collection, sizes, chosen) for scores in _mechanisms(loadings)]
    tables = []
    for question in questions:
        if question.note["status"] == "done":
            genes = question.scores.index if chosen is None else chosen
            known = collection.genes.intersection(genes)
            tables.append(pd.concat([_ora_rows(question, sign, n_top, known) for sign in (1, -1)]))
    return _enrichment(tables, questions, "ora")


def _ora_rows(question: Question, sign: int, n_top: int, known: frozenset[str]) -> pd.DataFrame:
    top = (sign * question.scores).nlargest(n_top)
    query = [gene for gene in top.index[top > 0] if gene in known]
    from scipy.stats import hypergeom  # takes half a second to import

    found = [[g for g in query if g in genes] for genes in map(set, question.sets.values())]
    hits = np.array([len(genes) for genes in found])
    size = np.array([len(genes) for genes in question.sets.values()])
    outside = len(known) - size - len(query) + hits
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing to divide by: infinite
        odds_ratio = hits * outside / ((size - hits) * (len(query) - hits))
    return pd.DataFrame(
        {
            **question.note,
            "direction": "up" if sign > 0 else "down",
            "term": list(question.sets),
            "size": size,
            "overlap": hits,
            "es": np.nan,
            "nes": np.nan,
            "odds_ratio": odds_ratio,
            "p_value": hypergeom.sf(hits - 1, len(known), size, len(query)),
            "leading_edge": [";".join(genes) for genes in found],
        }
    )


def running_sum(scores: pd.Series, genes_of_set: Iterable[str], seed: int = 0) -> pd.DataFrame:
    """The walk behind ES: rank (from 1), gene, score, hit, running_es; ties as in the test."""
    kept = _finite(scores)[0]
    ranked = _ranked(kept, seed)
    hit = ranked.index.isin(list(genes_of_set))
    if not 0 < hit.sum() < len(hit):
        raise ValueError(
            f"{hit.sum()} of {len(hit)} measured genes are in the set;"
            " a running sum needs at least one inside and one outside."
        )
    weight = np.where(hit, ranked.abs(), 0.0)
    running = np.cumsum(weight / weight.sum() - ~hit / (~hit).sum())
    walk = kept[ranked.index].rename_axis("gene").reset_index(name="score")
    walk.insert(0, "rank", walk.index + 1)
    return walk.assign(hit=hit, running_es=running)


def _sizes(collection: Collection, genes: Iterable[str], min_size: int, max_size: int) -> range:
    """The sizes of sets to test, once it is clear that there are any."""
    if not 1 <= min_size <= max_size:
        raise ValueError(f"Expected 1 <= minimum <= maximum size; found {min_size} and {max_size}.")
    measured = {str(gene) for gene in genes}
    found = overlap(collection, measured, min_size, max_size)
    if found.n_genes < MIN_GENES or not found.n_sets:
        raise ValueError(
            f"{found.n_genes} of {len(measured)} genes are in {collection.name}, and"
            f" {found.n_sets} of its sets have {min_size} to {max_size} of them; {MIN_GENES} genes"
            " and 1 set are needed. Choose a smaller minimum size, or check the gene symbols."
        )
    return range(min_size, max_size + 1)


def _mechanisms(loadings: pd.DataFrame | pd.Series) -> list[pd.Series]:
    if isinstance(loadings, pd.Series):
        return [loadings.rename("shift" if loadings.name is None else loadings.name)]
    if not loadings.columns.is_unique:
        raise ValueError("Two mechanisms have the same name; rename the columns of the loadings.")
    return [loadings.iloc[:, column] for column in range(loadings.shape[1])]


def _finite(scores: pd.Series) -> tuple[pd.Series, int, int]:
    """One finite score per gene, the strongest, by gene; how many were not, and were weaker."""
    kept = scores[np.isfinite(scores.astype(float)) & scores.index.notna()].astype(float)
    kept = kept.set_axis(kept.index.astype(str)).sort_values().sort_values(key=abs, kind="stable")
    unique = kept[~kept.index.duplicated(keep="last")].sort_index()
    return unique, len(scores) - len(kept), len(kept) - len(unique)


def _question(
    scores: pd.Series, collection: Collection, sizes: range, universe: frozenset[str] | None
) -> Question:
    kept, dropped, duplicated = _finite(scores)
    genes = kept.index if universe is None else universe
    sets = usable_sets(collection, genes, sizes[0], sizes[-1])
    flat = kept.empty or kept.std(ddof=0) <= FLAT * kept.abs().max()
    note: dict[str, object] = {
        "mechanism": scores.name,
        "collection": collection.name,
        "status": "constant" if flat else "done" if sets else "no set",
        "genes": len(kept),
        "dropped": dropped,
        "duplicated": duplicated,
        "tied": float(kept.duplicated(keep=False).mean()) if len(kept) else 0.0,
    }
    return Question(kept, sets, note)


def _ranked(scores: pd.Series, seed: int) -> pd.Series:
    """Scores from high to low, none of them 0; the seed decides the order of those that are tied.

    Multilevel counts in units of 2^-30 of the sum of |s|. A sampled set of genes below that has no
    running sum, and gseapy panics; so each score moves away from 0 by a few units.
    """
    step = scores.abs().sum() * 2.0**-27
    apart = np.random.default_rng(seed).uniform(0, step / 2, len(scores))
    moved = scores + np.where(scores < 0, -step, step)
    moved += np.where(scores.duplicated(keep=False), apart, 0.0)
    return moved.sort_values(ascending=False, kind="stable")


def _job(question: Question, ranked: pd.Series, seed: int) -> str:
    """What a worker has to know; genes are ranks, so that no name is misunderstood."""
    rank = {gene: number for number, gene in enumerate(ranked.index)}
    sets = [[rank[gene] for gene in genes] for genes in question.sets.values()]
    return json.dumps({"scores": ranked.tolist(), "sets": sets, "seed": seed})


def _ask(jobs: Iterable[str], n_processes: int) -> list[list | str]:
    """For each job ES, NES, p and leading edge of each set, or the reason why there are none."""
    with TemporaryDirectory() as folder, ThreadPoolExecutor(n_processes) as pool:
        files = []
        for number, job in enumerate(jobs):
            files.append(Path(folder, f"{number}.job"))
            files[-1].write_text(job)
        shares = [files[start::n_processes] for start in range(n_processes)]
        failed = {file: why for part in pool.map(_work_off, shares) for file, why in part.items()}
        return [failed.get(f) or json.loads(f.with_suffix(".answer").read_text()) for f in files]


def _work_off(files: list[Path]) -> dict[Path, str]:
    """Has workers answer the files one after the other; names those that a worker died of.

    A program of its own rather than multiprocessing, which would run Streamlit's main page again.
    """
    program = f"{inspect.getsource(_work)}\n{_work.__name__}()"
    failed = {}
    while files:
        command = [sys.executable, "-P", "-c", program, str(SECONDS), *map(str, files)]
        environment = os.environ | {"MPLBACKEND": "Agg"}  # a notebook's own would not load
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        files = [file for file in files if not file.with_suffix(".answer").exists()]
        if files:
            last = [f"exit status {ended.returncode}", *ended.stderr.split("\n")[:-1]][-1]
            slow = "Timeout (" in ended.stderr
            failed[files.pop(0)] = f"failed: {f'more than {SECONDS} s' if slow else last}"
    return failed


def _work() -> None:
    """The worker's program: it dies of a panic or of the time limit, and nothing else does.

    Sent as source, so it stands alone and loads gseapy but nothing of ours. 250 sets at a time,
    because gseapy keeps every set's running sum. No p (ES of the other sign only) counts as 1.
    """
    import faulthandler
    import json
    import sys
    from pathlib import Path

    import pandas as pd
    from gseapy import prerank

    for name in sys.argv[2:]:
        faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)
        job = json.loads(Path(name).read_text())
        ranked = pd.Series(job["scores"], index=[f"G{rank}" for rank in range(len(job["scores"]))])
        answers = []
        for start in range(0, len(job["sets"]), 250):
            part = {f"S{n}": genes for n, genes in enumerate(job["sets"][start : start + 250])}
            found = prerank(
                ranked.copy(),
                {term: [f"G{rank}" for rank in genes] for term, genes in part.items()},
                min_size=1,
                max_size=len(ranked),
                threads=0,  # means 1; of 1, gseapy makes 0 where there is one core
                seed=job["seed"],
                method="multilevel",
                no_plot=True,
            ).results
            for term in part:
                es, nes, p, edge = (found[term][key] for key in ("es", "nes", "pval", "lead_genes"))
                p = min(max(p, 1e-50), 1.0) if p == p else 1.0  # 1e-50 is where multilevel stops
                answers.append([es, nes, p, [int(gene[1:]) for gene in edge.split(";") if gene]])
        Path(name).with_suffix(".part").write_text(json.dumps(answers))
        Path(name).with_suffix(".part").rename(Path(name).with_suffix(".answer"))


def _enrichment(tables: list[pd.DataFrame], questions: list[Question], method: str) -> Enrichment:
    ordered = [table.sort_values("p_value", kind="stable") for table in tables]
    empty = pd.DataFrame(columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))
    table = pd.concat(ordered, ignore_index=True) if tables else empty
    by_mechanism = table.groupby("mechanism", sort=False)["p_value"]
    table = table.assign(
        method=method, fdr=by_mechanism.transform(_adjusted), fdr_all=_adjusted(table["p_value"])
    )
    notes = pd.DataFrame([question.note for question in questions])
    notes.insert(2, "method", method)
    return Enrichment(table[COLUMNS], notes)


def _adjusted(p_values: pd.Series) -> np.ndarray:
    from scipy.stats import false_discovery_control  # takes half a second to import

    return false_discovery_control(p_values.to_numpy(float)) if len(p_values) else np.empty(0)


def enrich(
    loadings: pd.DataFrame | pd.Series,
    collections: Iterable[Collection],
    min_size: int = 5,
    max_size: int = 500,
    seed: int = 0,
) -> Enrichment:
    """Both tests of every mechanism in every collection, gene symbols matched through aliases.

    GSEA is remembered on disk by content. Raises ValueError for a collection with too little in
    common with the genes.
    """
    n_processes = max(1, min(os.cpu_count() or 1, 1 if loadings.ndim == 1 else loadings.shape[1]))
    parts = []
    for collection in collections:
        sets = match(collection, loadings.index).collection
        ranked = partial(rank_enrichment, loadings, sets, min_size, max_size, seed, n_processes)
        parts.append(cached(ranked))
        parts.append(over_representation(loadings, sets, min_size=min_size, max_size=max_size))
    return join(parts)


def problems(notes: pd.DataFrame) -> list[str]:
    """What a reader has to know of a run: mechanisms not tested, genes dropped, many ties."""
    found = []
    for row in notes[notes["method"] == "gsea"].itertuples():
        what = f"mechanism {row.mechanism}, {row.collection}"
        if row.status != "done":
            found.append(f"{what}: not tested ({row.status})")
        if row.dropped or row.duplicated:
            found.append(f"{what}: {row.dropped} genes dropped, {row.duplicated} duplicated")
        if row.tied > MANY_TIES:
            found.append(f"{what}: {row.tied:.0%} of genes are tied, their order is by chance")
    return found


def join(parts: Iterable[Enrichment]) -> Enrichment:
    """Several collections or methods in one; each keeps its own `fdr_all`."""
    tables, notes = zip(*parts, strict=True)
    filled = [table for table in tables if len(table)] or tables[:1]
    return Enrichment(pd.concat(filled, ignore_index=True), pd.concat(notes, ignore_index=True))


def write_parquet(enrichment: Enrichment, path: Path) -> None:
    """The table, with the notes in the file's metadata."""
    table = enrichment.table.copy()
    table.attrs = {"notes": enrichment.notes.to_dict("list")}
    content = io.BytesIO()
    table.to_parquet(content, write_page_checksum=True)
    atomic_write(path, content.getvalue())


def read_parquet(path: Path) -> Enrichment:
    """What `write_parquet` wrote."""
    table = pd.read_parquet(path, page_checksum_verification=True)
    return Enrichment(table, pd.DataFrame(table.attrs.pop("notes")))


def cached(call: partial[Enrichment]) -> Enrichment:
    """What `call`, a `partial(rank_enrichment, ...)`, gives: from disk if it was asked before.

    In the folder `SAMSVAE_CACHE`, by the content of all arguments. A damaged file is made again,
    and a folder that cannot be written to costs nothing but the time of the next call.
    """
    folder = Path(os.environ.get("SAMSVAE_CACHE", "~/.cache/samsvae")).expanduser()
    path = folder / "enrichment" / f"{_key(call)}.parquet"
    if path.is_file():
        try:
            return read_parquet(path)
        except (OSError, ValueError, KeyError) as error:
            LOGGER.warning("Damaged file %s is made again: %s", path, error)
    result = call()
    if not result.notes["status"].str.startswith("failed").any():  # another time it may work
        try:
            write_parquet(result, path)
        except OutputError as error:
            LOGGER.warning("Not kept for the next time: %s", error)
    return result


def _key(call: partial[Enrichment]) -> str:
    arguments = inspect.signature(call.func).bind(*call.args, **call.keywords)
    arguments.apply_defaults()
    given = {k: _content(v) for k, v in arguments.arguments.items() if k != "n_processes"}
    text = json.dumps([RECIPE, call.func.__name__, version("gseapy"), given])
    return hashlib.sha256(text.encode()).hexdigest()


def _content(value: object) -> str:
    """A text that is the same for the same content only."""
    if isinstance(value, pd.DataFrame | pd.Series):
        columns = _mechanisms(value)
        digest = hashlib.sha256(repr([column.name for column in columns]).encode())
        digest.update(json.dumps([str(gene) for gene in value.index]).encode())
        for column in columns:
            digest.update(column.to_numpy(float).tobytes())
        return digest.hexdigest()
    if isinstance(value, Collection):
        return f"{value.name} {value.checksum}"
    return repr(sorted(map(str, value)) if isinstance(value, Iterable) else value)


def write_xlsx(
    enrichment: Enrichment, path: Path, settings: Mapping[str, object] | None = None
) -> None:
    """`xlsx`, written to a file whole or not at all."""
    atomic_write(path, xlsx(enrichment, settings))


def xlsx(enrichment: Enrichment, settings: Mapping[str, object] | None = None) -> bytes:
    """A workbook: the 5 best terms of each mechanism, a sheet per mechanism and collection, notes.

    Every text is written as text, also one that looks like a formula, a link or a number.
    """
    groups = enrichment.table.groupby(["mechanism", "collection"], sort=False)
    best = enrichment.table.groupby(["mechanism", "collection", "method"], sort=False).head(5)
    about = {"fdr": FDR, "gseapy": version("gseapy"), **(settings or {})}
    sheets = {"summary": best, "notes": enrichment.notes}
    sheets["settings"] = pd.DataFrame({"setting": list(about), "value": map(str, about.values())})
    for (mechanism, collection), part in groups:
        label = mechanism if isinstance(mechanism, str) else f"M{mechanism}"
        sheets[_sheet_name(f"{label} {collection}", sheets)] = part
    content = io.BytesIO()
    with xlsxwriter.Workbook(content, {"in_memory": True}) as book:
        bold = book.add_format({"bold": True})
        formats = {name: book.add_format({"num_format": text}) for name, text in FORMATS.items()}
        for name, frame in sheets.items():
            sheet = book.add_worksheet(name)
            sheet.freeze_panes(1, 0)
            for column, title in enumerate(frame.columns):
                width = 50 if title in ("term", "value", "status") else 12
                sheet.set_column(column, column, width, formats.get(title))
                sheet.write_string(0, column, title, bold)
                _write_column(sheet, column, frame[title].tolist())
    return content.getvalue()


def _sheet_name(wanted: str, taken: Iterable[str]) -> str:
    """At most 31 characters without those Excel forbids, and unlike the others in any case."""
    lower = {name.lower() for name in taken}
    clean = re.sub(r"[\[\]:*?/\\']", "_", wanted)
    names = (f"{clean[: 31 - len(end)]}{end}" for end in ["", *(f" {n}" for n in range(2, 9999))])
    return next(name for name in names if name.lower() not in lower)


def _write_column(sheet: xlsxwriter.worksheet.Worksheet, column: int, values: list) -> None:
    for row, value in enumerate(values, start=1):
        if isinstance(value, str):
            sheet.write_string(row, column, value[:CELL])
        elif np.isfinite(value):
            sheet.write_number(row, column, value)
        elif not np.isnan(value):
            sheet.write_string(row, column, "infinite")
