// Stands between a project and Node's test runner, and tells over PTC_EVENTS what really ran.
//
// Loaded before anything of the project (`node --require`), where `node:test` is replaced by what this file exports.
// Each line has a MAC over all lines so far; the key is gone before code of the project is loaded. What code of the
// project could exchange later (methods of built-in objects) is taken into constants here, and is called by no other way.
'use strict';

const assert = require('node:assert');
const hooks = require('node:async_hooks');
const fs = require('node:fs');
const inspector = require('node:inspector');
const module_ = require('node:module');
const runner = require('node:test');
const threads = require('node:worker_threads');
const v8 = require('node:v8');
const { AsyncLocalStorage } = hooks;
const { hash } = require('node:crypto');
const { inspect, types } = require('node:util');

const { apply, construct, defineProperty, ownKeys, getOwnPropertyDescriptor, getPrototypeOf } = Reflect;
const { freeze } = Object;
const uncurried = (method) => Function.prototype.call.bind(method);
const factsOf = uncurried(WeakMap.prototype.get);
const keep = uncurried(WeakMap.prototype.set);

if (threads.isMainThread && !process.env.PTC_EVENTS) return; // processes of the project are loaded with it, too

let meddled = () => {}; // nobody hears of what its threads do
barWaysIn();
if (!threads.isMainThread) return;

const MOST_TEXT = 6000;
const CANNOT_TELL = 70;

const textOf = uncurried(Function.prototype.toString);
const cut = uncurried(String.prototype.slice);
const codeAt = uncurried(String.prototype.charCodeAt);
const then = uncurried(Promise.prototype.then);
const stringify = JSON.stringify;
const writeSync = fs.writeSync;
const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
const sizeOf = uncurried(getOwnPropertyDescriptor(getPrototypeOf(Uint8Array.prototype), 'byteLength').get);
const inside = uncurried(AsyncLocalStorage.prototype.run);
const current = uncurried(AsyncLocalStorage.prototype.getStore);
const clock = performance.now.bind(performance);
const NativePromise = Promise;
const { isPromise } = types;
const { exit, reallyExit } = process;

const suites = new AsyncLocalStorage();
const place = process.env.PTC_EVENTS;
const descriptor = place.startsWith('fd:') ? Number(place.slice(3)) : fs.openSync(place, 'a');
const seal = sealing(process.env.PTC_KEY);
delete process.env.PTC_KEY;
delete process.env.PTC_EVENTS;

let chain = '0'.repeat(64);
let tests = 0;

/**
 * Return what makes HMAC-SHA256 of two digests in hexadecimal digits, and forget where the key was.
 *
 * The key is in two arrays of their own, far from Buffer's pool, and goes to native code by `crypto.hash` alone: the
 * classes of `node:crypto` keep what they need below symbols, which code of the project could turn into accessors.
 */
function sealing(place) {
  const [KEY, BLOCK, DIGITS] = [32, 64, 64];
  const inner = new Uint8Array(BLOCK + 2 * DIGITS);
  const outer = new Uint8Array(BLOCK + KEY);
  const file = fs.openSync(place);
  if (fs.readSync(file, inner, 0, BLOCK) !== KEY) throw new Error('there is no key');
  fs.closeSync(file);
  fs.unlinkSync(place);
  for (let at = 0; at < BLOCK; at += 1) {
    outer[at] = inner[at] ^ 0x5c;
    inner[at] ^= 0x36;
  }
  return (first, second) => {
    for (let at = 0; at < DIGITS; at += 1) {
      inner[BLOCK + at] = codeAt(first, at);
      inner[BLOCK + DIGITS + at] = codeAt(second, at);
    }
    const digest = hash('sha256', inner, 'buffer');
    for (let at = 0; at < KEY; at += 1) outer[BLOCK + at] = digest[at];
    return hash('sha256', outer, 'hex');
  };
}

/** Write an event at once; a process that cannot ends, so that nothing is missed by nobody. */
function tell(event) {
  try {
    const text = stringify(event);
    chain = seal(chain, hash('sha256', text, 'hex'));
    const line = encode(`${chain} ${text}\n`);
    const size = sizeOf(line);
    for (let sent = 0; sent < size;) sent += writeSync(descriptor, line, sent, size - sent);
  } catch {
    apply(reallyExit, process, [CANNOT_TELL]);
  }
}

function told(error) {
  try {
    const text = error?.stack;
    return cut(typeof text === 'string' ? text : inspect(error), 0, MOST_TEXT);
  } catch {
    return 'an error that cannot be told';
  }
}

