"""Takes the screenshots for the docs: a run's report, and TensorBoard.

    python docs/make_screenshots.py --run=runs/cifar10-resnet56-resnet8-stkd-s0

writes report-light.png, report-dark.png, report-phone.png and tensorboard.png to docs/images. It
needs selenium, Chromium and chromedriver, and the run's report (`python evaluate.py --model=RUN_DIR
--report`).
"""

import base64
import contextlib
import io
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
from absl import flags
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from stkd_keras.cli import app
from stkd_keras.errors import InputError

RUN = flags.DEFINE_string("run", None, "the run's directory, which contains report.html")
IMAGES = flags.DEFINE_string(
    "images", str(pathlib.Path(__file__).resolve().parent / "images"), "folder for the pictures"
)

BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--hide-scrollbars",
)  # fmt: skip
# File name, width and height in pixels, color scheme.
SHOTS = (
    ("report-light.png", 1200, 1900, "light"),
    ("report-dark.png", 1200, 1900, "dark"),
    ("report-phone.png", 390, 1700, "light"),
)
COLORS = 256
TENSORBOARD_SECONDS = 120


def main() -> None:
    """Runs the command."""
    run = pathlib.Path(RUN.value or "")
    report = run / "report.html"
    if not report.is_file():
        raise InputError(
            f"--run={run} has no report.html; run python evaluate.py --model=RUN_DIR --report first"
        )
    images = pathlib.Path(IMAGES.value)
    with browser() as chromium:
        for name, width, height, scheme in SHOTS:
            show(chromium, report.resolve().as_uri(), width, height, scheme)
            shoot(chromium, images / name, width, height)
        with tensorboard(run / "tensorboard") as address:
            show(chromium, f"{address}#timeseries", 1200, 1000, "light")
            wait_for_charts(chromium)
            shoot(chromium, images / "tensorboard.png", 1200, 1000)


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Starts a headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in BROWSER_FLAGS:
        options.add_argument(flag)
    chromium = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield chromium
    finally:
        chromium.quit()


def show(chromium: webdriver.Chrome, address: str, width: int, height: int, scheme: str) -> None:
    """Opens a page at a screen size in pixels."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chromium.get(address)


def shoot(chromium: webdriver.Chrome, file: pathlib.Path, width: int, height: int) -> None:
    """Writes a screenshot with few colors, so that the file is small."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    screenshot = chromium.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
    picture = Image.open(io.BytesIO(base64.b64decode(screenshot["data"]))).convert("RGB")
    # MAXCOVERAGE keeps the colors of small details, such as the dots of a curve.
    few = picture.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")


@contextlib.contextmanager
def tensorboard(folder: pathlib.Path) -> Iterator[str]:
    """Runs TensorBoard on this machine only, and yields its address once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", f"--port={port}",
         "--host=127.0.0.1", "--load_fast=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_until(lambda: has_runs(address), "TensorBoard doesn't respond")
        yield address
    finally:
        server.terminate()
        server.wait()


def has_runs(address: str) -> bool:
    """Returns whether TensorBoard is running and has loaded a run."""
    try:
        with urllib.request.urlopen(f"{address}data/runs", timeout=5) as response:
            return len(response.read()) > len("[]\n")
    except OSError:
        return False


def wait_for_charts(chromium: webdriver.Chrome) -> None:
    """Waits until TensorBoard has drawn its charts."""
    charts = "return document.querySelectorAll('line-chart, tb-line-chart, scalar-card').length"
    wait_until(lambda: chromium.execute_script(charts) > 1, "TensorBoard draws no charts")
    chromium.execute_script(
        "[...document.querySelectorAll('button')]"
        ".find(button => button.textContent.includes('Settings'))?.click()"
    )  # Closes the settings pane.
    time.sleep(10)  # TensorBoard doesn't signal its last chart.


def wait_until(condition, error: str) -> None:
    """Waits up to two minutes for a condition."""
    end = time.monotonic() + TENSORBOARD_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise InputError(f"{error} within {TENSORBOARD_SECONDS} seconds; try again")
        time.sleep(0.5)


if __name__ == "__main__":
    app.run(main, __doc__)
