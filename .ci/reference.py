"""The API reference: one page a module in nbs/reference/, written from the package and its notebooks by `python .ci/reference.py`.

`.ci/site.py` writes the pages before it builds; before `nbdev_docs` run this by hand. Like the site they are not kept in git. Signatures,
comments and docstrings come from the modules; sections and examples from the notebooks.
"""
import ast
import importlib
import inspect
import json
import re
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from tokenize import COMMENT, generate_tokens

from fastcore.docments import docments
from nbdev.config import get_config
from smalldocs.markdown import pandoc_id

CFG = get_config()
LIB, NBS = CFG.lib_path, CFG.nbs_path
OUT = NBS / "reference"
LABEL = r"(?:Theorem|Proposition|Lemma|Corollary|Approximation)s? [A-E]\.\d+\w?(?: (?:to|and) [A-E]\.\d+\w?)?"
SOURCE = re.compile(rf"(Paper, [a-z ]*(?:\d+)?|{LABEL}|[A-Z]\w+ (?:and|et al\.?,?) ?[\wé]*, \d{{4}})")
LONGEST = 8  # lines of an example that is shown; longer ones are linked


# ---- the notebooks: sections, and who uses what where

@dataclass
class Cell:
    "A cell with the section it stands in."
    kind: str     # "code" or "markdown"
    source: str   # its text
    anchor: str   # of the section; "" before the first heading
    section: str  # the section's title

    @property
    def directives(self): return set(re.findall(r"^#\|\s*([\w-]+)", self.source, re.M))

    @property
    def shown(self): return self.kind == "code" and not self.directives & {"export", "exporti", "exports", "hide", "default_exp"}


@dataclass(eq=False)
class Chapter:
    "A notebook: its title, its module if it has one, and its cells in order."
    path: Path
    title: str = ""
    module: str | None = None
    cells: list = field(default_factory=list)

    def link(self, cell): return f"[{self.title}{', ' + cell.section if cell.section else ''}](../{self.path.name}{'#' * bool(cell.anchor)}{cell.anchor})"


