"""The verdict on real runs: what goes wrong has its class, what passes stays green, and no trick turns red green."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any

import pytest

from ptc_contracts.verdicts import Outcome
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt
from ptc_worker.runner import run_tests
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Future

    from ptc_contracts.verdicts import Verdict

PASSES = "def test_good():\n    pass\n"
FAILS = "def test_bad():\n    assert 0\n"
BOTH = PASSES + FAILS


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """Settings with an environment folder of these tests."""
    return WorkerSettings(ptc_cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, settings: WorkerSettings
) -> Iterator[dict[str, Future[Verdict]]]:
    """The verdicts on all cases that are to be tested: as many at a time as there are cores."""
    items: list[Any] = request.session.items
    asked = {
        item.nodeid: item.callspec.params["verdict"]
        for item in items
        if getattr(item, "module", None) is request.module and "verdict" in item.fixturenames
    }
    with ThreadPoolExecutor(settings.sandboxes_at_once) as threads:
        yield {name: threads.submit(judged, settings, *case) for name, case in asked.items()}
        threads.shutdown(cancel_futures=True)


@pytest.fixture
def verdict(request: pytest.FixtureRequest, verdicts: dict[str, Future[Verdict]]) -> Verdict:
    """The verdict on the case of a test."""
    return verdicts[request.node.nodeid].result()


def cases(table: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """Make parameters of a table's rows: what is to be judged, then what is expected."""
    return [pytest.param((dedent(row[0]), row[1]), *row[2:], id=name) for name, row in table.items()]


def judged(
    settings: WorkerSettings,
    tests: str,
    more: dict[str, str] | None = None,
    requirements: tuple[str, ...] = (),
) -> Verdict:
    """Run a test file, with other files beside it."""
    files = {"tests/test_it.py": tests, **(more or {})}
    artifacts = [artifact(path, dedent(text)) for path, text in files.items()]
    verdict, _ = run_tests(settings, artifacts, requirements, 60, Halt())
    return verdict


VERDICTS = {
    "passes": (PASSES, {}, Outcome.PASSED, 1, 0),
    "fails": (BOTH, {}, Outcome.FAILED, 1, 1),
    "leaves with 0 in a test": ("import os\ndef test_a():\n    os._exit(0)", {}, Outcome.CRASHED, 0, 1),
    "leaves with 0 at import": ("import os\nos._exit(0)", {}, Outcome.CRASHED, 0, 0),
    "leaves with 4 in a test": ("import os\ndef test_a():\n    os._exit(4)", {}, Outcome.USAGE_ERROR, 0, 1),
    "sys.exit(0) at import": ("import sys\nsys.exit(0)", {}, Outcome.CRASHED, 0, 0),
    "sys.exit(0) in a test": ("import sys\ndef test_a():\n    sys.exit(0)", {}, Outcome.FAILED, 0, 1),
    "segmentation fault": (
        "import ctypes\ndef test_a():\n    ctypes.string_at(0)",
        {},
        Outcome.CRASHED,
        0,
        1,
    ),
    "skips all": ("import pytest\ndef test_a():\n    pytest.skip('x')", {}, Outcome.NO_TESTS, 0, 0),
    "expects all to fail": (
        "import pytest\n@pytest.mark.xfail\ndef test_a():\n    assert 0",
        {},
        Outcome.NO_TESTS,
        0,
        0,
    ),
    "skips what fails": (
        PASSES + "import pytest\n@pytest.mark.skip\ndef test_a():\n    assert 0",
        {},
        Outcome.FAILED,
        1,
        0,
    ),
    "expects what fails to fail": (
        PASSES + "import pytest\n@pytest.mark.xfail\ndef test_a():\n    assert 0",
        {},
        Outcome.FAILED,
        1,
        0,
    ),
    "has none": ("x = 1", {}, Outcome.NO_TESTS, 0, 0),
    "cannot be imported": ("import no_such_module\n" + PASSES, {}, Outcome.COLLECTION_ERROR, 0, 1),
    "one file of two cannot be imported": (
        PASSES,
        {"tests/test_b.py": "import no_such_module"},
        Outcome.COLLECTION_ERROR,
        0,
        2,
    ),
    "a conftest cannot be imported": (
        PASSES,
        {"conftest.py": "import no_such_module"},
        Outcome.USAGE_ERROR,
        0,
        0,
    ),
    "writes without end": (
        "import os\ndef test_a():\n    while 1:\n        os.write(1, b'x' * 9999)",
        {},
        Outcome.OUTPUT_LIMIT,
        0,
        1,
    ),
    "a subtest fails": (
        (
            "import unittest\nclass T(unittest.TestCase):\n  def test_a(self):\n"
            "    for i in 1, 2:\n      with self.subTest(i=i):\n        self.assertEqual(i, 1)"
        ),
        {},
        Outcome.FAILED,
        0,
        1,
    ),
    "the teardown fails": (
        "import pytest\n@pytest.fixture\ndef f():\n    yield\n    assert 0\ndef test_a(f):\n    pass",
        {},
        Outcome.FAILED,
        0,
        1,
    ),
    "asks for a plugin that is not there": (
        PASSES,
        {"pytest.ini": "[pytest]\nrequired_plugins = nope"},
        Outcome.USAGE_ERROR,
        0,
        0,
    ),
    "raises text that is not Unicode": (
        "def test_a():\n    raise ValueError(chr(0xd800))",
        {},
        Outcome.FAILED,
        0,
        1,
    ),
}


@pytest.mark.parametrize(("verdict", "outcome", "passed", "failed"), cases(VERDICTS), indirect=["verdict"])
def test_each_way_to_go_wrong_has_its_class(
    verdict: Verdict, outcome: Outcome, passed: int, failed: int
) -> None:
    """With its counts, something to tell the model, and never exit code 0."""
    assert verdict.test_results is not None
    assert (verdict.outcome, verdict.test_results.tests_passed, verdict.test_results.tests_failed) == (
        outcome,
        passed,
        failed,
    )
    assert verdict.test_results.success is (outcome is Outcome.PASSED)
    assert (verdict.test_results.exit_code == 0) is (outcome is Outcome.PASSED)
    assert bool(verdict.feedback) is (outcome is not Outcome.PASSED)


