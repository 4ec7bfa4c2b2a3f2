import numpy as np
import pandas as pd
import pytest

from samsvae_core.genesets.collections import load_collection
from samsvae_core.genesets.enrichment import over_representation, rank_enrichment
from samsvae_core.genesets.questions import COLUMNS
from samsvae_core.genesets.terms import POOL, grouped, readable, suggested_names, verdicts

LETTERS = [f"G{number}" for number in range(12)]


def table_of(*rows: dict) -> pd.DataFrame:
    """Return rows of GSEA results; columns that are not given are the same in all rows."""
    usual = {"mechanism": 0, "collection": "mine", "method": "gsea", "direction": "up"}
    usual |= {"size": 9, "es": 0.5, "nes": 2.0, "odds_ratio": np.nan, "p_value": 0.001}
    usual |= {"fdr": 0.01, "fdr_all": 0.01}
    filled = [usual | row for row in rows]
    for row in filled:
        row |= {"log2_error": 0.0, "fdr_low": row["fdr"], "fdr_high": row["fdr"]} | row
        row["overlap"] = len(row["leading_edge"].split(";")) if row["leading_edge"] else 0
    return pd.DataFrame(filled)[COLUMNS]


def groups(*edges: str, threshold: float = 0.5, **columns: list) -> list[str]:
    """Return the groups of terms A, B, C, ..., best first."""
    rows = [
        {"term": chr(65 + n), "leading_edge": ";".join(edge), "p_value": 0.001 * (n + 1)}
        | {name: values[n] for name, values in columns.items()}
        for n, edge in enumerate(edges)
    ]
    return grouped(table_of(*rows), threshold)["group"].tolist()


def random_table(seed: int, n: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "mechanism": int(rng.integers(2)),
            "collection": str(rng.choice(["mine", "yours"])),
            "method": str(rng.choice(["gsea", "ora"])),
            "direction": str(rng.choice(["up", "down"])),
            "term": f"term {number}",
            "p_value": float(rng.integers(1, 5) / 10),
            "nes": float(rng.choice([-1.5, 1.5, 2.0, np.nan])),
            "leading_edge": ";".join(rng.choice(LETTERS, rng.integers(0, 6), replace=False)),
        }
        for number in range(n)
    ]
    return table_of(*rows)


def by_hand(table: pd.DataFrame, threshold: float) -> dict[str, str]:
    """Return the groups by definition, comparing pair by pair; terms have distinct names."""
    found: dict[str, str] = {}
    for _, rows in table.groupby(POOL):
        order = sorted(
            rows.itertuples(),
            key=lambda r: (r.p_value, np.inf if np.isnan(r.nes) else -abs(r.nes), r.term),
        )
        leaders: list[tuple[str, set]] = []
        for row in order:
            edge = set(row.leading_edge.split(";")) - {""}
            joined = [
                term
                for term, genes in leaders
                if genes | edge and len(genes & edge) / len(genes | edge) >= threshold
            ]
            found[row.term] = joined[0] if joined else row.term
            if not joined:
                leaders.append((row.term, edge))
    return found


@pytest.mark.parametrize("threshold", [0.2, 1 / 3, 0.5, 1.0])
def test_groups_are_those_of_the_definition(threshold):
    table = random_table(int(100 * threshold), 400)
    expected = by_hand(table, threshold)
    assert 50 < len(set(expected.values())) < 390  # neither nothing nor everything is alike
    assert grouped(table, threshold)["group"].tolist() == [expected[t] for t in table["term"]]


def test_grouping_adds_a_column_and_changes_nothing_else():
    table = random_table(1, 100)
    shuffled = table.sample(frac=1, random_state=0)
    result = grouped(shuffled)
    pd.testing.assert_frame_equal(result.drop(columns="group"), shuffled)
    assert list(result) == [*COLUMNS, "group"]
    pd.testing.assert_frame_equal(result.sort_index(), grouped(table))
    assert "group" not in table


def test_half_of_all_genes_shared_is_enough_and_less_is_not():
    assert groups("abc", "abcdef") == ["A", "A"]
    assert groups("abc", "abcdefg") == ["A", "B"]
    assert groups("abc", "abcdefg", threshold=3 / 7) == ["A", "A"]


def test_a_term_is_not_drawn_into_a_group_by_one_of_its_members():
    assert groups("abcd", "bcde", "cdef") == ["A", "A", "C"]


def test_a_term_joins_the_better_of_two_groups_not_the_nearer():
    assert groups("abcd", "cdefg", "cdef") == ["A", "B", "B"]
    assert groups("abcd", "cdefg", "bcdef") == ["A", "B", "A"]  # 3 of 6 with A, 4 of 6 with B


def test_terms_without_leading_edge_stand_for_themselves():
    assert groups("", "", "a", "a") == ["A", "B", "C", "C"]


