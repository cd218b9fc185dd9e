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
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip

# Once everything is loaded, writes down what a reader would notice.
PROBE = """
<script>
const errors = [];
const all = selector => [...document.querySelectorAll(selector)];
addEventListener("error", event => errors.push(String(event.message || event.target.src)), true);
addEventListener("securitypolicyviolation", event => errors.push("blocked: " + event.blockedURI));
addEventListener("load", () => {
  const images = [...document.images];
  const isWide = element => !element.closest(".scroll, svg")
    && element.getBoundingClientRect().right > innerWidth + 1;
  const findings = {
    errors,
    wide: all("main *").filter(isWide).map(element => element.outerHTML.slice(0, 120)),
    width: innerWidth,
    scroll_width: document.documentElement.scrollWidth,
    images: images.map(image => [image.naturalWidth, image.getBoundingClientRect().width]),
    without_alt: images.filter(image => !image.alt).length,
    requests: performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
    dangling: all("a[href^='#']").filter(link => !all(link.getAttribute("href")).length).length,
  };
  parent.document.getElementById("findings").textContent = JSON.stringify(findings);
});
</script>
"""


def browser() -> str:
    """The browser's program; without one the test is skipped, or fails if one is required."""
    for name in NAMES:
        if program := shutil.which(name):
            return program
    message = f"no browser among {', '.join(NAMES)}"
    if os.environ.get("MACL_REQUIRE_BROWSER") == "1":
        pytest.fail(f"MACL_REQUIRE_BROWSER is 1, but there is {message}")
    pytest.skip(message)


def inspect(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """Open a copy of the page with a probe in a window of that width, and return its findings."""
    policy = r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>"
    text = re.sub(policy, "", page.read_text(encoding="utf-8"))
    probed = folder / "probed.html"
    probed.write_text(text.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
    # A window cannot be as narrow as a telephone; a frame can.
    frame = folder / "frame.html"
    frame.write_text(
        '<!doctype html><script type="application/json" id="findings"></script>'
        f'<iframe src="{probed.name}" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    done = _open(frame, 1400, folder, "--dump-dom", "--allow-file-access-from-files")
    pattern = r'<script type="application/json" id="findings">(.+?)</script>'
    match = re.search(pattern, done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    return json.loads(match[1])


def screenshot(page: Path, width: int, height: int, folder: Path) -> tuple[Path, str]:
    """A screenshot of the page, and the messages in the browser's console."""
    picture = folder / f"page-{width}.png"
    done = _open(page, width, folder, f"--screenshot={picture}", height=height)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return picture, "\n".join(console)


def _open(
    page: Path, width: int, folder: Path, *options: str, height: int = 900
) -> subprocess.CompletedProcess[str]:
    command = [
        browser(), *OPTIONS, f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{height}", *options, page.resolve().as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
