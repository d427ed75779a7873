"""A pytest plugin that streams what happens to a log which the worker reads; stdlib and pytest only.

It runs inside the sandbox, beside the project's own code, and believes nobody: a test has passed when the function
that was collected was seen to run to its end, whatever the reports say. Each line of the log carries a MAC over
all lines up to it, so that a line which is forged, changed or dropped shows; a log that stops early lacks its
end. The key is read once, before any code of the project is loaded. After that only the state of the MAC is
left, in iterators of C that a generator holds on its value stack: no frame that code of the project runs beneath,
interrupts or watches has a name that leads there. What is written passes `hearing`, which complains of anybody but
the hooks below.

What cannot be prevented inside one interpreter: raw memory (ctypes), what is replaced and put back between two looks,
and a thread, a signal handler or a monitoring tool that changes the names of `tell` or `hearing` at work.

`PTC_KEY` names the file with the key; `PTC_EVENTS` the file for the log, or `fd:N` for an open descriptor;
`PTC_GIVEN` is a JSON list of test files that no model wrote: what is run of them must be what stands in them now.

PYTEST_DONT_REWRITE: it may be loaded before pytest starts.
"""

from __future__ import annotations

import ast
import builtins
import gc
import inspect
import json
import os
import sys
import threading
import time
import types
import unittest
import warnings
from _lsprof import Profiler
from binascii import hexlify
from functools import partial, wraps
from hashlib import blake2b
from itertools import chain, repeat, starmap, tee
from json.encoder import encode_basestring_ascii
from math import isfinite
from operator import is_, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from _pytest.assertion.rewrite import _rewrite_test
from _pytest.compat import get_real_func
from _pytest.unittest import TestCaseFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    Tell = Callable[..., None]
    Look = Callable[[], list[str]]
    Complain = Callable[[str], None]
    AsGiven = Callable[[str, str, types.FunctionType | None], bool]
    Judge = Callable[[str, object, dict[str, Any], types.CodeType], list[str]]
    Known = dict[int, tuple[pytest.Item, str]]
    Writer = Generator[None, None, None]

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
    names: tuple[tuple[str, object], ...]
    """What names must mean in it: its functions by their code, test tools, and None for what is built in."""


TOOLS = ("pytest", "unittest")
"""Modules that tests assert with; names which a test file imports from them must mean what they mean."""

WATCHED = frozenset(
    {
        *("pytest", "pluggy._hooks", "pluggy._manager", "pluggy._callers", "pluggy._caller"),
        *("pluggy._execution", "_pytest.assertion", "_pytest.assertion.rewrite", "_pytest.assertion.util"),
        *("_pytest._code.code", "_pytest.approx", "_pytest.recwarn", "_pytest.compat"),
        *("_pytest.config", "_pytest.fixtures", "_pytest.main", "_pytest.nodes", "_pytest.outcomes"),
        *("_pytest.python", "_pytest.python_api", "_pytest.raises", "_pytest.reports", "_pytest.runner"),
        *("_pytest.skipping", "_pytest.subtests", "_pytest.unittest"),
        *("unittest.case", "unittest.async_case", "unittest.util", "re", __name__),
    }
)
"""Modules whose functions and classes must stay what they are: what runs tests, and what they assert with."""

GUARDED = ("pytest", "_pytest", "pluggy", "unittest", __name__)
"""Packages whose functions must keep their code."""

BUILTINS = (
    *("AssertionError", "BaseException", "Exception"),
    *("abs", "all", "any", "callable", "dict", "enumerate", "float", "frozenset", "getattr", "hasattr"),
    *("hash", "id", "int", "isinstance", "issubclass", "iter", "len", "list", "map", "max", "next", "object"),
    *("range", "repr", "round", "set", "str", "super", "tuple", "type", "zip"),
)
"""Built-in names that must mean what they mean: what runs tests uses them, and what they assert with."""

PATCHED = {"breakpoint", "copyright", "credits", "exit", "help", "input", "license", "open", "print", "quit"}
"""Built-in names that programs and tests replace for good reasons; others only until a test has ended."""

FAILURE = int(pytest.ExitCode.INTERNAL_ERROR)
"""How a process ends whose report cannot go on."""

