"""How tests open a page, and what they read there."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from app.pages import PAGES
from app.session import results, session_file, url
from samsvae_core.analysis import all_shifts as effects
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.models.variants import MODELS
from samsvae_core.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]

APP = ROOT / "app"

MAIN = str(APP / "main.py")

VIEWS = [name for name in PAGES if name not in ("data", "train")]  # with tests of their own

BRIEF = TrainConfig(steps=24, batch_size=128, particles=1, learning_rate=1e-2)

KINDS = {  # the small bundle is a SAMS-VAE
    **{name: {"model": name} for name in MODELS if name != "sams-vae"},
    "frontier": {"frontier": True},
    "values": {},  # a Gaussian likelihood, for values that are not counts
    "mechanisms alone": {},  # without direct effects
}


def rewritten(bundle: Bundle, name: str, frame: pd.DataFrame | None) -> None:
    """Put another table into a bundle, or take it out."""
    (bundle.path / name).unlink(missing_ok=True)
    if frame is not None:
        frame.to_csv(bundle.path / name, index=False)
    layout.write_manifest(bundle.path, bundle.manifest["data"], "cpu")


def uncomposed(models: Path) -> None:
    """Remove the stored shifts of the bundle, and of an equal one from an earlier test."""
    rewritten(opening.load(models / "tiny"), layout.EFFECTS, None)
    bundle = opening.load(models / "tiny")
    results.forget_effects(bundle)
    effects.cache_file(bundle).unlink(missing_ok=True)


def opened(view: str, query: dict[str, str] | None = None) -> AppTest:
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update(query or {})
    page.switch_page(f"views/{view}.py")
    return page.run()


def slider(page: AppTest, name: str):
    """Return the slider of a perturbation's dosage."""
    return next(each for each in page.slider if each.label == f"Dosage of {name}")


def gone_back(page: AppTest, query: dict[str, str]) -> AppTest:
    """Go to an address of the same page, as the browser's back button does."""
    page.query_params.clear()
    page.query_params.update(query)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(url, "went_back", lambda: True)
        return page.run()


def finished(page: AppTest) -> bool:
    """Return whether the page reached its last line; a page that panics shows no exception."""
    assert not page.exception
    assert not [error.value for error in page.error if "Something went wrong" in error.value]
    return any("SAMS-VAE Explorer" in caption.value for caption in page.caption)


def figures(page: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]


def ended(page: AppTest) -> AppTest:
    """Return the page once the background tests are done."""
    for _ in range(60):
        if not any(button.label == "Cancel" for button in page.button):
            return page
        time.sleep(0.5)
        page.run()
    raise AssertionError("The tests have not ended.")


def words(page: AppTest) -> str:
    """Return all text of the page, without the escapes that keep names from being Markdown."""
    parts = [*page.markdown, *page.caption, *page.info, *page.warning]
    return " ".join(part.value for part in parts).replace("\\", "")


def labels(page: AppTest) -> set[str]:
    widgets = [*page.multiselect, *page.slider, *page.toggle, *page.segmented_control]
    return {widget.label for widget in widgets}


def axes(page: AppTest) -> str:
    return json.dumps([figure["layout"] for figure in figures(page)])


def whiskers(page: AppTest) -> dict[str, tuple[float, float]]:
    """Return the ends of the interval of each gene in the ranking."""
    bar = next(f["data"][0] for f in figures(page) if f["data"][0]["type"] == "bar")
    genes = [gene.removeprefix("<i>").removesuffix("</i>") for gene in bar["y"]]
    ends = np.array(decoded(bar["customdata"])).reshape(-1, 2)
    return dict(zip(genes, map(tuple, ends), strict=True))


def decoded(values: object) -> np.ndarray:
    """Return an array of a figure, which Plotly may write in base64."""
    import base64

    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return np.asarray(values)


def table_with(page: AppTest, column: str) -> pd.DataFrame:
    return next(frame.value for frame in page.dataframe if column in frame.value)


def links(page: AppTest) -> list[dict]:
    """Return the links to other pages of the dashboard: label, page and query."""
    found = [link.proto for link in page.get("page_link")]
    return [{"label": f.label, "page": f.page, "query": f.query_string} for f in found]


def found(page: AppTest) -> list[str]:
    """Return the results below the search box, in order."""
    return [b.label.replace("\\", "") for b in page.button if b.key.startswith("hit ")]


def kept(page: AppTest) -> list:
    return list(page.session_state["kept"])


def saved_session(tiny: Bundle, **changed: object) -> bytes:
    pages = {
        "compose": {"c": ["P1:1,P3:0.5"], "n_genes": ["30"]},
        "masks": {"colour": ["Signed effect"]},
    }
    views = (
        session_file.SessionView(title, page, query, checksum)
        for title, page, query, checksum in (
            ("", "compose", {"c": ["P1:1,P2:0.5"], "off": ["rest"]}, tiny.checksum),
            ("", "masks", {"rows": ["Name"]}, tiny.checksum),
            ("", "compose", {"c": ["P3:1"]}, tiny.checksum),
            ("", "gene", {"g": ["CCL5"]}, tiny.checksum),
            ("", "gene", {}, tiny.checksum),
            ("", "gene", {}, "0" * 64),
        )
    )
    own = {"mine": "SET ONE\tnone\t" + "\t".join(tiny.genes[:10]) + "\n"}
    session = session_file.Session(tiny.name, tiny.checksum, pages, views, own, {})
    return session_file.written(session._replace(**changed))


def uploaded(content: bytes) -> AppTest:
    page = opened("report")
    page.file_uploader[0].set_value([("s.json", content, "application/json")]).run()
    return page
