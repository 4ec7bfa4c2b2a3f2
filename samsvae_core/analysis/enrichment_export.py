"""Files of gene set results: tables, a workbook and a methods paragraph.

In CSV and TSV files, text that a spreadsheet would read as a formula gets a leading apostrophe
(`separated`). The workbook stores every text as text.
"""

import datetime
import hashlib
import io
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xlsxwriter

from samsvae_core.analysis.held_out import as_text
from samsvae_core.bundle.layout import to_json, version
from samsvae_core.genesets.collections import Collection, collections
from samsvae_core.genesets.enrichment import FDR
from samsvae_core.genesets.questions import ERRORS, PASSES, Enrichment
from samsvae_core.genesets.terms import JACCARD, POOL, VERDICTS, fdr_in_words, verdicts
from samsvae_core.system.files import OutputError, new_output

BEST = 5  # terms of each kind in the summary
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of a spreadsheet formula
CELL = 32_767  # most characters in one cell of Excel
ROWS = 1_048_575  # most rows below the header
WIDTHS = {"term": 50, "group": 50, "leading_edge": 50, "name": 40, "evidence": 100, "title": 40}
WIDTHS |= {"source": 40, "licence": 40, "setting": 20, "value": 100, "status": 40}
FORMATS = dict.fromkeys(["es", "nes", "odds_ratio", "tied"], "0.000")
FORMATS["log2_error"] = "0.000"
FORMATS |= dict.fromkeys(["p_value", "fdr", "fdr_low", "fdr_high", "fdr_all"], "0.00E+00")
PACKAGES = ("samsvae-explorer", "gseapy", "numpy", "pandas", "torch")
BEGINNING = datetime.datetime(1980, 1, 1)  # time stamp of every file, the earliest in zip
TOLD = ["bundle", "checksum", "model", "ranked", "top", "background", "background_size"]
TOLD += ["min_size", "max_size", "seed"]
REFERENCES = """\
Bereket and Karaletsos, Modelling cellular perturbations with the sparse additive mechanism shift \
variational autoencoder, Advances in Neural Information Processing Systems 36, 2023.
Subramanian et al., Gene set enrichment analysis: a knowledge-based approach for interpreting \
genome-wide expression profiles, PNAS 102:15545, 2005, doi:10.1073/pnas.0506580102.
Korotkevich et al., Fast gene set enrichment analysis, bioRxiv 060012, 2021, doi:10.1101/060012.
Fang, Liu and Peltz, GSEApy: a comprehensive package for performing gene set enrichment analysis \
in Python, Bioinformatics 39:btac757, 2023, doi:10.1093/bioinformatics/btac757.
Benjamini and Hochberg, Controlling the false discovery rate: a practical and powerful approach \
to multiple testing, Journal of the Royal Statistical Society B 57:289, 1995, \
doi:10.1111/j.2517-6161.1995.tb02031.x."""


class Results(NamedTuple):
    """The results of gene set tests with everything they rest on.

    `scores` are the ranked scores, with a column gene; `names` comes from `terms.suggested_names`;
    `collections` use the symbols of the data. `settings` hold JSON values for at least `bundle`
    (its name), `checksum`, `model` (its title), `min_size`, `max_size`, `seed`, `background_size`
    (genes), and the phrases `ranked` (completes "genes were ranked by"), `top` (the genes tested
    for over-representation) and `background` (the genes they were compared with).
    """

    enrichment: Enrichment
    scores: pd.DataFrame
    names: pd.DataFrame
    collections: list[Collection]
    settings: Mapping[str, Any]


def files(results: Results) -> dict[str, bytes]:
    """Return the content of every file by name.

    The manifest holds versions, the date, and the sha256 and size of the other files. Numbers in
    CSV files are written with full precision.
    """
    tables = {
        "enrichment": results.enrichment.table,
        "names": results.names.reset_index(),
        "scores": results.scores,
        "collections": collection_table(results),
        "notes": results.enrichment.notes,
    }
    found = {f"{name}.csv": separated(table) for name, table in tables.items()}
    found["leading_edges.gmt"] = leading_edges(results.enrichment.table).encode()
    found["settings.json"] = to_json(_about(results))
    found["methods.md"] = methods(results).encode()
    found["enrichment.xlsx"] = workbook(results)
    manifest = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"Python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in found.items()
        },
    }
    return found | {"manifest.json": to_json(manifest)}


def separated(table: pd.DataFrame, separator: str = ",") -> bytes:
    """Return a table as CSV or TSV; text that looks like a formula gets an apostrophe in front."""
    shown = table.copy()
    for place in range(len(table.columns)):
        if not pd.api.types.is_numeric_dtype(table.iloc[:, place]):
            column = [_disarmed(value) for value in table.iloc[:, place]]
            shown.isetitem(place, pd.Series(column, index=table.index, dtype=object))
    shown.columns = [_disarmed(column) for column in table.columns]
    return shown.to_csv(index=False, sep=separator).encode()