def heading_text(line):
    "A heading as plain text, and the identifier that is written behind it or None."
    text, _, attrs = line.lstrip("#").strip().partition(" {#")
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[`$]|\*(?=\S)|(?<=\S)\*", "", text), attrs.rstrip("} ") or None


def public_names(source):
    "The public functions and classes that a cell defines, in the order in which nbdev documents them: the last comes first."
    return [n.name for n, _ in reversed(statements(source)) if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]


def plain_code(source): return re.sub(r"^[%!].*$", "", source, flags=re.M)


@cache
def statements(source):
    "The top-level statements of a cell, and for each the names it reads: `name`, `.name` behind any object, and as `name` too what is read from a module called package."
    def reads(n):
        if isinstance(n, ast.Name): return {n.id}
        return {f".{n.attr}", *[n.attr] * (getattr(n.value, "id", "") == "package")} if isinstance(n, ast.Attribute) else set()
    return [(n, set().union(*map(reads, ast.walk(n)))) for n in ast.parse(plain_code(source)).body]


def read_chapter(path):
    "Read a notebook; anchors are counted as pandoc does, with the headings that nbdev adds for exported names."
    chapter, anchor, section, seen = Chapter(path), "", "", {}

    def identifier(text, given=None):
        base = given or pandoc_id(text)
        seen[base] = seen.get(base, -1) + 1
        return f"{base}-{seen[base]}" if seen[base] and not given else base

    for raw in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(raw["source"])
        if raw["cell_type"] == "markdown":
            outside = re.sub(r"^```.*?^```", lambda m: re.sub(r"^#", " #", m[0], flags=re.M), source, flags=re.M | re.S)
            for line in outside.splitlines():
                if re.match(r"# \S", line) and not chapter.title: chapter.title = line[2:].strip()
                elif re.match(r"#{2,4} \S", line):
                    section, given = heading_text(line)
                    anchor = identifier(section, given)
        cell = Cell(raw["cell_type"], source, anchor, section)
        chapter.cells.append(cell)
        if m := re.search(r"^#\|\s*default_exp\s+(\w+)", source, re.M): chapter.module = m[1]
        if "export" in cell.directives and "hide" not in cell.directives:
            for name in public_names(source): identifier(name)
    return chapter


@cache
def chapters(): return [read_chapter(p) for p in sorted(NBS.glob("*.ipynb")) if p.stem[0].isdigit()]


def node_of(name, body):
    "The statement that defines or assigns a name, or None."
    for n in body:
        targets = [t for whole in getattr(n, "targets", [getattr(n, "target", None)]) for t in getattr(whole, "elts", [whole])]
        if name in [getattr(n, "name", None), *(getattr(t, "id", None) for t in targets)]: return n


def defined_at(name, chapter):
    "The exported cell that defines or assigns a name."
    return next(c for c in chapter.cells if {"export", "exports"} & c.directives and node_of(name, [n for n, _ in statements(c.source)]))


@cache
def example_of(name, home):
    "Where a name is first used in a code cell that is shown: chapter, cell and statement; the chapter that defines it comes first. None where nobody does."
    for chapter in sorted(chapters(), key=lambda c: c is not home):  # the others in reading order
        for cell in chapter.cells:
            found = [n for n, names in statements(cell.source) if name in names] if cell.shown else []
            plain = [n for n in found if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
            if found: return chapter, cell, (plain or found)[0]


def makers(name):
    "What returns objects of a class, as it is annotated: public functions, and with a dot before them public methods; of its own module first."
    for m in sorted((module(c.module) for c in chapters() if c.module), key=lambda m: homes()[name] != m.name):
        for n in m.tree.body:
            public = getattr(n, "name", "") in m.object.__all__
            for f in ([n] if isinstance(n, ast.FunctionDef) else n.body if isinstance(n, ast.ClassDef) else []) * public:
                if isinstance(f, ast.FunctionDef) and not f.name.startswith("_") and f.returns and re.search(rf"\b{name}\b", m.piece(f.returns)): yield "." * (f is not n) + f.name


def documented(name, home):
    "How a name is shown to work: the example and, for a class that only functions make, the function of the example. None where it is not."
    if found := example_of(name, home): return *found, name
    if not isinstance(module(home.module).node(name), ast.ClassDef): return None
    return next(((*found, maker) for maker in makers(name) if (found := example_of(maker, home))), None)


def stated_in(label):
    "The chapter and the section whose text states a theorem, by its label in bold or in a heading."
    for chapter in chapters():
        for cell in chapter.cells:
            if cell.kind == "markdown" and re.search(rf"(?:\*\*|^#+ ){re.escape(label)}\b", cell.source, re.M): return chapter, cell


# ---- the package: signatures and comments, as they are written

@dataclass
class Module:
    "A module's text, syntax tree and comments by line."
    name: str
    text: str
    tree: ast.Module
    comments: dict
    lines: list

    def node(self, name): return node_of(name, self.tree.body)

    def piece(self, node):
        "The text of a node; `ast.get_source_segment` would split the whole module each time."
        if node is None: return ""
        lines = [line.encode() for line in self.lines[node.lineno - 1:node.end_lineno]]
        lines[-1] = lines[-1][:node.end_col_offset]
        lines[0] = lines[0][node.col_offset:]
        return b"\n".join(lines).decode()

    @property
    def object(self): return importlib.import_module(f"{LIB.name}.{self.name}")


@cache
def module(name):
    text = (LIB / f"{name}.py").read_text(encoding="utf-8")
    return Module(name, text, ast.parse(text), {t.start[0]: t.string.lstrip("# ") for t in generate_tokens(StringIO(text).readline) if t.type == COMMENT}, text.split("\n"))


def parameters(mod, node):
    "(name as written, type, default) of each parameter, and None where only names may follow."
    a, out = node.args, []
    plain = a.posonlyargs + a.args
    for p, d in zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults): out.append((p.arg, mod.piece(p.annotation), mod.piece(d)))
    if a.vararg: out.append((f"*{a.vararg.arg}", mod.piece(a.vararg.annotation), ""))
    elif a.kwonlyargs: out.append(None)
    for p, d in zip(a.kwonlyargs, a.kw_defaults): out.append((p.arg, mod.piece(p.annotation), mod.piece(d)))
    if a.kwarg: out.append((f"**{a.kwarg.arg}", mod.piece(a.kwarg.annotation), ""))
    return [p for p in out if p is None or p[0] not in ("self", "cls")]


def written(params): return [("*" if p is None else p[0] + f": {p[1]}" * bool(p[1]) + ((" = " if p[1] else "=") + p[2]) * bool(p[2])) for p in params]


def signature(name, params, returns=""):
    "A call as it is written, in one line where it fits."
    args, tail = written(params), f" -> {returns}" * bool(returns)
    line = f"{name}({', '.join(args)}){tail}"
    return line if len(line) <= 90 else f"{name}(\n" + "".join(f"    {a},\n" for a in args) + f"){tail}"


def comment_on_return(mod, node):
    "The comment behind the bracket that closes a signature."
    for line in range(node.body[0].lineno - 1, node.lineno - 1, -1):
        if re.match(r"\s*\)", mod.lines[line - 1]): return mod.comments.get(line, "")
    return ""


def sentences(docstring): return re.split(r"(?<=[.;]) (?=[A-Z])", " ".join((docstring or "").split()))


def split_docstring(docstring):
    "What it says, what it raises, and its sources."
    said = [s for s in sentences(docstring) if not s.startswith("Raises ")]
    raised = " ".join(s.removeprefix("Raises ") for s in sentences(docstring) if s.startswith("Raises "))
    labels = list(dict.fromkeys(SOURCE.findall(docstring or "")))
    said = [s for s in said if not re.fullmatch(rf"(?:{SOURCE.pattern})\.", s)]
    return " ".join(said), raised, labels


# ---- markdown that pandoc and smalldocs read alike

def escaped(text):
    "Prose of a comment or docstring; code in backticks stays, and public names become links."
    def outside(s): return re.sub(r"(?<!\w)@|[<>$|\[\]*~^]", lambda m: "\\" + m[0], s)
    def code(s): return f"<code>{s[1:-1].replace('&', '&amp;').replace('<', '&lt;').replace('|', '&#124;')}</code>" if "|" in s else s
    return "".join(linked(p) if re.fullmatch(r"`[A-Za-z_]\w*`", p) else code(p) if p.startswith("`") else outside(p) for p in re.split(r"(`[^`]*`)", text or ""))


@cache
def homes(): return {name: c.module for c in reversed(chapters()) if c.module for name in module(c.module).object.__all__}  # a name of two modules: the earlier one's


def linked(code):
    "A name in backticks as a link to its entry, where it is public."
    name = code.strip("`")
    return f"[{code}]({homes()[name]}.qmd#{name})" if name in homes() else code


def coded(text): return f"`{' '.join(text.split())}`".replace(" | ", " or ") if text and "|" not in text.replace(" | ", "") else escaped(f"`{text}`") if text else ""


def table(rows, heads):
    "A pipe table without the columns that are empty."
    keep = [k for k, h in enumerate(heads) if k == 0 or any(r[k] for r in rows)]
    line = lambda r: "| " + " | ".join(r[k] for k in keep) + " |"
    return "\n".join([line(heads), "|" + "---|" * len(keep), *map(line, rows)])


def parameter_table(params, comments):
    rows = [(coded(p[0]), coded(p[1]), coded(p[2]), escaped(comments.get(p[0].lstrip("*")) or "")) for p in params if p]
    return table(rows, ("parameter", "type", "default", "what it is")) if rows else ""


# ---- entries

def comments_of(obj): return {k: (v.docment or "").replace("\n", " ") for k, v in docments(obj, full=True, args_kwargs=True).items()}


def source_line(mod, node): return f"{CFG.git_url}/blob/{CFG.branch}/{LIB.name}/{mod.name}.py#L{node.lineno}"


def label_links(labels):
    "Sources, each a link to the section that states it, or to the paper."
    def one(label):
        if label.startswith("Paper"): return f"[{label}](https://arxiv.org/abs/2412.03881)"
        where = stated_in(re.sub(r"^(Theorem|Proposition)s", r"\1", label.split(" to ")[0].split(" and ")[0])) if re.match(LABEL, label) else None
        return f"[{label}](../{where[0].path.name}{'#' * bool(where[1].anchor)}{where[1].anchor})" if where else label
    return "; ".join(map(one, labels))


def facts(mod, node, docstring, returns, comment):
    "The lines below the parameters: what comes back, what is raised, the source."
    _, raised, labels = split_docstring(docstring)
    out = [f"**Returns** {coded(returns)}{': ' * bool(returns and comment)}{escaped(comment)}"] if returns or comment else []
    out += [f"**Raises** {escaped(raised)}"] * bool(raised) + [f"**Source** {label_links(labels)}"] * bool(labels)
    return "\n\n".join(out)


def function_entry(mod, name, node):
    "Signature, sentence, parameters, result, errors and source of a function."
    params, returns, f = parameters(mod, node), mod.piece(node.returns), getattr(mod.object, name)
    said = split_docstring(f.__doc__)[0]
    return [f"```python\n{signature(name, params, returns)}\n```", escaped(said), parameter_table(params, comments_of(f)), facts(mod, node, f.__doc__, returns, comment_on_return(mod, node))]


def class_parameters(mod, cls):
    "The fields of a dataclass or the parameters of `__init__`, each with its comment; those that are inherited too."
    params, comments = {}, {}
    for base in reversed([c for c in cls.__mro__ if c.__module__.startswith(LIB.name)]):
        m = module(base.__module__.split(".")[1])
        node = m.node(base.__name__)
        if is_dataclass(base):
            for n in node.body:
                if isinstance(n, ast.AnnAssign): params[n.target.id] = (n.target.id, m.piece(n.annotation), m.piece(n.value))
            comments |= comments_of(base)
        for n in node.body:
            if isinstance(n, ast.FunctionDef) and n.name == "__init__":
                params = {str(p and p[0]): p for p in parameters(m, n)}
                comments = comments_of(base.__init__)
    wanted = [f.name for f in fields(cls) if f.init] if is_dataclass(cls) and "__init__" not in [n for c in cls.__mro__ for n in vars(c) if c.__module__.startswith(LIB.name) and not is_dataclass(c)] else list(params)
    return [params[k] for k in wanted if k in params], comments


def methods(cls):
    "Public methods and properties as (module, node), those of private bases too; the class's own come first."
    found = {}
    for base in cls.__mro__:
        if not base.__module__.startswith(LIB.name): continue
        m = module(base.__module__.split(".")[1])
        for n in m.node(base.__name__).body:
            if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"): found.setdefault(n.name, (m, n))
    return found.values()


def method_line(mod, node):
    "A method in one item of a list: the call, what it does, its parameters, what comes back."
    params, returns, doc = parameters(mod, node), mod.piece(node.returns), ast.get_docstring(node)
    is_property = any(getattr(d, "id", getattr(d, "attr", "")) in ("property", "cached_property") for d in node.decorator_list)
    said = [escaped(" ".join((doc or "").split()))] if doc else []
    given = [(p[0], mod.comments.get(line)) for p, line in zip([p for p in params if p], lines_of(node))]
    said += ["; ".join(f"`{k}`: {escaped(c)}" for k, c in given if c) + "."] if any(c for _, c in given) else []
    comment = comment_on_return(mod, node) or (mod.comments.get(node.lineno, "") if is_property else "")
    said += [f"Gives {escaped(comment)}."] if comment else []
    return f"- {coded(node.name if is_property else signature(node.name, params, returns))}" + f": {' '.join(said)}" * bool(said)


def lines_of(node): return [p.lineno for p in node.args.posonlyargs + node.args.args + ([node.args.vararg] if node.args.vararg else []) + node.args.kwonlyargs if p.arg not in ("self", "cls")]


def class_entry(mod, name, node):
    "Constructor, sentence, fields and methods of a class."
    cls = getattr(mod.object, name)
    params, comments = class_parameters(mod, cls)
    said = split_docstring(cls.__doc__)[0]
    verbs = [method_line(m, n) for m, n in methods(cls)]
    return [f"```python\n{signature(name, params)}\n```", escaped(said), parameter_table(params, comments), facts(mod, node, cls.__doc__, "", ""), "\n".join(["**Methods and properties**", "", *verbs] if verbs else [])]


def constant_entry(mod, name, node):
    "A constant as it is written, cut where it is long."
    lines = mod.lines[node.lineno - 1:node.end_lineno]
    return [f"```python\n" + "\n".join(lines[:LONGEST] + ["..."] * (len(lines) > LONGEST)) + "\n```"]


def example(name, home):
    "The first use of a name: where it stands, and the statement if it is short."
    found = documented(name, home)
    if not found: return []
    chapter, cell, statement, by = found
    first = min(n.lineno for n in (statement, *getattr(statement, "decorator_list", ())))
    code = "\n".join(plain_code(cell.source).splitlines()[first - 1:statement.end_lineno])
    shown, made = len(code.splitlines()) <= LONGEST, f"Made by {linked(f'`{by}`')}. " if by != name else ""
    return [f"{made}Example, from {chapter.link(cell)}{':' if shown else ' (a longer one).'}"] + [f"```python\n{code}\n```"] * shown


def entry(mod, name, home):
    "All that is said of a public name."
    node, kind = mod.node(name), {ast.FunctionDef: function_entry, ast.ClassDef: class_entry}
    where = f"Defined in {home.link(defined_at(name, home))}. [Source]({source_line(mod, node)})"
    parts = [f"## {name} {{#{name}}}", *kind.get(type(node), constant_entry)(mod, name, node), *example(name, home), where]
    return "\n\n".join(p for p in parts if p)


# ---- pages

def one_line(mod, name):
    "What a name is, in a sentence, without errors and sources."
    node = mod.node(name)
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return escaped(split_docstring(getattr(mod.object, name).__doc__)[0])
    return escaped(mod.comments.get(node.lineno) or "a constant")


def about(mod):
    "A module's own sentence."
    said = escaped(ast.get_docstring(mod.tree))
    return said + "." * (not said.endswith(("?", ".")))


def module_page(chapter):
    "One module's page."
    mod = module(chapter.module)
    head = f'---\ntitle: "Reference: {mod.name}"\ndescription: "{ast.get_docstring(mod.tree)}"\ntoc-depth: 2\n---'
    intro = f"What the chapter [{chapter.title}](../{chapter.path.name}) exports.\n\n```python\nfrom {LIB.name} import {mod.name}\n```"
    return "\n\n".join([head, intro, *(entry(mod, n, chapter) for n in mod.object.__all__)]) + "\n"


def overview():
    "The page of all modules with a line for each name."
    head = '---\ntitle: "API reference"\ndescription: "Every public name, by module"\ntoc-depth: 2\n---'
    intro = ("Every public name, by module, in the order of the chapters. An entry has the signature, the parameters with their shapes and units, what comes back, the errors,\n"
             "the theorem or the section of the paper behind it, an example that runs with its chapter, and links to the section that derives it and to its source.")
    parts = []
    for c in chapters():
        if not c.module: continue
        rows = [(f"[`{n}`]({c.module}.qmd#{n})", one_line(module(c.module), n)) for n in module(c.module).object.__all__]
        parts.append(f"## {c.module} {{#{c.module}}}\n\n{about(module(c.module))} [All of it on one page]({c.module}.qmd), [the chapter](../{c.path.name}).\n\n{table(rows, ('name', 'what it does'))}")
    return "\n\n".join([head, intro, *parts]) + "\n"


def pages():
    "The name and the text of each page."
    return {"index.qmd": overview()} | {f"{c.module}.qmd": module_page(c) for c in chapters() if c.module}


def without_example():
    "Public names that no shown code cell of a chapter uses, as module.name."
    return [f"{c.module}.{n}" for c in chapters() if c.module for n in module(c.module).object.__all__ if not documented(n, c)]


def main():
    OUT.mkdir(exist_ok=True)
    written = pages()
    for old in OUT.glob("*.qmd"):
        if old.name not in written: old.unlink()
    for name, text in written.items(): (OUT / name).write_text(text, encoding="utf-8")
    print(f"{len(written)} pages in {OUT.relative_to(CFG.config_path)}/; names without an example: {', '.join(without_example()) or 'none'}")


if __name__ == "__main__": main()
