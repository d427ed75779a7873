"""What becomes of plans whose models, and whose providers, do well and badly: one row for each way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support import answer_with

from ptc_worker.llm.replay.faults import Fault

if TYPE_CHECKING:
    from ptc_worker.llm.replay.recordings import Part, Recorded

CODE = "def add(a, b):\n    return a + b"
TESTS = "from calc import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n\n\ndef test_zero():\n    assert add(0, 0) == 0"
GREEN = answer_with(calc_py=CODE, tests__test_calc_py=TESTS)
RED = answer_with(calc_py=CODE.replace("+", "-"), tests__test_calc_py=TESTS)
FIXED = answer_with(calc_py=CODE)
SAME = answer_with(calc_py="def add(a, b):\n    # better now\n    return a - b")
SAME_AGAIN = answer_with(calc_py="def add(a, b):\n    # much better now\n    return a - b")
WORSE = answer_with(calc_py="def add(a, b):\n    return None")
OTHER = answer_with(calc_py="def add(a, b):\n    return a * b")
PROSE = "I would rather talk about it."
WRONG_TEST = answer_with(calc_py=CODE, tests__test_calc_py=TESTS.replace("== 3", "== 4"))
README = (
    '<file path="README.md">\n# Calc\n\n```console\n$ python -c "import calc"\n```\n\n````markdown\n```python\nadd(1, 2)\n'
    "```\n````\n</file>"
)
ESCAPE = '<file path="../../etc/cron.d/evil">\n* * * * * root true\n</file>'
EASY = answer_with(
    tests__test_calc_py="def test_add():\n    assert True\n\n\ndef test_zero():\n    assert True",
    conftest_py="collect_ignore = ['tests']",
)
CUT: Part = {"text": GREEN[: GREEN.index('<file path="tests') + 40], "finish": "length"}
REST = answer_with(tests__test_calc_py=TESTS)
DISPUTE = "<dispute>test_add contradicts requirement 1: 1 + 2 is 3</dispute>\n" + REST
GIVEN = {"tests/test_given.py": "from calc import add\n\n\ndef test_given():\n    assert add(2, 2) == 4\n"}
OVERWRITES_GIVEN = answer_with(
    calc_py=CODE.replace("+", "-"), tests__test_given_py="def test_given():\n    pass"
)
INVENTED = answer_with(calc_py="import fastcalc_pro\n\n\n" + CODE, tests__test_calc_py=TESTS)
UNDEFINED = answer_with(calc_py="def add(a, b):\n    return a + bb", tests__test_calc_py=TESTS)
NODE_TEST = (
    "import assert from 'node:assert/strict'\nimport test from 'node:test'\nimport { add } from './calc.mjs'\n\n"
    "test('adds', () => {\n  assert.equal(add(1, 2), 3)\n})"
)
NODE = (
    '<file path="calc.mjs">\nexport const add = (a, b) => a + b\n</file>\n'
    f'<file path="calc.test.mjs">\n{NODE_TEST}\n</file>\n'
    '<file path="package.json">\n{"name": "calc", "type": "module", "scripts": {"test": "node --test"}}\n</file>'
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One plan, what its models answer and meet, and how it has to end."""

    name: str
    answers: list[Recorded]
    faults: list[Fault | None] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    status: str = "SUCCESS"
    stop: str = "green"
    iterations: int = 1
    calls: list[str] = field(default_factory=lambda: ["claude draft ok"])
    """Every call in order: provider, request and outcome."""
    says: str = ""
    """What one of the result's warnings, or its error, says."""

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def _recovered(fault: Fault, outcome: str) -> Scenario:
    return Scenario(
        name=f"{fault.value} then recovered",
        answers=[GREEN],
        faults=[fault],
        calls=[f"claude draft {outcome}", "claude draft ok"],
    )


DRAFT_OK = "claude draft ok"

