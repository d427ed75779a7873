"""Tests that the plan gives: they run as they were given, whatever the draft beside them does."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from ptc_contracts.verdicts import Outcome
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt
from ptc_worker.runner import run_tests
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from ptc_contracts.verdicts import Verdict

PATH = "tests/test_given.py"
GIVEN = """\
import pytest
from app import double


def check(value, wanted):
    assert value == wanted


def test_double():
    assert double(2) == 4


def test_through_a_helper():
    check(double(3), 6)


def test_refusal():
    with pytest.raises(TypeError):
        double(None)


class TestMore:
    def test_zero(self):
        assert double(0) == 0
"""
RIGHT = "def double(x):\n    if x is None:\n        raise TypeError\n    return 2 * x\n"
WRONG = "def double(x):\n    return 5\n"


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """Settings with an environment folder of these tests, in each tier."""
    return WorkerSettings(ptc_cache_dir=tmp_path_factory.mktemp("cache"), ptc_sandbox_isolation=request.param)


def judged(settings: WorkerSettings, files: dict[str, str], given: dict[str, str] | None = None) -> Verdict:
    """Run given tests with a draft beside them."""
    drafted = [artifact(path, dedent(text)) for path, text in files.items()]
    verdict, _ = run_tests(settings, drafted, (), 60, Halt(), given=given or {PATH: GIVEN})
    return verdict


def test_given_tests_decide(settings: WorkerSettings) -> None:
    """With the draft's own beside them; red is told like any other failure."""
    right = judged(settings, {"app.py": RIGHT, "tests/test_own.py": "def test_own():\n    pass"})
    wrong = judged(settings, {"app.py": WRONG, "tests/test_own.py": "def test_own():\n    pass"})

    assert (right.outcome, right.counts) == (Outcome.PASSED, {"passed": 5})
    assert (wrong.outcome, wrong.counts) == (Outcome.FAILED, {"passed": 1, "failed": 4})
    assert "tests/test_given.py::test_double (failed)" in wrong.feedback


@pytest.mark.parametrize("path", [PATH, "tests/Test_given.py", "tests/test_given.py/x.py", "tests"])
def test_what_a_draft_puts_in_their_place_is_left_out(settings: WorkerSettings, path: str) -> None:
    """A file of that name, in another spelling, below it, or in the place of its folder."""
    verdict = judged(settings, {"app.py": RIGHT, path: "def test_double():\n    assert 0"})

    assert (verdict.outcome, verdict.counts) == (Outcome.PASSED, {"passed": 4})


def test_given_tests_may_be_of_any_shape(settings: WorkerSettings) -> None:
    """Decorated, generated, in classes of unittest: what stands around their code is not the project's."""
    given = """\
import functools
import unittest
from unittest import mock
import app

def twice(test):
    @functools.wraps(test)
    def wrapper(*args):
        test(*args)
        test(*args)
    return wrapper

@mock.patch("app.double", lambda x: 7)
def test_patched():
    assert len([app.double(1)]) == 1 and app.double(1) == 7

@twice
def test_twice():
    assert app.double(1) == 2

class TestCase(unittest.TestCase):
    @mock.patch.object(app, "double", return_value=3)
    def test_mocked(self, double):
        self.assertEqual(app.double(1), 3)
        double.assert_called_once_with(1)

    def test_almost(self):
        self.assertAlmostEqual(app.double(0.5), 1)
"""
    verdict = judged(settings, {"app.py": RIGHT}, {PATH: given})

    assert (verdict.outcome, verdict.feedback, verdict.counts) == (Outcome.PASSED, "", {"passed": 4})


