#!/usr/bin/env python3
"""Checks pages of `tessera trace --html` and `tessera oracle --html` in headless Chromium.

    pip install playwright; apt-get install chromium
    bench/pages.py --out DIR PAGE.html...

For each page, at phone and desktop width, light and dark, and printed: nothing on the console, no
request to anywhere, every figure drawn (a size, and marks in it), nothing wider than the screen.
Writes screenshots to DIR to be looked at.  Not part of the tests: Chromium is large.
"""
import argparse
import pathlib
import shutil
import sys

from playwright.sync_api import sync_playwright

FIGURES = """() => [...document.querySelectorAll('svg.figure')].map(s => {
  const b = s.getBoundingClientRect();
  return {w: b.width, h: b.height, marks: s.querySelectorAll('path').length,
          lengths: [...s.querySelectorAll('path')].map(p => p.getTotalLength()).filter(x => x > 0).length};
})"""


def check(browser, path, out, width, scheme):
    bad = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme,
                                  device_scale_factor=1)
    page = context.new_page()
    page.on("console", lambda m: bad.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: bad.append(f"error: {e}"))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else bad.append(r.url))
    page.goto(path.resolve().as_uri())
    figures = page.evaluate(FIGURES)
    if not figures:
        bad.append("no figures")
    for i, f in enumerate(figures):
        if f["w"] < 200 or f["h"] < 30 or not f["marks"] or not f["lengths"]:
            bad.append(f"figure {i} is not drawn: {f}")
    wide = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
    if wide > 0:
        bad.append(f"{wide} pixels wider than the screen")
    page.screenshot(path=str(out / f"{path.stem}-{width}-{scheme}.png"), full_page=True)
    if width > 1000 and scheme == "light":
        page.pdf(path=str(out / f"{path.stem}.pdf"))
    context.close()
    print(f"{path.name} at {width}, {scheme}: {len(figures)} figures, {len(bad)} faults")
    for line in bad:
        print("   ", line)
    return len(bad)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    a.add_argument("--out", required=True)
    a.add_argument("pages", nargs="+")
    args = a.parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    faults = 0
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"),
                                    args=["--no-sandbox"])
        for name in args.pages:
            for width, scheme in ((390, "light"), (1280, "light"), (390, "dark"), (1280, "dark")):
                faults += check(browser, pathlib.Path(name), out, width, scheme)
        browser.close()
    return 1 if faults else 0


sys.exit(main())
