"""Which tests a file promises, when it may leave them out, and what makes any result doubtful."""

from __future__ import annotations

from textwrap import dedent

import pytest

from ptc_worker.expected import Expected, expected_of
from ptc_worker.filetypes import artifact


def read(source: str, path: str = "tests/test_a.py", *, given: bool = False) -> Expected:
    """Read one file."""
    return expected_of([artifact(path, dedent(source))], [path] if given else [])


@pytest.mark.parametrize(
    ("source", "tests"),
    [
        ("def test_a(): pass", {"test_a": 1}),
        ("\nasync def test_a(): pass", {"test_a": 2}),
        ("@pytest.mark.slow\n@pytest.mark.parametrize('x', [1])\ndef test_a(x): pass", {"test_a": 1}),
        ("@patch('os.x')\ndef test_a(x): pass", {"test_a": None}),
        ("@given(st.text())\n@settings(max_examples=1)\ndef test_a(x): pass", {"test_a": None}),
        ("class TestA:\n    def test_b(self): pass\n    def helper(self): pass", {"TestA::test_b": 2}),
        ("class A(unittest.TestCase):\n    def test_b(self): pass", {"A::test_b": 2}),
        ("class A(TestCase):\n    @mock.patch('x')\n    def test_b(self, x): pass", {"A::test_b": None}),
        ("@pytest.fixture\ndef test_client(): pass", {}),
        ("@app.route('/')\ndef test_a(): pass", {}),
        ("def helper(): pass\ndef testing(): pass", {}),
        ("if x:\n    def test_a(): pass", {}),
        ("def test_a(): pass\ndef test_a(): pass", {}),
        ("def test_a(): pass\ndel test_a", {}),
        ("def test_a(): pass\ntest_a = None", {}),
        ("def test_a(): pass\nfor test_a in x: pass\ntry:\n    from x import test_a\nexcept E: pass", {}),
        ("class TestA(Base):\n    def test_b(self): pass", {}),
        ("class TestA:\n    def __init__(self): pass\n    def test_b(self): pass", {}),
        ("class TestA:\n    __test__ = False\n    def test_b(self): pass", {}),
        ("class TestA:\n    def test_b(self): pass\n    test_b = 1", {}),
        ("class A:\n    def test_b(self): pass", {}),
        ("def test_a(:", {}),
    ],
)
def test_what_is_sure_to_be_collected_is_expected(source: str, tests: dict[str, int | None]) -> None:
    """Plain functions and classes; what a decorator, a base or a condition may change is nobody's promise."""
    assert read(source).tests == {f"tests/test_a.py::{name}": line for name, line in tests.items()}


@pytest.mark.parametrize(
    "path",
    ["tests/helper.py", "src/thing.py", ".hidden/test_a.py", "build/test_a.py", "conftest.py", "test_a.txt"],
)
def test_only_what_pytest_collects_by_itself_is_expected(path: str) -> None:
    """By the file's name, and not in folders that it passes over."""
    assert read("def test_a(): pass", path).tests == {}


@pytest.mark.parametrize(
    ("source", "may"),
    [
        ("@pytest.mark.skipif(sys.platform == 'x', reason='')\ndef test_a(): pass", True),
        ("@unittest.skipUnless(x, '')\ndef test_a(): pass", True),
        ("@pytest.mark.xfail(sys.platform == 'x', reason='')\ndef test_a(): pass", True),
        ("@pytest.mark.xfail(condition=x, reason='')\ndef test_a(): pass", True),
        ("slow = pytest.mark.skipif(x, reason='')\n@slow\ndef test_a(): pass", True),
        ("pytestmark = [pytest.mark.skipif(x, reason='')]\ndef test_a(): pass", True),
        ("pytest.importorskip('x')\ndef test_a(): pass", True),
        ("if x:\n    pytest.skip('', allow_module_level=True)\ndef test_a(): pass", True),
        ("def test_a():\n    if x:\n        pytest.skip('')", True),
        ("def test_a():\n    try:\n        x\n    except E:\n        pytest.xfail('')", True),
        ("def test_a():\n    pytest.importorskip('x')", True),
        (
            (
                "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.skipif(y, reason=''))])\n"
                "def test_a(x): pass"
            ),
            True,
        ),
        ("def test_a(): pass", False),
        ("@pytest.mark.skip\ndef test_a(): pass", False),
        ("@unittest.skip('')\ndef test_a(): pass", False),
        ("@pytest.mark.skipif(True, reason='')\ndef test_a(): pass", False),
        ("@pytest.mark.xfail\ndef test_a(): pass", False),
        ("@pytest.mark.xfail(reason='', strict=False)\ndef test_a(): pass", False),
        ("def test_a():\n    pytest.skip('')", False),
        ("def test_a():\n    if True:\n        pytest.skip('')", False),
        ("pytest.skip('', allow_module_level=True)\ndef test_a(): pass", False),
    ],
)
def test_a_test_is_left_out_on_a_condition_or_not_at_all(source: str, may: bool) -> None:
    """The condition stands beside the test, in its function or in its file, and is no constant."""
    assert read(source).may_be_left_out("tests/test_a.py::test_a[1::2]") is may