/** Give a function with this body the number of parameters by which the runner chooses how to call it. */
function watched(fn, began, ended, raised) {
  if (fn.length === 2) {
    return function (context, done) {
      began(context);
      try {
        return apply(fn, this, [context, (error) => {
          if (error) raised(error);
          else ended();
          return done(error);
        }]);
      } catch (error) {
        raised(error);
        throw error;
      }
    };
  }
  return function (context) {
    began(context);
    let result;
    try {
      result = apply(fn, this, [context]);
    } catch (error) {
      raised(error);
      throw error;
    }
    if ((typeof result !== 'object' && typeof result !== 'function') || result === null) return ended();
    return followed(result, ended, raised);
  };
}

/** Wait for what a function returned: for a promise by the `then` that promises had before the project was loaded. */
function followed(result, ended, raised) {
  const promise = isPromise(result) ? result : new NativePromise((resolve) => resolve(result));
  return new NativePromise((resolve, reject) => {
    then(promise, () => {
      ended();
      resolve();
    }, (error) => {
      raised(error);
      reject(error);
    });
  });
}

/** Take the arguments apart as the runner does: a name, options and a function, each of which may be missing. */
function parts(given) {
  let name, options, fn;
  for (let at = 0; at < given.length && at < 3; at += 1) {
    if (typeof given[at] === 'function') fn ??= given[at];
    else if (typeof given[at] === 'string') name ??= given[at];
    else if (typeof given[at] === 'object' && given[at] !== null) options ??= given[at];
  }
  return { __proto__: null, name: name ?? (fn?.name || '<anonymous>'), options: { __proto__: null, ...options, only: undefined }, fn };
}

function path(name) {
  const around = current(suites);
  return around === undefined ? name : `${around}\u0000${name}`;
}

/** Register a test with the runner: its function is watched, and so is what it does to its own context. */
function register(original, given, variant) {
  const { name, options, fn } = parts(given);
  const id = tests += 1;
  const whole = path(name);
  tell({
    __proto__: null,
    event: 'test',
    id,
    name: whole,
    digest: fn ? hash('sha256', textOf(fn), 'hex') : null,
    skip: Boolean(variant === 'skip' || options.skip),
    todo: Boolean(variant === 'todo' || options.todo || !fn),
  });
  if (!fn) return original(name, options);
  let began;
  const seconds = () => (clock() - began) / 1000;
  const probed = watched(
    fn,
    (context) => {
      began = clock();
      tell({ __proto__: null, event: 'began', id });
      watchTest(context, id);
    },
    () => tell({ __proto__: null, event: 'ran', id, seconds: seconds() }),
    (error) => tell({ __proto__: null, event: 'raised', id, seconds: seconds(), text: told(error) }),
  );
  const placed = probed.length === 2
    ? function (context, done) { return inside(suites, whole, () => apply(probed, this, [context, done])); }
    : function (context) { return inside(suites, whole, () => apply(probed, this, [context])); };
  return original(name, options, placed);
}

const met = new WeakMap();
let passedOf, errorOf, assertOf;
let lastTest;

/** Watch what is done to a test's context, by whoever has it; hooks have it before its test. */
function meet(context) {
  const known = factsOf(met, context);
  if (known) return known;
  const seen = { __proto__: null, id: 0, skip: false, todo: false };
  keep(met, context, seen);
  tellOf('skip', context, seen);
  tellOf('todo', context, seen);
  if (getOwnPropertyDescriptor(getPrototypeOf(context), 'assert')) {
    if (!assertOf) takeFrom(getPrototypeOf(context));
    defineProperty(context, 'assert', { get: () => freeze(assertOf(context)) });
  }
  return seen;
}

/** Take what only the runner knows of a test, from the first context that there is: no code of the project has had one. */
function takeFrom(prototype) {
  passedOf = uncurried(getOwnPropertyDescriptor(prototype, 'passed').get);
  errorOf = uncurried(getOwnPropertyDescriptor(prototype, 'error').get);
  assertOf = uncurried(getOwnPropertyDescriptor(prototype, 'assert').get);
  defineProperty(prototype, 'assert', { get() { return freeze(assertOf(this)); }, configurable: false });
}

function tellOf(variant, context, seen) {
  const original = context[variant];
  if (typeof original !== 'function') return;
  defineProperty(context, variant, {
    value(...given) {
      seen[variant] = true;
      if (seen.id) tell({ __proto__: null, event: variant, id: seen.id });
      return apply(original, context, given);
    },
  });
}

function watchTest(context, id) {
  const seen = meet(context);
  seen.id = id;
  if (seen.skip) tell({ __proto__: null, event: 'skip', id });
  if (seen.todo) tell({ __proto__: null, event: 'todo', id });
  lastTest = { __proto__: null, context, id, before: lastTest };
  if (typeof context.test === 'function') {
    const original = context.test;
    const nested = (...given) => apply(original, context, given);
    defineProperty(context, 'test', { value: variants(original, (_, given, variant) => register(nested, given, variant), nested) });
  }
}

