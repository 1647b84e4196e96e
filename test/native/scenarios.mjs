/**
 * Pieces of addon use, each played in a process of its own: `node --expose-gc scenarios.mjs ADDON NAME [ARGUMENT…]`.
 * A scenario that returns has kept its promises; the life stages end the process in the way that is asked for.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

/** @typedef {import('../../lib/host/xen/native.js').NativeAddon} NativeAddon */
/** @typedef {import('../../lib/host/xen/native.js').NativePageMap} NativePageMap */

const PAGE = 4096;
const MIB = 1024 * 1024;
const file = isMainThread ? String(process.argv[2]) : workerData.file;

/** @returns {NativeAddon} */
const load = () => createRequire(import.meta.url)(file);

/** Bytes of address space of this process. */
const addressSpace = () =>
  Number(/^VmSize:\s+(\d+) kB/m.exec(fs.readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024;

const turn = () => new Promise((resolve) => setImmediate(resolve));

/** Collects garbage until the condition holds; finalizers run in later turns. @param {() => boolean} condition */
async function collectUntil(condition) {
  for (let round = 0; round < 50 && !condition(); round++) {
    globalThis.gc?.();
    await turn();
  }
}

/** What must stay reachable until the process ends. @type {unknown[]} */
const kept = [];

/** A pipe that nobody else uses: reading blocks, and writing does after 64 KiB. */
function pipe() {
  const name = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-pipe-')), 'pipe');
  execFileSync('mkfifo', [name]);
  const fd = fs.openSync(name, 'r+');
  fs.rmSync(path.dirname(name), { recursive: true });
  return fd;
}

/** What keeps the event loop running and is closed where the process shall end by itself. @type {{ destroy(): unknown }[]} */
const open = [];

/** How far the addon's use has come when the process ends. @type {Record<string, () => void | Promise<void>>} */
export const stages = {
  loaded() {
    load();
  },
  'no interface'() {
    // Without Xen it throws, with Xen it opens and closes: either way nothing may stay behind.
    try {
      load().hypervisor?.();
    } catch (error) {
      assert.equal(/** @type {NodeJS.ErrnoException} */ (error).syscall, 'xc_interface_open');
    }
  },
  'bad argument'() {
    assert.throws(() => new (load().PageMap)(-1));
  },
  created() {
    kept.push(new (load().PageMap)(4));
  },
  'buffer taken'() {
    const map = new (load().PageMap)(4);
    kept.push(map, map.buffer());
  },
  'buffer written'() {
    const map = new (load().PageMap)(4);
    const bytes = new Uint8Array(map.buffer()).fill(7);
    kept.push(map, bytes);
  },
  'buffer without wrapper'() {
    kept.push(new (load().PageMap)(4).buffer());
    globalThis.gc?.();
  },
  released() {
    const map = new (load().PageMap)(4);
    kept.push(map, map.buffer());
    map.release();
  },
  'many, some released'() {
    const { PageMap } = load();
    for (let i = 0; i < 500; i++) {
      const map = new PageMap(2);
      if (i % 2 === 0) kept.push(map.buffer());
      if (i % 3 === 0) map.release();
      if (i % 5 === 0) kept.push(map);
    }
  },
  'write under way'() {
    // Nobody reads the other end, so the write is still queued when the process ends.
    const map = new (load().PageMap)(1024);
    const server = net.createServer((socket) => kept.push(socket.pause().unref())).unref();
    return new Promise((resolve) => {
      server.listen(0, '127.0.0.1', () => {
        const { port } = /** @type {net.AddressInfo} */ (server.address());
        const socket = net.connect(port, '127.0.0.1', () => {
          socket.write(new Uint8Array(map.buffer()));
          socket.unref();
          kept.push(map, socket);
          open.push(socket);
          resolve();
        });
        socket.on('error', () => {});
      });
    });
  },
  'blocking read under way'() {
    const fd = new (load().BlockingFd)(pipe());
    fd.read(new Uint8Array(10)).catch(() => {});
    kept.push(fd);
    open.push({ destroy: () => fd.close() });
  },
  'blocking write under way'() {
    const map = new (load().PageMap)(1024);
    const fd = new (load().BlockingFd)(pipe());
    fd.write([new Uint8Array(map.buffer()), new Uint8Array(1 << 20)]).catch(() => {});
    kept.push(fd);
    open.push({ destroy: () => fd.close() });
  },
  async 'blocking descriptor idle'() {
    const fd = new (load().BlockingFd)(fs.openSync('/dev/null', 'w'));
    await fd.write([new Uint8Array(10)]);
    kept.push(fd);
  },
  'blocking descriptor collected'() {
    new (load().BlockingFd)(pipe());
    globalThis.gc?.();
  },
  watching() {
    kept.push(load().watchReadable(pipe(), () => {}));
    const watch = load().watchReadable(pipe(), () => {}, true);
    open.push({ destroy: () => watch.close() });
  },
  async 'worker in a blocking read'() {
    const worker = await startWorker('read for ever');
    worker.unref();
    kept.push(worker);
  },
  async 'worker holds a map'() {
    const worker = await startWorker('hold');
    worker.unref();
    kept.push(worker);
  },
};

/** Ways to end. Each has the exit code that lifecycle.test.ts demands. @type {Record<string, () => void>} */
const endings = {
  return: () => open.forEach((socket) => socket.destroy()),
  'exit 7': () => process.exit(7),
  exception: () => {
    setImmediate(() => {
      throw new Error('thrown on purpose');
    });
  },
  rejection: () => void Promise.reject(new Error('rejected on purpose')),
};

/** @type {Record<string, () => void | Promise<void>>} */
const scenarios = {
  surface() {
    const addon = load();
    assert.deepEqual(Object.keys(addon.build).sort(), ['haveXen', 'napiVersion', 'xenVersion']);
    assert.equal(addon.build.napiVersion, 8);
    assert.equal(addon.build.xenVersion !== null, addon.build.haveXen);
    assert.equal(addon.hypervisor !== undefined, addon.build.haveXen);
    assert.ok(Object.isFrozen(addon.build));
  },

  views() {
    const map = new (load().PageMap)(3);
    assert.equal(map.live, true);
    assert.equal(map.byteLength, 3 * PAGE);
    const buffer = map.buffer();
    assert.equal(map.buffer(), buffer, 'one buffer for all');
    const bytes = new Uint8Array(buffer);
    assert.equal(bytes.length, 3 * PAGE);
    assert.ok(bytes.every((byte) => byte === 0));
    const second = bytes.subarray(PAGE, 2 * PAGE);
    second.fill(0xab);
    assert.equal(new Uint8Array(buffer, PAGE, 1)[0], 0xab);

    map.release();
    assert.equal(map.live, false);
    assert.equal(map.byteLength, 3 * PAGE);
    for (const stale of [bytes, second]) {
      assert.equal(stale.length, 0);
      assert.equal(stale[0], undefined);
      stale[0] = 1;
      assert.equal(stale[0], undefined);
    }
    assert.equal(buffer.byteLength, 0);
    assert.throws(() => map.buffer(), /released/);
    map.release();
    assert.equal(map.live, false);
  },

  /** Memory of exactly the length that is read into: one byte beyond it is the sanitizer's. */
  async 'reads on the spot'() {
    const { BlockingFd } = load();
    const fd = pipe();
    const from = new BlockingFd(fd);
    for (const length of [1, 7, 64, 4096, 65536]) {
      fs.writeSync(fd, new Uint8Array(length).fill(length & 0xff));
      const buffer = new ArrayBuffer(length);
      assert.equal(from.readNow(new Uint8Array(buffer)), length);
      assert.ok(new Uint8Array(buffer).every((byte) => byte === (length & 0xff)));
    }
    assert.equal(from.readNow(new Uint8Array(0)), 0);
    assert.throws(() => from.readNow(/** @type {any} */ (undefined)), { code: 'ERR_INVALID_ARG_TYPE' });
    fs.writeSync(fd, 'x');
    // Memory that has gone to another owner has length 0, and nothing is written to where it was.
    const gone = new Uint8Array(8);
    structuredClone(gone, { transfer: [gone.buffer] });
    assert.equal(from.readNow(gone), 0);
    const waiting = from.read(new Uint8Array(100)).catch((error) => error.code);
    from.interrupt(true);
    assert.throws(() => from.readNow(new Uint8Array(8)), { code: 'ECANCELED' });
    assert.equal(await waiting, 'ECANCELED');
    from.close();
    assert.throws(() => from.readNow(new Uint8Array(8)), { code: 'ECANCELED' });
  },
  async 'watches that were closed'() {
    const { watchReadable } = load();
    const fd = pipe();
    const descriptors = () => fs.readdirSync('/proc/self/fd').length;
    const before = descriptors();
    // Kept, so that no garbage collection can help.
    const watches = Array.from({ length: 20 }, (_, i) => watchReadable(fd, () => {}, i % 2 === 0));
    kept.push(watches);
    assert.equal(descriptors(), before + 20);
    for (const watch of watches) watch.close();
    const until = performance.now() + 10_000;
    while (descriptors() > before && performance.now() < until) await turn();
    assert.equal(descriptors(), before);
    // No descriptor of somebody else is written to.
    const other = fs.openSync('/dev/null', 'r');
    for (const watch of watches) {
      watch.rearm();
      watch.close();
    }
    fs.closeSync(other);
  },

  'watching without descriptors left'() {
    const { watchReadable } = load();
    const fd = pipe();
    execFileSync('prlimit', [`--pid=${process.pid}`, '--nofile=100']);
    const taken = [];
    try {
      for (;;) taken.push(fs.openSync('/dev/null', 'r'));
    } catch (error) {
      assert.equal(/** @type {NodeJS.ErrnoException} */ (error).code, 'EMFILE');
    }
    assert.throws(() => watchReadable(fd, () => {}, true), { code: 'EMFILE', syscall: 'eventfd' });
    for (const one of taken) fs.closeSync(one);
  },

  'release without buffer'() {
    const { PageMap, mapped } = load();
    const map = new PageMap(1);
    map.release();
    assert.throws(() => map.buffer(), /released/);
    assert.equal(mapped().bytes, 0);
  },

  async moved() {
    // Node 22 has ArrayBuffer.prototype.transfer(): it moves the pages to a buffer that release() cannot reach.
    // Node 20 has only structuredClone, which copies.
    const { PageMap, mapped } = load();
    const map = new PageMap(2);
    new Uint8Array(map.buffer())[9] = 0x41;
    const buffer = map.buffer();
    const moves = 'transfer' in ArrayBuffer.prototype;
    /** @type {ArrayBuffer | undefined} */
    let other = moves
      ? /** @type {ArrayBuffer & { transfer(): ArrayBuffer }} */ (buffer).transfer()
      : structuredClone(buffer, { transfer: [buffer] });
    /** @type {Uint8Array | undefined} */
    let view = new Uint8Array(other);
    assert.equal(view[9], 0x41);
    map.release();
    // Moved pages are zero pages from now on, writable and harmless; a copy keeps what was copied.
    assert.equal(view[9], moves ? 0 : 0x41);
    view[9] = 1;
    await collectUntil(() => false);
    assert.equal(view[9], 1);
    console.log(moves ? 'moved' : 'copied');
    other = view = undefined;
    void [other, view];
    await collectUntil(() => mapped().regions <= 1);
    assert.ok(mapped().regions <= 1, `regions: ${mapped().regions}`);
  },

  async 'wrapper collected first'() {
    const { PageMap, mapped } = load();
    /** @type {ArrayBuffer | undefined} */
    let buffer = (() => new PageMap(2).buffer())();
    new Uint8Array(buffer)[3] = 0x41;
    await collectUntil(() => false);
    assert.equal(mapped().regions, 1, 'the buffer holds the pages');
    assert.equal(new Uint8Array(buffer)[3], 0x41);
    buffer = undefined;
    void buffer;
    await collectUntil(() => mapped().regions === 0);
    assert.deepEqual(mapped(), { regions: 0, bytes: 0 });
  },

  async 'buffer collected first'() {
    const { PageMap, mapped } = load();
    const map = new PageMap(2);
    (() => new Uint8Array(map.buffer()).fill(0x41))();
    await collectUntil(() => false);
    // The map still has its pages, whoever asks for the buffer again finds them.
    assert.equal(new Uint8Array(map.buffer())[5], 0x41);
    map.release();
    await collectUntil(() => false);
    assert.equal(mapped().bytes, 0);
    assert.equal(map.live, false);
  },

  async leaked() {
    const { PageMap, mapped } = load();
    const before = addressSpace();
    const leak = () => void new PageMap(256).buffer();
    for (let i = 0; i < 2000; i++) leak();
    await collectUntil(() => mapped().regions === 0);
    assert.deepEqual(mapped(), { regions: 0, bytes: 0 });
    const grown = addressSpace() - before;
    assert.ok(
      grown < 500 * MIB,
      `2000 MiB leaked and collected, but the process has grown by ${grown} bytes`,
    );
  },

  async cycles() {
    const { PageMap, mapped } = load();
    const before = addressSpace();
    const use = () => {
      const map = new PageMap(1024);
      const bytes = new Uint8Array(map.buffer());
      bytes[0] = 1;
      bytes[bytes.length - 1] = 1;
      map.release();
    };
    for (let i = 0; i < 5000; i++) {
      use();
      if (i % 64 === 0) await turn();
    }
    assert.equal(mapped().bytes, 0);
    await collectUntil(() => mapped().regions === 0);
    assert.equal(mapped().regions, 0);
    const grown = addressSpace() - before;
    assert.ok(
      grown < 1024 * MIB,
      `20000 MiB mapped and released, but the process has grown by ${grown} bytes`,
    );
    const lines = fs.readFileSync('/proc/self/maps', 'utf8').split('\n').length;
    assert.ok(lines < 5000, `${lines} mappings`);
  },

  receivers() {
    const { PageMap, mapped } = load();
    const map = new PageMap(1);
    const { buffer, release } = PageMap.prototype;
    const live = /** @type {PropertyDescriptor} */ (
      Object.getOwnPropertyDescriptor(PageMap.prototype, 'live')
    ).get;
    assert.ok(live);
    const strangers = [
      {},
      [],
      Object.create(map),
      Object.create(PageMap.prototype),
      new Proxy(map, {}),
      new Map(),
      Buffer.alloc(1),
      new net.Socket(),
      PageMap,
      PageMap.prototype,
      undefined,
      null,
      7,
      'map',
      7n,
      Symbol('map'),
    ];
    for (const stranger of strangers) {
      for (const method of [buffer, release, live]) {
        assert.throws(() => Reflect.apply(method, stranger, []), TypeError, String(typeof stranger));
      }
    }
    assert.throws(() => Reflect.apply(PageMap, undefined, [1]), TypeError);
    assert.throws(() => Reflect.apply(PageMap, map, [1]), TypeError);
    // mapped() belongs to the module, whoever calls it.
    assert.equal(Reflect.apply(mapped, map, []).regions, 1);
    assert.equal(map.live, true, 'untouched by all that');
  },

  subclass() {
    const { PageMap } = load();
    class Named extends PageMap {
      name = 'batch';
    }
    const map = new Named(1);
    assert.equal(map.byteLength, PAGE);
    assert.equal(map.buffer().byteLength, PAGE);
    map.release();
    assert.equal(map.live, false);
    const odd = Reflect.construct(PageMap, [1], Object);
    Reflect.apply(PageMap.prototype.release, odd, []);
  },

  arguments() {
    const { PageMap, mapped } = load();
    /** @type {[unknown[], string][]} */
    const bad = [
      [[], 'ERR_INVALID_ARG_TYPE'],
      [[undefined], 'ERR_INVALID_ARG_TYPE'],
      [[null], 'ERR_INVALID_ARG_TYPE'],
      [['1'], 'ERR_INVALID_ARG_TYPE'],
      [[1n], 'ERR_INVALID_ARG_TYPE'],
      [[{ valueOf: () => 1 }], 'ERR_INVALID_ARG_TYPE'],
      [[Symbol('1')], 'ERR_INVALID_ARG_TYPE'],
      [[0], 'ERR_OUT_OF_RANGE'],
      [[-0], 'ERR_OUT_OF_RANGE'],
      [[-1], 'ERR_OUT_OF_RANGE'],
      [[1.5], 'ERR_OUT_OF_RANGE'],
      [[NaN], 'ERR_OUT_OF_RANGE'],
      [[Infinity], 'ERR_OUT_OF_RANGE'],
      [[2 ** 20 + 1], 'ERR_OUT_OF_RANGE'],
      [[2 ** 32 + 1], 'ERR_OUT_OF_RANGE'],
      [[2 ** 53], 'ERR_OUT_OF_RANGE'],
    ];
    for (const [args, code] of bad) {
      assert.throws(() => Reflect.construct(PageMap, args), { code }, String(args.map(String)));
    }
    assert.deepEqual(mapped(), { regions: 0, bytes: 0 });
    const map = new PageMap(1);
    // Superfluous arguments are nobody's business.
    assert.equal(Reflect.apply(map.buffer, map, ['x', 1]).byteLength, PAGE);
    Reflect.apply(map.release, map, [{}]);
  },

  'no memory'() {
    // Runs under `ulimit -v`: mmap refuses, and says so as an error with errno.
    const { PageMap, mapped } = load();
    /** @type {NativePageMap[]} */
    const maps = [];
    assert.throws(
      () => {
        for (let i = 0; i < 100_000; i++) maps.push(new PageMap(2 ** 20));
      },
      { code: 'ENOMEM', errno: 12, syscall: 'mmap' },
    );
    assert.equal(mapped().regions, maps.length);
    for (const map of maps) map.release();
    assert.equal(mapped().bytes, 0);
  },

  async 'workers end by themselves'() {
    const { mapped } = load();
    const before = addressSpace();
    for (let round = 0; round < 5; round++) {
      await Promise.all(Array.from({ length: 4 }, async () => ended(await startWorker('use and end'))));
    }
    assert.deepEqual(mapped(), { regions: 0, bytes: 0 }, 'each environment counts its own');
    checkGrowth(before);
  },

  async 'workers are terminated'() {
    load();
    const before = addressSpace();
    for (let round = 0; round < 5; round++) {
      const workers = await Promise.all(Array.from({ length: 4 }, () => startWorker('hold')));
      await Promise.all(workers.map((worker) => worker.terminate()));
    }
    checkGrowth(before);
  },

  async 'workers are terminated in blocking calls'() {
    for (let round = 0; round < 3; round++) {
      const workers = await Promise.all(Array.from({ length: 4 }, () => startWorker('read for ever')));
      await Promise.all(workers.map((worker) => worker.terminate()));
    }
    // Every thread was joined: those of Node's pool and of V8 alone are left.
    assert.ok(fs.readdirSync('/proc/self/task').length < 20);
  },

  async 'workers are terminated while busy'() {
    const before = addressSpace();
    for (let round = 0; round < 5; round++) {
      const workers = await Promise.all(Array.from({ length: 2 }, () => startWorker('cycle for ever')));
      for (let i = 0; i <= round; i++) await turn();
      await Promise.all(workers.map((worker) => worker.terminate()));
    }
    checkGrowth(before);
  },

  async 'addon only in workers'() {
    // The library stays loaded while one environment after the other comes and goes.
    for (let round = 0; round < 5; round++) await ended(await startWorker('use and end'));
    const { PageMap } = load();
    new PageMap(1).release();
  },
};

/** Each worker maps 256 MiB: had they stayed, the process would have grown by gigabytes. @param {number} before */
function checkGrowth(before) {
  const grown = addressSpace() - before;
  assert.ok(grown < 2048 * MIB, `the process has grown by ${grown} bytes`);
}

/** @type {Record<string, () => void | Promise<void>>} */
const workerParts = {
  hold() {
    const map = new (load().PageMap)(65536);
    kept.push(map, map.buffer());
    parentPort?.postMessage('ready');
    setInterval(() => {}, 1e6);
  },
  'read for ever'() {
    const { BlockingFd, watchReadable } = load();
    const fd = new BlockingFd(pipe());
    kept.push(
      fd,
      fd.read(new Uint8Array(1 << 20)),
      watchReadable(pipe(), () => {}, true),
    );
    parentPort?.postMessage('ready');
  },
  'use and end'() {
    const { PageMap, mapped } = load();
    kept.push(new PageMap(65536).buffer());
    const map = new PageMap(4);
    map.buffer();
    map.release();
    assert.equal(mapped().bytes, 65536 * PAGE);
    parentPort?.postMessage('ready');
  },
  async 'cycle for ever'() {
    const { PageMap } = load();
    kept.push(new PageMap(65536).buffer());
    parentPort?.postMessage('ready');
    for (;;) {
      const map = new PageMap(16);
      map.buffer();
      if (Math.random() < 0.5) map.release();
      await turn();
    }
  },
};

/** @type {WeakMap<Worker, Promise<number>>} */
const exits = new WeakMap();

/** @param {string} part @returns {Promise<Worker>} a worker that has said that it is ready */
function startWorker(part) {
  const worker = new Worker(fileURLToPath(import.meta.url), { workerData: { file, part } });
  exits.set(worker, new Promise((resolve) => worker.once('exit', resolve)));
  return new Promise((resolve, reject) => {
    worker.once('error', reject);
    worker.once('message', () => resolve(worker));
  });
}

/** @param {Worker} worker */
async function ended(worker) {
  assert.equal(await exits.get(worker), 0);
}

if (isMainThread) {
  const [name = '', ending] = process.argv.slice(3);
  const play = ending === undefined ? scenarios[name] : stages[name];
  assert.ok(play, `no scenario "${name}"`);
  await play();
  if (ending !== undefined) {
    const end = endings[ending];
    assert.ok(end, `no ending "${ending}"`);
    end();
  }
} else {
  await workerParts[workerData.part]?.();
}