@pytest.mark.parametrize(
    ("source", "may"),
    [
        ("@pytest.mark.skip\ndef test_a(): pass", True),
        ("@pytest.mark.xfail(reason='')\ndef test_a(): pass", True),
        ("@unittest.expectedFailure\ndef test_a(): pass", True),
        ("slow = pytest.mark.skip\n@slow\ndef test_a(): pass", True),
        ("pytestmark = pytest.mark.skip\ndef test_a(): pass", True),
        ("pytest.skip('', allow_module_level=True)\ndef test_a(): pass", True),
        ("def test_a():\n    pytest.skip('')", True),
        ("def test_a(): pass", False),
        ("slow = pytest.mark.skip\ndef test_a(): pass", False),
        ("@pytest.mark.skip\ndef test_b(): pass\ndef test_a(): pass", False),
    ],
)
def test_a_given_test_is_left_out_where_it_says_so(source: str, may: bool) -> None:
    """On a condition or not: no model wrote it."""
    assert read(source, given=True).may_be_left_out("tests/test_a.py::test_a[1]") is may


def test_a_given_class_is_left_out_where_it_says_so() -> None:
    """By a decorator, a mark in it, or at one of its tests."""
    source = """
        @unittest.skip("")
        class A(unittest.TestCase):
            def test_a(self): pass
        class TestB:
            pytestmark = pytest.mark.skip
            def test_b(self): pass
        class TestC:
            def test_c(self): pass
            @pytest.mark.skip
            def test_d(self): pass
    """
    expected = read(source, given=True)
    inside = ["A::test_a", "TestB::test_b", "TestC::test_c", "TestC::test_d"]

    assert [expected.may_be_left_out(f"tests/test_a.py::{test}") for test in inside] == [
        True,
        True,
        False,
        True,
    ]


def test_a_given_file_of_tests_is_expected_to_run() -> None:
    """Others that are given are not; and nothing in them is doubtful."""
    source = "class Any:\n    def __eq__(self, other):\n        return True\n"

    assert read("def test_a(): pass", given=True).given == {"tests/test_a.py"}
    assert read(source, "checks/matchers.py", given=True) == Expected()


def test_a_class_may_be_left_out_on_a_condition() -> None:
    """With all its tests."""
    expected = read("@unittest.skipIf(x, '')\nclass A(unittest.TestCase):\n    def test_b(self): pass")

    assert expected.may_be_left_out("tests/test_a.py::A::test_b")
    assert not expected.may_be_left_out("tests/test_a.py::B::test_b")


@pytest.mark.parametrize(
    ("body", "doubtful"),
    [
        ("def __eq__(self, other):\n        return True", True),
        ("def __eq__(self, other):\n        'Equal.'\n        return True", True),
        ("def __ne__(self, other):\n        return False", True),
        ("__eq__ = lambda self, other: True", True),
        ("def __eq__(self, other):\n        return self.x == other.x", False),
        ("def __eq__(self, other):\n        return False", False),
        ("def __ne__(self, other):\n        return True", False),
        ("def __eq__(self, other):\n        if x:\n            return False\n        return True", False),
    ],
)
def test_objects_that_are_equal_to_everything_are_doubtful(body: str, doubtful: bool) -> None:
    """In the code under test; matchers among the tests are not."""
    source = f"class Any:\n    {body}\n"

    assert bool(read(source, "src/thing.py").doubts) is doubtful
    assert read(source, "tests/matchers.py").doubts == []


def test_a_name_without_end_is_looked_up_as_fast_as_it_is_read() -> None:
    """A run may name its tests as it likes: to join all beginnings of this name would take gigabytes and minutes."""
    expected = read("@pytest.mark.skipif(X)\nclass TestA:\n    def test_b(self): pass")

    assert not expected.may_be_left_out("tests/test_a.py::test_b" + "::x" * 1_000_000)
    assert expected.may_be_left_out("tests/test_a.py::TestA" + "::x" * 1_000_000)
