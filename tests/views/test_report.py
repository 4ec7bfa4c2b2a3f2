"""Views that are kept, sessions, and the page Report."""

import json

import pandas as pd
import pytest

from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis.compose import compose
from samsvae_core.bundle.bundle import Bundle
from tests.views.pages import (
    figures,
    finished,
    kept,
    opened,
    saved_session,
    table_with,
    uploaded,
    words,
)

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def test_a_view_is_kept_with_what_it_shows(one_model, tiny):
    page = opened("compose", {"c": "P1:1,P2:0.5"})
    shown = table_with(page, "shift")
    page.button(key="keep view").click().run()
    (view,) = kept(page)
    assert view.title == "Compose: P1+P2:0.5"
    assert view.checksum == tiny.checksum
    tables = {item.name: item.frame for item in view.items if hasattr(item, "frame")}
    pd.testing.assert_frame_equal(
        tables["shift_P1+P2:0.5"].reset_index(drop=True), shown.reset_index(drop=True)
    )
    drawn = [json.loads(item.json)["data"] for item in view.items if hasattr(item, "json")]
    assert drawn == [figure["data"] for figure in figures(page)]
    page.button(key="keep view").click().run()
    assert len(kept(page)) == 1  # the same view again


def test_a_session_draws_its_views_again_and_shows_its_pages(one_model, tiny):
    page = uploaded(saved_session(tiny))
    assert "5 kept views, 1 gene-set files" in words(page)
    assert "1 kept views are of another model" in words(page)
    page.button(key="session use").click().run()
    assert finished(page)
    views = kept(page)
    titles = [view.title.partition(" without ")[0] for view in views]
    first_gene = opened("gene").selectbox(key="gene").value
    wanted = ["Compose: P1+P2:0.5", "Masks", "Compose: P3", "Gene: CCL5", f"Gene: {first_gene}"]
    assert titles == wanted
    first = compose(tiny, {"P1": 1.0, "P2": 0.5}, without=unused(tiny, ["P1", "P2"]))
    table = next(i.frame for i in views[0].items if getattr(i, "name", "") == "shift_P1+P2:0.5")
    assert table.set_index("gene")["shift"].to_dict() == pytest.approx(
        first.table["shift"].to_dict()
    )
    page.query_params.clear()  # as the menu does
    page.switch_page("views/compose.py").run()
    assert finished(page)
    assert page.multiselect(key="compose_names").value == ["P1", "P3"]
    assert page.slider(key="n_genes").value == 30
    page.query_params.clear()
    page.switch_page("views/masks.py").run()
    assert page.segmented_control(key="colour").value == "effect"
    page.query_params.clear()
    page.switch_page("views/gene_sets.py").run()
    assert "mine" in page.multiselect(key="collections").options
    assert page.multiselect(key="collections").value == ["hallmark", "reactome"]


def test_a_session_with_sets_that_cannot_be_used_here_is_refused_whole(one_model, tiny):
    page = uploaded(saved_session(tiny, collections={"hallmark": "A\tx\tG1\n"}))
    assert "the name of a shipped collection" in page.error[0].value
    page = uploaded(saved_session(tiny, collections={"mine": "A"}))
    assert page.error
    page = uploaded(saved_session(tiny, names={"schema": 99, "mechanisms": {}}))
    assert "another version" in page.error[0].value
    assert not [button for button in page.button if button.key == "session use"]
    assert finished(page)


def unused(bundle: Bundle, names: list[str]) -> list[int]:
    active = interpretation.matrix(bundle.masks, "active").loc[names].any()
    return [int(k) for k in active.index[~active]]


def test_a_session_of_another_model_and_a_damaged_one_say_so(one_model, tiny):
    page = uploaded(saved_session(tiny, checksum="0" * 64, model="<b>other"))
    assert "of the model '<b>other'" in page.error[0].value.replace("\\", "")
    assert "<b>" not in page.error[0].value
    assert not [button for button in page.button if button.key == "session use"]
    page = uploaded(saved_session(tiny)[:-9])
    assert "cannot be read as JSON" in page.error[0].value
    assert finished(page)