def test_given_tests_may_leave_themselves_out(settings: WorkerSettings) -> None:
    """What the plan's author skips, or expects to fail, is not the draft's fault."""
    given = """\
import pytest, unittest

slow = pytest.mark.skip(reason="slow")

@pytest.mark.skip
def test_a():
    assert 0

@slow
def test_b():
    assert 0

@pytest.mark.xfail
def test_c():
    assert 0

class TestD:
    pytestmark = pytest.mark.skip
    def test_d(self):
        assert 0

class TestE(unittest.TestCase):
    @unittest.expectedFailure
    def test_e(self):
        assert 0

def test_f():
    pytest.skip("not here")

def test_g():
    pass
"""
    verdict = judged(settings, {"app.py": RIGHT}, {PATH: given})

    assert (verdict.outcome, verdict.counts) == (Outcome.PASSED, {"skipped": 4, "xfailed": 2, "passed": 1})


def test_what_else_is_given_is_there_too(settings: WorkerSettings) -> None:
    """Data and a conftest.py; the draft's own in its place is not."""
    given = {
        "tests/conftest.py": "import pytest\n@pytest.fixture\ndef four():\n    return int(open('tests/four.txt').read())",
        "tests/four.txt": "4",
        PATH: "from app import double\ndef test_double(four):\n    assert double(2) == four",
    }
    draft = {
        "app.py": WRONG,
        "tests/conftest.py": "import pytest\n@pytest.fixture\ndef four():\n    return 5",
    }

    assert judged(settings, draft, given).outcome is Outcome.FAILED


def test_what_else_is_given_is_as_it_was_for_the_whole_run(settings: WorkerSettings) -> None:
    """A conftest.py that is rewritten before it is loaded, and written back after that."""
    given = {
        "tests/conftest.py": "import pytest\n@pytest.fixture\ndef four():\n    return 4",
        PATH: "from app import double\ndef test_double(four):\n    assert double(2) == four",
    }
    trick = """\
        import pathlib
        PATH = pathlib.Path("tests/conftest.py")
        WAS = PATH.read_text()
        PATH.chmod(0o644)
        PATH.write_text(WAS.replace("4", "5"))
        def pytest_runtest_setup():
            PATH.write_text(WAS)
        """
    verdict = judged(settings, {"app.py": WRONG, "conftest.py": trick}, given)

    assert verdict.outcome is Outcome.TAMPERED
    assert "tests/conftest.py, which the plan gave, was changed" in verdict.feedback


