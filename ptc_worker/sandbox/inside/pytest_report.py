"""A pytest plugin that streams what happens to a log which the worker reads; stdlib and pytest only.

It runs inside the sandbox, beside the project's own code, and believes nobody: a test has passed when the function
that was collected was seen to run to its end, whatever the reports say. Each line of the log carries a MAC over
all lines up to it, so that a line which is forged, changed or dropped shows; a log that stops early lacks its
end. The key is read once, before any code of the project is loaded. After that only the state of the MAC is
left, inside a generator that writes for the hooks below and complains of anybody else.

What cannot be prevented inside one interpreter: raw memory (ctypes), changed closure cells, and a thread or a signal
handler that catches the writer at work.

`PTC_KEY` names the file with the key; `PTC_EVENTS` the file for the log, or `fd:N` for an open descriptor;
`PTC_GIVEN` is a JSON list of test files that no model wrote: what is run of them must be what stands in them now.

PYTEST_DONT_REWRITE: it may be loaded before pytest starts.
"""

from __future__ import annotations

import ast
import builtins
import gc
import json
import os
import sys
import threading
import time
import types
import unittest
import warnings
from functools import wraps
from hashlib import blake2b
from inspect import iscoroutinefunction
from json.encoder import encode_basestring_ascii
from operator import is_
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from _pytest.assertion.rewrite import _rewrite_test
from _pytest.compat import get_real_func
from _pytest.unittest import TestCaseFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    Tell = Callable[..., None]
    Look = Callable[[], None]
    Complain = Callable[[str], None]
    AsGiven = Callable[[str, Any, types.CodeType | None], bool]
    Known = dict[int, tuple[pytest.Item, str, Any, types.CodeType | None]]
    Writer = Generator[None, tuple[str, dict[str, object]], None]

MAX_TEXT = 6000
"""Characters kept of one failure: its start and its end."""


class Pinned(NamedTuple):
    """A file as the plan gave it."""

    whole: str
    """Its name in full."""
    state: tuple[int, int] | None
    """Which file it is, and when that was last touched: nobody can set this time back."""
    codes: frozenset[types.CodeType]
    """The code in it, as pytest compiles it."""
    names: dict[str, object]
    """What its own names must mean: functions by their code, test tools."""


TOOLS = ("pytest", "unittest")
"""Modules that tests assert with; names which a test file imports from them must mean what they mean."""

WATCHED = frozenset(
    {
        *("pytest", "pluggy._hooks", "pluggy._manager", "pluggy._callers", "pluggy._caller"),
        *("pluggy._execution", "_pytest.assertion", "_pytest.assertion.rewrite", "_pytest.assertion.util"),
        *("_pytest.config", "_pytest.fixtures", "_pytest.main", "_pytest.nodes", "_pytest.outcomes"),
        *("_pytest.python", "_pytest.python_api", "_pytest.raises", "_pytest.reports", "_pytest.runner"),
        *("_pytest.skipping", "_pytest.subtests", "_pytest.unittest"),
        *("unittest.case", "unittest.async_case", __name__),
    }
)
"""Modules whose functions and classes must stay what they are: what runs tests, and what they assert with."""

GUARDED = ("pytest", "_pytest", "pluggy", "unittest", __name__)
"""Packages whose functions must keep their code."""

BUILTINS = (
    "AssertionError",
    "all",
    "any",
    "callable",
    "getattr",
    "hasattr",
    "id",
    "isinstance",
    "len",
    "type",
)
"""Built-in names that must mean what they mean, for pytest and for us."""

REPLACED_BY_PYTEST = {"_getini_unknown_type"}
"""What pytest itself replaces (in `_pytest.legacypath`) after we have looked."""

DEFINITIONS = (types.FunctionType, type, property, staticmethod, classmethod)

