"""Pages in headless Chromium."""

import json
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
PHONE, DESK = 390, 1200


def open_browser() -> webdriver.Chrome:
    """Starts Chromium with an empty profile, or skips the test if it is not installed."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def show(browser: webdriver.Chrome, address: str, width: int, scheme: str = "light") -> None:
    """Opens a page on a screen of a width in CSS pixels, in a light or dark color scheme."""
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("performance")
    browser.get(address)


def requested(browser: webdriver.Chrome) -> list[str]:
    """Returns the addresses requested since the page was opened, its own first."""
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def width_of_page(browser: webdriver.Chrome) -> int:
    """Returns the width of the page in CSS pixels, including what needs scrolling."""
    return browser.execute_script("return document.documentElement.scrollWidth")
