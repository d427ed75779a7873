"""A model's answer becomes files: only safe paths, only whole files, never a guess."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hostile_answers import hostile_answers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptc_contracts.paths import untidy_reason
from ptc_worker import parsing
from ptc_worker.parsing import (
    MAX_DISPUTE_CHARS,
    MAX_DISPUTES,
    MAX_FILE_CHARS,
    MAX_FILES,
    MAX_PROBLEMS,
    MAX_TOTAL_CHARS,
    parse_answer,
)

_README = """\
# Ledger

```bash
pip install ledger
```

~~~python
import ledger
~~~

    ```
    indented
    ```
"""


class _Case(NamedTuple):
    answer: str
    files: dict[str, str]


def _tagged(path: str, content: str) -> str:
    return f'<file path="{path}">\n{content}</file>\n'


_TAGGED = {
    "one file": _Case(_tagged("a.py", "x = 1\n"), {"a.py": "x = 1\n"}),
    "two files with notes around them": _Case(
        "Here it is.\n\n" + _tagged("a.py", "a\n") + "and\n" + _tagged("b.py", "b\n") + "Done.",
        {"a.py": "a\n", "b.py": "b\n"},
    ),
    "byte order mark": _Case("\ufeff" + _tagged("a.py", "a\n"), {"a.py": "a\n"}),
    "CRLF": _Case('<file path="a.py">\r\nx\r\n\r\ny\r\n</file>\r\n', {"a.py": "x\n\ny\n"}),
    "lone CR": _Case('<file path="a.py">\rx\r</file>', {"a.py": "x\n"}),
    "other line separators stay": _Case(_tagged("a.py", "x = '\u2028\x0b\x0c\x85'\n"), {"a.py": "x = '\u2028\x0b\x0c\x85'\n"}),
    "single quotes": _Case("<file path='a.py'>\na\n</file>", {"a.py": "a\n"}),
    "spaces in the tags": _Case('  <file  path = "a.py" > \na\n </file > ', {"a.py": "a\n"}),
    "leading ./": _Case(_tagged("./src/a.py", "a\n"), {"src/a.py": "a\n"}),
    "spaces around the path": _Case(_tagged(" a.py ", "a\n"), {"a.py": "a\n"}),
    "decomposed accents": _Case(_tagged("re\u0301sume\u0301.md", "a\n"), {"r\xe9sum\xe9.md": "a\n"}),
    "empty file": _Case(_tagged("pkg/__init__.py", ""), {"pkg/__init__.py": ""}),
    "nothing but blank lines": _Case(_tagged("pkg/__init__.py", "\n  \n\n"), {"pkg/__init__.py": ""}),
    "blank lines around": _Case(_tagged("a.py", "\n\n  x\n\n\n"), {"a.py": "  x\n"}),
    "fence inside the tag": _Case(_tagged("a.py", "```python\nx\n```\n"), {"a.py": "x\n"}),
    "tilde fence inside the tag": _Case(_tagged("a.py", "~~~\nx\n~~~\n"), {"a.py": "x\n"}),
    "only the outer fence goes": _Case(_tagged("a.py", "````\n```\nx\n```\n````\n"), {"a.py": "```\nx\n```\n"}),
    "fence that is not closed stays": _Case(_tagged("a.py", "```python\nx\n"), {"a.py": "```python\nx\n"}),
    "fence around the answer": _Case("```xml\n" + _tagged("a.py", "a\n") + "```\n", {"a.py": "a\n"}),
    "README with fences": _Case(_tagged("README.md", _README), {"README.md": _README}),
    "README that is one fence": _Case(_tagged("A.MD", "```bash\nmake\n```\n"), {"A.MD": "```bash\nmake\n```\n"}),
    "README wrapped in a fence": _Case(_tagged("README.md", "```markdown\n" + _README + "```\n"), {"README.md": _README}),
    "forgotten closing tag": _Case(
        '<file path="a.py">\na\n<file path="b.py">\nb\n</file>', {"a.py": "a\n", "b.py": "b\n"}
    ),
    "text that only looks like an opening tag": _Case(
        _tagged("a.py", 's = "<file path="\nx = \'<file path="b.py">\'\n        <file path="c.py">\n<files>\n'),
        {"a.py": 's = "<file path="\nx = \'<file path="b.py">\'\n        <file path="c.py">\n<files>\n'},
    ),
    "text that only looks like a closing tag": _Case(
        _tagged("a.html", "<b></file></b>\n</files>\n    </file>\n"),
        {"a.html": "<b></file></b>\n</files>\n    </file>\n"},
    ),
    "delete tag inside a file": _Case(
        _tagged("a.md", '<delete path="b.py"/>\n'), {"a.md": '<delete path="b.py"/>\n'}
    ),
    "tags win over fences": _Case("b.py\n```\nb\n```\n" + _tagged("a.py", "a\n"), {"a.py": "a\n"}),
}  # fmt: skip


@pytest.mark.parametrize("case", _TAGGED.values(), ids=_TAGGED)
def test_tagged_files_are_read_as_they_were_meant(case: _Case) -> None:
    """The form that is asked for is read, with all the small liberties that models take."""
    parsed = parse_answer(case.answer)

    assert {file.file_path: file.content for file in parsed.files} == case.files
    assert (parsed.problems, parsed.deleted, parsed.complete) == ([], [], True)


_FENCED = {
    "path above": _Case("src/a.py\n```python\nx\n```\n", {"src/a.py": "x\n"}),
    "path above a blank line": _Case("src/a.py\n\n```python\nx\n```\n", {"src/a.py": "x\n"}),
    "path in bold code": _Case("**`src/a.py`**:\n```\nx\n```\n", {"src/a.py": "x\n"}),
    "path in a numbered heading": _Case("### 1. `src/a.py`\n```\nx\n```\n", {"src/a.py": "x\n"}),
    "path in a list": _Case("- File: src/a.py\n```\nx\n```\n", {"src/a.py": "x\n"}),
    "bold label": _Case("**Filename:** `src/a.py`\n```\nx\n```\n", {"src/a.py": "x\n"}),
    "underscores belong to the path": _Case("`__init__.py`\n```\nx\n```\n", {"__init__.py": "x\n"}),
    "digits belong to the path": _Case("001_init.sql\n```\nx\n```\n", {"001_init.sql": "x\n"}),
    "dots belong to the path": _Case(".gitignore\n```\nx\n```\n", {".gitignore": "x\n"}),
    "no ending": _Case("Makefile\n```\nx\n```\n", {"Makefile": "x\n"}),
    "path in the info string": _Case("```python src/a.py\nx\n```\n", {"src/a.py": "x\n"}),
    "path behind a colon": _Case("```python:src/a.py\nx\n```\n", {"src/a.py": "x\n"}),
    "path as a title": _Case('```python title="src/a.py"\nx\n```\n', {"src/a.py": "x\n"}),
    "path in a comment": _Case("```python\n# src/a.py\nx\n```\n", {"src/a.py": "# src/a.py\nx\n"}),
    "path in another comment": _Case("```js\n// file: a.js\nx\n```\n", {"a.js": "// file: a.js\nx\n"}),
    "path in a closed comment": _Case("```html\n<!-- a.html -->\n```\n", {"a.html": "<!-- a.html -->\n"}),
    "tilde fence": _Case("a.py\n~~~python\nx\n~~~\n", {"a.py": "x\n"}),
    "tilde fence around backticks": _Case("a.md\n~~~\n```\nx\n```\n~~~\n", {"a.md": "```\nx\n```\n"}),
    "longer fence around a shorter one": _Case("a.md\n````\n```\nx\n```\n````\n", {"a.md": "```\nx\n```\n"}),
    "nested fences are counted": _Case(
        "README.md\n```markdown\n# A\n```bash\nmake\n```\nend\n```\na.py\n```\nx\n```\n",
        {"README.md": "# A\n```bash\nmake\n```\nend\n", "a.py": "x\n"},
    ),
    "CRLF": _Case("a.py\r\n```\r\nx\r\n```\r\n", {"a.py": "x\n"}),
}


@pytest.mark.parametrize("case", _FENCED.values(), ids=_FENCED)
def test_an_answer_without_tags_is_read_as_fenced_blocks(case: _Case) -> None:
    """The path stands above the block, behind its fence, or in a comment on its first line."""
    parsed = parse_answer(case.answer)

    assert {file.file_path: file.content for file in parsed.files} == case.files
    assert (parsed.problems, parsed.complete) == ([], True)


@pytest.mark.parametrize(
    "answer",
    [
        "```python\nx = 1\n```",
        "Then run this:\n```bash\nmake test\n```",
        "Create main.py as follows:\n```python\nx\n```",
        "Since v1.2\n```\nx\n```",
        "v1.2\n```\nx\n```",
        "etc.\n```\nx\n```",
        "```python\n# Python 3.11\nx\n```",
        "```python\n# 3.11\nx\n```",
        "```python\n#!/usr/bin/env python3\nx\n```",
        "```c++\nx\n```",
        "/etc/passwd\n```\nx\n```",
        "~/.bashrc\n```\nx\n```",
        "C:\\a.py\n```\nx\n```",
        f"{'a' * 400}.py\n```\nx\n```",
    ],
)
def test_a_block_without_a_path_is_a_problem_and_not_a_guess(answer: str) -> None:
    """Prose, versions, languages and places outside the project are not taken for a path."""
    parsed = parse_answer(answer)

    assert parsed.files == []
    assert parsed.problems == ["block 1 was not taken: no path stands above it or in it"]


_REFUSED_PATHS = {
    "/etc/passwd": "absolute",
    "//server/share": "absolute",
    ".//a.py": "absolute",
    "C:/Windows/a.py": "drive",
    "c:a.py": "drive",
    "~/.ssh/config": "'~'",
    "../a.py": "'..'",
    "src/../../a.py": "'..'",
    "./../a.py": "'..'",
    "..": "'..'",
    "src\\a.py": "backslash",
    "..\\a.py": "backslash",
    "a\tb.py": "control",
    "a\0b.py": "control",
    "a\x1b[31m.py": "control",
    "a\ud800.py": "control",
    "a\u200b.py": "invisible",
    "a\u202egnp.py": "invisible",
    "CON": "device",
    "src/nul.py": "device",
    "a.py:stream": "Windows",
    "a.": "dot",
    "a//b.py": "empty",
    "src/": "empty",
    "": "empty",
    ".": "empty",
    ".git/config": "git",
    "a" * 241: "longer",
    "a" + "\u0315\u0300" * 50_000: "segment",
    "/".join(["d"] * 13): "deeper",
}


@pytest.mark.parametrize(
    ("path", "reason"), _REFUSED_PATHS.items(), ids=[ascii(path[:20]) for path in _REFUSED_PATHS]
)
def test_a_file_with_an_unsafe_path_is_left_out_and_the_reason_told(path: str, reason: str) -> None:
    """The others stay, and the problem is short enough to be shown, however long the path is."""
    parsed = parse_answer(_tagged(path, "evil\n") + _tagged("a.py", "good\n"))

    assert [file.file_path for file in parsed.files] == ["a.py"]
    assert len(parsed.problems) == 1
    assert reason in parsed.problems[0]
    assert len(parsed.problems[0]) < 2_500


@pytest.mark.parametrize("path", ["../a.py", "src/../../a.py", "a/aux.py"])
def test_an_unsafe_path_above_a_fence_is_refused_like_one_in_a_tag(path: str) -> None:
    """The fallback has the same rules."""
    parsed = parse_answer(f"```python {path}\nx\n```")

    assert parsed.files == []
    assert len(parsed.problems) == 1


@pytest.mark.parametrize(
    "tag",
    [
        "<file path=a.py>",
        '<file path="a.py" lang="py">',
        '<file path="a.py">x = 1</file>',
        '<FILE PATH="a.py">',
    ],
)
def test_a_tag_of_another_form_is_told_and_not_passed_over(tag: str) -> None:
    """A file that cannot be read is not lost without a word."""
    parsed = parse_answer(_tagged("b.py", "b\n") + tag + "\n")

    assert [file.file_path for file in parsed.files] == ["b.py"]
    assert parsed.problems == [
        'line 4 was not understood: a file starts with <file path="…"> alone on its line'
    ]


@pytest.mark.parametrize(
    "answer",
    [_tagged("a.py", "a\n") + '<file path="b.py">\ndef half(', "a.py\n```\na\n```\nb.py\n```\ndef half("],
)
def test_a_file_that_is_still_open_at_the_end_is_dropped(answer: str) -> None:
    """An answer that was cut yields its whole files alone and says that it is not complete."""
    parsed = parse_answer(answer)

    assert [file.file_path for file in parsed.files] == ["a.py"]
    assert not parsed.complete
    assert "ends in the middle" in parsed.problems[0]


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        ('<file path="./src/b.py">\ndef half(', "src/b.py"),
        (_tagged("a.py", "a\n") + '<file path="b.py">', "b.py"),
        ('<file path="a.py">\na\n<file path="b.py">\nb', "b.py"),
        (_tagged("a.py", "a\n"), None),
        ('<file path="../b.py">\nb', None),
        (_tagged("a.py", "a\n") + '<file path="b.p', None),
        ("b.py\n```\ndef half(", None),
    ],
)
def test_an_answer_that_was_cut_tells_which_file_was_open(answer: str, path: str | None) -> None:
    """Only where its tag is whole and its path safe: it is asked for again by this name."""
    assert parse_answer(answer).open_path == path


_DISPUTES = {
    "in lines of its own": ("<dispute>\nTwo\nlines.\n</dispute>\n", ["Two\nlines."]),
    "in one line": ("<dispute>It is wrong.</dispute>\n", ["It is wrong."]),
    "text beside the tags": ("<dispute>One\ntwo</dispute> Done.\n", ["One\ntwo"]),
    "two": ("<dispute>a</dispute>\nand\n<dispute>b</dispute>\n", ["a", "b"]),
    "spaces in the tags": ("  <dispute >a</dispute  >\n", ["a"]),
    "CRLF": ("<dispute>\r\na\r\n</dispute>\r\n", ["a"]),
    "a fence in it": (
        "<dispute>\nIt says\n```\nassert 0\n```\n</dispute>\n",
        ["It says\n```\nassert 0\n```"],
    ),
    "nothing in it": ("<dispute>\n \n</dispute>\n", []),
    "what cannot be told": ("<dispute>a\0b\ud800</dispute>\n", ["a?b?"]),
    "in prose": ("Use <dispute>a</dispute> for that.\n", []),
    "another form": ("<Dispute>a</Dispute>\n<dispute test='b'>a</dispute>\n", []),
}


@pytest.mark.parametrize(("text", "disputes"), _DISPUTES.values(), ids=_DISPUTES)
@pytest.mark.parametrize(
    "files",
    ["", _tagged("a.py", "a\n"), "a.py\n```\na\n```\n", '<delete path="a.py"/>\n'],
    ids=["alone", "tagged", "fenced", "removal"],
)
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_a_dispute_is_read_beside_whatever_the_answer_holds(
    text: str, disputes: list[str], files: str, *, first: bool
) -> None:
    """A note against the tests takes nothing away from the files."""
    parsed = parse_answer(text + files if first else files + text)

    assert parsed.disputes == disputes
    assert parsed.files == parse_answer(files).files
    assert parsed.deleted == parse_answer(files).deleted
    assert (parsed.problems, parsed.complete) == ([], True)


@pytest.mark.parametrize("answer", [_tagged("a.md", "{}"), "a.md\n```\n{}```\n"], ids=["tagged", "fenced"])
def test_a_dispute_inside_a_file_is_content(answer: str) -> None:
    """A file may tell of this very form."""
    text = "<dispute>\nx\n</dispute>\n"
    parsed = parse_answer(answer.format(text))

    assert (parsed.disputes, parsed.files[0].content) == ([], text)


def test_a_dispute_that_is_not_closed_ends_where_a_file_begins() -> None:
    """As a file does."""
    parsed = parse_answer("<dispute>\nIt is wrong.\n" + _tagged("a.py", "a\n"))

    assert (parsed.disputes, [file.file_path for file in parsed.files]) == (["It is wrong."], ["a.py"])


@pytest.mark.parametrize("rest", ["", "<dispute>b</dispute>\n", "a.py\n```\na\n```\n"])
def test_a_dispute_that_ends_nowhere_is_not_taken(rest: str) -> None:
    """And what follows it is not lost."""
    parsed, without = parse_answer("<dispute>\nIt is\n" + rest), parse_answer(rest)

    assert (parsed.disputes, parsed.files) == (without.disputes, without.files)
    assert parsed.problems == ["a dispute was not taken: it is not closed"]


def test_disputes_are_few_and_short() -> None:
    """They stand in the next prompt and in the result."""
    parsed = parse_answer(f"<dispute>{'x' * 2 * MAX_DISPUTE_CHARS}</dispute>\n" * (MAX_DISPUTES + 2))

    assert [len(text) for text in parsed.disputes] == [MAX_DISPUTE_CHARS] * MAX_DISPUTES
    assert parsed.problems == [f"a dispute was not taken: there are more than {MAX_DISPUTES}"] * 2


def test_of_two_files_that_differ_in_case_alone_the_last_counts() -> None:
    """On some systems the two are one file."""
    parsed = parse_answer(_tagged("README.md", "one\n") + _tagged("a.py", "") + _tagged("Readme.md", "two\n"))

    assert [(file.file_path, file.content) for file in parsed.files] == [("a.py", ""), ("Readme.md", "two\n")]
    assert parsed.problems == ["'Readme.md' was given more than once; the last one counts"]


@pytest.mark.parametrize("paths", [("app", "app/a.py"), ("app/a.py", "app"), ("App", "app/b/c.py")])
def test_a_file_where_a_folder_must_stand_is_left_out(paths: tuple[str, str]) -> None:
    """No project can hold both, in whatever order they come."""
    parsed = parse_answer("".join(_tagged(path, "x\n") for path in paths))

    assert [file.file_path for file in parsed.files] == [max(paths, key=len)]
    assert "folder" in parsed.problems[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a\0b\n", "NUL"),
        ("a = '\ud800'\n", "Unicode"),
        ("x" * MAX_FILE_CHARS + "\n", str(MAX_FILE_CHARS)),
    ],
    ids=["NUL", "half a surrogate pair", "too long"],
)
def test_content_that_is_no_text_or_too_much_is_left_out(content: str, reason: str) -> None:
    """What could not be stored or compiled is refused by name."""
    parsed = parse_answer(_tagged("bad.py", content) + _tagged("a.py", "good\n"))

    assert [file.file_path for file in parsed.files] == ["a.py"]
    assert reason in parsed.problems[0]


def test_an_answer_holds_a_bounded_number_of_files() -> None:
    """What comes after the last one that is allowed is told."""
    parsed = parse_answer("".join(_tagged(f"a{n}.py", "") for n in range(MAX_FILES + 1)))

    assert len(parsed.files) == MAX_FILES
    assert parsed.problems == [f"'a{MAX_FILES}.py' was not taken: the answer is larger than a project may be"]


def test_a_file_that_is_given_again_does_not_count_twice() -> None:
    """The last of `MAX_FILES` files may be corrected."""
    answer = "".join(_tagged(f"a{n}.py", "") for n in range(MAX_FILES)) + _tagged("a0.py", "new\n")
    parsed = parse_answer(answer)

    assert len(parsed.files) == MAX_FILES
    assert parsed.files[-1].content == "new\n"


def test_an_answer_holds_a_bounded_amount_of_text() -> None:
    """Files are taken as long as all of them together stay below the bound."""
    size = MAX_FILE_CHARS
    parsed = parse_answer("".join(_tagged(f"a{n}.txt", "x" * (size - 1) + "\n") for n in range(5)))

    assert sum(len(file.content) for file in parsed.files) == MAX_TOTAL_CHARS
    assert "larger than a project" in parsed.problems[0]


def test_problems_are_told_up_to_a_number() -> None:
    """A flood of broken blocks does not become a flood of sentences."""
    parsed = parse_answer("```\nx\n```\n" * (MAX_PROBLEMS + 30))

    assert len(parsed.problems) == MAX_PROBLEMS + 1
    assert parsed.problems[-1] == "… and 30 more problems"


@pytest.mark.parametrize(
    "tag", ['<delete path="old.py"/>', "<delete path='old.py' />", '<delete path="./old.py">']
)
def test_a_delete_tag_names_a_path_to_remove(tag: str) -> None:
    """It may stand beside files or alone, and names each path once."""
    parsed = parse_answer(f"{tag}\n{tag}\n")

    assert (parsed.deleted, parsed.files, parsed.problems) == (["old.py"], [], [])


def test_an_unsafe_path_is_not_removed_either() -> None:
    """The rule for paths holds for removals, too."""
    parsed = parse_answer('<delete path="../../etc/passwd"/>\n')

    assert parsed.deleted == []
    assert "not removed" in parsed.problems[0]


@pytest.mark.parametrize("answer", ["", "\ufeff", "I cannot do that.", "</file>", "\n" * 10, "<file path="])
def test_an_answer_without_any_block_holds_nothing(answer: str) -> None:
    """There is nothing to report about a block that is not there."""
    parsed = parse_answer(answer)

    assert parsed == parsing.ParsedAnswer()


HOSTILE = hostile_answers(400_000)


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_answer_is_read_to_its_end(answer: str) -> None:
    """Text made to keep a parser busy for hours is only odd, and what it leaves is small."""
    parsed = parse_answer(answer)

    assert len(parsed.files) <= 1
    assert sum(map(len, parsed.problems)) < 20_000


_pieces = st.sampled_from(
    [
        '<file path="',
        "<file path='",
        '">\n',
        "'>\n",
        "</file>\n",
        "<dispute>",
        "</dispute>",
        '<delete path="',
        '"/>\n',
        "```",
        "~~~~",
        "```python ",
        "\n",
        "\r\n",
        "\ufeff",
        "# ",
        "a.py",
        "A.py",
        "src/",
        "../",
        "/etc/passwd",
        "C:\\",
        "~/",
        "\0",
        "\u202e",
        "con",
        ".",
        " ",
        "\ud800",
        "e\u0301",
    ]
)


@settings(deadline=None, max_examples=500)
@given(text=st.lists(_pieces | st.text(max_size=8), max_size=40).map("".join))
@example(text='<file path="./.">\n</file>')
def test_no_text_yields_an_unsafe_path_or_an_error(text: str) -> None:
    """Whatever a model writes, its files are safe, whole, and each path stands once."""
    parsed = parse_answer(text)
    paths = [file.file_path for file in parsed.files]

    assert [untidy_reason(path) for path in [*paths, *parsed.deleted]] == [None] * (
        len(paths) + len(parsed.deleted)
    )
    assert len({path.casefold() for path in paths}) == len(paths)
    assert all(file.content == "" or file.content.endswith("\n") for file in parsed.files)
    assert parsed.open_path is None or untidy_reason(parsed.open_path) is None
    assert all(text and text.encode() for text in parsed.disputes)


_segment = st.from_regex(r"[a-z_][a-z0-9_-]{0,8}", fullmatch=True).filter(lambda s: untidy_reason(s) is None)
_path = st.builds(
    lambda folders, name, ending: "/".join(["d" + folder for folder in folders] + [name + ending]),
    st.lists(_segment, max_size=3),
    _segment,
    st.sampled_from([".py", ".md", ".toml", ".txt"]),
)
_line = st.text(
    st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]) | st.sampled_from("<>/`~# "),
    max_size=20,
)


def _is_ordinary(lines: list[str]) -> bool:
    """Leave out what the format gives a meaning of its own: tags, fences, and blank lines at either end."""
    special = any(line.strip()[:3] in {"```", "~~~", "<fi", "</f"} for line in lines)
    return not special and (not lines or bool(lines[0].strip() and lines[-1].strip()))


@settings(deadline=None)
@given(files=st.dictionaries(_path, st.lists(_line, max_size=6).filter(_is_ordinary), max_size=5))
def test_files_in_our_own_form_survive_the_way_through_an_answer(files: dict[str, list[str]]) -> None:
    """What is asked for in the prompt is read back to the letter."""
    contents = {path: "".join(f"{line}\n" for line in lines) for path, lines in files.items()}
    parsed = parse_answer("Notes.\n" + "".join(_tagged(path, content) for path, content in contents.items()))

    assert {file.file_path: file.content for file in parsed.files} == contents
    assert (parsed.problems, parsed.complete) == ([], True)
