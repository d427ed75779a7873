"""JavaScript and TypeScript drafts by reading: what is wrong with them, and which tests they define."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from posixpath import normpath, splitext
from typing import TYPE_CHECKING, Any

import tree_sitter_javascript
import tree_sitter_typescript
from tree_sitter import Language, Parser

from ptc_contracts.verdicts import GateIssue, GateStage, Severity
from ptc_worker.filetypes import is_free_form

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tree_sitter import Node

    from ptc_contracts.result import CodeArtifact

MAX_CHARS = 40_000
"""Longest file that is read, and so accepted. The parser is slow for some texts and keeps every other thread waiting:
so many quotes in a row take it 0.4 to 2 s, a lease has 8 s; a usual file of that length takes 20 ms."""

_MAX_ISSUES = 5
_JAVASCRIPT = {".js", ".mjs", ".cjs", ".jsx"}
_TYPESCRIPT = {".ts", ".mts", ".cts", ".tsx"}
_NAMED_LIKE_TESTS = re.compile(r"(^|/)(test|test-[^/]+|[^/]+[._-]test|[^/]+\.spec)\.[cm]?[jt]sx?$")
_SURELY_TESTS = re.compile(r"[._]test\.[cm]?[jt]sx?$|\.spec\.[cm]?[jt]sx?$")
_DEFINES_TESTS = re.compile(r"\b(test|it|describe|suite)\s*[.(]")
_IMPORTS_NODE_TEST = re.compile(r"""['"]node:test['"]""")
_AHEAD = re.compile(r"\b(accessor\s|import\s+(defer|source)\s|in\s+out\s)|[<,]\s*(in|out)\s+[A-Z]")
"""What the grammars do not know yet (tree-sitter-javascript 0.25, tree-sitter-typescript 0.23): a file with it is run."""

_SUITES = {"describe", "suite"}
_TESTS = {"default", "test", "it"}
_LOADERS = {"require", "import"}
_FUNCTIONS = {"arrow_function", "function_expression"}


@dataclass(frozen=True)
class DefinedTest:
    """A test that stands in a file and must be registered when it is run."""

    names: tuple[str, ...]
    """Its name, after those of the suites around it."""
    digest: str | None = None
    """SHA-256 of its function's text, in hexadecimal digits, where the file is run as it was written."""
    conditional: bool = False
    """Whether it says on which condition it is left out."""


@dataclass
class NodeTests:
    """What the test files of a draft promise."""

    files: dict[str, list[DefinedTest]] = field(default_factory=dict)
    """Files that use Node's test runner, with the tests that they are sure to define."""
    empty: list[str] = field(default_factory=list)
    """Files that are named like tests and do not use it."""

    @property
    def count(self) -> int:
        """How many tests are sure to be defined."""
        return sum(map(len, self.files.values()))


def is_javascript(path: str) -> bool:
    """Tell whether a file is JavaScript or TypeScript, by its name."""
    return PurePosixPath(path).suffix.lower() in _JAVASCRIPT | _TYPESCRIPT


def is_node_project(files: Sequence[CodeArtifact]) -> bool:
    """Tell whether a draft is to be run by Node."""
    return any(file.file_path == "package.json" or is_javascript(file.file_path) for file in files)


def has_node_tests(files: Sequence[CodeArtifact]) -> bool:
    """Tell whether there is anything that a test runner of Node would run."""
    tests = node_tests(files)
    return bool(tests.files or tests.empty)


def package_json(files: Sequence[CodeArtifact]) -> Mapping[str, Any]:
    """Return what the project says of itself, nothing if that cannot be read."""
    return next((_facts(file) for file in files if file.file_path == "package.json"), {})


def all_package_json(files: Sequence[CodeArtifact]) -> list[Mapping[str, Any]]:
    """Return what the parts of a project say of themselves, that in its root last."""
    found = [file for file in files if PurePosixPath(file.file_path).name == "package.json"]
    found = [file for file in found if not is_free_form(file.file_path)]
    return [_facts(file) for file in sorted(found, key=lambda file: -file.file_path.count("/"))]


