"""Bring the map in CONTRIBUTING.md up to date, and its copy on the site: python .ci/contributing.py

The map has one line a chapter: its module, its one job (the chapter's subtitle) and the modules of this package that it imports, all read from
the notebooks and the exported code. The site's page is CONTRIBUTING.md with the links as seen from nbs/. Tests hold both equal to these functions.
"""
import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- the map: python .ci/contributing.py -->", "<!-- end of the map -->"


def chapters():
    "(notebook, module, its one job) of all chapters that export a module, in reading order"
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        sources = ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        module = next((m[1] for s in sources if (m := re.search(r"^#\|\s*default_exp\s+(\w+)", s, re.M))), None)
        job = next((m[1] for s in sources if (m := re.search(r"^> (.+)$", s, re.M))), "")
        if module: yield path.stem, module, job


def imports(module):
    "Modules of this package that a module imports, at its top or in a function, in reading order"
    tree = ast.parse((ROOT / "datacentric_w2s" / f"{module}.py").read_text(encoding="utf-8"))
    found = {(n.module or "").removeprefix("datacentric_w2s.") for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    return [m for _, m, _ in chapters() if m in found]


def code_map():
    "The map, as a markdown table"
    lines = [f"| [{stem}](nbs/{stem}.ipynb) | `{m}` | {job} | {', '.join(f'`{i}`' for i in imports(m)) or '-'} |" for stem, m, job in chapters()]
    return "\n".join(["| chapter | module | its one job | imports |", "|---|---|---|---|", *lines])


def with_map(text):
    "CONTRIBUTING.md with the map as it is now"
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{code_map()}\n{END}{rest.split(END)[1]}"


def page(text):
    "The site's page: CONTRIBUTING.md under front matter, its links as seen from nbs/"
    title, body = re.fullmatch(r"# (.+?)\n\n(.*)", text, re.S).groups()
    body = re.sub(r"\]\(nbs/", "](", re.sub(r"<!--.*?-->\n", "", body))
    home = dict(line.split(" = ", 1) for line in (ROOT / "settings.ini").read_text(encoding="utf-8").splitlines() if " = " in line)
    body = re.sub(r"\]\((?!https?:|#)((?:\.|_|[A-Z]|tests|datacentric)[^)]*)\)", lambda m: f"]({home['git_url']}/blob/{home['branch']}/{m[1]})", body)
    return f'---\ntitle: "{title}"\n---\n\n<!-- Made from CONTRIBUTING.md by .ci/contributing.py: change that file, and run it. -->\n\n{body}'


if __name__ == "__main__":
    source = ROOT / "CONTRIBUTING.md"
    source.write_text(with_map(source.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "nbs" / "contributing.qmd").write_text(page(source.read_text(encoding="utf-8")), encoding="utf-8")
