// Stands between a project and Node's test runner, and tells over PTC_EVENTS what really ran.
//
// Loaded before anything of the project (`node --require`), where `node:test` is replaced by what this file exports.
// Each line has a MAC over all lines so far; the key is gone before code of the project is loaded. What code of the
// project could exchange later (methods of built-in objects) is taken into constants here, and is called by no other way.
'use strict';

const assert = require('node:assert');
const crypto = require('node:crypto');
const fs = require('node:fs');
const inspector = require('node:inspector');
const module_ = require('node:module');
const runner = require('node:test');
const { AsyncLocalStorage } = require('node:async_hooks');
const { inspect } = require('node:util');
const { isMainThread } = require('node:worker_threads');

if (!isMainThread || !process.env.PTC_EVENTS) return; // threads and processes of the project are loaded with it, too

const MOST_TEXT = 6000;

const { apply, defineProperty, ownKeys, getOwnPropertyDescriptor } = Reflect;
const uncurried = (method) => Function.prototype.call.bind(method);
const textOf = uncurried(Function.prototype.toString);
const cut = uncurried(String.prototype.slice);
const then = uncurried(Promise.prototype.then);
const stringify = JSON.stringify;
const writeSync = fs.writeSync;
const bytesOf = Buffer.from;
const bytesFrom = uncurried(Buffer.prototype.subarray);
const createHmac = crypto.createHmac;
const createHash = crypto.createHash;
const hmacUpdate = uncurried(crypto.Hmac.prototype.update);
const hmacDigest = uncurried(crypto.Hmac.prototype.digest);
const hashUpdate = uncurried(crypto.Hash.prototype.update);
const hashDigest = uncurried(crypto.Hash.prototype.digest);
const inside = uncurried(AsyncLocalStorage.prototype.run);
const current = uncurried(AsyncLocalStorage.prototype.getStore);
const clock = performance.now.bind(performance);
const NativePromise = Promise;

const suites = new AsyncLocalStorage();
const place = process.env.PTC_EVENTS;
const descriptor = place.startsWith('fd:') ? Number(place.slice(3)) : fs.openSync(place, 'a');
const key = crypto.createSecretKey(fs.readFileSync(process.env.PTC_KEY));
fs.unlinkSync(process.env.PTC_KEY);
delete process.env.PTC_KEY;
delete process.env.PTC_EVENTS;

let chain = '';
let tests = 0;

function tell(event) {
  const text = stringify(event);
  chain = hmacDigest(hmacUpdate(createHmac('sha256', key), chain + text), 'hex');
  let left = bytesOf(`${chain} ${text}\n`);
  while (left.length) {
    left = bytesFrom(left, writeSync(descriptor, left));
  }
}

function told(error) {
  let text;
  try {
    text = typeof error?.stack === 'string' ? error.stack : inspect(error);
  } catch {
    text = 'an error that cannot be told';
  }
  return cut(text, 0, MOST_TEXT);
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
  return async function (context) {
    began(context);
    try {
      await apply(fn, this, [context]);
    } catch (error) {
      raised(error);
      throw error;
    }
    ended();
  };
}

/** Take the arguments apart as the runner does: a name, options and a function, each of which may be missing. */
function parts(given) {
  let name, options, fn;
  for (let at = 0; at < given.length && at < 3; at += 1) {
    if (typeof given[at] === 'function') fn ??= given[at];
    else if (typeof given[at] === 'string') name ??= given[at];
    else if (typeof given[at] === 'object' && given[at] !== null) options ??= given[at];
  }
  return { __proto__: null, name: name ?? (fn?.name || '<anonymous>'), options: { ...options, only: undefined }, fn };
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
    digest: fn ? hashDigest(hashUpdate(createHash('sha256'), textOf(fn)), 'hex') : null,
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
      watchContext(context, id);
    },
    () => tell({ __proto__: null, event: 'ran', id, seconds: seconds() }),
    (error) => tell({ __proto__: null, event: 'raised', id, seconds: seconds(), text: told(error) }),
  );
  const placed = probed.length === 2
    ? function (context, done) { return inside(suites, whole, () => apply(probed, this, [context, done])); }
    : function (context) { return inside(suites, whole, () => apply(probed, this, [context])); };
  return original(name, options, placed);
}

function tellOf(variant, context, id) {
  const original = context[variant];
  defineProperty(context, variant, {
    value(...given) {
      tell({ __proto__: null, event: variant, id });
      return apply(original, context, given);
    },
  });
}

function watchContext(context, id) {
  tellOf('skip', context, id);
  tellOf('todo', context, id);
  if (typeof context.test === 'function') {
    const original = context.test;
    const nested = (...given) => apply(original, context, given);
    defineProperty(context, 'test', { value: variants(original, (_, given, variant) => register(nested, given, variant), nested) });
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
    if (result instanceof NativePromise) then(result, undefined, failed);
    return result;
  });
}

function hook(original, kind) {
  return (fn, options) => {
    if (typeof fn !== 'function') return original(fn, options);
    const where = path(`(${kind})`);
    const nothing = () => {};
    const failed = (error) => tell({ __proto__: null, event: 'error', name: where, text: told(error) });
    return original(watched(fn, nothing, nothing, failed), options);
  };
}

function closed(part) {
  for (const name of ownKeys(part)) {
    if (typeof part[name] === 'function') Object.freeze(part[name]);
  }
  Object.freeze(part);
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
Object.freeze(replaced.describe);
Object.freeze(replaced.suite);
Object.freeze(test);
module.exports = test;
// Names that a reader of this text can tell `import` of; the values are there already.
if (false) {
  exports.test = exports.it = exports.describe = exports.suite = exports.before = exports.after = test;
  exports.beforeEach = exports.afterEach = exports.mock = exports.run = exports.snapshot = exports.assert = test;
}

closed(assert); // with `assert.strict`, one of its functions
Object.freeze(assert.AssertionError.prototype);

const here = require('node:url').pathToFileURL(__filename).href;
module_.registerHooks({
  resolve(specifier, context, next) {
    const replacing = specifier === 'node:test' && context.parentURL !== here;
    return replacing ? { __proto__: null, url: here, format: 'commonjs', shortCircuit: true } : next(specifier, context);
  },
});

const meddled = (text) => tell({ __proto__: null, event: 'meddled', text });
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
defineProperty(inspector.Session.prototype, 'connect', {
  value() {
    meddled('an inspector was attached to the process that runs the tests');
    throw new Error('there is no inspector here');
  },
});

function guard(owner, name) {
  const value = owner[name];
  defineProperty(owner, name, {
    configurable: false,
    get: () => value,
    set: () => meddled(`Module's ${name} was exchanged`),
  });
}

const { exit, reallyExit } = process;
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
module_.syncBuiltinESMExports();

let natural = false;
process.on('beforeExit', () => { natural = true; });
process.on('uncaughtExceptionMonitor', (error) => tell({ __proto__: null, event: 'uncaught', text: told(error) }));
process.on('exit', (code) => tell({ __proto__: null, event: 'end', code, natural }));
