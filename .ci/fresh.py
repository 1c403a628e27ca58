"""Which code made the outputs that a notebook has saved? `.ci/execute.py` writes it down in the notebook, under `fresh` in its metadata, and
`tests/test_fresh.py` looks whether it still holds. Three things are written down:

- `code`: a hash of the notebook's own code cells, in their order
- `uses`: a hash of each module of the package that these import, themselves or through others, and of each kept table that they read
- `outputs`: a hash of the saved outputs, so that one that was changed by hand is seen

Only what can change an output counts. Prose doesn't, nor do comments, directives, docstrings and line breaks. (So a chapter that *prints*
docstrings has to be executed by hand where these change.) Versions of libraries don't count either: they move last digits, and a reader has others.
"""
import ast
import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "datacentric_w2s"
TAGS = {"parameters", "skip-execution", "shows-texts"}  # the tags that change what is run or kept


def digest(what): return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def is_string(node): return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def meaning(node):
    "A syntax tree as plain data: without places, without docstrings, and without what only some versions of Python note"
    if isinstance(node, list): return [meaning(n) for n in node]
    if isinstance(node, ast.Constant): return [type(node.value).__name__, repr(node.value)]
    if not isinstance(node, ast.AST): return node
    parts = {k: v for k, v in ast.iter_fields(node) if k not in ("ctx", "kind", "type_comment", "type_ignores") and v is not None and v != []}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): parts["body"] = [n for n in node.body if not is_string(n)]
    return [type(node).__name__, {k: meaning(v) for k, v in parts.items()}]


def cell_tree(cell):
    "The syntax tree of a code cell; lines for IPython alone (`%` and `!`) stand in it as strings"
    return ast.parse(re.sub(r"^[%!].*$", lambda m: repr(m[0]), "".join(cell["source"]), flags=re.M))


def code_cells(nb): return [c for c in nb["cells"] if c["cell_type"] == "code"]


def own_code(nb):
    "What the code cells say and how they are tagged, as plain data; cells of comments alone are left out"
    return [[sorted(TAGS & set(c["metadata"].get("tags", []))), meaning(t)] for c in code_cells(nb) if (t := cell_tree(c)).body]


def imported(tree, package):
    "The modules of the package, by its name, that a syntax tree imports, at its top or inside a function"
    found = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): found |= {a.name for a in n.names}
        if isinstance(n, ast.ImportFrom):
            base = ".".join(filter(None, [package if n.level else "", n.module]))
            found |= {base} | {f"{base}.{a.name}" for a in n.names}
    return {m.split(".")[1] for m in found if m.startswith(f"{package}.")}


def tables_read(tree):
    "The names in the statements that read a kept table"
    calls = lambda s: any(isinstance(n, ast.Name) and n.id == "full_table" for n in ast.walk(s))
    return {n.value for s in tree.body if calls(s) for n in ast.walk(s) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@lru_cache(None)
def of_module(text, package):
    "Of a module's text: the hash of its code, the modules that it imports, the tables that it may read"
    tree = ast.parse(text)
    return digest([meaning(s) for s in tree.body if not is_string(s)]), imported(tree, package), tables_read(tree)


def uses(nb, package=PACKAGE):
    "Each file of the package that the notebook's code hangs on, with its hash"
    tree = ast.Module([s for c in code_cells(nb) for s in cell_tree(c).body], [])
    found, todo, tables = {}, imported(tree, package.name), tables_read(tree)
    while todo:
        file = package / f"{todo.pop()}.py"
        if file.name in found or not file.is_file(): continue
        found[file.name], more, read = of_module(file.read_text(encoding="utf-8"), package.name)
        todo, tables = todo | more, tables | read
    kept = {f"tables/{t}.csv": package / "tables" / f"{t}.csv" for t in tables if re.fullmatch(r"\w+", t)}
    return found | {name: digest(f.read_text(encoding="utf-8")) for name, f in kept.items() if f.is_file()}


def shown(output):
    "What a saved output shows, the same before and after nbdev_clean"
    join = lambda v: "".join(v) if isinstance(v, list) else v
    data = {k: re.sub(r"\s", "", join(v)) if k.startswith("image/") and "svg" not in k else join(v) for k, v in output.get("data", {}).items()}
    what = [output["output_type"], output.get("name"), join(output.get("text", "")), data]
    return re.sub(r"(<[^<>]*?) at 0x[0-9a-fA-F]+(>)", r"\1\2", json.dumps(what, sort_keys=True))


def record(nb, package=PACKAGE):
    "What is written down about a notebook that was just executed"
    return dict(code=digest(own_code(nb)), uses=uses(nb, package), outputs=digest([[shown(o) for o in c["outputs"]] for c in code_cells(nb) if c["outputs"]]))


def why_stale(nb, package=PACKAGE):
    "The reasons, one a line, why a notebook's saved outputs may not be those of its code; none if they are"
    was, now = nb["metadata"].get("fresh"), record(nb, package)
    if not was: return ["it is not written down which code made its outputs"]
    changed = sorted(f for f in was["uses"].keys() | now["uses"].keys() if was["uses"].get(f) != now["uses"].get(f))
    return (["its code has changed since its outputs were made"] * (was["code"] != now["code"])
            + [f"{package.name}/{f}, which it uses, has changed since its outputs were made" for f in changed]
            + ["its outputs are not those that its last execution gave"] * (was["outputs"] != now["outputs"]))