def _facts(file: CodeArtifact) -> dict[str, Any]:
    try:
        facts = json.loads(file.content)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def runner_script(files: Sequence[CodeArtifact]) -> str:
    """Return the command by which the project runs its own tests, empty if it names none."""
    scripts = package_json(files).get("scripts")
    script = scripts.get("test") if isinstance(scripts, dict) else None
    return script if isinstance(script, str) else ""


def syntax_issues(files: Sequence[CodeArtifact]) -> list[GateIssue]:
    """List what is wrong with the grammar of a draft's JavaScript and TypeScript, and with its `package.json`."""
    return [issue for file in files if not is_free_form(file.file_path) for issue in _issues_of(file)]


def _issues_of(file: CodeArtifact) -> Iterator[GateIssue]:
    if file.file_path == "package.json":
        yield from _package_issues(file)
    elif is_javascript(file.file_path):
        if len(file.content) > MAX_CHARS:
            message = f"it is longer than {MAX_CHARS} characters; split it into several files"
            yield GateIssue(file=file.file_path, code="too-long", message=message)
        else:
            yield from _grammar_issues(file)


def _package_issues(file: CodeArtifact) -> Iterator[GateIssue]:
    try:
        facts = json.loads(file.content)
    except (ValueError, RecursionError):
        return  # whoever reads all JSON says so
    if not isinstance(facts, dict):
        yield GateIssue(file=file.file_path, code="package-json", message="it must hold one JSON object")


def _grammar_issues(file: CodeArtifact) -> Iterator[GateIssue]:
    source = file.content.encode(errors="replace")
    severity = Severity.WARNING if _AHEAD.search(file.content) else Severity.ERROR
    lines: set[int] = set()
    for node in _broken(_tree(file.file_path, source)):
        line = node.start_point[0] + 1
        if line in lines:
            continue
        lines.add(line)
        message = _what_is_wrong(node, source)
        yield GateIssue(file=file.file_path, line=line, code="syntax", message=message, severity=severity)
        if len(lines) == _MAX_ISSUES:
            return


def _broken(root: Node) -> Iterator[Node]:
    """Find the places where the grammar gave up, the first one first."""
    waiting = [root] if root.has_error else []
    while waiting:
        node = waiting.pop()
        if node.is_missing or (node.is_error and not any(child.has_error for child in node.children)):
            yield node
        else:
            waiting.extend(child for child in reversed(node.children) if child.has_error or child.is_missing)


def _what_is_wrong(node: Node, source: bytes) -> str:
    if node.is_missing:
        return f"{node.type!r} is missing here"
    text = source[node.start_byte : node.start_byte + 40].decode(errors="replace").split("\n")[0].strip()
    return f"the syntax is wrong at {text!r}" if text else "the syntax is wrong"


def node_tests(files: Sequence[CodeArtifact]) -> NodeTests:
    """Read which files are tests and which tests they are sure to define; what cannot be parsed promises nothing."""
    found = NodeTests()
    for file in files:
        path, text = file.file_path, file.content
        if not is_javascript(path) or "node_modules" in path.split("/"):
            continue
        if _IMPORTS_NODE_TEST.search(text):
            tests = list(_Reader(path, text).tests()) if len(text) <= MAX_CHARS else []
            if tests or _NAMED_LIKE_TESTS.search(path):
                found.files[path] = tests
        elif _SURELY_TESTS.search(path) or (_NAMED_LIKE_TESTS.search(path) and _DEFINES_TESTS.search(text)):
            found.empty.append(path)
    return found