TRICKS = {
    # name: (tests, files beside them, the class, what the model is told)
    "flips outcomes": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_makereport(item, call):
                report = yield
                report.outcome, report.longrepr = "passed", None
                return report
            """
        },
        "test_bad raised, and was not reported as failed",
    ),
    "calls what raised a skip": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(wrapper=True, tryfirst=True)
            def pytest_runtest_call(item):
                try:
                    return (yield)
                except AssertionError:
                    pytest.skip("flaky")
            """
        },
        "test_bad raised, and was not reported as failed",
    ),
    "swallows what the call raises": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(wrapper=True, trylast=True)
            def pytest_runtest_call(item):
                try:
                    return (yield)
                except AssertionError:
                    return None
            """
        },
        "test_bad raised, and was not reported as failed",
    ),
    "swallows what the function raises": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                try:
                    pyfuncitem.obj()
                except AssertionError:
                    pass
                return True
            """
        },
        "test_bad raised, and was not reported as failed",
    ),
    "swallows what a fixture raises": (
        PASSES
        + "import pytest\n@pytest.fixture\ndef f():\n    yield\n    assert 0\ndef test_bad(f):\n    pass",
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(wrapper=True, trylast=True)
            def pytest_runtest_teardown(item):
                try:
                    return (yield)
                except AssertionError:
                    return None
            """
        },
        "test_bad raised, and was not reported as failed",
    ),
    "never calls the function": (
        BOTH,
        {"conftest.py": "def pytest_pyfunc_call(pyfuncitem):\n    return True"},
        "test_bad was reported as passed, and its function never ran",
    ),
    "never calls the test": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(wrapper=True, tryfirst=True)
            def pytest_runtest_call(item):
                item.runtest = lambda: None
                return (yield)
            """
        },
        "test_bad was reported as passed, and its function never ran",
    ),
    "runs a protocol of its own": (
        BOTH,
        {
            "conftest.py": """
            from _pytest.reports import TestReport
            def pytest_runtest_protocol(item, nextitem):
                for when in "setup", "call", "teardown":
                    item.ihook.pytest_runtest_logreport(report=TestReport(
                        item.nodeid, item.location, {}, "passed", None, when))
                return True
            """
        },
        "test_bad was reported as passed, and its function never ran",
    ),
    "runs them, and reports as it likes": (
        BOTH,
        {
            "conftest.py": """
            from _pytest.runner import runtestprotocol
            def pytest_runtest_protocol(item, nextitem):
                for report in runtestprotocol(item, log=False, nextitem=nextitem):
                    report.outcome, report.longrepr = "passed", None
                    item.ihook.pytest_runtest_logreport(report=report)
                return True
            """
        },
        "test_bad raised, and was not reported as failed",
    ),
    "drops what fails": (
        BOTH,
        {"conftest.py": "def pytest_collection_modifyitems(items):\n    items[:] = items[:1]"},
        "test_bad was collected and then left out",
    ),
    "deselects what fails": (
        BOTH,
        {
            "conftest.py": """
            def pytest_collection_modifyitems(config, items):
                config.hook.pytest_deselected(items=items[1:])
                del items[1:]
            """
        },
        "test_bad was collected and then left out",
    ),
    "deselects by an option that it sets": (
        BOTH,
        {"conftest.py": "def pytest_configure(config):\n    config.option.keyword = 'good'"},
        "test_bad was collected and then left out",
    ),
    "only collects": (
        BOTH,
        {"conftest.py": "def pytest_configure(config):\n    config.option.collectonly = True"},
        "test_bad was collected and then left out",
    ),
    "stops before what fails": (
        "import pytest\ndef test_good():\n    pytest.exit('x', returncode=0)\n" + FAILS,
        {},
        "test_bad was collected and then left out",
    ),
    "ignores a file": (
        PASSES,
        {"tests/test_b.py": FAILS, "conftest.py": "collect_ignore = ['tests/test_b.py']"},
        "tests/test_b.py::test_bad stands in its file, and was not collected",
    ),
    "ignores a file by a hook": (
        PASSES,
        {
            "tests/test_b.py": FAILS,
            "conftest.py": "def pytest_ignore_collect(collection_path):\n"
            "    return True if collection_path.name == 'test_b.py' else None",
        },
        "tests/test_b.py::test_bad stands in its file, and was not collected",
    ),
    "names its functions so that one is not collected": (
        BOTH,
        {"pytest.ini": "[pytest]\npython_functions = test_good"},
        "test_bad stands in its file, and was not collected",
    ),
    "names its files so that one is not collected": (
        PASSES,
        {"tests/test_b.py": FAILS, "pytest.ini": "[pytest]\npython_files = test_it.py"},
        "tests/test_b.py::test_bad stands in its file, and was not collected",
    ),
    "passes over a folder": (
        PASSES,
        {"more/test_b.py": FAILS, "pytest.ini": "[pytest]\nnorecursedirs = more"},
        "more/test_b.py::test_bad stands in its file, and was not collected",
    ),
    "says that a module holds no tests": (
        PASSES,
        {"tests/test_b.py": "__test__ = False\n" + FAILS},
        "tests/test_b.py::test_bad stands in its file, and was not collected",
    ),
    "skips a module": (
        PASSES,
        {"tests/test_b.py": "import pytest\npytest.skip('x', allow_module_level=True)\n" + FAILS},
        "tests/test_b.py::test_bad stands in its file, and was not collected",
    ),
    "collects another function": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            def pytest_pycollect_makeitem(collector, name, obj):
                if name == "test_bad":
                    return pytest.Function.from_parent(collector, name=name, callobj=lambda: None)
            """
        },
        "test_bad was collected, but with a function from elsewhere",
    ),
    "collects a test of its own kind": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            class Green(pytest.Item):
                def runtest(self):
                    pass
            def pytest_pycollect_makeitem(collector, name, obj):
                if name == "test_bad":
                    return Green.from_parent(collector, name=name)
            """
        },
        "test_bad was collected, but with a function from elsewhere",
    ),
    "gives one test the name of another": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            first = []
            @pytest.hookimpl(tryfirst=True)
            def pytest_itemcollected(item):
                first.append(item._id)
                item._id = first[0]
            """
        },
        "two tests are named tests/test_it.py::test_good",
    ),
    "replaces an item's function": (
        BOTH,
        {
            "conftest.py": """
            def pytest_collection_modifyitems(items):
                for item in items:
                    item.obj = lambda: None
            """
        },
        "the function of tests/test_it.py::test_bad was replaced",
    ),
    "replaces an item's function by one that claims to wrap it": (
        BOTH,
        {
            "conftest.py": """
            import functools
            def pytest_collection_modifyitems(items):
                for item in items:
                    item.obj = functools.wraps(item.obj)(lambda: None)
            """
        },
        "the function of tests/test_it.py::test_bad was replaced",
    ),
    "replaces an item's way to run": (
        BOTH,
        {
            "conftest.py": """
            def pytest_collection_modifyitems(items):
                for item in items:
                    item.runtest = lambda: None
            """
        },
        "test_bad was reported as passed, and its function never ran",
    ),
    "replaces the code of a test": (
        BOTH,
        {
            "conftest.py": """
            def pytest_collection_modifyitems(items):
                for item in items:
                    item.function.__code__ = (lambda: None).__code__
            """
        },
        "the function of tests/test_it.py::test_bad was replaced",
    ),
    "replaces the code of pytest": (
        BOTH,
        {
            "conftest.py": """
            import _pytest.runner
            def flipped(item, call):
                report = _pytest.runner.TestReport.from_item_and_call(item, call)
                report.outcome = "passed"
                return report
            _pytest.runner.pytest_runtest_makereport.__code__ = flipped.__code__
            """
        },
        "the code of pytest_runtest_makereport was exchanged",
    ),
    "patches TestReport": (
        BOTH,
        {
            "conftest.py": """
            from _pytest.reports import TestReport
            made = TestReport.from_item_and_call
            def flipped(item, call):
                report = made(item, call)
                report.outcome, report.longrepr = "passed", None
                return report
            TestReport.from_item_and_call = flipped
            """
        },
        "TestReport.from_item_and_call was replaced",
    ),
    "patches CallInfo": (
        BOTH,
        {
            "conftest.py": """
            from _pytest.runner import CallInfo
            made = CallInfo.from_call
            def quiet(func, when, reraise=None):
                def call():
                    try:
                        func()
                    except AssertionError:
                        pass
                return made(call, when, reraise)
            CallInfo.from_call = quiet
            """
        },
        "CallInfo.from_call was replaced",
    ),
    "patches the protocol": (
        BOTH,
        {
            "conftest.py": """
            import _pytest.runner
            from _pytest.reports import TestReport
            def protocol(item, log=True, nextitem=None):
                for when in "setup", "call", "teardown":
                    item.ihook.pytest_runtest_logreport(report=TestReport(
                        item.nodeid, item.location, {}, "passed", None, when))
            _pytest.runner.runtestprotocol = protocol
            """
        },
        "_pytest.runner.runtestprotocol was replaced",
    ),
    "patches Function": (
        BOTH,
        {"conftest.py": "import pytest\npytest.Function.runtest = lambda self: None"},
        "Function.runtest was replaced",
    ),
    "patches pluggy": (
        BOTH,
        {
            "conftest.py": """
            import pluggy
            call = pluggy.HookCaller.__call__
            def quiet(self, **kwargs):
                try:
                    return call(self, **kwargs)
                except AssertionError:
                    return None
            pluggy.HookCaller.__call__ = quiet
            """
        },
        "HookCaller.__call__ was replaced",
    ),
    "patches what tests assert with": (
        "import pytest\ndef test_bad():\n    with pytest.raises(ValueError):\n        pass\n",
        {
            "conftest.py": """
            import contextlib, pytest
            @pytest.fixture(autouse=True)
            def lenient(monkeypatch):
                monkeypatch.setattr(pytest, "raises", contextlib.suppress)
            """
        },
        "pytest.raises was replaced",
    ),
    "patches unittest": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_bad(self):\n        self.assertEqual(1, 2)\n",
        {"conftest.py": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None"},
        "TestCase.assertEqual was replaced",
    ),
    "patches the rewriting of assert": (
        BOTH,
        {
            "conftest.py": """
            import ast, _pytest.assertion.rewrite as rewrite
            def lenient(tree, *rest):
                for node in ast.walk(tree):
                    if isinstance(node, ast.Assert):
                        node.test = ast.Constant(True)
                ast.fix_missing_locations(tree)
            rewrite.rewrite_asserts = lenient
            """
        },
        "_pytest.assertion.rewrite.rewrite_asserts was replaced",
    ),
    "overrides run of a TestCase": (
        (
            "import unittest\nclass T(unittest.TestCase):\n    def run(self, result=None):\n        pass\n"
            "    def test_bad(self):\n        assert 0"
        ),
        {},
        "test_bad was reported as passed, and its function never ran",
    ),
    "overrides run of a TestCase, and swallows": (
        (
            "import unittest\nclass T(unittest.TestCase):\n    def run(self, result=None):\n"
            "        try:\n            self.test_bad()\n        except AssertionError:\n            pass\n"
            "    def test_bad(self):\n        assert 0"
        ),
        {},
        "test_bad raised, and was not reported as failed",
    ),
    "overrides run of an async TestCase": (
        (
            "import unittest\nclass T(unittest.IsolatedAsyncioTestCase):\n    def run(self, result=None):\n"
            "        pass\n    async def test_bad(self):\n        assert 0"
        ),
        {},
        "test_bad was reported as passed, and its function never ran",
    ),
    "closes what an asynchronous test awaits": (
        "import pytest\n@pytest.mark.asyncio\nasync def test_bad():\n    assert 0",
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                return True
            """
        },
        "test_bad was reported as passed, and its function never ran",
    ),
    "is equal to everything": (
        "from thing import Money\ndef test_it():\n    assert Money(1) == Money(2)",
        {
            "thing.py": """
            class Money:
                def __init__(self, amount):
                    self.amount = amount
                def __eq__(self, other):
                    return True
            """
        },
        "thing.py:5: objects of the class Money are equal to everything",
    ),
    "writes lines into the log": (
        """
        import json, os
        def test_bad():
            for fd in range(3, 64):
                try:
                    os.write(fd, b"0" * 32 + b' {"event": "ran", "id": "tests/test_it.py::test_bad"}\\n')
                except OSError:
                    pass
        """,
        {},
        "the test report was written to",
    ),
    "tells the log through the plugin": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                plugin = pyfuncitem.config.pluginmanager.get_plugin("ptc-reporter")
                hook = plugin.pytest_itemcollected
                cells = dict(zip(hook.__code__.co_freevars, hook.__closure__))
                cells["tell"].cell_contents("ran", id=pyfuncitem.nodeid)
                return True
            """
        },
        "code of the project wrote to the test report",
    ),
    "runs another function in the plugin's probe": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                probe = pyfuncitem.obj
                cells = dict(zip(probe.__code__.co_freevars, probe.__closure__))
                whole = cells["whole"].cell_contents
                def easy():
                    cells["whole"].cell_contents = whole
                cells["whole"].cell_contents = easy
            """
        },
        "the function of tests/test_it.py::test_bad was replaced",
    ),
    "exchanges the code of a test while it runs": (
        BOTH,
        {
            "conftest.py": """
            import pytest, sys
            def easy():
                import sys
                sys.put_back()
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                function = pyfuncitem.function
                code = function.__code__
                sys.put_back = lambda: setattr(function, "__code__", code)
                function.__code__ = easy.__code__
            """
        },
        "the code of test_bad was exchanged",
    ),
    "runs one test under the name of another": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            def cell(function, name):
                return dict(zip(function.__code__.co_freevars, function.__closure__))[name].cell_contents
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                good, bad = pyfuncitem.session.items
                if pyfuncitem is bad:
                    call = pyfuncitem.config.pluginmanager.get_plugin("ptc-innermost").pytest_runtest_call
                    known = cell(call, "known")
                    known[id(good)] = known[id(bad)]
                    under_way = call(good)
                    next(under_way)
                    good.obj()
                    return True
            """
        },
        "the function of tests/test_it.py::test_bad was replaced",
    ),
    "looks into the writer": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            def cell(function, name):
                return dict(zip(function.__code__.co_freevars, function.__closure__))[name].cell_contents
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                plugin = pyfuncitem.config.pluginmanager.get_plugin("ptc-reporter")
                writer = cell(cell(plugin.pytest_itemcollected, "tell"), "writer")
                inside = writer.gi_frame.f_locals
                line = b'{"event": "ran", "id": "%s"}' % pyfuncitem.nodeid.encode()
                inside["chain"].update(line)
                inside["write"](inside["fd"], inside["chain"].hexdigest().encode() + b" " + line + b"\\n")
                return True
            """
        },
        "the test report's writer was looked into",
    ),
    "searches the writer in memory": (
        BOTH,
        {
            "conftest.py": """
            import gc, types
            def pytest_collection_modifyitems(items):
                gc.unfreeze()
                [o for o in gc.get_objects() if isinstance(o, types.GeneratorType)]
            """
        },
        "the test report was searched for",
    ),
    "copies the plugin's functions": (
        BOTH,
        {
            "conftest.py": """
            import pytest, types
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                probe = pyfuncitem.obj
                cells = dict(zip(probe.__code__.co_freevars, probe.__closure__))
                real = cells["whole"].cell_contents
                cells["whole"] = types.CellType(lambda: None)
                closure = tuple(cells[name] for name in probe.__code__.co_freevars)
                types.FunctionType(probe.__code__, {}, "probe", (), closure)()
                return True
            """
        },
        "a function of the test report was copied",
    ),
    "replaces what is built in": (
        BOTH,
        {
            "conftest.py": """
            import builtins
            real = getattr
            builtins.getattr = lambda thing, name, *default: real(thing, name, *default)
            """
        },
        "builtins.getattr was replaced",
    ),
    "hides a built-in name from what tests assert with": (
        "import pytest\ndef test_bad():\n    assert 1 == pytest.approx(2)\n",
        {"conftest.py": "import _pytest.approx\n_pytest.approx.abs = lambda x: 0"},
        "_pytest.approx.abs was replaced",
    ),
    "hides a built-in name from unittest": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_bad(self):\n        self.assertAlmostEqual(1, 2)\n",
        {"conftest.py": "import unittest.case\nunittest.case.abs = lambda x: 0"},
        "unittest.case.abs was replaced",
    ),
    "hides a built-in name from the plugin": (
        BOTH,
        {"conftest.py": "import sys\nsys.modules['ptc_inside.pytest_report'].all = lambda x: True"},
        "ptc_inside.pytest_report.all was replaced",
    ),
    "replaces a built-in name that assertions use": (
        "import pytest\ndef test_bad():\n    assert 1 == pytest.approx(2)\n",
        {"conftest.py": "import builtins\nbuiltins.abs = lambda x: 0"},
        "builtins.abs was replaced",
    ),
    "replaces a built-in name that tests use": (
        "def test_bad():\n    assert sum([1, 2]) == 4\n",
        {"conftest.py": "import builtins\nbuiltins.sum = lambda x: 4"},
        "builtins.sum was replaced",
    ),
    "patches what is compared with": (
        "import pytest\ndef test_bad():\n    assert 1 == pytest.approx(2)\n",
        {"conftest.py": "import _pytest.approx\n_pytest.approx.ApproxScalar.__eq__ = lambda *a: True"},
        "ApproxScalar.__eq__ was replaced",
    ),
    "watches the writer": (
        BOTH,
        {
            "conftest.py": """
            import os, pytest, sys
            def watch(frame, event, argument):
                if {"chain", "tellers"} <= frame.f_locals.keys():
                    seen.update(frame.f_locals)
            seen = {}
            sys.settrace(watch)
            sys.setprofile(watch)
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                if seen:
                    line = b'{"event": "ran", "id": "%s"}' % pyfuncitem.nodeid.encode()
                    seen["chain"].update(line)
                    line = seen["chain"].hexdigest().encode() + b" " + line + b"\\n"
                    os.write(seen["fd"], line)
                return True
            """
        },
        "test_bad was reported as passed, and its function never ran",
    ),
    "is called by the garbage collector at the right moment": (
        BOTH,
        {
            "conftest.py": """
            import gc, os, pytest, sys
            class Trap:
                def __init__(self):
                    self.me = self
                def __del__(self):
                    frame = sys._getframe()
                    while frame:
                        if {"chain", "tellers"} <= frame.f_locals.keys():
                            seen.update(frame.f_locals)
                        frame = frame.f_back
                    Trap()
            seen = {}
            Trap()
            gc.set_threshold(1)
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(pyfuncitem):
                if seen:
                    line = b'{"event": "ran", "id": "%s"}' % pyfuncitem.nodeid.encode()
                    seen["chain"].update(line)
                    line = seen["chain"].hexdigest().encode() + b" " + line + b"\\n"
                    os.write(seen["fd"], line)
                return True
            """
        },
        "test_bad was reported as passed, and its function never ran",
    ),
    "opens the memory of the process": (
        BOTH,
        {"conftest.py": "import os\nos.close(os.open('/proc/self/mem', os.O_RDWR))"},
        "/proc/self/mem was opened",
    ),
}


