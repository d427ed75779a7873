"""JavaScript and TypeScript drafts by reading: broken syntax is found, good syntax is left alone, tests are counted."""

from __future__ import annotations

import time

import pytest

from ptc_contracts.verdicts import Severity
from ptc_worker.filetypes import artifact
from ptc_worker.javascript import (
    MAX_CHARS,
    has_node_tests,
    is_node_project,
    node_tests,
    runner_script,
    syntax_issues,
)

GOOD = {
    "a.mjs": "import x from './a.json' with { type: 'json' };\nexport * as ns from 'x';\nawait foo();",
    "a.js": "#!/usr/bin/env node\nclass A { static { this.x = 1 } #p = 2; get #q() { return 1 } has(o) { return #p in o } }",
    "b.js": "a ??= b; a?.b?.[c]?.(d); 1_000n; /a(?<n>b)/dgv; label: for (;;) { continue label }",
    "c.js": "x = a\n++b\nvar let_ = 1; async = 5; of = 3; if (a); else b",
    "d.js": "return_ = `a${`b${c}`}`; using_ = 1; const {a = 1, ...r} = b; export default async () => {}",
    "a.cjs": "'use strict';\nconst { a } = require('./b');\nmodule.exports = { a, async *b() {}, get c() { return 1 } };",
    "a.jsx": "const a = <><p className='x'>{x} &amp; text</p><A.B {...c} /></>;",
    "a.ts": "const x = { a: 1 } satisfies T; function f(this: A, a?: number): asserts a is number {}",
    "b.ts": "abstract class A<T> implements B { declare x: number; constructor(public z: number) { super() } override g() {} }",
    "c.ts": "type M = { readonly [K in keyof T as `get${K}`]?: T[K] }; enum E { A = 1 } declare module 'x' { const a: number }",
    "d.mts": "import { type C, d } from 'e'; export type { A } from './a.ts'; @Dec() class X { @Input() a!: string }",
    "e.cts": "import fs = require('fs'); function o(a: string): void; function o(a: any) {}\nexport = o;",
    "a.tsx": "const f = <T,>(x: T) => <Foo<string> bar={1}>text {x as any}</Foo>;",
}

BROKEN = {
    "a brace is missing": ("a.js", "function f() {\n  if (x) {\n    y();\n}\n", 4),
    "a value is missing": ("a.mjs", "let a = 1;\nconst x = ;\n", 2),
    "an operator too many": ("a.cjs", "let x = = 3;", 1),
    "two statements in one": ("a.js", "let a = 1 let b = 2", 1),
    "a string does not end": ("a.js", "ok();\nconst s = 'abc\nd();", 2),
    "the end of a file is cut": (
        "a.ts",
        "export function add(a: number, b: number): number {\n  return a +",
        1,
    ),
    "a type is missing": ("b.ts", "const a: = 3;", 1),
    "a tag is not closed": ("a.tsx", "const a = <div>;", 1),
    "types in JavaScript": ("a.js", "function f(a: number) {}", 1),
    "another language": ("a.js", "def f():\n  pass", 1),
}

TESTS = """
import test, { it as spec, describe } from 'node:test';
test('a', () => {});
test('b', { skip: process.platform === 'win32' }, async (t) => {});
test('c', { skip: true }, () => {});
describe('suite', () => {
  spec('d', (t) => { if (slow) t.skip(); });
  describe.skip('not now', () => { spec('no', () => {}); });
  for (const x of [1]) spec(`n${x}`, () => {});
});
if (x) test('perhaps', () => {});
function define() { test('from elsewhere', () => {}); }
await test.only("e", function () {});
"""


@pytest.mark.parametrize("path", GOOD)
def test_good_syntax_is_left_alone(path: str) -> None:
    """What the language allows is no issue, whatever the kind of file."""
    assert syntax_issues([artifact(path, GOOD[path])]) == []


@pytest.mark.parametrize(("path", "source", "line"), BROKEN.values(), ids=BROKEN)
def test_broken_syntax_is_found_with_its_line(path: str, source: str, line: int) -> None:
    """Each error names its file, and the first one a line that helps."""
    issues = syntax_issues([artifact(path, source)])

    assert issues
    assert {(issue.file, issue.code) for issue in issues} == {(path, "syntax")}
    assert issues[0].line == line