def imported_modules(file: CodeArtifact) -> set[str]:
    """Name the modules that a file cannot be run without: neither types nor what is tried in a `try`."""
    if not is_javascript(file.file_path) or len(file.content) > MAX_CHARS:
        return set()
    found, waiting = set(), [_tree(file.file_path, file.content.encode(errors="replace"))]
    while waiting:
        node = waiting.pop()
        if node.type in {"import_statement", "export_statement"}:
            module = _plain_string(node.child_by_field_name("source"))
            if module and not re.match(r"(im|ex)port\s+type\b", _text(node)):
                found.add(module)
        elif node.type == "call_expression" and _text(node.child_by_field_name("function")) in _LOADERS:
            if (arguments := _arguments(node)) and (module := _plain_string(arguments[0])):
                found.add(module)
        elif node.type == "try_statement":
            continue
        waiting.extend(node.named_children)
    return found


def import_issues(files: Sequence[CodeArtifact]) -> list[GateIssue]:
    """List what Node will not find for tests though TypeScript would: files that are imported by another ending."""
    sources = {file.file_path: file for file in files}
    waiting, issues = [*node_tests(files).files], []
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        for module in sorted(imported_modules(sources[path])):
            if not module.startswith("."):
                continue
            target = normpath(f"{PurePosixPath(path).parent}/{module}")
            found = next((each for each in _taken_for(target) if each in sources), None)
            if found and found not in seen:
                seen.add(found)
                waiting.append(found)
            if found is None and (meant := next((e for e in _meant_by(target) if e in sources), None)):
                message = (
                    f"imports {module!r}: Node takes names as they are written, and the project has {meant}"
                )
                issues.append(
                    GateIssue(
                        file=path, code="unresolved-import", message=message, stage=GateStage.INTEGRATION
                    )
                )
    return issues


def _taken_for(target: str) -> list[str]:
    """Give the files that Node takes for a path; some of them only where it is `require` that asks."""
    return [target, *(f"{target}{end}" for end in (".js", ".json", "/index.js", "/index.json"))]


def _meant_by(target: str) -> list[str]:
    """Give the files that a TypeScript compiler takes for a path, and Node does not."""
    stem, ending = splitext(target)
    written = {".js": (".ts", ".tsx"), ".mjs": (".mts",), ".cjs": (".cts",)}.get(ending, ())
    return [f"{stem}{end}" for end in written] + [f"{target}{end}" for end in (".ts", ".tsx", "/index.ts")]


class _Reader:
    """Reads the tests of one file."""

    def __init__(self, path: str, text: str) -> None:
        self._root = _tree(path, text.encode(errors="replace"))
        self._exact = PurePosixPath(path).suffix.lower() in _JAVASCRIPT
        self._names = dict(_imported(self._root))

    def tests(self) -> Iterator[DefinedTest]:
        """Give the tests that are defined whatever happens: not those in loops, conditions and other functions."""
        yield from self._tests_in(self._root, (), conditional=False)

    def _tests_in(self, block: Node, suites: tuple[str, ...], *, conditional: bool) -> Iterator[DefinedTest]:
        for statement in block.named_children:
            call = _called(statement)
            if call is None:
                continue
            name, variant = self._callee(call)
            arguments = _arguments(call)
            title = _plain_string(arguments[0]) if arguments else None
            function = next((node for node in arguments if node.type in _FUNCTIONS), None)
            if title is None or function is None:
                continue
            left_out = variant in {"skip", "todo"}
            condition = conditional or _has_condition(arguments)
            if name in _SUITES and not left_out:
                body = function.child_by_field_name("body")
                if body is not None and body.type == "statement_block":
                    yield from self._tests_in(body, (*suites, title), conditional=condition)
            elif name in _TESTS:
                digest = hashlib.sha256(function.text or b"").hexdigest() if self._exact else None
                condition = condition or _leaves_out_on_condition(function)
                yield DefinedTest((*suites, title), digest, condition)

    def _callee(self, call: Node) -> tuple[str, str]:
        """Name what is called as `node:test` does, and the variant of it; empty if it is something else."""
        callee = call.child_by_field_name("function")
        first, *rest = (callee.text or b"").decode(errors="replace").split(".") if callee else [""]
        name = self._names.get(first, "")
        if name in {"default", "*"} and rest and rest[0] in _SUITES | _TESTS:
            name = rest.pop(0)
        return name, rest[0] if rest else ""


