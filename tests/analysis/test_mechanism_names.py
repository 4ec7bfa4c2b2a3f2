import json

import pytest

from samsvae_core.analysis.mechanism_names import (
    MAX_BYTES,
    Label,
    Names,
    export_names,
    import_names,
    names_file,
    read_names,
    write_names,
)
from samsvae_core.bundle.layout import list_bundles, to_json
from samsvae_core.bundle.opening import load
from samsvae_core.system.files import OutputError

LABELS = {
    0: Label("interferon response", "STAT1, JAK2 and IFNGR1 use it.\n\tSee figure 2."),
    3: Label("", "two genes only"),
    1: Label("<b>ΔNp63</b> & 'Zellzyklus' 🧬"),
}


@pytest.fixture
def bundle(copied):
    return load(copied)


def content(bundle, /, **changes) -> bytes:
    entries = {"0": {"name": "first", "note": ""}}
    whole = {"schema": 1, "bundle": bundle.name, "checksum": bundle.checksum, "mechanisms": entries}
    return json.dumps(whole | changes).encode()


# Kept beside the bundle


def test_names_come_back_as_they_were_written(bundle):
    assert read_names(bundle) == Names({}, "")
    write_names(bundle, LABELS)
    assert read_names(bundle) == Names(LABELS, "")
    write_names(bundle, {1: Label("other")})
    assert read_names(bundle) == Names({1: Label("other")}, "")
    write_names(bundle, {})
    assert read_names(bundle) == Names({}, "")


def test_the_file_lies_beside_the_bundle_and_changes_nothing_in_it(bundle):
    before = {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}
    write_names(bundle, LABELS)
    assert names_file(bundle) == bundle.path.parent / "copied.names.json"
    after = {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}
    assert before == after
    assert list_bundles(bundle.path.parent) == {"copied": bundle.path}
    assert load(bundle.path).checksum == bundle.checksum


def test_a_bundle_given_by_a_relative_path_has_its_names_beside_it(bundle, monkeypatch):
    write_names(bundle, LABELS)
    monkeypatch.chdir(bundle.path)
    assert read_names(load(".")).labels == LABELS


def test_the_file_is_the_json_that_is_documented(bundle):
    write_names(bundle, {2: Label("cell cycle", "G2/M"), 0: Label(" \n ", "")})
    assert json.loads(names_file(bundle).read_text()) == {
        "schema": 1,
        "bundle": "copied",
        "checksum": bundle.checksum,
        "mechanisms": {"2": {"name": "cell cycle", "note": "G2/M"}},
    }


def test_what_is_exported_can_be_imported(bundle):
    assert import_names(bundle, export_names(bundle, LABELS)) == LABELS
    assert import_names(bundle, b"\xef\xbb\xbf" + export_names(bundle, LABELS)) == LABELS


def test_blanks_around_and_line_ends_of_other_systems_are_not_kept(bundle):
    found = import_names(bundle, export_names(bundle, {0: Label("  a b ", "one\r\ntwo\n\n")}))
    assert found == {0: Label("a b", "one\ntwo")}


def test_a_note_or_a_name_may_be_missing(bundle):
    entries = {"0": {"name": "a"}, "1": {"note": "b"}, "2": {}}
    found = import_names(bundle, content(bundle, mechanisms=entries))
    assert found == {0: Label("a", ""), 1: Label("", "b")}


# Another bundle's


def test_names_of_another_training_are_not_applied(bundle):
    write_names(bundle, LABELS)
    kept = names_file(bundle).read_bytes()
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    (bundle.path / "manifest.json").write_bytes(to_json(manifest | {"created": "later"}))
    again = load(bundle.path)
    with pytest.raises(ValueError, match=r"for another model \('copied'\) or another training"):
        import_names(again, kept)
    labels, problem = read_names(again)
    assert labels == {}
    assert str(names_file(bundle)) in problem
    assert "They were not applied" in problem


def test_names_of_another_training_are_not_overwritten(bundle):
    other = content(bundle, checksum="0" * 64, bundle="x" * 10_000)
    names_file(bundle).write_bytes(other)
    with pytest.raises(OutputError, match=r"not applied\. Move that file away .* or download") as e:
        write_names(bundle, LABELS)
    assert len(str(e.value)) < 1000
    assert names_file(bundle).read_bytes() == other