@pytest.mark.parametrize(("verdict", "told"), cases(TRICKS), indirect=["verdict"])
def test_no_trick_turns_red_green(verdict: Verdict, told: str) -> None:
    """It is seen for what it is, and the model is told in a sentence."""
    assert verdict.outcome in {Outcome.TAMPERED, Outcome.FAILED}, verdict
    assert "Suspicious:" in verdict.feedback
    assert told in verdict.feedback


STAYS_RED = {
    "leaves with 0 after all tests": (
        BOTH + "import atexit, os\natexit.register(os._exit, 0)\n",
        {},
        {Outcome.FAILED, Outcome.TAMPERED},
    ),
    "a thread leaves with 0 after the report": (
        BOTH,
        {
            "conftest.py": """
            import os, threading
            def pytest_unconfigure():
                threading.Thread(target=os._exit, args=(0,)).start()
            """
        },
        {Outcome.FAILED, Outcome.TAMPERED},
    ),
    "sets the exit status": (
        BOTH,
        {"conftest.py": "def pytest_sessionfinish(session):\n    session.exitstatus = 0"},
        {Outcome.FAILED},
    ),
    "replaces sys.exit and os._exit": (
        BOTH,
        {
            "conftest.py": """
            import os, sys
            leave = os._exit
            sys.exit = os._exit = lambda code=0: leave(0)
            """
        },
        {Outcome.FAILED, Outcome.TAMPERED},
    ),
    "is its own main program": (
        BOTH,
        {"conftest.py": "def pytest_cmdline_main(config):\n    return 0"},
        {Outcome.CRASHED},
    ),
    "brings options": (
        BOTH,
        {"pytest.ini": "[pytest]\naddopts = --co -q -k good --junitxml=x.xml -p no:terminal -p nope"},
        {Outcome.FAILED},
    ),
    "brings a plugin by its metadata": (
        BOTH,
        {
            "flip.py": "def pytest_collection_modifyitems(items):\n    raise SystemExit(0)",
            "flip-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: flip\nVersion: 1\n",
            "flip-1.dist-info/entry_points.txt": "[pytest11]\nflip = flip\n",
        },
        {Outcome.FAILED},
    ),
    "brings a plugin by its conftest": (
        BOTH,
        {
            "conftest.py": "pytest_plugins = ['flip']",
            "flip.py": """
            def pytest_runtest_logreport(report):
                report.outcome = "passed"
            """,
        },
        {Outcome.FAILED},
    ),
    "shadows pytest": (BOTH, {"pytest.py": "import os\nos._exit(0)"}, {Outcome.FAILED}),
    "shadows modules of pytest's": (
        BOTH,
        {
            f"{name}.py": "import os\nos._exit(0)"
            for name in ("argparse", "json", "hashlib", "traceback", "difflib", "_pytest", "ptc_inside")
        },
        {Outcome.FAILED, Outcome.CRASHED},
    ),
    "brings what Python loads at its start": (
        BOTH,
        {
            "sitecustomize.py": "import os\nos._exit(0)",
            "usercustomize.py": "import os\nos._exit(0)",
            "x.pth": "import os; os._exit(0)",
        },
        {Outcome.FAILED},
    ),
    "prints what pytest prints": (
        PASSES + "import os\ndef test_bad():\n    os.write(1, b'2 passed in 0.1s\\n')\n    os._exit(0)",
        {},
        {Outcome.CRASHED},
    ),
    "closes the log": (
        "import os\ndef test_bad():\n    os.closerange(3, 64)\n    assert 0",
        {},
        {Outcome.CRASHED, Outcome.FAILED},
    ),
    "puts another file over the log": (
        """
        import os
        def test_bad():
            other = os.open("events", os.O_WRONLY | os.O_CREAT)
            for fd in range(3, 64):
                try:
                    os.fstat(fd)
                    os.dup2(other, fd)
                except OSError:
                    pass
            assert 0
        """,
        {},
        {Outcome.CRASHED},
    ),
    "catches the writer in its exception": (
        BOTH,
        {
            "conftest.py": """
            import fcntl, json, os, pytest
            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_call(item):
                saved = {}
                for fd in range(3, 32):
                    try:
                        target = os.readlink(f"/proc/self/fd/{fd}")
                    except OSError:
                        continue
                    if "events" in target or "pipe" in target:
                        saved[fd] = fcntl.fcntl(fd, fcntl.F_DUPFD, 64)
                for fd in saved:
                    os.close(fd)
                try:
                    return (yield)
                except OSError as error:
                    names, caught = {}, error
                    while caught:
                        trace = caught.__traceback__
                        while trace:
                            names = trace.tb_frame.f_locals if "chain" in trace.tb_frame.f_locals else names
                            trace = trace.tb_next
                        caught = caught.__context__
                for fd, copy in saved.items():
                    os.dup2(copy, fd)
                chain, fd = names["chain"], names["fd"]
                os.write(fd, chain.hexdigest().encode() + b" " + names["line"] + b"\\n")
                good, bad = "tests/test_it.py::test_good", "tests/test_it.py::test_bad"
                phases = [(good, "call"), (good, "teardown"), (bad, "setup"), (bad, "call"), (bad, "teardown")]
                phase = {"event": "phase", "outcome": "passed", "xfail": False, "seconds": 0, "text": ""}
                events = [{**phase, "id": test, "when": when} for test, when in phases]
                for event in [*events, {"event": "ran", "id": bad}, {"event": "end", "exit": 0}]:
                    line = json.dumps(event).encode()
                    chain.update(line)
                    os.write(fd, chain.hexdigest().encode() + b" " + line + b"\\n")
                os._exit(0)
            """
        },
        {Outcome.CRASHED},
    ),
    "throws into the writer": (
        BOTH,
        {
            "conftest.py": """
            def pytest_collection_modifyitems(config):
                hook = config.pluginmanager.get_plugin("ptc-reporter").pytest_itemcollected
                tell = dict(zip(hook.__code__.co_freevars, hook.__closure__))["tell"].cell_contents
                writer = dict(zip(tell.__code__.co_freevars, tell.__closure__))["writer"].cell_contents
                try:
                    writer.throw(ValueError)
                except ValueError as error:
                    assert "chain" in error.__traceback__.tb_next.tb_frame.f_locals
            """
        },
        {Outcome.CRASHED},
    ),
    "removes the reporter": (
        BOTH,
        {
            "conftest.py": """
            def pytest_collection_modifyitems(config):
                config.pluginmanager.unregister(name="ptc-reporter")
            """
        },
        {Outcome.CRASHED},
    ),
    "says that the run is over": (
        BOTH,
        {
            "conftest.py": """
            import os
            def pytest_runtest_setup(item):
                if item.name == "test_bad":
                    item.session.exitstatus = 0
                    item.config.hook.pytest_sessionfinish(session=item.session, exitstatus=0)
                    os._exit(0)
            """
        },
        {Outcome.TAMPERED},
    ),
    "goes on in two processes": (
        "import os\ndef test_bad():\n    assert os.fork() == 0",
        {},
        {Outcome.FAILED},
    ),
    "leaves the rest to a child": (
        "import os\ndef test_bad():\n    os.fork() and os._exit(0)\n",
        {},
        {Outcome.CRASHED},
    ),
    "skips from a fixture": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            @pytest.fixture(autouse=True)
            def lenient(request):
                if request.node.name == "test_bad":
                    pytest.skip("later")
            """
        },
        {Outcome.FAILED},
    ),
    "marks what fails as expected to fail": (
        BOTH,
        {
            "conftest.py": """
            import pytest
            def pytest_collection_modifyitems(items):
                items[1].add_marker(pytest.mark.xfail(reason="later"))
            """
        },
        {Outcome.FAILED},
    ),
    "makes failures skips": (
        BOTH,
        {"conftest.py": "import builtins, pytest\nbuiltins.AssertionError = pytest.skip.Exception"},
        {Outcome.TAMPERED},
    ),
}


@pytest.mark.parametrize(("verdict", "outcomes"), cases(STAYS_RED), indirect=["verdict"])
def test_a_red_run_stays_red(verdict: Verdict, outcomes: set[Outcome]) -> None:
    """What hides nothing from the log needs no suspicion: it is simply red."""
    assert verdict.outcome in outcomes, verdict
    assert verdict.test_results is not None
    assert verdict.test_results.exit_code != 0


THIEF = """
    import gc, io, itertools, os, signal, sys, threading
    from hashlib import blake2b
    import pytest
    from _pytest.reports import TestReport

    SECRETS = (blake2b, io.BufferedWriter, map, zip, itertools.starmap, type(itertools.tee("")[0]))

    busy = []

    def steal(frame=None):
        frame = frame or sys._getframe()
        while frame and not busy:
            busy.append(frame)
            if "pytest_report" in frame.f_code.co_filename:
                if any(type(value) in SECRETS for value in list(frame.f_locals.values())):
                    os.write(1, b"STOLEN")
            frame = frame.f_back
            busy.clear()

    class Liar:
        @property
        def __class__(self):
            steal()
            return Liar

    class Hashed(type):
        def __hash__(cls):
            steal()
            return 1

    class Strange(metaclass=Hashed):
        pass

    class Dying:
        def __del__(self):
            steal()

    @pytest.fixture
    def report(request):
        def report(when="setup"):
            item = request.node
            item.ihook.pytest_runtest_logreport(report=TestReport(item.nodeid, item.location, {}, "passed", None, when))
        return report
"""
WAYS = {
    "a value that says of itself what it is": "report(Liar())",
    "a value whose class says where it belongs": "report(Strange())",
    "a value that ends while an event is written": "report(Dying()); report()",
    "a built-in function": """
        import builtins
        real = repr
        builtins.repr = lambda x: steal() or real(x)
        report(); report(1.5)
        builtins.repr = real
    """,
    "a name that is added to the plugin": """
        sys.modules["ptc_inside.pytest_report"].repr = lambda x: steal() or repr(x)
        report()
        del sys.modules["ptc_inside.pytest_report"].repr
    """,
    "an audit hook": "sys.addaudithook(lambda event, arguments: steal()); report()",
    "a signal": """
        signal.signal(signal.SIGALRM, lambda number, frame: steal(frame))
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        for _ in range(3000):
            report()
        signal.setitimer(signal.ITIMER_REAL, 0)
    """,
    "a thread": """
        over = threading.Event()
        def look():
            while not over.is_set():
                for frame in sys._current_frames().values():
                    steal(frame)
        sys.setswitchinterval(0.000001)
        thread = threading.Thread(target=look)
        thread.start()
        for _ in range(500):
            report()
        over.set()
        thread.join()
    """,
    "a profiler with a timer of its own": """
        import cProfile
        with cProfile.Profile(timer=lambda: steal() or 0.0):
            report()
    """,
    "an exception": """
        sys.setrecursionlimit(sys.getrecursionlimit())
        def deeper(n):
            try:
                report() if n == 0 else deeper(n - 1)
            except RecursionError as error:
                trace = error.__traceback__
                while trace:
                    steal(trace.tb_frame)
                    trace = trace.tb_next
        deeper(10)
    """,
    "a monitoring tool": """
        if monitoring := getattr(sys, "monitoring", None):
            monitoring.use_tool_id(5, "thief")
            monitoring.register_callback(5, monitoring.events.PY_START, lambda code, offset: steal())
            monitoring.set_events(5, monitoring.events.PY_START)
        report()
    """,
}


@pytest.mark.parametrize(
    "verdict",
    [
        pytest.param(
            (
                dedent(THIEF)
                + "def test_bad(report):\n"
                + indent(dedent(way).strip(), "    ")
                + "\n    assert 0\n",
                {"pytest.ini": "[pytest]\naddopts = -s"},
            ),
            id=name,
        )
        for name, way in WAYS.items()
    ],
    indirect=True,
)
def test_no_way_leads_to_the_log(verdict: Verdict) -> None:
    """Whatever runs beneath the plugin, interrupts it or watches it, finds no name for what the log is written with."""
    assert verdict.outcome in {Outcome.FAILED, Outcome.TAMPERED, Outcome.CRASHED}, verdict
    assert verdict.test_results is not None
    assert "STOLEN" not in verdict.test_results.stdout


HONEST = {
    "is asynchronous": (
        (
            "import pytest\n@pytest.mark.asyncio\nasync def test_a():\n    pass\n"
            "class TestB:\n    @pytest.mark.asyncio\n    async def test_b(self):\n        pass"
        ),
        {"pytest.ini": "[pytest]\nfilterwarnings = error\n"},
        2,
    ),
    "is asynchronous by its configuration": (
        "async def test_a():\n    pass",
        {"pytest.ini": "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function"},
        1,
    ),
    "runs coroutines by its own conftest": (
        "async def test_a():\n    pass",
        {
            "conftest.py": """
            import inspect, asyncio
            def pytest_pyfunc_call(pyfuncitem):
                if inspect.iscoroutinefunction(pyfuncitem.obj):
                    asyncio.run(pyfuncitem.obj())
                    return True
            """
        },
        1,
    ),
    "uses unittest": (
        """
        import unittest
        from unittest import mock
        class T(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.x = 1
            def setUp(self):
                self.y = 2
            def test_a(self):
                for i in 1, 2:
                    with self.subTest(i=i):
                        self.assertTrue(i)
            @unittest.skipIf(sys.platform != "win32", "elsewhere")
            def test_b(self):
                self.fail()
            @mock.patch("os.getcwd", return_value="x")
            def test_c(self, getcwd):
                import os
                self.assertEqual(os.getcwd(), "x")
        class A(unittest.IsolatedAsyncioTestCase):
            async def asyncSetUp(self):
                self.z = 1
            async def test_d(self):
                self.assertEqual(self.z, 1)
        """.replace("import unittest\n", "import sys, unittest\n", 1),
        {},
        3,
    ),
    "uses what pytest offers": (
        """
        import os, subprocess, sys, warnings
        import pytest
        @pytest.fixture(scope="module", params=[1, 2])
        def number(request):
            yield request.param
        @pytest.mark.parametrize("text", ["a", "b::c", "[d]"], ids=str)
        def test_parameters(number, text):
            assert number and text
        def test_subtests(subtests):
            with subtests.test("one"):
                assert 1
        def test_fixtures(tmp_path, monkeypatch, capsys, recwarn, caplog, request):
            monkeypatch.setenv("X", "1")
            monkeypatch.setattr(os, "getcwd", lambda: "x")
            print(os.getcwd())
            assert capsys.readouterr().out == "x\\n"
            assert request.function.__name__ == "test_fixtures"
            with pytest.raises(ValueError, match="x"):
                raise ValueError("x")
            with pytest.warns(UserWarning):
                warnings.warn("x")
            assert 0.1 + 0.2 == pytest.approx(0.3)
        @pytest.mark.skipif(sys.platform != "win32", reason="elsewhere")
        def test_windows():
            assert 0
        @pytest.mark.xfail(sys.platform == "linux", reason="known")
        def test_linux():
            assert 0
        def test_condition():
            if sys.platform != "win32":
                pytest.skip("elsewhere")
            assert 0
        class TestGroup:
            def setup_method(self):
                self.x = 1
            def test_method(self):
                assert self.x
            @staticmethod
            def test_static():
                pass
        """,
        {
            "tests/test_other.py": "import pytest\nnumpy = pytest.importorskip('no_such_module')\n" + FAILS,
            "conftest.py": """
            import pytest
            @pytest.hookimpl(wrapper=True, tryfirst=True)
            def pytest_runtest_makereport(item, call):
                report = yield
                setattr(item, "rep_" + report.when, report)
                return report
            @pytest.fixture(autouse=True)
            def told(request):
                yield
                assert request.node.rep_call.passed or request.node.rep_call.skipped
            def pytest_collection_modifyitems(items):
                items.sort(key=lambda item: item.name)
            """,
        },
        10,
    ),
    "uses what is near to tricks": (
        """
        import cProfile, ctypes, gc, inspect, multiprocessing, os, subprocess, sys, threading, types, weakref
        import pytest
        def work(n):
            return n + 1
        def test_processes():
            with multiprocessing.get_context("fork").Pool(1) as pool:
                assert pool.map(work, [1, 2]) == [2, 3]
            assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout == b"1\\n"
            if (pid := os.fork()) == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        def test_memory():
            class Thing:
                pass
            thing = Thing()
            ref = weakref.ref(thing)
            assert [o for o in gc.get_objects() if isinstance(o, Thing)] == [thing]
            held = [thing]
            assert held in gc.get_referrers(thing) and gc.get_referents(held) == held
            del held
            del thing
            gc.collect()
            assert ref() is None
            assert ctypes.c_int(3).value == 3
        def test_frames():
            assert inspect.stack()[0].function == "test_frames"
            assert sys._getframe().f_code.co_name == "test_frames"
            def one(): return 1
            def two(): return 2
            one.__code__ = two.__code__
            assert one() == 2
            def numbers(): yield 1
            assert inspect.getgeneratorlocals(numbers()) == {}
        @pytest.fixture
        def seen():
            names = []
            sys.settrace(lambda frame, event, argument: names.append(frame.f_code.co_name))
            yield names
            sys.settrace(None)
        def test_traced(seen):
            work(1)
            assert seen[-1] == "work"
        @pytest.fixture
        def profiler():
            with cProfile.Profile() as profiler:
                yield profiler
        def test_profiled(profiler):
            work(1)
        def test_threads():
            thread = threading.Thread(target=work, args=(1,))
            thread.start()
            thread.join()
        """,
        {"pytest.ini": "[pytest]\nfilterwarnings = error\n"},
        6,
    ),
    "replaces what is built in for a test": (
        """
        import builtins
        from unittest import mock
        def test_patched(monkeypatch):
            monkeypatch.setattr("builtins.input", lambda prompt: "x")
            monkeypatch.setattr(builtins, "print", lambda *a: None)
            monkeypatch.setattr(builtins, "sorted", lambda x: 1 / 0)
            assert input("?") == "x"
        def test_mocked():
            with mock.patch("builtins.open", mock.mock_open(read_data="x")), mock.patch("builtins.sum", max):
                assert open("y").read() == "x"
                assert sum([1, 3]) == 3
        """,
        {},
        2,
    ),
    "watches the interpreter": (
        """
        import signal, sys, threading
        def test_hook():
            sys.addaudithook(lambda event, arguments: None)
            sys.audit("mine")
        def test_signal():
            seen = []
            signal.signal(signal.SIGALRM, lambda number, frame: seen.append(frame))
            signal.raise_signal(signal.SIGALRM)
            assert seen
        def test_stacks():
            assert threading.get_ident() in sys._current_frames()
        """,
        {},
        3,
    ),
    "writes what it likes into its reports": (
        PASSES,
        {
            "conftest.py": """
            import pytest
            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_makereport(item, call):
                report = yield
                report.duration = {"setup": 10**4000, "call": float("nan"), "teardown": "soon"}[call.when]
                return report
            """
        },
        1,
    ),
    "imports from src": (
        "import thing\ndef test_a():\n    assert thing.X == thing.X\n",
        {"src/thing.py": "X = 1", "pyproject.toml": "[tool.pytest.ini_options]\ntestpaths = ['tests']\n"},
        1,
    ),
    "compares by what matters": (
        "from thing import Point\ndef test_a():\n    assert Point(1) == Point(1) != Point(2)",
        {
            "thing.py": """
            class Point:
                def __init__(self, x):
                    self.x = x
                def __eq__(self, other):
                    if not isinstance(other, Point):
                        return NotImplemented
                    return self.x == other.x
            """,
            "tests/matchers.py": "class Any:\n    def __eq__(self, other):\n        return True\n",
        },
        1,
    ),
    "has a module that pytest has too": (PASSES, {"argparse.py": "raise SystemExit(0)"}, 1),
}


@pytest.mark.parametrize(("verdict", "passed"), cases(HONEST), indirect=["verdict"])
def test_an_honest_project_is_green(verdict: Verdict, passed: int) -> None:
    """However unusual its means."""
    assert (verdict.outcome, verdict.feedback) == (Outcome.PASSED, "")
    assert verdict.test_results is not None
    assert verdict.test_results.tests_passed == passed


def test_plugins_that_are_installed_are_loaded(settings: WorkerSettings) -> None:
    """Those named pytest-…, and anyio's where it is used; what they need of pytest does not look like a trick."""
    tests = """
    import asyncio, pytest
    from hypothesis import given, settings, strategies as st
    @given(st.integers())
    @settings(max_examples=3)
    def test_hypothesis(x):
        assert x + 0 == x
    @pytest.mark.asyncio
    @given(st.integers())
    @settings(max_examples=3)
    async def test_both(x):
        assert x + 0 == x
    def test_mocker(mocker):
        stub = mocker.stub()
        stub(1)
        stub.assert_called_once_with(1)
        mocker.patch("os.getcwd", return_value="x")
    @pytest.fixture(params=["asyncio"])
    def anyio_backend(request):
        return request.param
    @pytest.mark.anyio
    async def test_anyio():
        await asyncio.sleep(0)
    """
    verdict = judged(settings, dedent(tests), None, ("pytest-mock", "hypothesis", "anyio", "pytest-cov"))

    assert (verdict.outcome, verdict.feedback, verdict.counts) == (Outcome.PASSED, "", {"passed": 4})


def test_a_test_that_hangs_is_named(settings: WorkerSettings) -> None:
    """What ran before it counts."""
    brief = settings.model_copy(update={"ptc_test_timeout": 3})
    verdict = judged(brief, PASSES + "import time\ndef test_hangs():\n    time.sleep(999)")

    assert (verdict.outcome, verdict.counts) == (Outcome.TIMEOUT, {"passed": 1, "notrun": 1})
    assert "Not finished: tests/test_it.py::test_hangs" in verdict.feedback


def test_feedback_tells_what_failed_and_where(settings: WorkerSettings) -> None:
    """The test's name, the line, the assertion, and no path of this machine."""
    feedback = judged(settings, "def test_sum():\n    total = 1 + 1\n    assert total == 3").feedback

    assert [
        text
        for text in ("tests/test_it.py::test_sum", "tests/test_it.py:3", "assert 2 == 3")
        if text not in feedback
    ] == []
    assert "/tmp" not in feedback


CHANGING = """
    import os, tempfile, threading, time, uuid
    import pytest

    class Thing:
        pass

    @pytest.fixture
    def broken():
        raise ValueError(Thing())

    def test_address():
        assert Thing() == 1

    def test_addresses_in_a_set():
        assert {Thing(), Thing()} == {1}

    def test_id():
        assert str(uuid.uuid4()) == "x"

    def test_folder(tmp_path):
        assert tmp_path == 1

    def test_file():
        open(tempfile.mkdtemp() + "/missing")

    def test_time():
        assert time.time() == 1

    def test_process():
        raise RuntimeError(f"pid {os.getpid()} gave up after {time.perf_counter()} s")

    def test_fixture(broken):
        pass
"""


def test_the_same_failure_has_the_same_signature_wherever_it_runs(settings: WorkerSettings) -> None:
    """In each tier, and again; one that is another has another."""
    elsewhere = settings.model_copy(update={"ptc_sandbox_isolation": "landlock"})
    same = [judged(where, CHANGING) for where in (settings, elsewhere, settings)]
    other = judged(settings, CHANGING.replace('== "x"', '== "y"'))

    assert {verdict.counts["failed"] for verdict in [*same, other]} == {7}
    assert len({verdict.signature for verdict in same}) == 1
    assert other.signature != same[0].signature
