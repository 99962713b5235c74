"""The pictures of docs/playground.md: `python docs/generate/screenshots.py URL` takes them of a page served there.

Names behind it take those alone. `selfadapt play --runs FOLDER` serves one; the picture of a training is of its newest
run. Chromium must be installed.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect, sync_playwright

FOLDER = Path(__file__).parents[1] / "pictures"
PATIENCE = 180_000  # milliseconds
LAPTOP, PHONE = (1200, 800), (390, 844)


def main(url: str, *names: str) -> None:
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, act, size, scheme in PICTURES:
            if names and name not in names:
                continue
            tab = browser.new_page(
                viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
            )
            tab.set_default_timeout(PATIENCE)
            tab.goto(url)
            tab.wait_for_timeout(2000)  # on a phone, tabs move into a menu
            act(tab)
            tab.wait_for_timeout(500)
            shown = Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")
            shown.quantize(128, dither=Image.Dither.NONE).save(FOLDER / f"play_{name}.png", optimize=True)
            tab.close()


def ask(tab: Any) -> None:
    tab.click("#ask-go")
    expect(tab.locator("#ask-status")).to_contain_text("Done")


def mix(tab: Any) -> None:
    tab.get_by_role("tab", name="Mix").click()
    for name, weight in (("groups", "0.6"), ("relations", "0.4")):
        number = tab.locator(f"#mix-{name} input[type=number]")
        number.fill(weight)
        number.press("Enter")
    expect(tab.locator("#mix-status")).to_contain_text("1.00 of the mixture")


def several(tab: Any) -> None:
    tab.get_by_role("tab", name="Several").click()
    tab.click("#several-go")
    expect(tab.locator("#several-status")).to_contain_text("Done")


def inside(tab: Any) -> None:
    tab.get_by_role("tab", name="Look inside").click()
    tab.click("#inside-other input")
    tab.get_by_role("option", name="groups").click()
    expect(tab.locator("#inside-picture svg")).to_have_count(2)


def on_the_map(tab: Any) -> None:
    tab.get_by_role("tab", name="Map").click()
    tab.click("#map-go")
    expect(tab.locator("#map-picture svg")).to_have_count(1)


def training(tab: Any) -> None:
    tab.get_by_role("tab", name="Training").click()
    expect(tab.locator("#trainings-picture svg")).to_have_count(1)


PICTURES: list[tuple[str, Callable[[Any], None], tuple[int, int], Any]] = [
    ("ask", ask, LAPTOP, "light"),
    ("mix", mix, LAPTOP, "dark"),
    ("several", several, LAPTOP, "light"),
    ("inside", inside, LAPTOP, "light"),
    ("map", on_the_map, LAPTOP, "dark"),
    ("training", training, LAPTOP, "light"),
    ("phone", ask, PHONE, "light"),
    ("phone_dark", mix, PHONE, "dark"),
]

if __name__ == "__main__":
    main(*sys.argv[1:])