# Bad input


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"mechanisms": ' + b"9" * 5000, "cannot be read as JSON"),
        (b" " * MAX_BYTES + b"{}", "larger than 1 MB"),
        (b"[]", "has no mechanisms"),
        (b"null", "has no mechanisms"),
        (b'{"mechanisms": []}', "has no mechanisms"),
        (b'{"mechanisms": {}}', "of another version; this one reads schema 1"),
        (b'{"mechanisms": {}, "schema": 2}', "of another version"),
        (b'{"mechanisms": {}, "schema": 1}', "for another model"),
        (b'{"mechanisms": {}, "schema": 1, "bundle": [], "checksum": 3}', "for another model"),
    ],
)
def test_a_damaged_file_is_one_message_and_no_names(bundle, bad, message):
    with pytest.raises(ValueError, match=message) as error:
        import_names(bundle, bad)
    assert len(str(error.value)) < 400
    names_file(bundle).write_bytes(bad)
    labels, problem = read_names(bundle)
    assert labels == {}
    assert message in problem
    with pytest.raises(OutputError, match=message):
        write_names(bundle, LABELS)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"4": {"name": "a"}}, "There is no mechanism '4'; this model has 0 to 3"),
        ({"-1": {"name": "a"}}, "no mechanism '-1'"),
        ({"00": {"name": "a"}}, "no mechanism '00'"),
        ({"٣": {"name": "a"}}, "no mechanism"),
        ({"\ud800" * 99: {"name": "a"}}, "no mechanism '.{,60}';"),
        ({"0": "a"}, "expected a name and a note, both text"),
        ({"0": {"name": 1}}, "expected a name and a note, both text"),
        ({"0": {"name": "a", "note": None}}, "expected a name and a note, both text"),
        ({"0": {"name": "a" * 81}}, "name of mechanism 0 has 81 characters; 80 is the most"),
        ({"0": {"note": "a" * 2001}}, "note of mechanism 0 has 2,001 characters; 2,000 is the"),
        ({"0": {"name": "a\nb"}}, "control characters or several lines"),
        ({"0": {"name": "a\tb"}}, "control characters or several lines"),
        ({"0": {"name": "a\u2028b"}}, "control characters or several lines"),
        ({"0": {"name": "a\x00b"}}, "control characters"),
        ({"0": {"name": "a\u202eb"}}, "control characters"),
        ({"0": {"note": "a\x1b[31mb"}}, "control characters. Type"),
        ({"0": {"note": "a\rb"}}, "control characters"),
        ({"0": {"note": "a\ud800b"}}, "control characters"),
    ],
)
def test_a_label_against_the_rules_is_refused(bundle, entries, message):
    with pytest.raises(ValueError, match=message) as error:
        import_names(bundle, content(bundle, mechanisms=entries))
    str(error.value).encode()  # can be shown


def test_labels_against_the_rules_are_not_written(bundle):
    for labels in ({4: Label("a")}, {0: Label("a" * 81)}, {0: Label("a\nb")}):
        with pytest.raises(ValueError, match="mechanism"):
            write_names(bundle, labels)
    assert not names_file(bundle).exists()


def test_the_longest_that_is_allowed_is_allowed(bundle):
    labels = {k: Label("é" * 80, "🧬" * 2000) for k in range(4)}
    write_names(bundle, labels)
    assert read_names(bundle) == Names(labels, "")


def test_where_nothing_can_be_written_names_can_be_downloaded(bundle, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(
        OutputError, match=r"json: Read-only file system\. Download the names instead"
    ):
        write_names(bundle, LABELS)
    assert read_names(bundle) == Names({}, "")


def test_a_folder_in_place_of_the_file_is_told(bundle):
    names_file(bundle).mkdir()
    labels, problem = read_names(bundle)
    assert labels == {}
    assert "cannot be read (Is a directory)" in problem
    with pytest.raises(OutputError, match="Is a directory"):
        write_names(bundle, LABELS)
