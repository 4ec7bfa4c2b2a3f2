"""A person brings a screen whose column has no usual name, and a model made elsewhere."""

import re

import anndata
import numpy as np
import pytest

from samsvae_core.bundle.archive import pack
from tests.browser.person import MARKS, address_has, choose, settled, shows, visit

pytestmark = MARKS
UNUSUAL = "what was done (final)"


@pytest.fixture(scope="module")
def unusual(screen, tmp_path_factory):
    """Write the small screen with labels joined by "_", in a column like two others."""
    cells = anndata.read_h5ad(screen.path)
    labels = cells.obs["perturbation"].astype(str).str.replace("+", "_")
    cells.obs[UNUSUAL] = labels
    del cells.obs["perturbation"]
    rows = np.arange(len(cells))
    cells.obs["well"] = np.where(rows % 2, "ctrl", [f"W{row % 24:02}" for row in rows])
    path = tmp_path_factory.mktemp("brought") / "my screen.h5ad"
    cells.write_h5ad(path)
    return path


def label_counts(page) -> dict[str, int]:
    """Return the numbers in the preview, such as 6 single perturbations."""
    text = page.locator(".st-key-preview").inner_text()
    return {what: int(n) for n, what in re.findall(r"(\d+) ([a-z]+)", text)}


def test_an_upload_is_mended_on_the_page_and_goes_on_to_training(page, server, unusual, screen):
    visit(page, f"{server}/data")
    page.locator('input[type="file"]').first.set_input_files(unusual)
    shows(page, "my screen.h5ad was kept, and is selected")
    address_has(page, "data=uploads%2Fmy_screen-")
    assert label_counts(page)["single"] == 12  # of the wells, which are suggested: most labels
    assert page.get_by_role("combobox", name="Column of perturbations").input_value() == "well"

    choose(page, "Column of perturbations", UNUSUAL)
    settled(page)
    address_has(page, "key=what")
    assert label_counts(page) == {"control": 1, "single": 6, "combinations": 2}
    choose(page, "Between parts of a combination", "|")
    address_has(page, "delimiter=%7C")
    assert label_counts(page) == {"control": 1, "single": 8}
    choose(page, "Between parts of a combination", "_")  # as suggested for this file
    page.wait_for_url(lambda url: "delimiter" not in url)
    settled(page)
    assert label_counts(page) == {"control": 1, "single": 6, "combinations": 2}
    n_control = (screen.data.conditions == screen.data.control).sum()
    metric = page.get_by_test_id("stMetric").filter(has_text="Control cells")
    assert metric.get_by_test_id("stMetricValue").inner_text() == str(n_control)

    link = page.url
    visit(page, link)  # the link alone shows the same
    assert label_counts(page) == {"control": 1, "single": 6, "combinations": 2}
    page.get_by_role("button", name="Train on this data").click()
    page.get_by_role("heading", name="Train", level=1).wait_for()
    shows(page, "600 cells, 40 genes, 6 perturbations, 2 combinations")


def test_a_model_made_elsewhere_is_opened(page, server, tiny, tmp_path):
    file = pack(tiny.path, tmp_path / "elsewhere.zip")
    visit(page, f"{server}/data")
    page.locator('input[type="file"]').last.set_input_files(file)
    shows(page, re.compile("a model called tiny already"))  # the name of one of this server's
    page.locator('input[type="file"]').last.set_input_files(
        {"name": "bad.zip", "mimeType": "application/zip", "buffer": file.read_bytes()[:9000]}
    )
    shows(page, "no zip that can be read")


def test_nothing_of_a_name_is_run_or_drawn(page, server, screen, tmp_path):
    cells = anndata.read_h5ad(screen.path)
    labels = cells.obs["perturbation"].astype(str)
    name = "<img src=x onerror=alert(1)>"
    cells.obs["perturbation"] = labels.replace({"P1": name})
    cells.obs[f"{name} **b**"] = "x"
    cells.write_h5ad(tmp_path / "odd.h5ad")
    page.on("dialog", lambda dialog: pytest.fail("a script of the file was run"))
    visit(page, f"{server}/data")
    page.locator('input[type="file"]').first.set_input_files(tmp_path / "odd.h5ad")
    shows(page, "odd.h5ad was kept, and is selected")
    assert page.locator("img[src=x]").count() == 0