/** Tell of tests that the runner itself takes for failed: their plan is not met, their time was over, a part failed. */
function tellRefused() {
  for (let each = lastTest; each; each = each.before) {
    if (!passedOf(each.context)) {
      tell({ __proto__: null, event: 'refused', id: each.id, text: told(errorOf(each.context)) });
    }
  }
}

/** Wrap a function of the runner together with its variants; with `only` all others run, too. */
function variants(original, act, plain = original) {
  const { skip, todo } = original;
  const wrapped = (...given) => act(plain, given, '');
  wrapped.only = (...given) => act(plain, given, '');
  if (skip) wrapped.skip = (...given) => act(skip, given, 'skip');
  if (todo) wrapped.todo = (...given) => act(todo, given, 'todo');
  return wrapped;
}

function suite(original, given, variant) {
  const { name, options, fn } = parts(given);
  if (variant === 'skip' || variant === 'todo' || options.skip || options.todo || !fn) {
    tell({ __proto__: null, event: 'suite_left_out', name: path(name) });
    return fn ? original(name, options, fn) : original(name, options);
  }
  const whole = path(name);
  const failed = (error) => tell({ __proto__: null, event: 'error', name: whole, text: told(error) });
  return original(name, options, function (...context) {
    let result;
    try {
      result = inside(suites, whole, () => apply(fn, this, context));
    } catch (error) {
      failed(error);
      throw error;
    }
    return isPromise(result) ? followed(result, () => {}, failed) : result;
  });
}

function hook(original, kind) {
  return (fn, options) => {
    if (typeof fn !== 'function') return original(fn, options);
    const where = path(`(${kind})`);
    const nothing = () => {};
    const failed = (error) => tell({ __proto__: null, event: 'error', name: where, text: told(error) });
    return original(watched(fn, meet, nothing, failed), options);
  };
}

function closed(part) {
  for (const name of ownKeys(part)) {
    if (typeof part[name] === 'function') freeze(part[name]);
  }
  freeze(part);
}

const test = variants(runner.test, register);
for (const name of ownKeys(runner)) {
  if (!(name in test)) defineProperty(test, name, getOwnPropertyDescriptor(runner, name));
}
const replaced = {
  test,
  it: test,
  describe: variants(runner.suite, suite),
  suite: variants(runner.suite, suite),
  before: hook(runner.before, 'before'),
  after: hook(runner.after, 'after'),
  beforeEach: hook(runner.beforeEach, 'beforeEach'),
  afterEach: hook(runner.afterEach, 'afterEach'),
};
for (const name of ownKeys(replaced)) {
  defineProperty(test, name, { value: replaced[name], enumerable: true });
}
freeze(replaced.describe);
freeze(replaced.suite);
freeze(test);
module.exports = test;
// Names that a reader of this text can tell `import` of; the values are there already.
if (false) {
  exports.test = exports.it = exports.describe = exports.suite = exports.before = exports.after = test;
  exports.beforeEach = exports.afterEach = exports.mock = exports.run = exports.snapshot = exports.assert = test;
}

closed(assert); // with `assert.strict`, one of its functions
freeze(assert.AssertionError.prototype);

const here = require('node:url').pathToFileURL(__filename).href;
module_.registerHooks({
  resolve(specifier, context, next) {
    const replacing = specifier === 'node:test' && context.parentURL !== here;
    return replacing ? { __proto__: null, url: here, format: 'commonjs', shortCircuit: true } : next(specifier, context);
  },
});

meddled = (text) => tell({ __proto__: null, event: 'meddled', text });
for (const name of ['register', 'registerHooks']) {
  module_[name] = () => meddled(`module.${name} was called, which exchanges modules`);
}
guard(module_, '_load');
guard(module_, '_resolveFilename');
guard(module_, '_cache');
guard(module_.prototype, 'require');
for (const name of ['assert', 'assert/strict', 'node:assert', 'node:assert/strict', 'node:test']) {
  defineProperty(module_._cache, name, { value: undefined }); // what stands there is taken for the built-in module
}
defineProperty(module_._cache, __filename, { value: module, writable: false, configurable: false });
defineProperty(module, 'exports', { writable: false, configurable: false });

function guard(owner, name) {
  const value = owner[name];
  defineProperty(owner, name, {
    configurable: false,
    get: () => value,
    set: () => meddled(`Module's ${name} was exchanged`),
  });
}

const registerAssertion = runner.assert.register;
const assertions = { __proto__: null, ok: true, snapshot: true, fileSnapshot: true };
for (const name of ownKeys(assert)) assertions[name] = true;
runner.assert.register = (name, fn) => {
  const text = `${name}`;
  if (assertions[text]) return meddled('an assertion was exchanged for another');
  assertions[text] = true;
  return registerAssertion(text, fn);
};
freeze(runner.assert);