REPLACED_BY_PYTEST = {"_getini_unknown_type"}
"""What pytest itself replaces (in `_pytest.legacypath`) after we have looked."""

DEFINITIONS = (types.FunctionType, type, property, staticmethod, classmethod)

SKIPS = (pytest.skip.Exception, unittest.SkipTest)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start reporting: the last moment before code of the project is loaded."""
    names = json.loads(os.environ.pop("PTC_GIVEN", "[]"))
    given = tuple((path, pinned(path, early_config)) for path in names)
    look = looking((built_ins(BUILTINS), *definitions()))
    settled = looking((built_ins(name for name in vars(builtins) if name[0] != "_" and name not in PATCHED),))
    tests: set[object] = set()
    judge = judging(look, settled, untouched(given), comparing(given), tests)
    tell, writer, is_telling = opened(os.environ.pop("PTC_KEY"), os.environ.pop("PTC_EVENTS"), judge)
    guarding(tell, writer, is_telling, tests)
    known: Known = {}
    innermost = plugin("ptc-innermost", calling(tell, known))
    hooks = [*collecting(tell, known), *reporting(tell, known, innermost)]
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
            names = {**built_in(tree, codes), **functions_of(tree, codes), **tools_of(tree)}
    return Pinned(str(whole), state_of(str(whole)), codes, tuple(names.items()))


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


def built_in(tree: ast.Module, codes: Iterable[types.CodeType]) -> dict[str, object]:
    """Find the built-in names that a file uses, and that nothing in it binds."""
    aliases = [node for node in ast.walk(tree) if isinstance(node, ast.alias)]
    bound = {alias.asname or alias.name.partition(".")[0] for alias in aliases}
    bound.update(name for node in ast.walk(tree) if isinstance(name := getattr(node, "name", None), str))
    bound.update(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load))
    return {} if "*" in bound else dict.fromkeys(used_by(codes) - bound)


def used_by(codes: Iterable[types.CodeType]) -> set[str]:
    """Find the built-in names that code uses, or has attributes of that name."""
    known = vars(builtins).keys() - {"__name__", "__doc__", "__spec__", "__loader__", "__package__"}
    return {name for code in codes for name in code.co_names} & known


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


def untouched(given: tuple[tuple[str, Pinned], ...]) -> Look:
    """Return what tells of given files that were touched, whatever is in them by then."""
    now = state_of

    def look() -> list[str]:
        return [
            f"{path}, which the plan gave, was changed"
            for path, (whole, state, *_) in given
            if now(whole) != state
        ]

    return look


def comparing(given: tuple[tuple[str, Pinned], ...]) -> AsGiven:
    """Return what tells whether a test is what stood in its file at the start, if it is of a file in `given`."""
    code_type, function_type, find, type_of = types.CodeType, types.FunctionType, dict.get, type

    def is_it(thing: Any, meant: object) -> bool:  # noqa: ANN401 anything that has a name
        if type_of(meant) is code_type:
            return type_of(thing) is function_type and thing.__code__ == meant
        return thing is meant

    def is_as_given(test: str, file: str, function: types.FunctionType | None) -> bool:
        path = test.partition("::")[0]
        for one, (whole, _, codes, names) in given:
            if one == path and file == whole:
                if function is None or function.__code__ not in codes:
                    return False
                space = function.__globals__
                return not [name for name, meant in names if not is_it(find(space, name), meant)]
        return True  # made by a decorator, or inherited; the worker knows which must stand here

    return is_as_given


def opened(  # noqa: C901 its inner function is counted
    key_file: str, events: str, judge: Judge
) -> tuple[Tell, Writer, Callable[[], bool]]:
    """Take the key and open the log; return what tells it of an event, the writer behind that, and if it is at work."""
    with open(key_file, "rb") as file:
        key = file.read()
    os.unlink(key_file)
    kind, _, number = events.partition(":")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    fd = int(number) if kind == "fd" else os.open(events, flags, 0o600)
    os.set_inheritable(fd, False)  # noqa: FBT003 the call takes no names
    lock, can_watch = threading.RLock(), callable
    of_cprofile, stop, restart = (
        Profiler,
        Profiler.disable,
        Profiler.enable,
    )  # these cannot be set like functions
    mute, unmute = muting()
    tracer, trace, profiler, profile = sys.gettrace, sys.settrace, sys.getprofile, sys.setprofile
    collects, stop_collecting, collect_again = gc.isenabled, gc.disable, gc.enable
    getpid, leave, advance, ours = os.getpid, os._exit, next, os.getpid()
    writer = writing([sealed(hearing(judge), key, fd)])
    next(writer)

    def tell(kind: str, whole: object = None, result: Any = None, **facts: object) -> Any:  # noqa: ANN401, ARG001 read in `hearing`
        """Let the writer hear of an event; meanwhile no code of the project runs that could watch it."""
        if getpid() != ours:
            return result  # a forked child has nothing to say
        with lock:
            if writer.gi_running:  # type: ignore[attr-defined]
                leave(FAILURE)  # what runs beneath the writer is not ours
            tracing, profiling, collecting, muted = tracer(), profiler(), collects(), mute()
            if tracing is not None:
                trace(None)
            if isinstance(profiling, of_cprofile):
                stop(profiling)  # it may have a timer of the project's
            elif can_watch(profiling):
                profile(None)
            stop_collecting()
            try:
                advance(writer)
            finally:
                if collecting:
                    collect_again()
                if isinstance(profiling, of_cprofile):
                    restart(profiling)
                elif can_watch(profiling):
                    profile(profiling)
                unmute(muted)
                if tracing is not None:
                    trace(tracing)
        return result

    return tell, writer, lock._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 it has no other name


def muting() -> tuple[Callable[[], list[Any]], Callable[[list[Any]], None]]:
    """Return what sets the callbacks of monitoring tools aside, which Python has since 3.12, and what puts them back."""
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is None:
        return list, lambda _: None
    register, name_of, tools = monitoring.register_callback, monitoring.get_tool, range(6)
    values = [value for name, value in vars(monitoring.events).items() if name[0] != "_"]
    events = tuple(value for value in values if value and not value & (value - 1))  # others stand for several

    def mute() -> list[Any]:
        used = [tool for tool in tools if name_of(tool) is not None]
        return [(tool, event, register(tool, event, None)) for tool in used for event in events]

    def unmute(muted: list[Any]) -> None:
        for tool, event, callback in muted:
            if callback is not None:
                register(tool, event, callback)

    return mute, unmute


def writing(logs: list[Iterator[object]]) -> Writer:
    """Write each event at once, so that a crash loses none.

    The log is on the value stack alone: neither who runs beneath this frame nor who interrupts it finds a name for it.
    """
    leave = os._exit
    try:
        for _ in chain((None,), logs.pop()):
            yield
    except GeneratorExit:
        return
    except BaseException:  # noqa: BLE001 a log that lacks an event must not go on
        leave(FAILURE)


def sealed(lines: Iterator[bytes], key: bytes, fd: int) -> Iterator[object]:
    """Write lines as they come, each behind a MAC over all so far, by iterators of C: they have no frames."""
    mac, log = blake2b(key=key, digest_size=16), open(fd, "wb", closefd=False)  # noqa: SIM115 it stays open
    one, other = tee(lines)
    macs = map(hexlify, starmap(mac.digest, map({None: ()}.__getitem__, map(mac.update, one))))
    written = map(log.write, map(b"".join, zip(macs, repeat(b" "), other, repeat(b"\n"))))
    return zip(written, starmap(log.flush, repeat(())), strict=False)


def hearing(judge: Judge) -> Iterator[bytes]:
    """Take each event from the frame of `tell`, and give the line that is to be written.

    Nothing here runs code that the project can reach, and all names are local: modules can be changed.
    """
    frame, getpid, json, tracer, profiler = sys._getframe, os.getpid, encoded, sys.gettrace, sys.getprofile  # noqa: SLF001 the one way to know who calls
    ours, can_watch, said = getpid(), callable, set[str]()
    mouths = codes_within(opened.__code__)
    tellers = frozenset[types.CodeType]().union(*(codes_within(teller.__code__) for teller in TELLERS))
    strange = "code of the project wrote to the test report"
    while True:
        if getpid() != ours or frame(2).f_code not in mouths or frame(3).f_code not in tellers:
            kind, facts, wrong = "", dict[str, Any](), [strange]
        else:
            told = frame(2).f_locals  # the first frame is the writer's
            kind, facts = told["kind"], told["facts"]
            wrong = judge(kind, told["whole"], facts, frame(3).f_code)
            del told  # it would keep what must not end here
        if tracer() is not None or can_watch(profiler()):
            wrong.append("the test report was watched at work")
        if news := [text for text in wrong if text not in said]:
            said.update(news)
            kind, facts = "meddled", {"text": "; ".join(news)}
        line = json({"event": kind, **facts}).encode()
        del facts
        yield line


def judging(look: Look, settled: Look, touched: Look, is_as_given: AsGiven, tests: set[object]) -> Judge:
    """Return what says what is wrong with an event, and with what it rests on; no hook has a way to it."""
    collected: dict[str, tuple[object, object, str]] = {}
    exact, function_type, method_type, inner = str.__str__, types.FunctionType, types.MethodType, innermost
    type_of, text_type, probes = type, str, codes_within(calling.__code__)

    def judge(kind: str, whole: Any, facts: dict[str, Any], teller: types.CodeType) -> list[str]:  # noqa: ANN401 a test's function of any shape
        if kind == "looked":
            return look() + touched()
        if kind == "phase":
            when = facts["when"]
            return settled() if type_of(when) is text_type and when == "teardown" else []
        if kind not in {"collected", "ran"}:
            return []
        test = exact(facts["id"])
        function = whole.__func__ if type_of(whole) is method_type else whole
        code = function.__code__ if type_of(function) is function_type else None
        if kind == "collected":
            file = facts["file"]
            collected.setdefault(test, (function, code, "" if file is None else exact(file)))
            tests.add(code)
            return []
        meant, its_code, file = collected.get(test, (None, None, ""))
        wrong = look()
        if teller not in probes or teller.co_name != "probe":
            wrong.append("the test report was told of a test that did not run")
        elif function is not meant or code is not its_code:
            wrong.append(f"the function of {test} was replaced after it was collected")
        elif not is_as_given(test, file, inner(function)):
            wrong.append(f"{test}, or what it uses in its file, is not what the plan gave")
        return wrong

    return judge


def innermost(
    function: Any,  # noqa: ANN401 of any shape
    find: Callable[..., Any] = dict.get,
    kinds: tuple[type, type] = (types.FunctionType, partial),
    type_of: Callable[[object], type] = type,
    most: range = range(100),
) -> types.FunctionType | None:
    """Give the function behind decorators without running code of theirs; None where there is none."""
    of_python, in_part = kinds
    for _ in most:
        if type_of(function) is in_part:
            function = function.func
        elif type_of(function) is not of_python:
            return None
        elif (wrapped := find(function.__dict__, "__wrapped__")) is None:
            return function  # type: ignore[no-any-return]
        else:
            function = wrapped
    return None


def encoded(
    facts: dict[str, object],
    quoted: Callable[[str], str] = encode_basestring_ascii,
    kinds: tuple[type, type, type] = (str, int, float),
    tests: tuple[Any, Any, Any, Any] = (type, issubclass, str.__str__, repr),
) -> str:
    """Write texts, numbers and truths as JSON without running code that the project can reach."""
    (text_type, whole_type, real_type), (type_of, is_below, exact, digits) = kinds, tests
    fields = []
    for name, value in facts.items():
        kind = type_of(value)
        if is_below(kind, text_type):
            text = quoted(exact(value))
        elif kind is whole_type or kind is real_type:
            text = digits(value)
        else:
            text = "true" if value is True else "false" if value is False else "null"
        fields.append(f"{quoted(name)}: {text}")
    return f"{{{', '.join(fields)}}}"


def codes_within(code: types.CodeType) -> frozenset[types.CodeType]:
    """Collect the code of all functions that are defined in one."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(inner).union(*map(codes_within, inner))


