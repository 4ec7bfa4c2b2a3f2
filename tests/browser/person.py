"""What a person does at the dashboard, and waiting until the page is ready."""

import io
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REQUIRED = os.environ.get("SAMSVAE_BROWSER_REQUIRED") == "1"
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED, reason="there is no Chromium on this machine"
    ),
]

ONCE = """() => document.querySelectorAll('.st-key-end').length === 1
    && !document.querySelector('[data-stale="true"]')
    && !document.querySelector('[data-testid="stSkeleton"]')"""
# Nothing left of the run before, and no element whose code the browser still has to load.


def visit(page, url: str) -> None:
    page.goto(url)
    settled(page)


def settled(page) -> None:
    """Wait until the page has reached its end and nothing runs any more."""
    page.wait_for_selector(".st-key-end", timeout=120_000)
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_function(ONCE)


def shows(page, text: str | re.Pattern[str]) -> None:
    """Wait until the page shows a text and has come to rest."""
    page.get_by_text(text).first.wait_for()
    settled(page)


def address_has(page, part: str) -> None:
    """Wait until the address has what a choice writes to it, and the page has come to rest."""
    page.wait_for_url(lambda url: part in url)
    settled(page)


def turn_to(page, name: str) -> None:
    """Go to another page by its link in the sidebar."""
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
    page.get_by_role("heading", name=name, level=1).wait_for()
    settled(page)


def press(page, key: str) -> None:
    """Press the button with this key."""
    page.locator(f".st-key-{key} button:visible").first.click()


def choose(page, box: str, name: str) -> None:
    """Choose an option of a select box by typing."""
    page.get_by_role("combobox", name=box).fill(name)
    page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")  # an open list hides the rest of the page


def download(page, button: str, last: bool = False) -> bytes:
    found = page.get_by_role("button", name=button, exact=True)
    with page.expect_download() as started:
        (found.last if last else found.first).click()
    return Path(started.value.path()).read_bytes()


def taken(page, key: str) -> bytes:
    """Return the file of the download button with this key."""
    with page.expect_download() as started:
        press(page, key)
    return Path(started.value.path()).read_bytes()


def composed_shift(page) -> pd.DataFrame:
    """Return the predicted shift by gene, from the file that Compose offers."""
    button = '[class*="st-key-shift_"][class*="-CSV"] button'
    with page.expect_download() as started:
        page.locator(button).click()
    return table(Path(started.value.path()).read_bytes()).set_index("gene")


def table(content: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content))


def click_in(page, place) -> None:
    """Click in the middle of an element that takes no clicks itself, such as a point."""
    box = place.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