SKIPS = (pytest.skip.Exception, unittest.SkipTest)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start reporting: the last moment before code of the project is loaded."""
    tell, writer = opened(os.environ.pop("PTC_KEY"), os.environ.pop("PTC_EVENTS"))
    look, meddled = guarding(tell, writer)
    known: Known = {}
    given = {path: pinned(path, early_config) for path in json.loads(os.environ.pop("PTC_GIVEN", "[]"))}
    is_as_given = comparing(given)
    innermost = plugin("ptc-innermost", calling(tell, known, look, meddled, is_as_given))
    hooks = [*collecting(tell, known), *reporting(tell, known, look, innermost, untouched(given, meddled))]
    early_config.pluginmanager.register(plugin("ptc-reporter", hooks), "ptc-reporter")
    gc.freeze()  # what is there by now is not among the objects that gc hands out


def plugin(name: str, hooks: Iterable[Any]) -> types.ModuleType:
    """Make a plugin of hooks whose means are in closures: no attribute of it leads to them."""
    made = types.ModuleType(name)
    vars(made).update((hook.__name__, hook) for hook in hooks)
    return made


def pinned(path: str, config: pytest.Config) -> Pinned:
    """Note what a file is, and compile it as pytest will, before code of the project can change it."""
    whole = Path(path).absolute()
    codes: frozenset[types.CodeType] = frozenset()
    names: dict[str, object] = {}
    if path.endswith(".py"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                codes = codes_within(_rewrite_test(whole, config)[1])
                tree = ast.parse(whole.read_bytes())
        except (SyntaxError, ValueError):
            pass  # it cannot be collected either
        else:
            names = {**functions_of(tree, codes), **tools_of(tree)}
    return Pinned(str(whole), state_of(str(whole)), codes, names)


def state_of(path: str, stat: Callable[[str], os.stat_result] = os.lstat) -> tuple[int, int] | None:
    """Tell which file a path leads to, and when that was last touched."""
    try:
        found = stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def functions_of(tree: ast.Module, codes: Iterable[types.CodeType]) -> dict[str, object]:
    """Find the code of functions that have no decorator, and whose names are used for nothing else."""
    stored = [
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    ]
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    names = [*stored, *(node.name for node in ast.walk(tree) if hasattr(node, "name"))]
    plain = {
        (node.name, node.lineno)
        for node in defined
        if not node.decorator_list and names.count(node.name) == 1
    }
    return {code.co_name: code for code in codes if (code.co_name, code.co_firstlineno) in plain}


def tools_of(tree: ast.Module) -> dict[str, object]:
    """Find what a file imports of the modules that tests assert with."""
    tools: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            tools.update((a.asname or a.name, sys.modules[a.name]) for a in node.names if a.name in TOOLS)
        elif isinstance(node, ast.ImportFrom) and node.module in TOOLS and not node.level:
            found = vars(sys.modules[node.module])
            tools.update((a.asname or a.name, found[a.name]) for a in node.names if a.name in found)
    return tools


def untouched(given: dict[str, Pinned], meddled: Complain) -> Look:
    """Return what complains of given files that were touched, whatever is in them by then."""
    now = state_of

    def look() -> None:
        for path, pin in given.items():
            if now(pin.whole) != pin.state:
                meddled(f"{path}, which the plan gave, was changed")

    return look


def comparing(given: dict[str, Pinned]) -> AsGiven:
    """Return what tells whether a test is what stood in its file at the start, if it is of a file in `given`."""
    code_type = types.CodeType

    def is_as_given(test: str, function: Any, code: types.CodeType | None) -> bool:  # noqa: ANN401 of any shape
        path = test.partition("::")[0]
        if path not in given:
            return True
        whole, _, codes, names = given[path]
        if code is None or code.co_filename != whole:
            return True  # made by a decorator, or inherited; the worker knows which must stand here
        space = getattr(function, "__globals__", {})
        return code in codes and all(
            getattr(space.get(name), "__code__", None) == meant
            if isinstance(meant, code_type)
            else space.get(name) is meant
            for name, meant in names.items()
        )

    return is_as_given


def opened(key_file: str, events: str) -> tuple[Tell, Writer]:
    """Take the key and open the log; return what tells the log of an event, and the writer behind that."""
    with open(key_file, "rb") as file:
        key = file.read()
    os.unlink(key_file)
    kind, _, number = events.partition(":")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    fd = int(number) if kind == "fd" else os.open(events, flags, 0o600)
    os.set_inheritable(fd, False)  # noqa: FBT003 the call takes no names
    lock, can_watch = (
        threading.RLock(),
        callable,
    )  # cProfile's profilers cannot, and do not bear to be put back
    tracer, trace, profiler, profile = sys.gettrace, sys.settrace, sys.getprofile, sys.setprofile
    collects, stop_collecting, collect_again = gc.isenabled, gc.disable, gc.enable
    writer = writing(blake2b(key=key, digest_size=16), fd)
    next(writer)

    def tell(kind: str, **facts: object) -> None:
        """Pass an event to the writer; meanwhile no code of the project runs that could watch it."""
        with lock:
            tracing, profiling, collecting = tracer(), profiler(), collects()
            if tracing is not None:
                trace(None)
            if can_watch(profiling):
                profile(None)
            stop_collecting()
            try:
                writer.send((kind, facts))
            finally:
                if collecting:
                    collect_again()
                if can_watch(profiling):
                    profile(profiling)
                if tracing is not None:
                    trace(tracing)

    return tell, writer


def writing(chain: Any, fd: int) -> Writer:  # noqa: ANN401 hashlib does not name the class
    """Write each event at once, so that a crash loses none; what it needs is local, for modules can be changed."""
    write, getpid, leave, json = os.write, os.getpid, os._exit, encoded
    frame = sys._getframe  # noqa: SLF001 the one way to know who calls
    failure = int(pytest.ExitCode.INTERNAL_ERROR)
    mouths = codes_within(opened.__code__)
    tellers = mouths.union(*(codes_within(teller.__code__) for teller in TELLERS))
    ours = getpid()
    try:
        while True:
            kind, facts = yield
            if getpid() != ours:
                continue  # a forked child has nothing to say
            if frame(1).f_code not in mouths or frame(2).f_code not in tellers:
                kind, facts = "meddled", {"text": "code of the project wrote to the test report"}
            line = json({"event": kind, **facts}).encode()
            chain.update(line)
            rest = f"{chain.hexdigest()} ".encode() + line + b"\n"
            while rest:
                rest = rest[write(fd, rest) :]
    except GeneratorExit:
        return
    except BaseException:  # noqa: BLE001 whoever catches it would find these names in its traceback
        leave(failure)


def encoded(facts: dict[str, object], quoted: Callable[[str], str] = encode_basestring_ascii) -> str:
    """Write texts, numbers and truths as JSON without running code that the project can reach."""
    fields = []
    for name, value in facts.items():
        if isinstance(value, str):
            text = quoted(str.__str__(value))
        elif type(value) in {int, float}:
            text = repr(value)
        else:
            text = "true" if value is True else "false" if value is False else "null"
        fields.append(f"{quoted(name)}: {text}")
    return f"{{{', '.join(fields)}}}"


def codes_within(code: types.CodeType) -> frozenset[types.CodeType]:
    """Collect the code of all functions that are defined in one."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(inner).union(*map(codes_within, inner))


