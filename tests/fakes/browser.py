"""Pages opened in headless Chromium, which is driven by its debugging protocol over two pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE_SECONDS = 30

KEY_CODES = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37,
             "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip

FINDINGS = """(() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const isWide = element => !element.closest(".scroll, svg")
    && element.getBoundingClientRect().right > innerWidth + 1;
  return {
    wide: all("main *").filter(isWide).map(element => element.outerHTML.slice(0, 120)),
    width: innerWidth,
    scroll_width: document.documentElement.scrollWidth,
    images: all("img").map(image => [image.naturalWidth, image.getBoundingClientRect().width]),
    without_alt: all("img").filter(image => !image.alt).length,
    dangling: all("a[href^='#']").filter(link => !all(link.getAttribute("href")).length).length,
  };
})()"""


def program() -> str:
    """The browser's program; without one the test is skipped, or fails if one is required."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    message = f"no browser among {', '.join(NAMES)}"
    if os.environ.get("MACL_REQUIRE_BROWSER") == "1":
        pytest.fail(f"MACL_REQUIRE_BROWSER is 1, but there is {message}")
    pytest.skip(message)


class Tab:
    """A tab of the browser.

    Attributes:
        complaints: messages in the console, uncaught errors and what the page's policy blocked.
        requests: what the page loaded, but for itself.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._unread, self._number, self._session = b"", 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Open a file in a window of that size."""
        self.complaints.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.page = page.resolve().as_uri()
        self.call("Page.navigate", url=self.page)
        self.wait_for("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"in vain: {condition}; {self.complaints}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        code = {"windowsVirtualKeyCode": KEY_CODES.get(key) or ord(key)}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def turn_wheel(self, selector: str, by: int) -> None:
        """Turn the mouse's wheel over the middle of an element."""
        x, y = self._middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def _middle(self, selector: str) -> tuple[float, float]:
        x, y = self.run(
            f"""(() => {{ const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        )
        return x, y

    def screenshot(self, to: Path) -> Path:
        """Write what is in view as PNG."""
        picture = self.call("Page.captureScreenshot")["data"]
        to.write_bytes(base64.b64decode(picture))
        return to

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            self._unread += os.read(self._from, 1 << 20)
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                self.complaints.append(str([arg.get("value") for arg in about["args"]]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(about["entry"]["text"])
            case "Network.requestWillBeSent":
                url = about["request"]["url"]
                if url != self.page and not url.startswith("data:"):
                    self.requests.append(url)


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A tab of a browser whose profile lies in a folder."""
    # The browser reads from its third file and writes to its fourth.
    reads, to_browser = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in os.pipe())
    from_browser, writes = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in os.pipe())

    def connect() -> None:
        os.dup2(reads, 3)
        os.dup2(writes, 4)

    process = subprocess.Popen(
        [program(), *OPTIONS, f"--user-data-dir={folder / 'profile'}"],
        preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Tab(to_browser, from_browser)
    finally:
        process.terminate()
        process.wait()