def looking(noted: tuple[Definition, ...]) -> Look:
    """Return what tells of what is no longer what it was before the project's code was loaded."""
    every, each, same, missing = all, map, is_, KeyError

    def look() -> list[str]:
        wrong: list[str] = []
        for owner, space, found, values, lacks, hiding, pairs in noted:
            try:
                if every(each(same, found(space), values)) and lacks(hiding):
                    continue
            except missing:
                pass
            get = space.get
            wrong += [f"{owner}.{name} was replaced" for name, value in pairs if get(name) is not value]
        return wrong

    return look


def guarding(  # noqa: C901 its inner functions are counted
    tell: Tell, writer: Writer, is_telling: Callable[[], bool], tests: set[object]
) -> None:
    """Complain of what nobody does but to deceive."""
    frozen, frame_type, code_type = gc.get_freeze_count, types.FrameType, types.CodeType
    frame = sys._getframe  # noqa: SLF001 the one way to know who calls
    ours = codes_within(opened.__code__).union(*(codes_within(f.__code__) for f in TELLERS))
    hidden = frozenset({writing.__code__, hearing.__code__})
    guarded = tuple(os.path.dirname(vars(sys.modules[name])["__file__"]) + os.sep for name in GUARDED)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        """Complain of the ways to reach the writer, and of code being exchanged; refuse what cannot be let in."""
        match event, arguments:
            case "object.__setattr__", (types.FunctionType() as function, "__code__" | "__defaults__", _):
                if function.__code__ in tests or function.__code__.co_filename.startswith(guarded):
                    meddled(f"the code of {function.__qualname__} was exchanged")
            case "object.__getattr__", (thing, "gi_frame") if thing is writer:
                meddled("the test report's writer was looked into")
            case "gc.get_referents", (things,) if any(map(is_hidden, things)):
                meddled("the test report's writer was looked into")
            case (("gc.get_objects" | "gc.get_referrers"), _) if not frozen():
                meddled("the test report was searched for")
            case "function.__new__" | "exec", (code, *_) if type(code) is code_type and code in ours:
                meddled("a function of the test report was copied")
            case "sys.settrace" | "sys.setprofile", _ if is_telling() and frame(1).f_code not in ours:
                meddled("the test report was watched at work")
            case "sys.addaudithook", _:
                raise RuntimeError  # then the new hook is not added, and who adds it goes on
            case "open", (str() as path, *_) if path.startswith("/proc/") and path.endswith("/mem"):
                meddled(f"{path} was opened")

    def is_hidden(thing: object) -> bool:
        return thing is writer or (type(thing) is frame_type and thing.f_code in hidden)

    def meddled(text: str) -> None:
        tell("meddled", text=text)

    sys.addaudithook(audit)


