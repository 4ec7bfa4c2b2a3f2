"""Build `samsvae_core/resources`, the gene sets and gene annotation shipped with the package.

    python scripts/build_resources.py

Downloads one wheel with pip and two Debian packages with apt-get, or takes existing files
(`--wheel`, `--go-deb`, `--genes-deb`). Writes GMT and CSV files, gzipped without a time stamp so
that the same inputs give the same files, and SOURCES.json with version, licence and checksum of
each. Needs Debian's apt-get and dpkg-deb; takes 15 s after a download of 53 MB.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

RESOURCES = Path(__file__).resolve().parent.parent / "samsvae_core" / "resources"
WHEEL = "pegasuspy==1.10.2"
GO_PACKAGE = "r-bioc-go.db"
GENES_PACKAGE = "r-bioc-org.hs.eg.db"
CC_BY = "https://creativecommons.org/licenses/by/4.0/"
GO_SIZES = range(5, 2001)  # smaller sets cannot be tested, larger ones say nothing

# A symbol shared by two genes stands for the one whose type comes first here.
GENE_TYPES = ["protein-coding", "ncRNA", "rRNA", "snRNA", "snoRNA", "scRNA", "tRNA", "pseudo"]
GENE_TYPES += ["other", "unknown"]  # "biological-region" is left out: enhancers and the like

Sets = dict[str, tuple[str, list[str]]]  # name: (description, genes)


class MSigDB(NamedTuple):
    """A collection taken from an MSigDB file, with its attribution."""

    name: str
    title: str
    file: str
    prefix: str
    licence: str
    licence_url: str
    attribution: str


MSIGDB = [
    MSigDB(
        "hallmark",
        "MSigDB Hallmark",
        "h.all.v7.5.1.symbols.gmt",
        "HALLMARK_",
        "CC BY 4.0",
        CC_BY,
        "MSigDB 7.5.1, Broad Institute and UC San Diego; Liberzon et al., Cell Systems 2015,"
        " doi:10.1016/j.cels.2015.12.004",
    ),
    MSigDB(
        "reactome",
        "Reactome",
        "c2.cp.v7.5.1.symbols.gmt",
        "REACTOME_",
        "CC0 1.0 (Reactome), as set names and symbols of MSigDB CC BY 4.0",
        CC_BY,
        "Reactome, Gillespie et al., Nucleic Acids Research 2022, doi:10.1093/nar/gkab1028;"
        " through MSigDB 7.5.1",
    ),
    MSigDB(
        "wikipathways",
        "WikiPathways",
        "c2.cp.v7.5.1.symbols.gmt",
        "WP_",
        "CC0 1.0 (WikiPathways), as set names and symbols of MSigDB CC BY 4.0",
        CC_BY,
        "WikiPathways, Martens et al., Nucleic Acids Research 2021, doi:10.1093/nar/gkaa1024;"
        " through MSigDB 7.5.1",
    ),
]


def download_wheel(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    subprocess.run([*command, "--dest", folder, WHEEL], check=True)
    return next(folder.glob("*.whl"))


def download_deb(package: str, folder: Path) -> Path:
    subprocess.run(["apt-get", "download", "--quiet", package], cwd=folder, check=True)
    return next(folder.glob(f"{package}_*.deb"))


def open_deb(deb: Path, folder: Path) -> tuple[sqlite3.Connection, str]:
    """Return the database inside a Debian package, and the package's version."""
    subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
    version = subprocess.run(
        ["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True
    ).stdout.strip()
    return sqlite3.connect(next(folder.rglob("*.sqlite"))), version


def msigdb_sets(wheel: Path, file: str, prefix: str) -> Sets:
    text = zipfile.ZipFile(wheel).read(f"pegasus/data_files/{file}").decode()
    rows = [line.split("\t") for line in text.splitlines() if line.startswith(prefix)]
    return {name: (link, sorted(set(genes))) for name, link, *genes in rows}


def go_sets(go: sqlite3.Connection, genes: sqlite3.Connection) -> Sets:
    """Return biological processes with the genes annotated to them or to any descendant.

    Evidence "ND" means that curators found nothing, and is left out.
    """
    names = dict(go.execute("SELECT go_id, term FROM go_term WHERE ontology = 'BP'"))
    members: dict[str, set[str]] = defaultdict(set)
    rows = genes.execute(
        "SELECT go_id, symbol FROM go_bp_all JOIN gene_info USING (_id) WHERE evidence != 'ND'"
    )
    for go_id, symbol in rows:
        members[go_id].add(symbol)
    return {
        names[go_id]: (go_id, sorted(symbols))
        for go_id, symbols in members.items()
        if len(symbols) in GO_SIZES
    }


def joined(genes: sqlite3.Connection, table: str, column: str) -> dict[int, list[str]]:
    values: dict[int, list[str]] = defaultdict(list)
    for gene, value in genes.execute(f"SELECT DISTINCT _id, {column} FROM {table}"):
        values[gene].append(value)
    return values


def gene_rows(genes: sqlite3.Connection) -> list[list[str]]:
    """Return one row per symbol: symbol, name, aliases, entrez, ensembl."""
    aliases = joined(genes, "alias", "alias_symbol")
    ensembl = joined(genes, "ensembl", "ensembl_id")
    rows = genes.execute(
        "SELECT _id, symbol, gene_name, gene_id, gene_type FROM gene_info"
        " JOIN genes USING (_id) JOIN genetype USING (_id)"
    )
    known = [row for row in rows if row[4] in GENE_TYPES]
    best = {}
    for row in sorted(known, key=lambda row: (GENE_TYPES.index(row[4]), int(row[3]))):
        best.setdefault(row[1], row)
    return [
        [
            symbol,
            name,
            "|".join(sorted(set(aliases[gene]) - {symbol})),
            entrez,
            "|".join(sorted(ensembl[gene])),
        ]
        for symbol, (gene, _, name, entrez, _) in sorted(best.items())
    ]


def write(path: Path, text: str) -> str:
    """Write text gzipped, without name and time; returns the checksum of the text itself."""
    content = text.encode()
    path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    return hashlib.sha256(content).hexdigest()


def write_sets(folder: Path, name: str, sets: Sets) -> dict[str, int | str]:
    lines = ["\t".join([term, link, *genes]) for term, (link, genes) in sorted(sets.items())]
    checksum = write(folder / f"{name}.gmt.gz", "\n".join(lines) + "\n")
    n_genes = len({gene for _, genes in sets.values() for gene in genes})
    return {"n_sets": len(sets), "n_genes": n_genes, "sha256": checksum}


def write_genes(folder: Path, rows: list[list[str]]) -> dict[str, int | str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["symbol", "name", "aliases", "entrez", "ensembl"])
    writer.writerows(rows)
    return {"n_genes": len(rows), "sha256": write(folder / "genes.csv.gz", text.getvalue())}


def build(wheel: Path, go_deb: Path, genes_deb: Path, output: Path, scratch: Path) -> None:
    go, go_version = open_deb(go_deb, scratch / "go")
    genes, genes_version = open_deb(genes_deb, scratch / "genes")
    dates = dict(genes.execute("SELECT name, value FROM metadata"))
    collections = [
        {
            "name": item.name,
            "title": item.title,
            "version": "MSigDB 7.5.1",
            "source": f"{item.file} of the PyPI package {WHEEL.replace('==', ' ')}",
            "licence": item.licence,
            "licence_url": item.licence_url,
            "attribution": item.attribution,
            **write_sets(output, item.name, msigdb_sets(wheel, item.file, item.prefix)),
        }
        for item in MSIGDB
    ]
    collections.append(
        {
            "name": "go_bp",
            "title": "Gene Ontology, biological process",
            "version": f"ontology {dates['GOSOURCEDATE']}, annotation {dates['GOEGSOURCEDATE']}",
            "source": f"Debian packages {GO_PACKAGE} {go_version}, {GENES_PACKAGE} {genes_version}",
            "licence": "CC BY 4.0 (Gene Ontology); the packages are Artistic-2.0",
            "licence_url": CC_BY,
            "attribution": "The Gene Ontology Consortium, Nucleic Acids Research 2021,"
            " doi:10.1093/nar/gkaa1113; annotation collected by NCBI Gene (gene2go)",
            **write_sets(output, "go_bp", go_sets(go, genes)),
        }
    )
    annotation = {
        "name": "genes",
        "title": "Human gene symbols, names, aliases and identifiers",
        "version": f"NCBI Gene {dates['EGSOURCEDATE']}, Ensembl {dates['ENSOURCEDATE']}",
        "source": f"Debian package {GENES_PACKAGE} {genes_version}",
        "licence": "public domain (NCBI Gene); the package is Artistic-2.0",
        "licence_url": "https://www.ncbi.nlm.nih.gov/home/about/policies/",
        "attribution": "NCBI Gene; Ensembl; Bioconductor package org.Hs.eg.db",
        **write_genes(output, gene_rows(genes)),
    }
    sources = {
        "note": "Made by scripts/build_resources.py. sha256 is that of the file before gzip.",
        "collections": collections,
        "annotation": annotation,
    }
    (output / "SOURCES.json").write_text(json.dumps(sources, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help="pegasuspy wheel already here")
    parser.add_argument("--go-deb", type=Path, help=f"{GO_PACKAGE} package already here")
    parser.add_argument("--genes-deb", type=Path, help=f"{GENES_PACKAGE} package already here")
    parser.add_argument("--output", type=Path, default=RESOURCES)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        build(
            wheel=options.wheel or download_wheel(scratch),
            go_deb=options.go_deb or download_deb(GO_PACKAGE, scratch),
            genes_deb=options.genes_deb or download_deb(GENES_PACKAGE, scratch),
            output=options.output,
            scratch=scratch,
        )


if __name__ == "__main__":
    main()
