"""The glossary finds entries by word and by meaning."""

from app.components import glossary


def test_a_word_is_found_by_its_beginning_first():
    assert next(iter(glossary.found("mask"))) == "Mask"
    assert "Near miss" in glossary.found("mask")  # its meaning mentions masks


def test_every_word_says_something_that_is_not_itself():
    for word, meaning in glossary.WORDS.items():
        assert len(meaning.split()) > 4, word
        assert meaning.endswith("."), word


def test_nothing_is_found_for_nonsense():
    assert glossary.found("qqqq") == {}