/** Keep a function as it is now, and under a name that nobody can give to another. */
function pin(owner, name, value) {
  defineProperty(owner, name, { value, writable: false, configurable: false });
}

/** Bar the ways by which code of the project could look into the memory of this one: debuggers, and V8's own functions. */
function barWaysIn() {
  const barred = (text) => () => {
    meddled(text);
    throw new Error(text);
  };
  const inspected = barred('an inspector was attached to the process that runs the tests');
  pin(inspector.Session.prototype, 'connect', inspected);
  pin(inspector.Session.prototype, 'connectToMainThread', inspected);
  pin(inspector, 'open', inspected);
  const { binding } = process;
  const internals = { __proto__: null, async_wrap: true, inspector: true };
  pin(process, 'binding', (name) => {
    if (internals[`${name}`]) barred(`Node's own ${name} was taken out of it`)();
    return apply(binding, process, [`${name}`]);
  });
  pin(process, 'execve', barred('the process that runs the tests was exchanged for another program'));
  const { setFlagsFromString } = v8;
  const flags = (text) => /native/.test(text) ? barred('V8 was told to give its own functions away')() : setFlagsFromString(text);
  pin(v8, 'setFlagsFromString', (text) => flags(`${text}`));
  const watched = barred('the promises of the runner were watched');
  pin(v8, 'promiseHooks', freeze({ onInit: watched, onBefore: watched, onAfter: watched, onSettled: watched, createHook: watched }));
  hideResources();
  pinPromises();
  pin(threads, 'Worker', watchedThreads(threads.Worker));
  pin(threads.Worker.prototype, 'constructor', threads.Worker);
  module_.syncBuiltinESMExports();
}

/** Show a stand-in for each asynchronous resource: among them are the runner's own tests and promises. */
function hideResources() {
  const { prototype } = hooks.AsyncResource;
  for (const name of ownKeys(prototype)) pin(prototype, name, prototype[name]);
  const standIns = new WeakMap();
  const shown = (resource) => {
    if (typeof resource !== 'object' || resource === null) return resource;
    if (!factsOf(standIns, resource)) keep(standIns, resource, {});
    return factsOf(standIns, resource);
  };
  const { createHook, executionAsyncResource } = hooks;
  pin(hooks, 'executionAsyncResource', () => shown(executionAsyncResource()));
  pin(hooks, 'createHook', (given) => {
    const { init } = given;
    if (typeof init !== 'function') return createHook(given);
    const hidden = function (id, type, trigger, resource) { return apply(init, this, [id, type, trigger, shown(resource)]); };
    return createHook({ __proto__: null, ...given, init: hidden });
  });
}

/** Let `await`, by which the runner waits for all that it waits for, never ask a `then` that was exchanged. */
function pinPromises() {
  const { prototype } = Promise;
  const Native = Promise;
  defineProperty(prototype, 'constructor', {
    configurable: false,
    get: () => Native,
    set(value) {
      if (this === prototype) return meddled('the constructor of promises was exchanged');
      defineProperty(this, 'constructor', { value, writable: true, enumerable: true, configurable: true });
    },
  });
}

/** Let each thread of the project start with this file, whatever its options: it could debug the main thread. */
function watchedThreads(Worker) {
  return new Proxy(Worker, {
    __proto__: null,
    construct(_, given, kind) {
      const options = { __proto__: null, ...given[1] };
      if (options.execArgv) options.execArgv = ['--require', __filename, ...options.execArgv];
      if (options.env && typeof options.env === 'object') options.env = { __proto__: null, ...options.env };
      if (options.env?.NODE_OPTIONS || process.env.NODE_OPTIONS) {
        meddled('a thread was given NODE_OPTIONS, which load code before all other');
        throw new Error('threads have no NODE_OPTIONS here');
      }
      return construct(Worker, [given[0], options], kind);
    },
  });
}

let leaving = false;
process.exit = (...given) => {
  leaving = true;
  tell({ __proto__: null, event: 'exit_called', text: told(new Error('process.exit was called')) });
  return apply(exit, process, given);
};
process.reallyExit = (...given) => {
  if (!leaving) tell({ __proto__: null, event: 'exit_called', text: told(new Error('process.reallyExit was called')) });
  return apply(reallyExit, process, given);
};
const fatal = process._fatalException;
pin(process, '_fatalException', (error, fromPromise) => {
  tell({ __proto__: null, event: 'uncaught', text: told(error) });
  return apply(fatal, process, [error, fromPromise]);
});
module_.syncBuiltinESMExports();

let natural = false;
process.on('beforeExit', () => { natural = true; });
process.on('exit', (code) => {
  if (natural) tellRefused();
  tell({ __proto__: null, event: 'end', code, natural });
});
