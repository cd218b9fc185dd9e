"""Pages opened in headless Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip

# When everything is loaded, writes down what a reader would notice.
PROBE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message || event.target.src)), true);
addEventListener("securitypolicyviolation", event => errors.push("blocked: " + event.blockedURI));
addEventListener("load", () => {
  const images = [...document.images];
  const wide = [...document.querySelectorAll("main *")].filter(element => !element.closest(".scroll, svg")
    && element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML.slice(0, 120));
  const found = {
    errors, wide, width: innerWidth, scroll_width: document.documentElement.scrollWidth,
    images: images.map(image => [image.naturalWidth, image.getBoundingClientRect().width]),
    without_alt: images.filter(image => !image.alt).length,
    requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
    dangling: [...document.querySelectorAll("a[href^='#']")].filter(a => !document.querySelector(a.getAttribute("href"))).length,
  };
  parent.document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


def browser() -> str:
    """The browser's program; the test is skipped where there is none, or fails where one is required."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    message = f"no browser among {', '.join(NAMES)}"
    if os.environ.get("MACL_REQUIRE_BROWSER") == "1":
        pytest.fail(f"MACL_REQUIRE_BROWSER is 1, but there is {message}")
    pytest.skip(message)


def look(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """What the page is like in a window of that width, seen by a script in a copy of it."""
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text(encoding="utf-8"))
    (folder / "probed.html").write_text(text.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
    # A window cannot be as narrow as a telephone; a frame can.
    frame = folder / "frame.html"
    frame.write_text(
        '<!doctype html><script type="application/json" id="found"></script>'
        f'<iframe src="probed.html" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    done = _open(frame, 1400, folder, "--dump-dom", "--allow-file-access-from-files")
    match = re.search(r'<script type="application/json" id="found">(.+?)</script>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    return json.loads(match[1])


def picture(page: Path, width: int, height: int, folder: Path) -> tuple[Path, str]:
    """A screenshot of the page as it is, and what the browser's console said."""
    shot = folder / f"page-{width}.png"
    done = _open(page, width, folder, f"--screenshot={shot}", height=height)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return shot, "\n".join(console)


def _open(page: Path, width: int, folder: Path, *options: str, height: int = 900) -> subprocess.CompletedProcess[str]:
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [browser(), *OPTIONS, profile, f"--window-size={width},{height}", *options, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