def collecting(tell: Tell, known: Known) -> list[Any]:
    """Make the hooks that tell what is found."""
    body, trim = body_of, trimmed

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(item: pytest.Item) -> None:
        """Tell of every test that was found, before anything can deselect it, and where its function is from."""
        whole = getattr(item, "obj", None)
        code = body(whole)
        known[id(item)] = (item, item.nodeid)
        place = (code.co_filename, code.co_firstlineno) if code else (None, None)
        tell("collected", whole, id=item.nodeid, file=place[0], line=place[1])

    def pytest_collectreport(report: pytest.CollectReport) -> None:
        """Tell of a file that cannot be collected, or that is skipped as a whole."""
        if report.failed:
            tell("collect_error", id=report.nodeid, text=trim(report.longreprtext))
        elif report.skipped:
            tell("skipped_file", id=report.nodeid)

    return [pytest_itemcollected, pytest_collectreport]


def calling(tell: Tell, known: Known) -> list[Any]:  # noqa: C901, PLR0915 its inner functions are counted
    """Make the hooks that see a test run; they go below whatever the project wraps around it."""
    skips, is_coroutine, of_unittest = SKIPS, inspect.iscoroutinefunction, TestCaseFunction

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
        name = known[id(item)][1]
        # What is told of and what is called are loaded before the call: nothing can exchange them during it.
        if is_coroutine(whole):

            @wraps(whole)
            async def probe(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 as the function has it
                __tracebackhide__ = True
                try:
                    return tell("ran", whole, await whole(*args, **kwargs), id=name)
                except BaseException as error:
                    note(item, "call", error)
                    raise
        else:

            @wraps(whole)
            def probe(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 as the function has it
                __tracebackhide__ = True
                try:
                    return tell("ran", whole, whole(*args, **kwargs), id=name)
                except BaseException as error:
                    note(item, "call", error)
                    raise

        return probe

    return [pytest_runtest_setup, pytest_runtest_call, pytest_runtest_teardown]


def reporting(tell: Tell, known: Known, innermost: types.ModuleType) -> list[Any]:
    """Make the hooks that tell what is reported."""
    started, trim, skips, finite = time.monotonic(), trimmed, SKIPS, seconds_of

    @pytest.hookimpl(tryfirst=True, wrapper=True)
    def pytest_runtestloop(session: pytest.Session) -> Generator[None, Any, Any]:
        """Go below all wrappers that the project brought: what they swallow is seen before they do."""
        session.config.pluginmanager.register(innermost, "ptc-innermost")
        tell("looked")
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
            seconds=finite(report.duration),
            text=trim(report.longreprtext) if report.failed else "",
        )

    @pytest.hookimpl(tryfirst=True, wrapper=True)
    def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
        """Tell that the run ended by itself."""
        result = yield
        tell("looked")
        tell("end", exit=int(session.exitstatus), seconds=round(time.monotonic() - started, 4))
        return result

    return [pytest_runtestloop, pytest_runtest_makereport, pytest_runtest_logreport, pytest_sessionfinish]


TELLERS = (guarding, collecting, calling, reporting)
"""Within these stands all code that may tell the log."""


def body_of(whole: Any) -> Any:  # noqa: ANN401 a test's function of any shape
    """Give the code behind a method and its decorators; None for what has none."""
    function = getattr(whole, "__func__", whole)
    return getattr(get_real_func(function), "__code__", None)  # type: ignore[no-untyped-call]


def seconds_of(duration: object) -> float:
    """Read what a report says of its time: code of the project may have written anything there."""
    seconds = duration if type(duration) is float and isfinite(duration) else 0.0
    return round(seconds, 4)


class Definition(NamedTuple):
    """What stands in a namespace: found in the time of a few lookups, for it is looked at after each test."""

    name: str
    space: Mapping[str, object]
    found: Callable[[Mapping[str, object]], tuple[object, ...]]
    """Looks all names up at once."""
    values: tuple[object, ...]
    """What must be found."""
    lacks: Callable[[Iterable[str]], bool]
    """Whether none of some names is there."""
    hiding: frozenset[str]
    """Names that would hide what is built in."""
    pairs: tuple[tuple[str, object], ...]
    """Each name with what must be there; None for those that must not."""


def defined(
    name: str, space: Mapping[str, object], names: Iterable[str], hiding: Iterable[str] = ()
) -> Definition:
    """Note what stands under some names, at least one."""
    known = [*names]
    found = itemgetter(*known, known[0])  # of one name it would give no tuple
    hidden = frozenset(hiding)
    pairs = (*((name, space[name]) for name in known), *((name, None) for name in hidden))
    return Definition(name, space, found, found(space), space.keys().isdisjoint, hidden, pairs)


def built_ins(names: Iterable[str]) -> Definition:
    """Note what is built in under some names."""
    return defined("builtins", vars(builtins), names)


def definitions() -> Iterator[Definition]:
    """Note the functions and classes of the watched modules, in the modules and in their classes."""
    for module in filter(None, map(sys.modules.get, WATCHED)):
        owners: list[types.ModuleType | type] = [module, *classes_of(module)]
        for owner in owners:
            space = vars(owner)
            names = [
                name
                for name, value in space.items()
                if isinstance(value, DEFINITIONS) and name not in REPLACED_BY_PYTEST
            ]
            hiding = used_by(codes_of(owners)) - space.keys() if owner is module else ()
            if names:
                yield defined(owner.__name__, space, names, hiding)


def codes_of(owners: Iterable[types.ModuleType | type]) -> Iterable[types.CodeType]:
    """Collect the code of the functions of a module and of its classes."""
    values = [value for owner in owners for value in vars(owner).values()]
    found = [inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", value))) for value in values]
    codes = [function.__code__ for function in found if isinstance(function, types.FunctionType)]
    return frozenset(codes).union(*map(codes_within, codes))


def classes_of(module: types.ModuleType) -> list[type]:
    """List the classes that are defined in a module."""
    return [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]


def trimmed(text: str) -> str:
    """Cut the middle out of a long text."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]}\n…\n{text[-MAX_TEXT // 2 :]}"
