"""Values in an address are read back as written, and invalid ones are refused."""

import base64
import re
import zlib

import numpy as np
import pytest

from app.session import choices, composition, markdown, url
from samsvae_core.analysis.held_out import as_text


@pytest.mark.parametrize("n_cells", [1, 7, 8, 6000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_a_selection_of_cells_is_read_back_as_it_was(n_cells, share):
    chosen = np.flatnonzero(np.random.default_rng(0).random(n_cells) < share).tolist()
    code = choices.as_code(chosen, n_cells)
    assert choices.cells_of(code, n_cells) == chosen
    assert len(code) < 1400  # so that an address holds it
    assert code == choices.as_code(chosen[::-1], n_cells)


@pytest.mark.parametrize(
    "code",
    [
        "nonsense",
        "!!!!",
        "A" * 100_000,
        base64.urlsafe_b64encode(zlib.compress(bytes(12))).decode(),  # of another number of cells
        base64.urlsafe_b64encode(zlib.compress(bytes(10_000_000))).decode(),  # unpacks to much
        "名",
    ],
)
def test_a_selection_that_is_none_of_these_cells_is_refused(code):
    with pytest.raises(ValueError, match="not in this model"):
        choices.cells_of(code, 100)


@pytest.mark.parametrize(
    ("off", "link"),
    [
        (set(), ""),
        ({3}, "3"),
        ({0, 1, 2, 3, 7, 8}, "0-3,7,8"),
        ({5, "rest"}, "5,rest"),
        (set(range(200)), "0-199"),
    ],
)
def test_mechanisms_taken_out_are_written_in_short_and_read_back(off, link):
    assert composition.as_off(off) == link
    assert composition.read_off(link) == off


def test_what_is_no_mechanism_is_left_out_of_those_taken_out():
    assert composition.read_off("1,x,-3,2-1,99999,<b>,4 ") == {1}


def test_an_address_carries_any_value():
    query = {"c": ["A,B:1&x=#"], "names": ["名", "b c"], "n": 3}
    found = url.as_address("compose", query)
    assert found == "compose?c=A%2CB%3A1%26x%3D%23&names=%E5%90%8D&names=b%20c&n=3"
    assert url.as_address("compose", {}) == "compose"
    again = url.read_address(found)
    assert again == ("compose", {"c": ["A,B:1&x=#"], "names": ["名", "b c"], "n": ["3"]})


@pytest.mark.parametrize("name", ["A,B", "A:0.5", "a b", "50%", "<b>x</b>", "名"])
def test_a_link_carries_any_name(name):
    assert composition.read_link(composition.as_link({name: 0.5, "C": 1.0})) == {
        name: 0.5,
        "C": 1.0,
    }


def test_a_link_written_by_hand_is_read_leniently():
    assert composition.read_link("A,B:x,:,C:9") == {"A": 1.0, "B": 1.0, "C": 2.0}


def test_entities_in_names_are_shown_as_they_are():
    assert markdown.plain("A&lt;b") == r"A\&lt;b"


def test_names_from_files_are_shown_as_text():
    assert markdown.plain("<b>*x*</b> [l](u) $y$ :red[z]") == (
        r"\<b\>\*x\*\</b\> \[l\]\(u\) \$y\$ \:red\[z\]"
    )


MADE_OF = (":material/face:", ":smile:", ":+1:", ":streamlit:", ":a_b:smile:", "A -> B", "A <- B")
MADE_OF += (
    "A -- B",
    "A <= B",
    "A >= B",
    "A ~= B",
    "A<->B",
    "https://a.org",
    "www.a.org",
    "a@b.org",
)


@pytest.mark.parametrize("name", MADE_OF)
def test_item_20_nothing_is_made_of_a_name_after_markdown_was_read(name):
    """Streamlit applies these patterns after Markdown, so a backslash does not help."""
    made = r":[\w+-][\w+/-]*:| (->|<-|<->|--|>=|<=|~=) |<->|https?://|www\.\w|\w@"
    assert re.search(made, name)
    for shown in (markdown.plain(name), markdown.parted(as_text(name))):
        text = re.sub(r"\\(.)", r"\1", shown)
        assert not re.search(made, text)
        assert text.replace("\u2060", "") == name


def test_item_20_markdown_of_cards_stays_markdown():
    text = "| a | b |\n|---|---|\n| -1 | *x* `samsvae loadings --steps` |\n\n- GEO: GSE1; r = 0.5"
    assert markdown.parted(text) == text


@pytest.mark.parametrize("name", ["http://a.org", "HTTPS://a.org", "see www.a.org", "me@a.org"])
def test_a_name_that_looks_like_an_address_is_parted_unseen(name):
    shown = markdown.plain(name).replace("\\", "")
    assert shown.replace("\u2060", "") == name
    assert not re.search(r"https?://|www\.|[a-z]@", shown, re.IGNORECASE)