def guarding(tell: Tell, writer: Writer) -> tuple[Look, Complain]:  # noqa: C901 its inner functions are counted
    """Watch for what nobody does but to deceive; return what looks for it, and what complains of it."""
    told: set[str] = set()
    noted, frozen, every, each = definitions(), gc.get_freeze_count, all, map
    ours = codes_within(opened.__code__).union(*(codes_within(f.__code__) for f in TELLERS))
    guarded = tuple(os.path.dirname(vars(sys.modules[name])["__file__"]) + os.sep for name in GUARDED)

    def meddled(text: str) -> None:
        if text not in told:
            told.add(text)
            tell("meddled", text=text)

    def look() -> None:
        """Complain of what is no longer what it was before the project's code was loaded."""
        for name, get, names, values in noted:
            if not every(each(is_, each(get, names), values)):
                for changed, value in zip(names, values, strict=True):
                    if get(changed) is not value:
                        meddled(f"{name}.{changed} was replaced")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        """Complain of the ways to reach the writer, and of pytest's code being exchanged."""
        match event, arguments:
            case "object.__setattr__", (types.FunctionType() as function, "__code__", _):
                if function.__code__.co_filename.startswith(guarded):
                    meddled(f"the code of {function.__qualname__} was exchanged")
            case "object.__getattr__", (thing, "gi_frame") if thing is writer:
                meddled("the test report's writer was looked into")
            case "gc.get_referents", (things,) if any(thing is writer for thing in things):
                meddled("the test report's writer was looked into")
            case (("gc.get_objects" | "gc.get_referrers"), _) if not frozen():
                meddled("the test report was searched for")
            case "function.__new__", (code,) if code in ours:
                meddled("a function of the test report was copied")
            case "open", (str() as path, *_) if path.startswith("/proc/") and path.endswith("/mem"):
                meddled(f"{path} was opened")

    sys.addaudithook(audit)
    return look, meddled


