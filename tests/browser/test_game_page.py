"""The game room's page in headless Chromium: two tabs play, see each other, and survive the room's sleep."""

import os
import shutil
import tempfile

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from roost.testing import running, wait_for

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER) and not os.environ.get("CI"), reason="no chromium and chromedriver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def browser():
    assert CHROMIUM, "CI must have chromium; make test installs it"
    assert DRIVER, "CI must have chromedriver; make test installs it"
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}", "--window-size=900,800",
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        yield driver
        driver.quit()


def until(browser, condition):
    return WebDriverWait(browser, 15).until(condition)


def text(browser, element):
    return browser.find_element(By.ID, element).text


def click(browser, points):
    browser.find_element(By.CSS_SELECTOR, f'button[data-points="{points}"]').click()


def players(browser):
    return [item.text.split("\n") for item in browser.find_elements(By.CSS_SELECTOR, "#players li")]


def test_two_tabs_play(browser, examples, tmp_path):
    app = tmp_path / "game"
    shutil.copytree(examples / "game", app, ignore=shutil.ignore_patterns(".roost"))
    (app / "roost.toml").write_text("[hibernation]\nidle_s = 0.3\n")
    with running(app) as node:
        url = f"http://127.0.0.1:{node.port}/"
        browser.get(url)
        first = browser.current_window_handle
        until(browser, lambda b: text(b, "status") == "connected")
        browser.switch_to.new_window("tab")
        second = browser.current_window_handle
        browser.get(url)
        until(browser, lambda b: text(b, "count") == "2")

        click(browser, 10)
        until(browser, lambda b: text(b, "score") == "10")
        browser.switch_to.window(first)
        until(browser, lambda b: any(row[-1] == "10" for row in players(b)))
        assert text(browser, "score") == "0"
        assert players(browser)[1] == ["you", "0"]

        wait_for(lambda: node.awake() == [], "the room sleeps")
        click(browser, 5)
        until(browser, lambda b: text(b, "score") == "5")
        browser.switch_to.window(second)
        until(browser, lambda b: any(row[-1] == "5" for row in players(b)))
        assert text(browser, "score") == "10"
        folder = os.environ.get("ROOST_SCREENSHOTS")
        if folder:
            browser.save_screenshot(f"{folder}/game.png")

        browser.close()
        browser.switch_to.window(first)
        until(browser, lambda b: text(b, "count") == "1")
        errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert errors == []
        assert node.stop() == 0
        until(browser, lambda b: "trying again" in text(b, "status"))