def _disarmed(value: Any) -> Any:
    """Return the value, with an apostrophe in front of text that looks like a formula."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def archive(contents: Mapping[str, bytes]) -> bytes:
    """Return a zip of the files; the same contents give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, BEGINNING.timetuple()[:6])
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            entry.create_system = 3  # Unix, on any system
            file.writestr(entry, content)
    return packed.getvalue()


def write_folder(contents: Mapping[str, bytes], path: Path) -> None:
    """Write the files into a new folder, all or none; raises OutputError."""
    new_output(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        for name, content in contents.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o755)  # mkdtemp makes it readable by its owner only
        temporary.rename(path)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror or error}. Choose another place for the output."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def leading_edges(table: pd.DataFrame, fdr: float = PASSES) -> str:
    """Return a GMT of the leading edges of the sets that pass by GSEA, named M0|hallmark|up|TERM.

    Borderline sets are included and marked as such.
    """
    table = table.assign(verdict=verdicts(table, fdr))
    passing = (table["method"] == "gsea") & (table["verdict"] != VERDICTS[2])
    lines = []
    for row in table[passing & (table["leading_edge"] != "")].itertuples():
        name = f"{label(row.mechanism)}|{row.collection}|{row.direction}|{row.term}"
        about = f"NES {row.nes:.2f} {fdr_in_words(row)}"
        fields = [name, about, *row.leading_edge.split(";")]
        lines.append(
            "\t".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", field) for field in fields) + "\n"
        )
    return "".join(lines)


def label(mechanism: object) -> str:
    """Return M0 for mechanism 0, and a condition's own name for a condition."""
    return mechanism if isinstance(mechanism, str) else f"M{mechanism}"


def collection_table(results: Results) -> pd.DataFrame:
    """Return one row per collection; `scored` counts those of its genes that were ranked."""
    genes = set(results.scores["gene"])
    columns = ["name", "title", "version", "source", "licence"]
    rows = [
        [getattr(collection, column) for column in columns]
        + [len(collection.sets), len(collection.genes), len(collection.genes & genes)]
        + [collection.checksum]
        for collection in results.collections
    ]
    return pd.DataFrame(rows, columns=[*columns, "sets", "genes", "scored", "checksum"])


def _about(results: Results) -> dict[str, Any]:
    return {**results.settings, "adjustment": FDR, "gseapy": version("gseapy")}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return the 5 best terms per mechanism, collection, method and direction.

    Terms that pass at 5 % FDR come first, and the column `verdict` says whether a term passes, does
    not pass or is borderline. If the table has groups, only the leading term of each is listed.
    Terms without a gene are left out.
    """
    telling = table[table["leading_edge"] != ""]
    if "group" in table:
        telling = telling[telling["group"] == telling["term"]]
    best = telling.groupby(POOL, sort=False).head(BEST)
    best = best.assign(verdict=verdicts(best))
    return best.sort_values("verdict", key=lambda v: v.map(VERDICTS.index), kind="stable")


def workbook(results: Results) -> bytes:
    """Return an XLSX of summary, names, results by mechanism and collection, settings and notes."""
    table, notes = results.enrichment
    sheets = {"summary": summary(table), "names": results.names.reset_index()}
    for (mechanism, collection), rows in table.groupby(["mechanism", "collection"], sort=False):
        sheets[sheet_name(f"{label(mechanism)} {collection}", sheets)] = rows
    about = _about(results)
    settings = pd.DataFrame({"setting": list(about), "value": list(map(str, about.values()))})
    sheets |= {"collections": collection_table(results), "settings": settings, "notes": notes}
    return workbook_of(sheets)


def workbook_of(sheets: Mapping[str, pd.DataFrame]) -> bytes:
    """Return an XLSX with one sheet per table.

    Every text is stored as text, also one that looks like a formula, a link or a number. Text too
    long for Excel is cut after a whole gene, and a column `cut` names the columns concerned. Raises
    ValueError for a sheet with more rows than Excel takes.
    """
    for name, sheet in sheets.items():
        if len(sheet) > ROWS:
            raise ValueError(
                f"Sheet {name!r} would have {len(sheet):,} rows; Excel takes {ROWS:,}. "
                "Take the CSV file, or fewer collections."
            )
    content = io.BytesIO()
    with xlsxwriter.Workbook(content, {"constant_memory": True}) as book:
        book.set_properties({"created": BEGINNING})  # the same bytes for the same results
        for name, sheet in sheets.items():
            _write_sheet(book, name, _fitting(sheet))
    return content.getvalue()


def sheet_name(wanted: str, taken: Iterable[str]) -> str:
    """Return a sheet name that Excel accepts: up to 31 characters, unique regardless of case."""
    lower = {name.lower() for name in taken}
    clean = re.sub(r"[\[\]:*?/\\']", "_", wanted)
    names = (f"{clean[: 31 - len(end)]}{end}" for end in ["", *(f" {n}" for n in range(2, 9999))])
    return next(name for name in names if name.lower() not in lower)


def _fitting(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with texts cut to the length of an Excel cell."""
    text = frame.select_dtypes(object)
    long = text.map(lambda value: isinstance(value, str) and len(value) > CELL)
    if not long.to_numpy().any():
        return frame
    cut = text.map(lambda value: str(value)[:CELL].rpartition(";")[0] or str(value)[:CELL])
    where = [", ".join(long.columns[row]) for row in long.to_numpy()]
    return frame.assign(**text.where(~long, cut), cut=where)