def collecting(tell: Tell, known: Known) -> list[Any]:
    """Make the hooks that tell what is found."""
    body, trim = body_of, trimmed

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(item: pytest.Item) -> None:
        """Tell of every test that was found, before anything can deselect it, and where its function is from."""
        function, code = body(getattr(item, "obj", None))
        known[id(item)] = (item, item.nodeid, function, code)
        place = (code.co_filename, code.co_firstlineno) if code else (None, None)
        tell("collected", id=item.nodeid, file=place[0], line=place[1])

    def pytest_collectreport(report: pytest.CollectReport) -> None:
        """Tell of a file that cannot be collected, or that is skipped as a whole."""
        if report.failed:
            tell("collect_error", id=report.nodeid, text=trim(report.longreprtext))
        elif report.skipped:
            tell("skipped_file", id=report.nodeid)

    return [pytest_itemcollected, pytest_collectreport]


def calling(  # noqa: C901, PLR0915 its inner functions are counted
    tell: Tell, known: Known, look: Look, meddled: Complain, is_as_given: AsGiven
) -> list[Any]:
    """Make the hooks that see a test run; they go below whatever the project wraps around it."""
    body, skips, is_coroutine, of_unittest = body_of, SKIPS, iscoroutinefunction, TestCaseFunction
    frame = sys._getframe  # noqa: SLF001 the one way to know who calls

    def note(item: pytest.Item, when: str, error: BaseException) -> None:
        """Tell that something raised, unless it is a skip."""
        if not isinstance(error, skips):
            tell("raised", id=known[id(item)][1] if id(item) in known else item.nodeid, when=when)

    @pytest.hookimpl(trylast=True, wrapper=True)
    def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
        """Tell what a fixture raised."""
        __tracebackhide__ = True
        try:
            return (yield)
        except BaseException as error:
            note(item, "setup", error)
            raise

    @pytest.hookimpl(trylast=True, wrapper=True)
    def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
        """Tell what the end of a fixture raised."""
        __tracebackhide__ = True
        try:
            return (yield)
        except BaseException as error:
            note(item, "teardown", error)
            raise

    @pytest.hookimpl(trylast=True, wrapper=True)
    def pytest_runtest_call(item: Any) -> Generator[None, Any, Any]:  # noqa: ANN401 a test of any kind
        """Put a probe around the test's function, for the time of the call."""
        __tracebackhide__ = True
        whole = getattr(item, "obj", None)
        if not callable(whole) or id(item) not in known:
            return (yield)
        item.obj = probe = probed(item, whole)
        if bare := isinstance(item, of_unittest) and is_coroutine(whole):
            setattr(item.instance, item.name, probe)  # pytest leaves these to unittest
        try:
            return (yield)
        finally:
            item.obj = whole
            if bare:
                delattr(item.instance, item.name)

    def probed(item: pytest.Item, whole: Any) -> Any:  # noqa: ANN401 a function of any shape
        """Wrap a test's function: tell that it ran to its end, or that it raised."""
        if is_coroutine(whole):

            @wraps(whole)
            async def probe(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 as the function has it
                __tracebackhide__ = True
                try:
                    result = await whole(*args, **kwargs)
                except BaseException as error:
                    note(item, "call", error)
                    raise
                ran(item, whole)
                return result
        else:

            @wraps(whole)
            def probe(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 as the function has it
                __tracebackhide__ = True
                try:
                    result = whole(*args, **kwargs)
                except BaseException as error:
                    note(item, "call", error)
                    raise
                ran(item, whole)
                return result

        return probe

    probes = codes_within(probed.__code__)

    def ran(item: pytest.Item, whole: Any) -> None:  # noqa: ANN401 a function of any shape
        """Tell that a test came to its end, if it is the one that was collected, under pytest as it was."""
        _, name, function, code = known[id(item)]
        look()
        now, its_code = body(whole)
        if frame(1).f_code not in probes:
            meddled("the test report was told of a test that did not run")
        elif now is not function or its_code is not code:
            meddled(f"the function of {name} was replaced after it was collected")
        elif not is_as_given(name, function, code):
            meddled(f"{name}, or what it uses in its file, is not what the plan gave")
        else:
            tell("ran", id=name)

    return [pytest_runtest_setup, pytest_runtest_call, pytest_runtest_teardown]


def reporting(
    tell: Tell, known: Known, look: Look, innermost: types.ModuleType, look_at_given: Look
) -> list[Any]:
    """Make the hooks that tell what is reported."""
    started, trim, skips = time.monotonic(), trimmed, SKIPS

    @pytest.hookimpl(tryfirst=True, wrapper=True)
    def pytest_runtestloop(session: pytest.Session) -> Generator[None, Any, Any]:
        """Go below all wrappers that the project brought: what they swallow is seen before they do."""
        session.config.pluginmanager.register(innermost, "ptc-innermost")
        look()
        return (yield)

    @pytest.hookimpl(tryfirst=True, wrapper=True)
    def pytest_runtest_makereport(
        item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        """Tell what a phase raised, whatever another plugin will make of it."""
        if call.excinfo is not None and not call.excinfo.errisinstance(skips):
            tell("raised", id=known[id(item)][1] if id(item) in known else item.nodeid, when=call.when)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(report: pytest.TestReport) -> None:
        """Tell how a phase, or a subtest in it, was reported."""
        tell(
            "phase",
            id=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            xfail=hasattr(report, "wasxfail"),
            seconds=round(report.duration, 4),
            text=trim(report.longreprtext) if report.failed else "",
        )

    @pytest.hookimpl(tryfirst=True, wrapper=True)
    def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
        """Tell that the run ended by itself."""
        result = yield
        look()
        look_at_given()
        tell("end", exit=int(session.exitstatus), seconds=round(time.monotonic() - started, 4))
        return result

    return [pytest_runtestloop, pytest_runtest_makereport, pytest_runtest_logreport, pytest_sessionfinish]


TELLERS = (guarding, collecting, calling, reporting)
"""Within these stands all code that may tell the log."""


def body_of(whole: Any) -> tuple[Any, Any]:  # noqa: ANN401 a test's function of any shape
    """Give the function behind a method, and the code behind its decorators; None for what has none."""
    function = getattr(whole, "__func__", whole)
    return function, getattr(get_real_func(function), "__code__", None)  # type: ignore[no-untyped-call]


Definition = tuple[str, "Callable[[str], object]", tuple[str, ...], tuple[object, ...]]
"""A namespace's name, how to look into it, and what stands there under which names."""


def definitions() -> list[Definition]:
    """Note the functions and classes of the watched modules, in the modules and in their classes."""
    space = vars(builtins)
    noted: list[Definition] = [("builtins", space.get, BUILTINS, tuple(map(space.get, BUILTINS)))]
    for module in filter(None, map(sys.modules.get, WATCHED)):
        owners: list[types.ModuleType | type] = [module, *classes_of(module)]
        for owner in owners:
            space = vars(owner)
            names = tuple(
                name
                for name, value in space.items()
                if isinstance(value, DEFINITIONS) and name not in REPLACED_BY_PYTEST
            )
            if names:
                noted.append((owner.__name__, space.get, names, tuple(map(space.get, names))))
    return noted


def classes_of(module: types.ModuleType) -> list[type]:
    """List the classes that are defined in a module."""
    return [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]


def trimmed(text: str) -> str:
    """Cut the middle out of a long text."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]}\n…\n{text[-MAX_TEXT // 2 :]}"
