"""Answers that are made to keep a parser busy, each in another way."""

from __future__ import annotations


def hostile_answers(chars: int) -> dict[str, str]:
    """Make one of each shape, of about this length."""
    return {
        "backticks": "`" * chars,
        "tildes": "~" * chars + "`",
        "open tags": "<file " * (chars // 6),
        "spaces in a tag": "<file" + " " * chars + "x",
        "spaces before an equals sign": "<file path" + " " * chars + "x",
        "spaces in a closing tag": '<file path="a">\n</file' + " " * chars + "x",
        "hashes": "#" * chars,
        "lines of spaces": "    \n" * (chars // 5),
        "blank lines in a file": '<file path="a">\n' + "\n" * chars + "x\n</file>",
        "long path": f'<file path="{"a/" * chars}">\n</file>',
        "accents in a path": '<file path="a' + "\u0315\u0300" * (chars // 2) + '">',
        "digits above blocks": ("1" * 398 + "!\n```\n```\n") * (chars // 400),
        "stars above blocks": ("*" * 398 + "!\n```\n```\n") * (chars // 400),
        "hashes above blocks": ("# " * 199 + "!\n```\n```\n") * (chars // 400),
        "words behind fences": ("```" + "a=" * 190 + "!\n```\n") * (chars // 400),
        "unclosed blocks": "```a\n" * (chars // 5),
        "blocks without paths": "```\n```\n" * (chars // 8),
        "unclosed files": '<file path="a">\n' * (chars // 16),
        "unclosed disputes": "<dispute>\n" * (chars // 10),
        "disputes": "<dispute>x</dispute>\n" * (chars // 20),
        "a dispute that ends nowhere": "<dispute>\n" + "x\n```\n" * (chars // 6),
        "half ends of a dispute": "<dispute>" + "</dispute " * (chars // 10),
        "spaces in the end of a dispute": "<dispute>\n</dispute" + " " * chars + "x",
    }  # fmt: skip