@pytest.mark.parametrize("column", POOL)
def test_groups_stay_within_a_mechanism_collection_method_and_direction(column):
    assert groups("abc", "abc", **{column: ["up", "down"]}) == ["A", "B"]


def test_of_equally_probable_terms_the_stronger_stands_for_the_other_then_the_name_decides():
    same = [0.01, 0.01]
    assert groups("abc", "abc", p_value=same, nes=[-1.0, -2.0]) == ["B", "B"]
    assert groups("abc", "abc", p_value=same, nes=[np.nan, np.nan]) == ["A", "A"]


def test_a_gene_named_twice_counts_once():
    assert groups("aab", "abcd") == ["A", "A"]
    assert groups("aab", "abcde") == ["A", "B"]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, np.nan])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ValueError, match=r"above 0 and at most 1; found"):
        grouped(table_of({"term": "A", "leading_edge": "a"}), threshold)


def test_an_empty_table_has_groups_too():
    dead = pd.Series(0.0, index=[*load_collection("hallmark").sets["HALLMARK_HYPOXIA"]])
    table = over_representation(dead, load_collection("hallmark")).table
    assert table.empty
    assert list(grouped(table)) == [*COLUMNS, "group"]


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ("HALLMARK_INTERFERON_GAMMA_RESPONSE", "Interferon gamma response"),
        ("HALLMARK_TNFA_SIGNALING_VIA_NFKB", "TNFA signaling via NFKB"),
        ("HALLMARK_IL6_JAK_STAT3_SIGNALING", "IL6 JAK STAT3 signaling"),
        ("HALLMARK_G2M_CHECKPOINT", "G2M checkpoint"),
        ("HALLMARK_UV_RESPONSE_DN", "UV response down"),
        ("HALLMARK_MTORC1_SIGNALING", "MTORC1 signaling"),
        ("HALLMARK_P53_PATHWAY", "P53 pathway"),
        ("HALLMARK_DNA_REPAIR", "DNA repair"),
        ("HALLMARK_E2F_TARGETS", "E2F targets"),
        ("REACTOME_MRNA_SPLICING", "mRNA splicing"),
        ("REACTOME_SIRNA_BIOGENESIS", "siRNA biogenesis"),
        ("REACTOME_CIRCADIAN_RHYTHM", "Circadian rhythm"),
        ("REACTOME_RHO_GTPASES_ACTIVATE_FORMINS", "RHO GTPases activate formins"),
        ("WP_TYPE_II_INTERFERON_SIGNALING_IFNG", "Type II interferon signaling IFNG"),
        ("WP_TCELL_ANTIGEN_RECEPTOR", "Tcell antigen receptor"),
        ("REACTOME_A_TETRASACCHARIDE", "A tetrasaccharide"),
        ("MY_OWN_SET", "My own set"),
        ("mitotic cell cycle", "mitotic cell cycle"),
        ("DNA repair", "DNA repair"),
        ("my_set", "my_set"),
        ("HYPOXIA", "HYPOXIA"),
        ("HALLMARK_", "HALLMARK_"),
        ("WP__", " "),
        ("", ""),
    ],
)
def test_names_are_words_where_they_were_capitals_and_underscores(term, words):
    assert readable(term) == words


@pytest.mark.parametrize("name", ["hallmark", "reactome", "wikipathways", "go_bp"])
def test_every_shipped_name_stays_a_name(name):
    terms = list(load_collection(name).sets)
    words = [readable(term) for term in terms]
    assert words == terms if name == "go_bp" else not any("_" in word for word in words)
    assert len(set(words)) == len(terms)


def named(*rows: dict, **options) -> tuple[str, str]:
    (found,) = suggested_names(table_of(*rows), [0], **options).itertuples(index=False, name=None)
    return found


HALLMARK = {
    "collection": "hallmark",
    "term": "HALLMARK_INTERFERON_GAMMA_RESPONSE",
    "leading_edge": "a;b;c;d;e;f;g;h",
    "nes": 2.314,
    "fdr": 0.00701,
}


def test_a_name_comes_with_its_evidence_in_a_sentence():
    down = {"term": "other set", "direction": "down", "leading_edge": "x;y"}
    name, evidence = named(HALLMARK, down | {"nes": -1.9, "fdr": 0.05})
    assert name == "Interferon gamma response; other set (down)"
    assert evidence == (
        "Hallmark interferon gamma response: NES 2.31, FDR 0.007, 8 of 9 genes in the leading edge"
        "; mine other set: NES -1.90, FDR 0.05, 2 of 9 genes in the leading edge"
    )


def test_what_does_not_pass_gives_no_name():
    nothing = ("unnamed", "No gene set passes 5 % FDR by GSEA.")
    assert named(HALLMARK | {"fdr": 0.0501}) == nothing
    assert named(HALLMARK | {"method": "ora"}) == (
        "unnamed",
        "Not tested. By over-representation: Interferon gamma response.",
    )
    assert named(HALLMARK | {"fdr": 0.0501}, fdr=0.1)[0] == "Interferon gamma response"
    assert named(HALLMARK, fdr=0.001) == ("unnamed", "No gene set passes 0.1 % FDR by GSEA.")


