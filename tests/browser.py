"A headless Chromium, a server on loopback that it reads from, and what it sees wrong on a page. Used by test_browser.py."
import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

CDN = "https://cdn.jsdelivr.net/npm/"  # where the pages look for KaTeX; the server below hands out the same files
BASE = "/datacentric_w2s/"             # as published: the site is not at the top of its host
LOOK = (Path(__file__).parent / "look.js").read_text(encoding="utf-8")
WCAG = [f"wcag{v}{level}" for v in ("2", "21", "22") for level in ("a", "aa")]
RULES = dict(runOnly=dict(type="tag", values=WCAG), rules={"color-contrast": dict(enabled=False)}, resultTypes=["violations"], preload=False)


class Handler(BaseHTTPRequestHandler):
    "The built site below BASE, npm packages below /npm/, and the server's own made-up pages; nothing else."
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        body, kind = self.server.made.get(path), "text/html; charset=utf-8"
        if body is None and (file := self.file(path)) is not None: body, kind = file.read_bytes(), guess_type(file.name)[0] or "application/octet-stream"
        if body and kind.startswith("text/"): body = body.replace(CDN.encode(), b"/npm/")
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def file(self, path):
        for prefix, folder in ((BASE, self.server.site), ("/npm/", self.server.npm)):
            file = (folder / (path.removeprefix(prefix) or "index.html")).resolve()
            if path.startswith(prefix) and file.is_relative_to(folder.resolve()) and file.is_file(): return file

    def log_message(self, *args): pass


def serve(site, npm):  # folders -> a server in its own thread; `made` maps a path to the bytes of a made-up page
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site, server.npm, server.made, server.daemon_threads = Path(site), Path(npm), {"/favicon.ico": b""}, True  # the made-up pages name no icon
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def npm_package(spec, sha256, folder):  # "katex@0.16.11" -> its folder, fetched once and held against its hash
    "Raises RuntimeError where npm is missing or fails, or hands out something else."
    home = folder / spec
    if home.is_dir(): return home
    if not shutil.which("npm"): raise RuntimeError("no npm")
    got = subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, capture_output=True, text=True)
    if got.returncode: raise RuntimeError(f"npm pack {spec} failed: {got.stderr.strip()[-300:]}")
    packed = folder / got.stdout.split()[-1]
    if (found := hashlib.sha256(packed.read_bytes()).hexdigest()) != sha256: raise RuntimeError(f"{spec} has the sha256 {found}, wanted {sha256}")
    with tempfile.TemporaryDirectory(dir=folder) as unpacked, tarfile.open(packed) as tar:
        tar.extractall(unpacked, filter="data")
        if not home.is_dir(): (Path(unpacked) / "package").rename(home)
    return home


def chromium(program, driver, profile):  # two paths and an empty folder -> a browser that reaches loopback alone
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for a in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", "no-first-run", "disable-background-networking",
              "disable-component-update", "disable-sync", "hide-scrollbars", f"user-data-dir={profile}", "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"):
        options.add_argument("--" + a)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(executable_path=driver))


class Reader:
    "Somebody who reads pages in a browser: opens them at a width, in light or dark, presses keys, and says what is wrong."

    keys, base = Keys, BASE

    def __init__(self, browser, server, axe):
        self.browser, self.server, self.axe = browser, server, axe
        self.js, self.cdp = browser.execute_script, browser.execute_cdp_cmd

    def open(self, path, width=1280):
        self.resize(width)
        self.cdp("Emulation.setEmulatedMedia", dict(features=[dict(name="prefers-color-scheme", value="light")]))
        self.browser.get_log("browser")  # what earlier pages said
        self.browser.get(self.server.address + path)
        self.js("return Promise.all([document.fonts.ready, ...[...document.images].map(i => { i.loading = 'eager'; return i.decode().catch(() => 0); })]).then(() => 0)")
        self.js(LOOK)
        return self

    def resize(self, width): self.cdp("Emulation.setDeviceMetricsOverride", dict(width=width, height=800, deviceScaleFactor=1, mobile=False))

    def theme(self, name):
        "Ask for light or dark as the operating system does, and wait until the page has it."
        self.cdp("Emulation.setEmulatedMedia", dict(features=[dict(name="prefers-color-scheme", value=name)]))
        self.wait("return !document.querySelector('link.quarto-color-scheme') || document.documentElement.classList.contains('quarto-dark') === arguments[0]", name == "dark")

    def wait(self, script, *args, each=lambda: None):  # what to ask the page; what to do before each time
        return WebDriverWait(self.browser, 10, 0.02).until(lambda b: (each(), b.execute_script(script, *args))[1], f"never true on the page: {script}")

    def press(self, *keys): ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def console(self): return [m["message"][:200] for m in self.browser.get_log("browser") if m["level"] == "SEVERE"]

    def tabs(self):
        "Press Tab until nothing new comes: what is wrong for somebody who has no mouse."
        self.js("watchTabs()")
        before, met = -1, 0
        while before < met:
            self.press(Keys.TAB * 30)
            before, met = met, self.js("return tabsMet()")
        return self.js("return tabsWrong()")

    def glance(self):
        "What `tabs` finds, by looks: once a Tab has arrived, since a focus shows to somebody at a keyboard alone."
        self.wait("return document.hasFocus() && document.activeElement.matches(':focus-visible')", each=lambda: self.press(Keys.TAB))  # a press between two widths may get lost
        return self.js("return reachable()")

    def audit(self):
        "What axe finds of WCAG 2.2, levels A and AA, but for contrast (see look.js)."
        self.js(self.axe)
        found = self.js("return axe.run(document, arguments[0]).then(r => r.violations.map(v => [v.id, v.nodes.map(n => [n.target.join(' '), n.any.concat(n.all, n.none).map(c => c.message).join('; ')])]))", RULES)
        return [f"{rule} at {where}: {why[:200]}" for rule, nodes in found for where, why in nodes]

    def walk(self, path, pictures=None, press=True):  # a folder for pictures of the page, if any; whether Tab is pressed all the way -> {check: [what it finds wrong]}
        "All checks of one page, which is loaded once."
        found, label = dict(wide=[], contrast=[], tabs=[]), path.removeprefix(BASE).replace("/", "-").removesuffix(".html")
        self.open(path)
        found |= self.js("return {math: math(), pictures: pictures()}")
        for width in (1280, 375):
            self.resize(width)
            found["wide"] += [f"at {width}: {w}" for w in self.js("return wide()")]
            for theme in ("light", "dark") if width == 1280 or pictures else ():
                self.theme(theme)
                if width == 1280: found["contrast"] += [f"{theme}: {c}" for c in self.js("return contrasts()")]
                if pictures: self.picture(pictures / f"{label}-{width}-{theme}.png")
        self.theme("light")
        found["console"] = self.console()
        self.js("thin()")
        for width in (375, 1280):
            self.resize(width)
            found["tabs"] += [f"at {width}: {t}" for t in (self.tabs() if press else self.glance())]
        return found | dict(rules=self.audit())

    def picture(self, file):
        w, h = self.js("return [innerWidth, document.documentElement.scrollHeight]")
        shot = self.cdp("Page.captureScreenshot", dict(captureBeyondViewport=True, clip=dict(x=0, y=0, width=w, height=min(h, 16000), scale=1)))
        file.write_bytes(base64.b64decode(shot["data"]))