def _write_sheet(book: xlsxwriter.Workbook, name: str, frame: pd.DataFrame) -> None:
    sheet = book.add_worksheet(name)
    sheet.freeze_panes(1, 0)
    sheet.autofilter(0, 0, len(frame), len(frame.columns) - 1)
    bold = book.add_format({"bold": True})
    for column, title in enumerate(frame):
        is_text = frame[title].dtype == object
        shown = book.add_format({"num_format": FORMATS.get(title, "@" if is_text else "General")})
        sheet.set_column(column, column, WIDTHS.get(title, 12), shown)
        sheet.write_string(0, column, title, bold)
    for row, values in enumerate(frame.itertuples(index=False, name=None), start=1):
        for column, value in enumerate(values):
            if isinstance(value, str):
                sheet.write_string(row, column, value)
            elif np.isfinite(value):
                sheet.write_number(row, column, value)
            elif not np.isnan(value):
                sheet.write_string(row, column, "infinite" if value > 0 else "-infinite")


def methods(results: Results) -> str:
    """Return a methods paragraph for a paper, the collections and the references, as Markdown.

    Raises ValueError if the settings lack something the paragraph needs.
    """
    if missing := [key for key in TOLD if key not in results.settings]:
        raise ValueError(f"The settings lack {', '.join(missing)}; a methods paragraph needs them.")
    told = {key: as_text(results.settings[key]).replace(r"\: ", ": ") for key in TOLD}
    size = f"{results.settings['background_size']:,} genes"
    table = results.enrichment.table
    groups = (
        "A set whose leading edge has a Jaccard index of at least "
        f"{JACCARD:g} with that of a better set of its mechanism, collection, method and direction "
        "is shown in the group of that set. "
    )
    tested = table[table["method"] == "gsea"].groupby("collection")["term"].nunique().to_dict()
    shown = collection_table(results).itertuples()
    shipped = [collections()[c.name] for c in results.collections if _is_shipped(c)]
    caution = results.settings.get("caution")
    lines = [
        "# Methods",
        "",
        *([f"**Caution.** {as_text(caution)}", ""] if caution else []),
        f"Gene sets were tested with SAMS-VAE Explorer {version('samsvae-explorer')} on the model "
        f"{told['bundle']} ({told['model']}, Bereket and Karaletsos 2023; checksum "
        f"{told['checksum']}). Genes were ranked by {told['ranked']}. Genes without a finite value "
        "were left out; of a gene with several values the one of largest size was kept; genes with "
        f"the same value were put in an order drawn at random (seed {told['seed']}). Preranked "
        "gene set enrichment analysis (Subramanian et al. 2005) was done by gseapy "
        f"{version('gseapy')} (Fang et al. 2023) with weight 1 and p-values by adaptive multilevel "
        f"sampling (Korotkevich et al. 2021; seed {told['seed']}). Over-representation of "
        f"{told['top']} was tested by the hypergeometric distribution (one-sided) among "
        f"{told['background']} ({size}), of which those count that belong to any set of a "
        f"collection. Sets with {told['min_size']} to {told['max_size']} measured "
        f"genes were tested. The false discovery rate (FDR) is {FDR} (Benjamini and Hochberg "
        f"1995), sets without overlap included; sets pass at {100 * PASSES:g} % FDR. "
        "In the tables fdr is that, and fdr_all the same over all mechanisms tested. Sets near the "
        "threshold were sampled again, with up to 4,000,000 random sets of their size. log2_error "
        "is the standard error of log2 p that comes of sampling; with every p within "
        f"{ERRORS} such errors, fdr lies between fdr_low and fdr_high. A set is called borderline "
        "where the threshold lies between those: other draws might decide otherwise. "
        f"{groups if 'group' in table else ''}The units of both tests are genes, which go "
        "together: an FDR does not say that a result would replicate.",
        "",
        "## Collections of gene sets",
        "",
        *(_collection_in_words(row, tested.get(row.name, 0)) for row in shown),
        "",
        "## References",
        "",
        *(f"- {reference}" for reference in REFERENCES.splitlines()),
        *(f"- {about.title}: {about.attribution}. {about.licence}." for about in shipped),
    ]
    return "\n".join(lines) + "\n"


def _is_shipped(collection: Collection) -> bool:
    """Return whether a collection is shipped; a user's own may have its name but not its source."""
    about = collections().get(collection.name)
    return about is not None and about.source == collection.source


def _collection_in_words(row: Any, tested: int) -> str:
    about = "; ".join(filter(None, [row.version, row.source, row.licence]))
    return (
        f"- {as_text(row.title)} ({as_text(about)}): {row.sets:,} sets, {tested:,} of them tested; "
        f"{row.genes:,} genes, {row.scored:,} of them ranked; checksum {row.checksum}"
    )
