"""Pages in a real browser, Debian's chromium: what they ask for, show and complain of. Never skipped."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
MILLISECONDS = 120_000  # on a machine that others keep busy
LOCAL = ("file:", "data:", "blob:")


@dataclass(frozen=True)
class Seen:
    """A page that is open at one width in one colour scheme.

    asked: addresses.  said: on the console, or thrown.  own: what addresses may begin with.
    """

    page: Any
    own: tuple[str, ...]
    asked: list[str]
    said: list[str]

    def faults(self) -> list[str]:
        """What no page may have: requests, words on the console, broken images, sideways scrolling, findings of axe."""
        from axe_core_python.sync_playwright import Axe

        broken = self.page.evaluate(
            "[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src.slice(0, 80))"
        )
        beyond = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        found = Axe().run(self.page, options={"resultTypes": ["violations"]})["violations"]
        return [
            *(f"asks for {address}" for address in self.asked if not address.startswith(self.own)),
            *(f"console: {line}" for line in self.said),
            *(f"broken image: {source}" for source in broken),
            *([f"{beyond} pixels wider than the screen"] if beyond > 0 else []),
            *(
                f"axe: {finding['id']}: {node['html'][:200]} {node['failureSummary']}"
                for finding in found
                if finding["impact"] in ("serious", "critical")
                for node in finding["nodes"]
            ),
        ]

    def photograph(self, folder: Path, name: str) -> None:
        """A screenshot of the whole page, in $SCREENSHOTS where that is set."""
        folder = Path(os.environ.get("SCREENSHOTS") or folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)


@dataclass(frozen=True)
class Browser:
    chromium: Any

    @contextlib.contextmanager
    def open(self, path: Path | str, width: int, scheme: str) -> Iterator[Seen]:
        """A file, or an address on this machine, in a context of its own."""
        address = path if isinstance(path, str) else path.resolve().as_uri()
        site = urlsplit(address)
        own = LOCAL if site.scheme == "file" else (*LOCAL, f"{site.scheme}://{site.netloc}/")
        context = self.chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(MILLISECONDS)
        seen = Seen(context.new_page(), own, [], [])
        seen.page.on("request", lambda request: seen.asked.append(request.url))
        seen.page.on("console", lambda message: seen.said.append(message.text))
        seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
        seen.page.goto(address, wait_until="networkidle")
        yield seen
        context.close()


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """The browser; fails where there is none, for the marker has asked for it."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=QUIET)
        yield Browser(chromium)
        chromium.close()
