"""Fuzzes the reader of answers, and times it on answers that were made to keep it busy.

Run as `.venv/bin/python tests/bench/parsing.py --inputs 200000 --seed 1`. The peer of each time is `str.splitlines` on the
same text. Prints JSON; ends with 1 if any path was unsafe or anything was raised.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile_answers import hostile_answers

from ptc_contracts.paths import untidy_reason
from ptc_worker.parsing import parse_answer

if TYPE_CHECKING:
    from collections.abc import Callable

TAGGED = """Cause: the sum starts at one.

<dispute>
test_empty contradicts requirement 2.
</dispute>

<file path="src/ledger/core.py">
\"\"\"Sums.\"\"\"


def total(numbers):
    return sum(numbers)
</file>

<file path="tests/test_core.py">
from ledger.core import total


def test_total():
    assert total([1, 2]) == 3
</file>
<file path="README.md">
# Ledger

```bash
make test
```

~~~xml
<file path="a.py">
~~~
</file>
<delete path="old.py"/>
"""
FENCED = """### 1. `src/app.py`

```python
# src/app.py
print("hello")
```

**README.md**:
````markdown
# App
```bash
python -m app
```
````

```toml pyproject.toml
[project]
name = "app"
```
"""
SPICES = (
    *("../", "/etc/passwd", "C:\\", "~/.ssh/id", "\\", "\0", "\u202e", "\ud800", "e\u0301", "con.py", ".git/config", "\u200b"),
    *("</file>\n", "<file path='a/../b.py'>\n", '<file path="', '">\n', "<dispute>", "</dispute>", "```", "~~~~", "\r", "\r\n"),
    *("\n", "\ufeff", " ", "\t", '<delete path="../../x"/>\n', "./", "//", "%2e%2e/", "a" * 300, "\x85", "\u2028"),
)  # fmt: skip


def main() -> None:
    """Fuzz, measure, tell."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--inputs", type=int, default=200_000)
    asked.add_argument("--seed", type=int, default=1)
    options = asked.parse_args()
    found = fuzzed(options.inputs, options.seed)
    print(json.dumps({"inputs": options.inputs, "seed": options.seed, **found, "times": timed()}, indent=1))
    sys.exit(bool(found["unsafe_paths"] or found["raised"]))


def fuzzed(inputs: int, seed: int) -> dict[str, Any]:
    """Read answers that were changed at random; count what must not be, and what was read at all."""
    chance = random.Random(seed)  # noqa: S311 to be repeated
    counts = Counter({"unsafe_paths": 0, "raised": 0, "files": 0, "removals": 0, "disputes": 0, "cut": 0})
    errors: list[str] = []
    for _ in range(inputs):
        text = mutated(chance.choice((TAGGED, FENCED, TAGGED + FENCED)), chance)
        try:
            parsed = parse_answer(text)
        except Exception as error:  # noqa: BLE001 any is one too many
            counts["raised"] += 1
            errors.append(f"{type(error).__name__}: {text!r}")
            continue
        paths = [*(file.file_path for file in parsed.files), *parsed.deleted]
        paths += [parsed.open_path] if parsed.open_path is not None else []
        counts["unsafe_paths"] += sum(untidy_reason(path) is not None for path in paths)
        counts["files"] += len(parsed.files)
        counts["removals"] += len(parsed.deleted)
        counts["disputes"] += len(parsed.disputes)
        counts["cut"] += not parsed.complete
    return {**counts, "errors": errors[:3]}


def mutated(text: str, chance: random.Random) -> str:
    """Change an answer in one to six places, half of them where paths and tags stand."""
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(text) + 1)
        if chance.random() < 0.5:
            at = text.find(chance.choice(("path=", "file", "`", "\n")), at) + chance.randint(0, 7)
        end = at + chance.randint(0, 12)
        match chance.randrange(5):
            case 0:
                text = text[:at] + text[end:]
            case 1:
                text = text[:at] + text[at:end] + text[at:]
            case 2:
                text = text[:at] or text
            case _:
                text = text[:at] + chance.choice(SPICES) + text[at:]
    return text


def timed(chars: int = 400_000) -> dict[str, dict[str, float]]:
    """Give milliseconds for an ordinary answer and each hostile one, how many times longer that is than splitting it, and growth.

    Growth is what an answer twice as long takes, as a multiple: 2 for what is linear.
    """
    told = {}
    longer = {"an ordinary answer": ordinary(2 * chars), **hostile_answers(2 * chars)}
    for name, text in {"an ordinary answer": ordinary(chars), **hostile_answers(chars)}.items():
        took, least, twice = (
            best(parse_answer, text),
            best(str.splitlines, text),
            best(parse_answer, longer[name]),
        )
        told[name] = {
            "chars": len(text),
            "ms": round(took * 1000, 2),
            "ratio": round(took / least, 1),
            "growth": round(twice / took, 1),
        }
    return told


def ordinary(chars: int, files: int = 40) -> str:
    """Write an answer of many files of code."""
    line = "    total = sum(number for number in numbers if number > 0)  # positive ones\n"
    body = line * (chars // files // len(line))
    return "".join(f'<file path="src/module_{n}.py">\n{body}</file>\n\n' for n in range(files))


def best(act: Callable[[str], object], text: str, times: int = 3) -> float:
    """Time the quickest of a few calls: the others were disturbed."""
    samples = []
    for _ in range(times):
        start = time.perf_counter()
        act(text)
        samples.append(time.perf_counter() - start)
    return min(samples)


if __name__ == "__main__":
    main()