@pytest.mark.parametrize(
    "source",
    [
        "class A { accessor z = 1; }",
        "import defer * as ns from 'x';",
        "class A<in out T> {}",
        "interface B<in T, out U> {}",
    ],
)
def test_what_the_grammars_do_not_know_yet_keeps_no_draft_from_running(source: str) -> None:
    """Such a file is told of, and its run decides."""
    issues = syntax_issues([artifact("a.ts", source)])

    assert all(issue.severity is Severity.WARNING for issue in issues)


def test_a_package_file_holds_an_object() -> None:
    """A list is no package.json; what is no JSON at all is told by whoever reads all JSON."""
    texts = {"[]": 1, '"a"': 1, "{}": 0, "{": 0}

    assert {text: len(syntax_issues([artifact("package.json", text)])) for text in texts} == texts


def test_files_that_are_no_javascript_are_left_alone() -> None:
    """Neither Python, nor test data, nor a package file somewhere below is looked at."""
    files = [
        artifact("a.py", "def"),
        artifact("fixtures/bad.js", "let = ="),
        artifact("x/package.json", "[]"),
    ]

    assert syntax_issues(files) == []


@pytest.mark.parametrize(
    "text",
    ["(", "[", "{", "`${", "<a>", "a<", "(a,", "f<", "'", "} ) ] ; ", "@#%^&*\\", "x as ", "\0", "\ud800"],
)
@pytest.mark.parametrize("suffix", ["js", "ts", "tsx"])
def test_hostile_texts_come_to_an_end(text: str, suffix: str) -> None:
    """The longest file of any shape is read within a lease, nothing is raised, and little is told of it."""
    started = time.monotonic()
    issues = syntax_issues([artifact(f"a.{suffix}", text * (MAX_CHARS // len(text)))])

    assert len(issues) <= 5
    assert time.monotonic() - started < 8


def test_a_file_that_is_too_long_is_refused() -> None:
    """It is not even read."""
    (issue,) = syntax_issues([artifact("a.js", "a;" * MAX_CHARS)])

    assert issue.code == "too-long"


def test_tests_are_found_by_reading() -> None:
    """Those that are defined whatever happens are promised, with their suites and what is said of conditions."""
    found = node_tests([artifact("tests/it.mjs", TESTS)])

    assert {(test.names, test.conditional) for test in found.files["tests/it.mjs"]} == {
        (("a",), False),
        (("b",), True),
        (("c",), False),
        (("suite", "d"), True),
        (("e",), False),
    }
    assert found.count == 5


def test_tests_are_found_under_other_names() -> None:
    """By whatever name a file knows what it takes from node:test."""
    files = {
        "a.mjs": "import * as t from 'node:test';\nt.test('1', () => {});\nt.describe('s', () => { t.it('2', () => {}); });",
        "b.cjs": "const { test: check } = require('node:test');\ncheck('3', () => {});",
        "c.cjs": "const run = require('node:test');\nrun('4', () => {});\nrun.it('5', () => {});",
        "d.cjs": "const it = require('node:test').it;\nit('6', () => {});",
    }
    found = node_tests([artifact(path, text) for path, text in files.items()])

    assert {test.names[-1] for tests in found.files.values() for test in tests} == set("123456")


def test_only_test_files_are_run() -> None:
    """Code that is named like a test counts as one without tests; packages and helpers do not."""
    files = {
        "node_modules/x/a.test.js": "import test from 'node:test';\ntest('a', () => {});",
        "test/helper.js": "export const help = 1;",
        "src/tested.js": "export const x = 1;",
        "a.spec.ts": "import { test } from 'vitest';",
        "b_test.mjs": "console.log(1)",
    }
    found = node_tests([artifact(path, text) for path, text in files.items()])

    assert (found.files, sorted(found.empty)) == ({}, ["a.spec.ts", "b_test.mjs"])


def test_projects_are_told_apart() -> None:
    """A package file or any script makes a project Node's; it has tests if there is anything to run."""
    python, package = artifact("a.py", ""), artifact("package.json", '{"scripts": {"test": "node --test"}}')
    script, test = artifact("a.ts", ""), artifact("a.test.ts", "import test from 'node:test';")

    assert [is_node_project([file]) for file in (python, package, script)] == [False, True, True]
    assert [has_node_tests([file]) for file in (python, package, script, test)] == [False, False, False, True]
    assert [runner_script([file]) for file in (package, script)] == ["node --test", ""]
    assert runner_script([artifact("package.json", '{"scripts": []}')]) == ""
