from samsvae_core.system.messages import close, either, nearest, some


def test_lists_in_words_say_how_many_more_there_are():
    assert some(["a", "b"]) == "a, b"
    assert some(range(1_500), 2) == "0, 1 and 1,498 more"
    assert [either(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a or b",
        "a, b or c",
    ]


def test_the_name_that_was_meant_is_found_whatever_its_capitals():
    known = ["STAT1", "stat3", "JAK2"]
    assert nearest("Stat1", known) == "Did you mean 'STAT1' or 'stat3'?"
    assert close("STAT3", known, 1) == ["stat3"]
    assert nearest("x", known) == "There are: STAT1, stat3, JAK2."
    assert nearest("x", []) == "There are none."