_HERE = "import os, pathlib, pytest, sys\nPATH = pathlib.Path('tests/test_given.py')\n"
_WEAK = "WEAK = '\\n'.join(line.split('assert')[0] + 'pass' if 'assert' in line else line for line in PATH.read_text().split('\\n')).replace('pytest.raises(TypeError)', 'open(__file__)')\n"
_LEFT = {
    "rewrites them": "PATH.chmod(0o644)\nPATH.write_text(WEAK)",
    "appends to them": "PATH.chmod(0o644)\nPATH.open('a').write('# more')",
    "puts another file in their place": "PATH.unlink()\nPATH.write_text(WEAK)",
    "moves another file over them": "pathlib.Path('x').write_text(WEAK)\nos.replace('x', PATH)",
    "removes them": "def pytest_sessionfinish():\n    PATH.unlink()",
    "removes them when all is over": "import atexit\natexit.register(PATH.unlink)",
    "puts a link in their place": "pathlib.Path('x').write_text(PATH.read_text())\nPATH.unlink()\nPATH.symlink_to('../x')",
    "exchanges their folder": ("os.rename('tests', 'were')\nos.mkdir('tests')\nPATH.write_text(WEAK)\n"),
}
_RESTORED = {
    "rewrites them and writes them back at the end": """
        WAS = PATH.read_text()
        PATH.chmod(0o644)
        PATH.write_text(WEAK)
        def pytest_sessionfinish():
            PATH.write_text(WAS)
            PATH.chmod(0o444)
        """,
    "rewrites them for the time of their import": """
        WAS = PATH.read_text()
        PATH.chmod(0o644)
        PATH.write_text(WEAK)
        def pytest_pycollect_makeitem():
            PATH.write_text(WAS)
        """,
    "lets a shell rewrite them, and write them back": """
        import subprocess
        WAS = PATH.read_text()
        subprocess.run(["/bin/sh", "-c", "chmod 644 $0 && printf %s \\"$1\\" > $0", str(PATH), WEAK], check=True)
        def pytest_pycollect_makeitem():
            subprocess.run(["/bin/sh", "-c", "printf %s \\"$1\\" > $0", str(PATH), WAS], check=True)
        """,
    "leaves compiled code beside them": """
        import importlib.util, marshal
        from _pytest.assertion.rewrite import PYC_TAIL
        code = compile(WEAK, str(PATH.absolute()), "exec")
        cache = pathlib.Path("tests/__pycache__")
        cache.mkdir()
        head = importlib.util.MAGIC_NUMBER + b"\\3\\0\\0\\0" + importlib.util.source_hash(PATH.read_bytes())
        (cache / (PATH.stem + PYC_TAIL)).write_bytes(head + marshal.dumps(code))
        """,
    "compiles them itself": """
        import importlib.abc, importlib.util
        class Finder(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.endswith("test_given"):
                    return importlib.util.spec_from_loader(name, Loader(), origin=str(PATH.absolute()))
        class Loader(importlib.abc.Loader):
            def exec_module(self, module):
                module.__file__ = str(PATH.absolute())
                exec(compile(WEAK, module.__file__, "exec"), vars(module))
        sys.meta_path.insert(0, Finder())
        """,
    "exchanges the code of their functions": """
        @pytest.hookimpl(wrapper=True)
        def pytest_pycollect_makeitem(name, obj):
            codes = [*compile(WEAK, str(PATH.absolute()), "exec").co_consts]
            codes += [inner for code in codes if hasattr(code, "co_consts") for inner in code.co_consts]
            if name.startswith("test_") and name != "test_own":
                obj.__code__ = next(code for code in codes if getattr(code, "co_name", "") == name)
            return (yield)
        """,
    "exchanges a function that they use, and weakens the rest": """
        @pytest.hookimpl(wrapper=True)
        def pytest_pycollect_makemodule(module_path):
            made = yield
            if module_path.name == PATH.name:
                made.obj.check = lambda value, wanted: None
                made.obj.double = lambda x: 1 / 0 if x is None else 2 * x if x != 3 else 7
            return made
        """,
    "exchanges a function that they use for something that is equal to it": """
        class Equal:
            def __eq__(self, other):
                return True
        class Check:
            __code__ = Equal()
            def __call__(self, value, wanted):
                pass
        @pytest.hookimpl(wrapper=True)
        def pytest_pycollect_makemodule(module_path):
            made = yield
            if module_path.name == PATH.name:
                made.obj.check = Check()
                made.obj.double = lambda x: 1 / 0 if x is None else 2 * x if x != 3 else 7
            return made
        """,
    "exchanges what they assert with": """
        import contextlib, types
        @pytest.hookimpl(wrapper=True)
        def pytest_pycollect_makemodule(module_path):
            made = yield
            if module_path.name == PATH.name:
                made.obj.pytest = types.SimpleNamespace(raises=lambda kind: contextlib.suppress(Exception))
            return made
        """,
    "exchanges a function of theirs for the time of each test": """
        @pytest.fixture(autouse=True)
        def weak(request, monkeypatch):
            monkeypatch.setattr(request.module, "check", lambda value, wanted: None, raising=False)
        """,
    "runs something else instead of them": """
        @pytest.hookimpl(tryfirst=True)
        def pytest_pyfunc_call(pyfuncitem):
            return True
        """,
    "deselects them": """
        def pytest_collection_modifyitems(items):
            items[:] = [item for item in items if "given" not in item.nodeid]
        """,
    "keeps them from being collected": "collect_ignore = ['tests/test_given.py']",
    "passes their folder over": "collect_ignore_glob = ['tests/*']",
    "hides them from pytest": """
        def pytest_ignore_collect(collection_path):
            return collection_path.name == "test_given.py" or None
        """,
    "says that their module holds no test": """
        @pytest.hookimpl(wrapper=True)
        def pytest_pycollect_makemodule(module_path):
            made = yield
            made.obj.__test__ = module_path.name != "test_given.py"
            return made
        """,
}  # fmt: skip
_BESIDE = {
    "configuration keeps them out": {"pytest.ini": "[pytest]\nnorecursedirs = tests\n"},
    "configuration calls tests otherwise": {"pytest.ini": "[pytest]\npython_files = *_own.py\n"},
    "configuration calls functions otherwise": {"pytest.ini": "[pytest]\npython_functions = *_own\n"},
    "the code under test rewrites them": {"app.py": _HERE + _WEAK + "PATH.chmod(0o644)\nPATH.write_text(WEAK)\n" + WRONG},
    "a test of the draft's own rewrites them": {
        "a_tests/test_own.py": _HERE + _WEAK + "PATH.chmod(0o644)\nPATH.write_text(WEAK)\ndef test_own(): pass\n"
    },
}  # fmt: skip
_LEFT_OUT = {
    "skips them": """
        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.skip)
        """,
    "expects them to fail": """
        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.xfail)
        """,
}
_OWN = {"tests_of_mine/test_own.py": "def test_own():\n    pass", "app.py": WRONG}


