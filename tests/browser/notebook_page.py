"""A lab in a browser's page, used as an attendee uses it: by menu, keyboard and mouse."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Locator, Page

OPEN_SECONDS = 120
REACT_SECONDS = 10
LAST = """() => {
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent);
  const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]') !== null;
  return failed || /\\[\\d+\\]/.test(prompts.at(-1));
}"""
IDLE = """() => document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"""
UNDESCRIBED = """() => [...document.querySelectorAll('.jp-OutputArea-child:has(.jp-RenderedImage)')].filter(
  image => !image.nextElementSibling?.querySelector('.jp-RenderedMarkdown em')?.textContent.trim()).length"""


@dataclass(frozen=True)
class NotebookPage:
    """One lab, opened."""

    page: Page

    @classmethod
    def open(cls, page: Page, address: str) -> NotebookPage:
        """Opens a lab and waits until its cells stand and its kernel answers."""
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-MarkdownOutput h1", timeout=OPEN_SECONDS * 1000)
        page.wait_for_function(IDLE, timeout=OPEN_SECONDS * 1000)
        return cls(page)

    @property
    def title(self) -> str:
        return self.page.locator(".jp-Notebook h1").first.inner_text().strip("¶ \n")

    def run_all(self, seconds: float) -> None:
        """Runs all cells by the menu, and waits until the last one has run or one has failed."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(LAST, timeout=seconds * 1000)
        self.page.wait_for_function(IDLE, timeout=OPEN_SECONDS * 1000)

    def texts(self, mime_type: str) -> list[str]:
        """The outputs of one kind, as they are read."""
        return self.page.locator(f'.jp-OutputArea-output[data-mime-type="{mime_type}"]').all_inner_texts()

    def undescribed(self) -> int:
        """How many pictures have no sentence under them."""
        return int(self.page.evaluate(UNDESCRIBED))

    def explorers(self) -> list[Locator]:
        """The boxes that hold sliders and the picture that follows them."""
        boxes = self.page.locator(".jp-OutputArea-output > .widget-vbox, .jp-OutputArea-output .widget-vbox")
        return [box for box in boxes.all() if box.locator("img").count() and box.locator(".noUi-handle").count()]

    def move(self, explorer: Locator, slider: int) -> tuple[str, str]:
        """Moves a slider of an explorer by one step, to the right if it can; the picture before and after it."""
        before = picture(explorer)
        knob = explorer.locator(".noUi-handle").nth(slider)
        now, highest = (float(knob.get_attribute(f"aria-value{end}") or 0) for end in ("now", "max"))
        knob.press("ArrowRight" if now < highest else "ArrowLeft")
        handle = explorer.locator("img").first.element_handle()
        assert handle is not None
        self.page.wait_for_function(
            "([box, before]) => ![before, undefined].includes(box.querySelector('img')?.src)",
            arg=[explorer.element_handle(), before],
            timeout=REACT_SECONDS * 1000,
        )
        return before, picture(explorer)

    def folded(self) -> list[Locator]:
        """The cells whose source is folded away."""
        cells = self.page.locator(".jp-CodeCell")
        return [cell for cell in cells.all() if cell.locator(".jp-InputPlaceholder").count()]


def picture(explorer: Locator) -> str:
    return str(explorer.locator("img").first.get_attribute("src"))


def unfold(cell: Locator) -> str:
    """Opens a folded cell with a click; its source."""
    cell.locator(".jp-InputPlaceholder").click()
    editor = cell.locator(".cm-content")
    editor.wait_for(state="visible")
    return editor.inner_text()
