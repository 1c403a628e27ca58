"Build the site into _docs/ without Quarto, then check it: links, anchors, pictures, titles, and that the navigation leads to each page. Lists every problem and exits with 1."
import json
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import reference
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from smalldocs import config
from smalldocs.site import Site

ROOT = "https://site.invalid/"  # a made-up host: what resolves below it is internal


class NbdevSite(Site):
    "A site whose pages have the names that nbdev gives them in `output-file`, as selection.html for 03_selection.ipynb."

    def read(self, src):
        page = super().read(src)
        page.out = page.out.with_name(page.front.get("output-file", page.out.name))
        return page


class Built(HTMLParser):
    "What the checks need of one built page: its ids, links, those of its navigation, pictures (address and alt text) and title."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.nav, self.pictures, self.title, self.in_title, self.depth = set(), [], [], [], "", False, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"): self.ids.add(a["id"])
        if tag == "nav": self.depth += 1
        if tag == "a" and self.depth and a.get("href"): self.nav.append(a["href"])
        if tag == "img": self.pictures.append((a.get("src", ""), a.get("alt")))
        self.links += [a[k] for k in ("href", "src") if a.get(k) and not a[k].startswith("data:")]
        if tag == "title": self.in_title = not self.title

    def handle_endtag(self, tag):
        if tag == "title": self.in_title = False
        if tag == "nav": self.depth -= 1

    def handle_data(self, data):
        if self.in_title: self.title += data


def build(cfg):  # nbdev's configuration -> the site, built
    "Write the reference, process the notebooks and build the pages."
    reference.main()
    site = NbdevSite(config.load(proc_nbs(force=True)), quiet=True)
    site.out = cfg.doc_path.resolve()
    print(f"{site.build()} pages in {cfg.doc_path.name}/")
    finish(site.out)
    return site


def finish(out):
    "Mend what the builder leaves: names in the comments of signatures become links, and letters are the reader's own, asked of no other host."
    for path in out.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"\[`([\w.]+)`\]\((https://[^)\s]+)\)", r'<a href="\2">\1</a>', text), encoding="utf-8")
    for path in (out / "site_libs").rglob("*.css"):
        path.write_text(re.sub(r"@import url\(['\"]?https://fonts\.[^)]*\);?", "", path.read_text(encoding="utf-8")), encoding="utf-8")


def target(href, where, home):
    "Path and anchor of an internal link, or None for one that leaves the site. Links to the published site are held against the pages as built here."
    url = urlsplit(urljoin(ROOT + where, href.replace(home, ROOT.rstrip("/"), 1) if href.startswith(home) else href))
    if url.netloc != urlsplit(ROOT).netloc: return None
    path = unquote(url.path).lstrip("/")
    return path + "index.html" * (not path or path.endswith("/")), unquote(url.fragment)


def link_problem(href, where, pages, out, home):
    "Why an internal link leads nowhere, or None."
    if not (found := target(href, where, home)): return None
    path, anchor = found
    if not (out / path).is_file(): return f"{where}: {href} leads nowhere"
    if anchor and path in pages and anchor not in pages[path].ids: return f"{where}: {href} names an anchor that {path} lacks"


def alt_texts(nb_path):
    "The alt texts that a notebook gives: of its markdown pictures, and in `fig-alt` of its code cells."
    for cell in json.loads(nb_path.read_text(encoding="utf-8"))["cells"]:
        pattern = r"!\[([^\]]+)\]\(" if cell["cell_type"] == "markdown" else r'^#\|\s*fig-alt:\s*"?(.+?)"?\s*$'
        yield from re.findall(pattern, "".join(cell["source"]), re.M)


def page_problems(where, page, pages, out, home, alts):
    "Every problem of one page, a line each."
    found = [link_problem(href, where, pages, out, home) for href in dict.fromkeys(page.links)]
    found += [f"{where}: the picture {src[:50]!r} has no alt text" for src, alt in page.pictures if not alt]
    found += [f"{where}: no picture has the alt text {a!r} of the notebook" for a in alts if a not in [alt for _, alt in page.pictures]]
    return [f for f in found if f] + ([] if page.title.strip() else [f"{where}: no title"])


def out_of_reach(pages, home, start="index.html"):
    "Pages to which no chain of navbars, sidebars and arrows leads from the home page; none where the home page is missing, which links tell."
    seen, todo = set(), [start] if start in pages else []
    while todo:
        seen.add(where := todo.pop())
        found = {t[0] for href in pages[where].nav if (t := target(href, where, home))}
        todo += [p for p in found if p in pages and p not in seen and p not in todo]
    return [f"{p}: the navigation does not lead here" for p in pages if p not in seen]


def main():
    cfg = get_config()
    site = build(cfg)
    pages = {p.relative_to(site.out).as_posix(): Built(p.read_text(encoding="utf-8")) for p in sorted(site.out.rglob("*.html"))}
    alts = {str(p.out): list(alt_texts(cfg.nbs_path / src)) for src, p in site.pages.items() if src.suffix == ".ipynb"}
    problems = [w for w in site.warnings if "broken link" not in w and not w.endswith("output-file is not read by smalldocs")]  # both seen to here
    for where, page in pages.items():
        problems += page_problems(where, page, pages, site.out, cfg.doc_host + cfg.doc_baseurl, alts.get(where, []))
    problems += out_of_reach(pages, cfg.doc_host + cfg.doc_baseurl)
    print(f"{sum(len(p.links) for p in pages.values())} links and {sum(len(p.pictures) for p in pages.values())} pictures looked at")
    print("\n".join([f"{len(problems)} problems:", *problems]) if problems else "no problems")
    return 1 if problems else 0


if __name__ == "__main__": sys.exit(main())  # the guard matters: proc_nbs starts other processes, which import this file
