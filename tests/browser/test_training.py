"""From an upload to a trained model that is opened on another server.

Nothing is replaced by a stand-in, so it takes minutes.
"""

import anndata
import numpy as np
import pandas as pd
import pytest

from app.server import queue, runs
from samsvae_core.models.simulate import Design, simulate, write_h5ad
from tests.browser.conftest import dashboard
from tests.browser.person import MARKS, choose, press, settled, shows, taken, visit

pytestmark = [*MARKS, pytest.mark.slow]
KEY = "what was done"
EPOCHS = 300  # long enough to be stopped; 400 steps would be suggested
MINUTES = 60_000  # milliseconds


@pytest.fixture
def screen_file(tmp_path):
    """Write simulated cells whose columns have unusual names, one of them misleading."""
    drawn, truth = simulate(Design(1500, 60, 8, 3, 3))
    path = tmp_path / "screen.h5ad"
    write_h5ad(drawn, truth, path)
    cells = anndata.read_h5ad(path)
    cells.obs = cells.obs.rename(columns={"perturbation": KEY})
    rows = np.arange(len(cells))
    cells.obs["well"] = np.where(rows % 2, "ctrl", [f"W{row % 24:02}" for row in rows])
    cells.write_h5ad(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Return the runs folder of the first server; ends its training runs after the test."""
    place = tmp_path / "runs"
    yield place
    for job in runs.listed(place):
        queue.stop(place, job.name, at_once=True)


def epochs(folder, name) -> list[int]:
    return runs.history(folder / name)["epoch"].astype(int).tolist()


def test_from_an_upload_to_a_model_in_another_server(visitor, screen_file, folder, tmp_path):
    context = visitor()
    context.set_default_timeout(2 * MINUTES)  # a training takes the machine
    page = context.new_page()
    models = tmp_path / "models"
    models.mkdir()
    with dashboard(SAMSVAE_RUNS=str(folder), SAMSVAE_MODELS=str(models)) as url:
        visit(page, f"{url}/data")
        page.locator('input[type="file"]').first.set_input_files(screen_file)
        shows(page, "was kept, and is selected")
        choose(page, "Column of perturbations", KEY)
        settled(page)
        page.get_by_role("button", name="Train on this data").click()
        page.get_by_role("button", name="Start training").wait_for()
        page.get_by_text("More choices").click()
        for label, value in (("Cells per step", 64), ("Hidden units", 32), ("Steps", EPOCHS * 15)):
            box = page.get_by_role("spinbutton", name=label, exact=True)
            box.fill(str(value))
            box.press("Enter")
            page.wait_for_url(lambda now, value=value: f"={value}" in now)
        shows(page, f"About {EPOCHS} epochs of 15 steps")
        press(page, "start")
        page.get_by_text("Running on cpu").wait_for()
        page.locator(".st-key-training_bounds .js-plotly-plot").wait_for(timeout=MINUTES)
        (job,) = runs.listed(folder)

        page.reload()  # in the middle
        page.get_by_role("button", name="Stop", exact=True).wait_for()
        before = page.locator(".st-key-training_bounds .js-plotly-plot")
        before.wait_for()
        press(page, "stop_run")
        page.get_by_role("button", name="Resume").wait_for(timeout=MINUTES)
        at = epochs(folder, job.name)
        assert at == list(range(1, len(at) + 1))
        assert 1 < len(at) < EPOCHS

        press(page, "resume_run")
        page.get_by_role("link", name="Open it in Compose").wait_for(timeout=5 * MINUTES)
        assert epochs(folder, job.name) == list(range(1, EPOCHS + 1))
        packed = taken(page, "download_run")
        page.get_by_role("link", name="Open it in Compose").click()
        page.get_by_role("heading", name="Compose", level=1).wait_for()
        settled(page)
        assert f"model={job.name}" in page.url
        visit(page, f"{url}/compose?c=P1%3A1%2CP2%3A1&model={job.name}")
        page.locator(".st-key-shifts .js-plotly-plot").first.wait_for()

    (tmp_path / "model.zip").write_bytes(packed)
    with dashboard(SAMSVAE_RUNS=str(tmp_path / "other"), SAMSVAE_MODELS=str(models)) as url:
        visit(page, f"{url}/data")
        page.locator('input[type="file"]').last.set_input_files(tmp_path / "model.zip")
        shows(page, f"{job.name} is among the models now, and is selected")
        visit(page, f"{url}/compose?c=P1%3A1%2CP2%3A1&model={job.name}")
        page.locator(".st-key-shifts .js-plotly-plot").first.wait_for()
    tables = [folder / job.name / "masks.csv", tmp_path / "other" / job.name / "masks.csv"]
    pd.testing.assert_frame_equal(*map(pd.read_csv, tables))
    context.close()