@pytest.mark.parametrize("trick", _LEFT.values(), ids=_LEFT)
def test_a_change_to_given_tests_that_stays_is_told_by_name(settings: WorkerSettings, trick: str) -> None:
    """The draft is right; it is the change that makes it red."""
    verdict = judged(settings, {**_OWN, "app.py": RIGHT, "conftest.py": _HERE + _WEAK + dedent(trick)})

    assert verdict.outcome is Outcome.TAMPERED
    assert "tests/test_given.py, which the plan gave, was changed." in verdict.feedback


@pytest.mark.parametrize("trick", (_LEFT | _RESTORED).values(), ids=_LEFT | _RESTORED)
def test_no_trick_makes_a_wrong_draft_pass_given_tests(settings: WorkerSettings, trick: str) -> None:
    """Neither one that leaves no trace in the end, nor one that never touches the files."""
    verdict = judged(settings, {**_OWN, "conftest.py": _HERE + _WEAK + dedent(trick)})

    assert verdict.outcome is Outcome.TAMPERED


@pytest.mark.parametrize("files", _BESIDE.values(), ids=_BESIDE)
def test_no_file_makes_a_wrong_draft_pass_given_tests(
    settings: WorkerSettings, files: dict[str, str]
) -> None:
    """Configuration, or code that has every reason to run."""
    assert judged(settings, {**_OWN, **files}).outcome is Outcome.TAMPERED


@pytest.mark.parametrize("trick", _LEFT_OUT.values(), ids=_LEFT_OUT)
def test_given_tests_that_are_left_out_by_the_draft_prove_nothing(
    settings: WorkerSettings, trick: str
) -> None:
    """Though its own tests pass."""
    verdict = judged(settings, {**_OWN, "conftest.py": _HERE + dedent(trick)})

    assert verdict.outcome in {Outcome.FAILED, Outcome.NO_TESTS, Outcome.TAMPERED}


def test_given_tests_that_skip_for_want_of_the_project_prove_nothing(settings: WorkerSettings) -> None:
    """They may say so; then none of them ran."""
    given = {PATH: "import pytest\npytest.importorskip('app')\ndef test_a():\n    pass"}
    verdict = judged(settings, {"tests_of_mine/test_own.py": "def test_own():\n    pass"}, given)

    assert verdict.outcome is Outcome.TAMPERED
    assert "none of the tests that the plan gave ran" in verdict.feedback