SCENARIOS = [
    Scenario(name="green first", answers=[GREEN]),
    Scenario(name="broken then fixed", answers=[RED, FIXED], iterations=2, calls=[DRAFT_OK] * 2),
    Scenario(
        name="same failure twice then the fallback fixes",
        answers=[RED, SAME, GREEN],
        iterations=3,
        calls=[DRAFT_OK, DRAFT_OK, "kimi draft ok"],
    ),
    Scenario(
        name="same failure three times is stuck",
        answers=[RED, SAME, SAME_AGAIN],
        plan={"max_iterations": 6},
        status="PARTIAL_SUCCESS",
        stop="stuck",
        iterations=3,
        calls=[DRAFT_OK, DRAFT_OK, "kimi draft ok"],
        says="the same failure came 3 times",
    ),
    Scenario(
        name="never green gives the best so far",
        answers=[RED, WORSE, OTHER],
        status="PARTIAL_SUCCESS",
        stop="max_iterations",
        iterations=3,
        calls=[DRAFT_OK] * 3,
        says="max_iterations=3 are spent",
    ),
    Scenario(
        name="truncated then completed",
        answers=[[CUT, REST]],
        calls=["claude draft truncated", "claude continuation ok"],
        says="was cut at its token limit",
    ),
    Scenario(
        name="prose then repaired",
        answers=[[PROSE, GREEN]],
        calls=[DRAFT_OK, "claude format_repair ok"],
    ),
    Scenario(
        name="prose twice",
        answers=[[PROSE, PROSE]],
        status="FAILURE",
        stop="unparseable_output",
        calls=[DRAFT_OK, "claude format_repair ok"],
        says="no file could be read",
    ),
    Scenario(
        name="refusal then the fallback",
        answers=[GREEN],
        faults=[Fault.REFUSAL],
        calls=["claude draft refused", "kimi draft ok"],
    ),
    _recovered(Fault.RATE_LIMITED, "rate_limited"),
    _recovered(Fault.OVERLOADED, "overloaded"),
    _recovered(Fault.RESET, "connection"),
    _recovered(Fault.EMPTY, "empty"),
    Scenario(
        name="stall then recovered",
        answers=[GREEN],
        faults=[Fault.STALL],
        plan={"timeout_seconds": 30},
        calls=["claude draft timeout", "claude draft ok"],
    ),
    Scenario(
        name="quota then the fallback",
        answers=[GREEN],
        faults=[Fault.QUOTA],
        calls=["claude draft quota", "kimi draft ok"],
    ),
    Scenario(
        name="tampering with tests is rejected",
        answers=[RED, EASY, FIXED],
        iterations=3,
        calls=[DRAFT_OK, DRAFT_OK, "kimi draft ok"],
        says="changes of tests were discarded: tests/test_calc.py, conftest.py",
    ),
    Scenario(
        name="a wrong test is disputed and corrected",
        answers=[WRONG_TEST, DISPUTE],
        iterations=2,
        calls=[DRAFT_OK] * 2,
        says="tests were changed after a dispute (tests/test_calc.py)",
    ),
    Scenario(
        name="given tests cannot be overwritten",
        answers=[OVERWRITES_GIVEN, FIXED],
        plan={"test_files": GIVEN},
        iterations=2,
        calls=[DRAFT_OK] * 2,
        says="changes of tests were discarded: tests/test_given.py",
    ),
    Scenario(
        name="budget reached",
        answers=[RED, FIXED],
        plan={"max_cost_usd": 0.043},
        status="PARTIAL_SUCCESS",
        stop="budget",
        calls=[DRAFT_OK],
        says="max_cost_usd",
    ),
    Scenario(
        name="an invented package costs no sandbox",
        answers=[INVENTED, FIXED],
        iterations=2,
        calls=[DRAFT_OK] * 2,
    ),
    Scenario(
        name="an undefined name costs no sandbox",
        answers=[UNDEFINED, FIXED],
        iterations=2,
        calls=[DRAFT_OK] * 2,
    ),
    Scenario(
        name="a planned file that is missing is asked for",
        answers=[GREEN, '<file path="docs/usage.md">\n# Usage\n</file>'],
        plan={"file_structure": {"docs/usage.md": "how to use it", "calc.py": "all of it"}},
        iterations=2,
        calls=[DRAFT_OK] * 2,
    ),
    Scenario(name="JavaScript green first", answers=[NODE]),
    Scenario(
        name="JavaScript broken then fixed",
        answers=[
            NODE.replace("a + b", "a - b"),
            '<file path="calc.mjs">\nexport const add = (a, b) => a + b\n</file>',
        ],
        iterations=2,
        calls=[DRAFT_OK] * 2,
    ),
    Scenario(
        name="JavaScript that does not parse",
        answers=[
            NODE.replace("a + b", "a +"),
            '<file path="calc.mjs">\nexport const add = (a, b) => a + b\n</file>',
        ],
        iterations=2,
        calls=[DRAFT_OK] * 2,
    ),
    Scenario(name="README with nested fences", answers=[f"{GREEN}\n{README}"]),
    Scenario(
        name="path that leads out",
        answers=[f"{GREEN}\n{ESCAPE}"],
        says="'../../etc/cron.d/evil' was not taken",
    ),
]
