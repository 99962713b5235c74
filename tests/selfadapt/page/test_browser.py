"""The page in a real browser, the one that the machine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

import pytest

from tests.selfadapt.page.pages import Page

pytest.importorskip("gradio", reason="Gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PATIENCE = 60_000  # milliseconds


def test_someone_plays(start: Callable[..., Page], browser: Any) -> None:
    page = start("b")
    hosts: set[str | None] = set()
    wrong: list[str] = []
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(PATIENCE)
    tab.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(page.url)

    # Asks, from the keyboard: pass one and both answers are there.
    prompt = tab.get_by_label("Your prompt").first
    prompt.fill("Which animal barks?")
    prompt.press("Enter")
    said(tab, "ask", "Done")
    own, base = tab.locator("#ask-answers .sa-text").all_inner_texts()
    assert own != base
    assert "b" in tab.inner_text("#ask-pass-one").split()
    assert tab.locator("#ask-status").get_attribute("role") == "status"

    # Moves a slider, from the keyboard: the answer changes.
    tab.get_by_role("tab", name="Mix").click()
    slider = tab.locator("#mix-a input[type=range]")
    slider.focus()
    slider.press("End")
    said(tab, "mix", "2.00 of the mixture")
    exaggerated = tab.locator("#mix-answers .sa-text").all_inner_texts()
    slider.press("Home")
    said(tab, "mix", "0.00 of the mixture")
    assert tab.locator("#mix-answers .sa-text").all_inner_texts() == exaggerated[1:]  # the base, and it alone
    assert exaggerated[0] != exaggerated[1]

    # A mistake is a line, and the page goes on.
    tab.get_by_role("tab", name="Ask").click()
    prompt.fill("  ")
    tab.click("#ask-go")
    tab.wait_for_selector("#ask-status .sa-error")
    assert tab.locator("#ask-go").is_visible()

    # Everything that can be used has a name.
    for control in tab.locator("input:visible, textarea:visible, button:visible, [role=tab]:visible").all():
        assert control.evaluate(NAME), control.evaluate("element => element.outerHTML")[:200]
    assert hosts == {"127.0.0.1"}
    assert wrong == []


def test_it_fits_a_phone_and_the_dark(start: Callable[..., Page], browser: Any) -> None:
    page = start("b")
    tab = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    tab.set_default_timeout(PATIENCE)
    tab.goto(page.url)
    tab.click("#ask-go")
    said(tab, "ask", "Done")
    assert tab.evaluate(FITS)
    first, second = (card.bounding_box() for card in tab.locator("#ask-answers .sa-card").all())
    assert second["y"] >= first["y"] + first["height"]  # one below the other
    letters, paper = (
        tab.locator("#ask-answers .sa-card").first.evaluate(f"card => getComputedStyle(card).{what}")
        for what in ("color", "backgroundColor")
    )
    assert brightness(letters) > 150 > 100 > brightness(paper)
    tab.click("#look")
    tab.wait_for_function("!document.body.classList.contains('dark')")


def test_a_wide_picture_scrolls_in_its_card(start: Callable[..., Page], browser: Any) -> None:
    page = start("b")
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.set_default_timeout(PATIENCE)
    tab.goto(page.url)
    tab.locator(".overflow-menu > button").click()
    tab.locator(".overflow-dropdown button", has_text="Look inside").click()
    tab.locator("#inside-picture svg").wait_for()
    assert tab.evaluate(FITS)


FITS = "document.documentElement.scrollWidth <= window.innerWidth"
NAME = """control => control.ariaLabel || control.innerText?.trim() || control.title
  || [...(control.labels || [])].some(label => label.innerText.trim())
  || document.getElementById(control.getAttribute('aria-labelledby'))?.innerText.trim()"""


def said(tab: Any, name: str, words: str) -> None:
    """Waits until the page has said something."""
    playwright.expect(tab.locator(f"#{name}-status")).to_contain_text(words, timeout=PATIENCE)


def brightness(color: str) -> float:
    """Of rgb(…), from 0 to 255."""
    return sum(float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]) / 3
