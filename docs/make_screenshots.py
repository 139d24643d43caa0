"""Makes the screenshots of the docs: of a run's report, and of TensorBoard on the run.

    python docs/make_screenshots.py --run=runs/cifar10-resnet56-resnet8-stkd-s0

writes report-light.png, report-dark.png, report-phone.png and tensorboard.png into docs/images. It
needs selenium, Chromium and its chromedriver; the report has to be there already (`python
evaluate.py --model=RUN_DIR --report`).
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

RUN = flags.DEFINE_string("run", None, "the run's directory, with its report.html")
IMAGES = flags.DEFINE_string(
    "images", str(pathlib.Path(__file__).resolve().parent / "images"), "where the pictures go"
)

BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--hide-scrollbars",
)  # fmt: skip
# Name, pixels across, pixels down from the page's top, the reader's preference.
SHOTS = (
    ("report-light.png", 1200, 1900, "light"),
    ("report-dark.png", 1200, 1900, "dark"),
    ("report-phone.png", 390, 1700, "light"),
)
COLOURS = 256
TENSORBOARD_SECONDS = 120


def main() -> None:
    """Runs the command."""
    run = pathlib.Path(RUN.value or "")
    report = run / "report.html"
    if not report.is_file():
        raise InputError(
            f"--run={run} has no report.html; make it: python evaluate.py --model=RUN_DIR --report"
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
    """Chromium without a window."""
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
    """Opens a page on a screen of so many pixels."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chromium.get(address)


def shoot(chromium: webdriver.Chrome, file: pathlib.Path, width: int, height: int) -> None:
    """Writes what is shown, with few enough colours to be small."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    answer = chromium.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
    picture = Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")
    # The method that keeps the colours of small things, such as the dots of a curve.
    few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")


@contextlib.contextmanager
def tensorboard(folder: pathlib.Path) -> Iterator[str]:
    """TensorBoard on a run, for this machine only; gives its address once it answers."""
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
        wait_until(lambda: answers(address), "TensorBoard doesn't answer")
        yield address
    finally:
        server.terminate()
        server.wait()


def answers(address: str) -> bool:
    """Whether a server is there, and has read what it shows."""
    try:
        with urllib.request.urlopen(f"{address}data/runs", timeout=5) as answer:
            return len(answer.read()) > len("[]\n")
    except OSError:
        return False


def wait_for_charts(chromium: webdriver.Chrome) -> None:
    """Waits until TensorBoard has drawn its curves."""
    charts = "return document.querySelectorAll('line-chart, tb-line-chart, scalar-card').length"
    wait_until(lambda: chromium.execute_script(charts) > 1, "TensorBoard draws nothing")
    chromium.execute_script(
        "[...document.querySelectorAll('button')]"
        ".find(button => button.textContent.includes('Settings'))?.click()"
    )  # To close its pane.
    time.sleep(10)  # It has no sign for having drawn the last of them.


def wait_until(is_so, otherwise: str) -> None:
    """Asks again and again, for two minutes at most."""
    end = time.monotonic() + TENSORBOARD_SECONDS
    while not is_so():
        if time.monotonic() > end:
            raise InputError(f"{otherwise} within {TENSORBOARD_SECONDS} seconds; try again")
        time.sleep(0.5)


if __name__ == "__main__":
    app.run(main, __doc__)
