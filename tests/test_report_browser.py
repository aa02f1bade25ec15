"""The report's page in a real browser: wide and narrow, light and dark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.report import report
from pipeline.runs import Places
from tests.browser import Browser, browser, chromium
from tests.written_study import write_study

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt-get install chromium")

WIDE, NARROW = 1280, 380
PRINTED = 720
"""What is between the margins of A4, in px."""
PANELS = ("answer", "arms", "routers", "paths", "predictions", "cost", "origin")

LOW_CONTRAST = """
(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const lit = ([r, g, b]) => [r, g, b].map((c) => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length && (colour.length < 4 || colour[3] === 1)) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, node = text.parentElement;
    if (!text.textContent.trim() || node.closest("script, style, [aria-hidden=true]")) continue;
    const style = getComputedStyle(node), drawn = node.closest("svg");
    const ink = parse(drawn ? style.fill : style.color);
    const onCell = drawn && ink[0] === 11 && ink[1] === 29 && ink[2] === 44;
    const ground = onCell ? [102, 163, 210] : behind(node);
    const [a, b] = [lit(ink), lit(ground)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
    const large = size >= 24 || (size >= 18.66 && bold);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) found.push([text.textContent.trim(), style.color, ground]);
  }
  return found;
})()
"""
"""Texts whose contrast to what lies behind them is below WCAG's AA. In shaded cells: against the darkest shade."""

CELLS = """
[...document.querySelectorAll("table[data-json]")].map((table) => [table.id, [...table.tBodies[0].rows].map((row) =>
  [...row.cells].map((cell) => [cell.textContent, "value" in cell.dataset ? Number(cell.dataset.value) : null]))])
"""

OVERFLOWING = """
[...document.body.querySelectorAll("*")].filter((node) => {
  const box = node.getBoundingClientRect();
  return box.width && box.right > document.documentElement.clientWidth + 1 && !node.closest(".scroll, .skip, svg");
}).map((node) => node.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_study(folder / "runs")
    report(["known"], folder / "report.html", Places(folder / "features", folder / "runs"))
    return folder / "report.html"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_is_whole_and_readable(page: Path, opened: Browser, width: int, dark: bool) -> None:
    opened.open(page, width, dark)
    assert opened.run(f"{json.dumps(PANELS)}.filter((id) => !document.getElementById(id)?.innerText.trim())") == []
    assert opened.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert opened.run(OVERFLOWING) == []
    assert opened.run(LOW_CONTRAST) == []
    told = [event for method, event in opened.events if method in ("Log.entryAdded", "Runtime.exceptionThrown")]
    told += [event for method, event in opened.events if method == "Runtime.consoleAPICalled"]
    assert told == []
    asked = [event["request"]["url"] for method, event in opened.events if method == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.resolve().as_uri()]


def test_the_numbers_that_are_shown_are_those_of_the_json(page: Path, opened: Browser) -> None:
    opened.open(page, WIDE)
    shown = opened.run(CELLS)
    assert len(shown) > 15
    checked = 0
    for name, rows in shown:
        told = json.loads(opened.run(f"document.getElementById('json-{name}').textContent"))
        assert len(rows) == len(told["rows"]), name
        for cells, values in zip(rows, told["rows"], strict=True):
            for (text, number), value in zip(cells, values, strict=True):
                if isinstance(value, str):
                    assert text == value and number is None
                elif value is None:
                    assert text == "–" and number is None
                else:
                    assert number == value
                    assert abs(_read(text) - value) <= 0.5000001 * _step(text), (name, text, value)
                    checked += 1
    assert checked > 200


def _read(text: str) -> float:
    found = re.match(r"-?[\d.]+", text.replace("−", "-").replace(",", ""))
    assert found, text
    return float(found[0])


def _step(text: str) -> float:
    """What the last digit of a number stands for."""
    return 10 ** -len(_digits[1]) if (_digits := re.search(r"\.(\d+)", text)) else 1.0


def test_a_click_on_a_heading_sorts_and_loses_no_row(page: Path, opened: Browser) -> None:
    opened.open(page, WIDE)
    column = "[...document.querySelectorAll('#scores tbody tr')].map((row) => row.cells[1].dataset.value)"
    click = "document.querySelector('#scores th:nth-child(2) button').click()"
    before = opened.run(column)
    opened.run(click)
    assert opened.run(column) == sorted(before, key=float, reverse=True)
    opened.run(click)
    assert opened.run(column) == sorted(before, key=float)
    assert opened.run("document.querySelector('#scores th:nth-child(2)').getAttribute('aria-sort')") == "ascending"


def test_the_page_prints(page: Path, opened: Browser) -> None:
    opened.open(page, WIDE)
    printed: dict[str, Any] = opened.ask("Page.printToPDF", printBackground=True)
    assert len(printed["data"]) > 50_000
    assert opened.run("document.querySelectorAll('section h2').length") == len(PANELS)
    opened.open(page, PRINTED)
    opened.ask("Emulation.setEmulatedMedia", media="print")
    try:
        assert opened.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    finally:
        opened.ask("Emulation.setEmulatedMedia", media="")


def test_pictures_have_words_and_headings_have_order(page: Path, opened: Browser) -> None:
    opened.open(page, WIDE)
    assert opened.run("[...document.querySelectorAll('img')].filter((one) => !one.alt).length") == 0
    assert opened.run("[...document.querySelectorAll('.drawing')].filter((one) => !one.ariaLabel).length") == 0
    assert opened.run("document.querySelectorAll('h1').length") == 1
    ids = opened.run("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids)), "ids of the page and its drawings are unique"
