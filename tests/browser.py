"""Pages in headless Chromium, by the WebDriver protocol of chromedriver."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from typing import NamedTuple

import pytest

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Seen(NamedTuple):
    """What became of a page.

    Attributes:
        console: what the browser wrote to its console.
        addresses: what it loaded.
        overflow: CSS pixels that the page is wider than the window.
    """

    console: list[str]
    addresses: set[str]
    overflow: int


class Browser:
    """One Chromium with a profile of its own; the test is skipped where there is none."""

    def __init__(self, profile):
        driver = shutil.which("chromedriver")
        if driver is None or shutil.which("chromium") is None:
            pytest.skip("no chromium with chromedriver on this machine")
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started = next(line for line in self._driver.stdout if "successfully on port" in line)
        port = re.search(r"port (\d+)", started)[1]
        self._address = f"http://127.0.0.1:{port}/session"
        options = {"args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        answer = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/{answer['sessionId']}"

    def open(self, address: str, width: int, seconds: float = 1.0) -> Seen:
        """Opens a page in a window of a width, in CSS pixels, and waits."""
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
        call = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._ask("POST", "/goog/cdp/execute", call)
        self._ask("POST", "/url", {"url": address})
        time.sleep(seconds)
        script = "return document.documentElement.scrollWidth - window.innerWidth"
        overflow = self._ask("POST", "/execute/sync", {"script": script, "args": []})
        console = self._ask("POST", "/se/log", {"type": "browser"})
        requests = [
            json.loads(entry["message"])["message"]
            for entry in self._ask("POST", "/se/log", {"type": "performance"})
        ]
        addresses = {
            request["params"]["request"]["url"]
            for request in requests
            if request["method"] == "Network.requestWillBeSent"
        }
        return Seen([entry["message"] for entry in console], addresses, max(0, overflow))

    def close(self) -> None:
        """Ends the browser."""
        self._ask("DELETE", "")
        self._driver.terminate()
        self._driver.wait()

    def _ask(self, method: str, path: str, body: dict | None = None):
        request = urllib.request.Request(
            self._address + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json"},
        )
        # Not by a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]