def test_every_mechanism_asked_for_has_a_row_in_the_order_of_the_question():
    names = suggested_names(table_of(HALLMARK | {"mechanism": 3}), [7, 3])
    assert names.index.tolist() == [7, 3]
    assert names.index.name == "mechanism"
    assert names["name"].tolist() == ["unnamed", "Interferon gamma response"]
    assert list(suggested_names(table_of(HALLMARK), [])) == ["name", "evidence"]


def test_a_name_repeats_nothing_of_another_collection():
    again = {"collection": "wikipathways", "term": "WP_INTERFERON", "leading_edge": "a;b;c;d"}
    same = {"collection": "reactome", "term": "REACTOME_INTERFERON_GAMMA_RESPONSE"}
    third = {"term": "third", "leading_edge": "x;y"}
    rows = [HALLMARK, again | {"nes": 2.2}, same | {"leading_edge": "z", "nes": -2.1}]
    assert named(*rows)[0] == "Interferon gamma response"
    assert named(*rows, third | {"nes": 2.0})[0] == "Interferon gamma response; third"


def test_the_stronger_terms_come_first_and_at_most_two_are_named():
    rows = [
        {"term": term, "leading_edge": term, "nes": nes}
        for term, nes in (("weak", 1.5), ("strong", -2.5), ("middle", 2.0))
    ]
    assert named(*rows)[0] == "strong; middle"
    assert named(*rows, most=1)[0] == "strong"


def test_a_general_term_gives_way_to_a_specific_one_unless_it_is_clearly_better():
    general = {"term": "general", "leading_edge": "a;b;c;d;e", "size": 40, "nes": -2.0}
    specific = {"term": "specific", "leading_edge": "a;b", "size": 5, "nes": -1.8}
    assert named(general, specific)[0] == "specific"
    assert named(general, specific | {"nes": -1.79})[0] == "general; specific"
    assert named(general, specific | {"leading_edge": "a;z"})[0] == "general; specific"
    assert named(general | {"size": 5}, specific)[0] == "general; specific"


def test_item_09_small_p_values_which_hang_on_the_seed_order_no_names():
    strong = {"term": "strong", "leading_edge": "a", "nes": 2.5}
    weak = {"term": "weak", "leading_edge": "b", "nes": 1.5}
    for p_values in ((1e-9, 1e-8), (1e-8, 1e-9)):
        rows = [row | {"p_value": p} for row, p in zip((strong, weak), p_values, strict=True)]
        assert named(*rows)[0] == "strong; weak"


def test_item_09_what_lies_within_its_error_of_the_threshold_is_borderline():
    rows = [
        {"term": "sure", "fdr": 0.04, "fdr_low": 0.03, "fdr_high": 0.05},
        {"term": "just below", "fdr": 0.049, "fdr_low": 0.044, "fdr_high": 0.055},
        {"term": "just above", "fdr": 0.052, "fdr_low": 0.047, "fdr_high": 0.058},
        {"term": "no", "fdr": 0.06, "fdr_low": 0.051, "fdr_high": 0.07},
    ]
    rows = [{"leading_edge": row["term"], "nes": 3.0 - n} | row for n, row in enumerate(rows)]
    expected = ["passes", "borderline", "borderline", "does not pass"]
    assert verdicts(table_of(*rows)).tolist() == expected
    name, evidence = named(*rows[1:])
    assert name == "just below; just above"  # as with other draws, that decided otherwise
    assert "FDR 0.049 (borderline: by sampling between 0.044 and 0.055)" in evidence
    assert named(rows[3])[0] == "unnamed"


def test_a_planted_hallmark_names_its_mechanism():
    hallmark = load_collection("hallmark")
    genes = sorted(hallmark.genes)[::3]
    drawn = np.random.default_rng(0).standard_normal((len(genes), 2))
    loadings = pd.DataFrame(drawn, index=genes, columns=[0, 1])
    loadings.loc[loadings.index.isin(hallmark.sets["HALLMARK_HYPOXIA"]), 0] -= 1.5
    table = rank_enrichment(loadings, hallmark).table
    names = suggested_names(table, [0, 1], fdr=1e-3, most=1)["name"]
    assert names.tolist() == ["Hypoxia (down)", "unnamed"]


def test_what_over_representation_has_is_told_where_gsea_gives_no_name():
    top = HALLMARK | {"method": "ora", "term": "HALLMARK_TGF_BETA_SIGNALING", "direction": "down"}
    names = suggested_names(table_of(HALLMARK | {"fdr": 0.2}, top), [0])
    assert names.loc[0, "name"] == "unnamed"
    assert names.loc[0, "evidence"].endswith(
        "by GSEA. By over-representation: TGF beta signaling (down)."
    )