def _imported(root: Node) -> Iterator[tuple[str, str]]:
    """Give the names under which a file knows what `node:test` exports: the local name, then the exported one."""
    for node in root.named_children:
        if (
            node.type == "import_statement"
            and _plain_string(node.child_by_field_name("source")) == "node:test"
        ):
            yield from _import_names(node)
        elif node.type in {"lexical_declaration", "variable_declaration"}:
            for declared in node.named_children:
                name, value = declared.child_by_field_name("name"), declared.child_by_field_name("value")
                if name and value and re.match(rb"""require\(\s*['"]node:test['"]\s*\)""", value.text or b""):
                    yield from _pattern_names(name, value)


def _import_names(statement: Node) -> Iterator[tuple[str, str]]:
    for clause in (child for child in statement.named_children if child.type == "import_clause"):
        for part in clause.named_children:
            match part.type:
                case "identifier":
                    yield _text(part), "default"
                case "namespace_import":
                    yield _text(part.named_children[0]), "*"
                case "named_imports":
                    for each in part.named_children:
                        name = each.child_by_field_name("name")
                        yield _text(each.child_by_field_name("alias") or name), _text(name)


def _pattern_names(pattern: Node, value: Node) -> Iterator[tuple[str, str]]:
    if pattern.type == "identifier":
        property_ = value.child_by_field_name("property")
        yield _text(pattern), _text(property_) or "default"
    for each in pattern.named_children if pattern.type == "object_pattern" else ():
        if each.type == "shorthand_property_identifier_pattern":
            yield _text(each), _text(each)
        elif each.type == "pair_pattern":
            yield _text(each.child_by_field_name("value")), _text(each.child_by_field_name("key"))


def _called(statement: Node) -> Node | None:
    """Return the call that a statement consists of."""
    node = statement
    while node.type in {"expression_statement", "await_expression"} and node.named_children:
        node = node.named_children[0]
    return node if node.type == "call_expression" else None


def _arguments(call: Node) -> list[Node]:
    arguments = call.child_by_field_name("arguments")
    return [node for node in arguments.named_children if node.type != "comment"] if arguments else []


def _has_condition(arguments: list[Node]) -> bool:
    """Tell whether options say on which condition a test is skipped; a constant is no condition."""
    pairs = (pair for node in arguments if node.type == "object" for pair in node.named_children)
    for pair in pairs:
        key, value = pair.child_by_field_name("key"), pair.child_by_field_name("value")
        if _text(key).strip("'\"") == "skip" and value and value.type not in {"true", "string", "number"}:
            return True
    return False


def _leaves_out_on_condition(function: Node) -> bool:
    """Tell whether a test skips itself inside an `if`, whose condition is no constant."""
    waiting = [function]
    while waiting:
        node = waiting.pop()
        if node.type == "if_statement":
            condition = _text(node.child_by_field_name("condition")).strip("() ")
            if condition not in {"true", "1"} and re.search(r"\.skip\(", _text(node)):
                return True
        waiting.extend(node.named_children)
    return False


def _plain_string(node: Node | None) -> str | None:
    """Return the text of a string without escapes and insertions, None for anything else."""
    if node is None or node.type not in {"string", "template_string"}:
        return None
    if any(child.type != "string_fragment" for child in node.named_children):
        return None
    return _text(node)[1:-1]


def _text(node: Node | None) -> str:
    return (node.text or b"").decode(errors="replace") if node else ""


def _tree(path: str, source: bytes) -> Node:
    suffix = PurePosixPath(path).suffix.lower()
    grammar = "javascript" if suffix in _JAVASCRIPT else "tsx" if suffix == ".tsx" else "typescript"
    return Parser(_language(grammar)).parse(source).root_node


@cache
def _language(grammar: str) -> Language:
    match grammar:
        case "javascript":
            return Language(tree_sitter_javascript.language())
        case "tsx":
            return Language(tree_sitter_typescript.language_tsx())
        case _:
            return Language(tree_sitter_typescript.language_typescript())
