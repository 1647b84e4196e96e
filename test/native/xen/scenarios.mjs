/**
 * The classes Xen and Evtchn over fake-xen.c, each scenario in a process of its own:
 * `node --expose-gc scenarios.mjs ADDON NAME`.
 */
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

/** @typedef {import('../../../lib/host/xen/native.js').NativeAddon} NativeAddon */
/** @typedef {import('../../../lib/host/xen/native.js').NativeXen} NativeXen */

const PAGE = 4096;
const file = isMainThread ? String(process.argv[2]) : workerData.file;
const [FAST, SLOW, HOLES, NONE, FLEETING, GONE] = [1, 2, 3, 4, 5, 99];

/** @returns {NativeAddon} */
const load = () => createRequire(import.meta.url)(file);

/** @param {(level: number, message: string) => void} [log] @param {number} [level] @returns {NativeXen} */
function open(log = () => {}, level = 8) {
  const { Xen } = load();
  assert.ok(Xen !== undefined);
  return new Xen(log, level, process.env['FAKE_XEN_INLINE'] === '1');
}

/** Handles that are open, seen by one more. */
async function handles() {
  const xen = open();
  const { totPages } = await xen.domainInfo(FAST);
  xen.close();
  return totPages - 1;
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

/** @param {() => boolean | Promise<boolean>} condition */
async function collectUntil(condition) {
  for (let round = 0; round < 100 && !(await condition()); round++) {
    globalThis.gc?.();
    await turn();
  }
}

/** @param {number} n @param {number} [from] */
const frames = (n, from = 0) => Float64Array.from({ length: n }, (_, i) => from + i);

/** What must stay reachable until the process ends. @type {unknown[]} */
const kept = [];

/** @type {Record<string, () => void | Promise<void>>} */
const scenarios = {
  async information() {
    const xen = open();
    const info = await xen.domainInfo(FAST);
    assert.deepEqual(
      { ...info, handle: info.handle.length, maxPages: 0 },
      {
        domid: 1,
        hvm: true,
        dying: false,
        shutdown: true,
        paused: false,
        blocked: false,
        running: false,
        shutdownReason: 2,
        totPages: 1,
        maxPages: 0,
        outstandingPages: 0,
        sharedInfoFrame: -1,
        onlineVcpus: 0,
        maxVcpuId: -1,
        cpuTime: 1n << 63n,
        handle: 16,
      },
    );
    assert.equal(await xen.hvmParam(FAST, 1), 0xffff_ffff_ffff_fffen);
    const context = await xen.hvmContext(FAST);
    assert.deepEqual([...context], Array(100).fill(0xab), 'as much as the second call gave');
    assert.equal(await xen.guestWidth(HOLES), 4);
    assert.equal((await xen.vcpuState(HOLES, 0, 0)).length, 2800);
    assert.equal((await xen.vcpuState(FAST, 0, 0)).length, 5168);
    assert.equal((await xen.vcpuState(FAST, 3, 1)).length, 64);
    assert.equal((await xen.vcpuState(FAST, 0, 2)).length, 0);
    assert.equal((await xen.vcpuState(FAST, 0, 3)).length, 0);
    assert.equal(xen.calls['getvcpucontext'], 2);
    assert.equal(xen.calls['get_param'], 1);
  },

  hypervisor() {
    const { hypervisor } = load();
    assert.deepEqual(hypervisor?.(), {
      major: 4,
      minor: 99,
      extra: '.9-fake',
      capabilities: 'hvm-3.0-x86_64',
      guests: { pv: false, hvm: true, hap: true, shadow: false },
    });
  },

  'hypervisor that refuses'() {
    const { guests, physinfoErrno } = load().hypervisor?.() ?? {};
    assert.equal(guests, undefined);
    assert.equal(physinfoErrno, 13);
  },

  'no permission'() {
    const { hypervisor } = load();
    const error = {
      code: 'EACCES',
      syscall: 'xc_interface_open',
      message: 'xc_interface_open: EACCES, Permission denied (cannot open: closed)',
    };
    assert.throws(() => open(), error);
    assert.throws(() => hypervisor?.(), error);
  },

  async errors() {
    /** @type {[number, string][]} */
    const said = [];
    const xen = open((level, message) => said.push([level, message]), 8);
    await assert.rejects(xen.domainInfo(GONE), {
      code: 'ESRCH',
      errno: 3,
      syscall: 'getdomaininfo',
      message: 'getdomaininfo: ESRCH, No such process (no domain 99)',
    });
    assert.deepEqual(said, [[8, 'no domain 99']], 'level 8 and above');
    // Each call has the words of its own, however many run at once.
    const gone = await Promise.allSettled(
      Array.from({ length: 50 }, (_, i) => (i % 3 === 0 ? xen.pause(FAST) : xen.pause(100 + i))),
    );
    gone.forEach((end, i) => {
      if (i % 3 === 0) assert.equal(end.status, 'fulfilled');
      else assert.ok(end.status === 'rejected' && end.reason.message.endsWith(`(no domain ${100 + i})`));
    });
    // What a promise is rejected for is logged before it is.
    said.length = 0;
    await assert.rejects(xen.pause(GONE));
    assert.equal(said.length, 1);
    await assert.rejects(xen.setVcpuState(FAST, 0, 0, new Uint8Array(2800)), /5168 bytes long, not 2800/);
    await assert.rejects(xen.setVcpuState(FAST, 0, 1, new Uint8Array(7)), { code: 'EINVAL' });
    await assert.rejects(xen.setVcpuState(FAST, 1, 1, new Uint8Array(64)), /that of vcpu 0/);
    await assert.rejects(xen.setVcpuState(FAST, 0, 2, new Uint8Array(15)), { code: 'EINVAL' });
    await assert.rejects(xen.setVcpuState(FAST, 0, 3, new Uint8Array(17)), { code: 'EINVAL' });
    await xen.setVcpuState(FAST, 0, 3, new Uint8Array(32));
  },

  async inline() {
    const xen = open();
    const done = () => xen.calls['pausedomain'] ?? 0;
    // Calls are made before they return, but for every 16th, which takes the pool.
    const promises = [];
    for (let i = 1; i <= 64; i++) {
      promises.push(xen.pause(FAST));
      if (i % 16 === 15) assert.ok(done() >= i - Math.floor(i / 16));
    }
    await Promise.all(promises);
    assert.equal(done(), 64);
    // However busy the caller is, others get their turn.
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    const until = performance.now() + 200;
    while (performance.now() < until || turns < 2) await xen.pause(FAST);
    clearInterval(timer);
    assert.ok(turns >= 2);
    // What may take long is never done here.
    for (const call of [
      () => xen.destroy(SLOW),
      () => xen.setPagingAllocation(SLOW, 1),
      () => xen.enableLogDirty(SLOW),
      () => xen.disableLogDirty(SLOW),
      () => xen.logDirty(SLOW, true, false, new Uint32Array(1), 32),
    ]) {
      await turn();
      const called = call();
      let over = false;
      void called.then(() => (over = true));
      await turn();
      assert.equal(over, false, String(call));
      await called;
    }
  },

  async 'log callback throws'() {
    const xen = open(() => {
      throw new Error('thrown by log');
    }, 1);
    const uncaught = new Promise((resolve) => process.once('uncaughtException', resolve));
    assert.equal((await xen.domainInfo(FAST)).domid, FAST, 'the call itself is not hindered');
    assert.match(String(await uncaught), /thrown by log/);
  },

  async 'all levels'() {
    /** @type {string[]} */
    const said = [];
    const xen = open((_level, message) => said.push(message), 1);
    await xen.pause(FAST);
    assert.deepEqual(said, ['domctl 3 of domain 1']);
  },

  async 'page types'() {
    const xen = open();
    const gfns = frames(2500);
    const types = new Uint8Array(2501).fill(99);
    const done = xen.pageTypes(FAST, gfns, types);
    gfns.fill(5);
    await done;
    assert.ok(
      types.subarray(0, 2500).every((type, i) => type === (i & 15)),
      'read before the call returned',
    );
    assert.equal(types[2500], 99);
    assert.equal(xen.calls['getpageframeinfo3'], 3, 'at most 1024 at a time');
    await xen.pageTypes(FAST, Float64Array.of(-1), types);
    assert.equal(types[0], 15);
  },

  async mapping() {
    const { mapped } = load();
    const xen = open();
    const errors = new Int32Array(1024).fill(-1);
    const map = await xen.mapFrames(FAST, frames(1024, 7), true, errors);
    assert.ok(errors.every((error) => error === 0));
    assert.deepEqual(mapped(), { regions: 1, bytes: 1024 * PAGE });
    const words = new BigUint64Array(map.buffer());
    for (let i = 0; i < 1024; i++) assert.equal(words[i * 512], BigInt(7 + i));
    words.fill(1n);
    map.release();
    assert.equal(mapped().bytes, 0);
    assert.equal(words.length, 0);
    assert.equal(xen.calls['mmapbatch'], 1);
    assert.equal(xen.calls['mmapbatch frames'], 1024);
  },

  async 'mapping with holes'() {
    const xen = open();
    const gfns = Float64Array.from({ length: 100 }, (_, i) =>
      i % 7 === 3 || i === 0 || i > 97 ? 2 ** 30 : i,
    );
    const errors = new Int32Array(100).fill(-1);
    const map = await xen.mapFrames(HOLES, gfns, true, errors);
    const words = new BigUint64Array(map.buffer());
    for (let i = 0; i < 100; i++) {
      const missing = gfns[i] === 2 ** 30;
      assert.equal(errors[i], missing ? 22 : 0);
      assert.equal(words[i * 512], missing ? 0n : BigInt(i), 'a missing frame reads as zero');
      words[i * 512] = 1n;
    }
    map.release();

    const none = await xen.mapFrames(HOLES, frames(10, 2 ** 20), false, errors);
    assert.ok(errors.subarray(0, 10).every((error) => error === 22));
    assert.ok(
      new Uint8Array(none.buffer()).fill(3).every((byte) => byte === 3),
      'nothing there, and it may be touched',
    );
    none.release();

    const refused = await xen.mapFrames(NONE, frames(3), false, errors);
    assert.deepEqual([...errors.subarray(0, 3)], [1, 1, 1], 'the reason for all is the reason for each');
    assert.ok(new Uint8Array(refused.buffer()).every((byte) => byte === 0));
    refused.release();
  },

  async 'mapping frames that vanish'() {
    const xen = open();
    const errors = new Int32Array(50);
    const map = await xen.mapFrames(FLEETING, frames(50, 1), true, errors);
    const words = new BigUint64Array(map.buffer());
    // Of each run the last one fails, until the run is one frame long.
    assert.deepEqual([...errors], [0, ...Array(49).fill(22)]);
    for (let i = 0; i < 50; i++) assert.equal(words[i * 512], i === 0 ? 1n : 0n);
    map.release();
  },

  async 'nobody looks at what was mapped'() {
    const { mapped } = load();
    const xen = open();
    for (let i = 0; i < 300; i++) void (await xen.mapFrames(FAST, frames(16), false, new Int32Array(16)));
    await collectUntil(() => mapped().regions === 0);
    assert.deepEqual(mapped(), { regions: 0, bytes: 0 });
  },

  async 'many batches'() {
    const { mapped } = load();
    const xen = open();
    const errors = new Int32Array(4);
    const gfns = frames(4);
    let most = 0;
    for (let i = 0; i < 5000; i++) {
      const map = await xen.mapFrames(FAST, gfns, false, errors);
      assert.equal(new Uint8Array(map.buffer(), PAGE, 1)[0], 1);
      map.release();
      most = Math.max(most, mapped().regions);
    }
    assert.equal(mapped().bytes, 0);
    // Addresses wait for the garbage collector, and Linux allows a process 65530 mappings.
    assert.ok(most < 2500, `${most} regions at once`);
    console.log(most);
  },

  async populate() {
    const xen = open();
    const pfns = frames(5);
    assert.equal(await xen.populate(FAST, pfns, 0), 4, 'short is no error');
    assert.deepEqual([...pfns], [1000, 1001, 1002, 1003, -1]);
  },

  async 'log dirty'() {
    const xen = open();
    const bitmap = new Uint32Array(5).fill(0xffffffff);
    assert.deepEqual(await xen.logDirty(FAST, true, false, bitmap, 100), {
      pages: 100,
      dirtyCount: 7,
      faultCount: 0,
    });
    // 13 bytes from Xen, and the rest of the last word is zero.
    assert.deepEqual([...bitmap], [0x81818181, 0x81818181, 0x81818181, 0x81, 0xffffffff]);
    assert.deepEqual(await xen.logDirty(FAST, false, true, bitmap, 1), {
      pages: 1,
      dirtyCount: 8,
      faultCount: 1,
    });
    assert.equal(bitmap[0], 0x81);
  },

  async 'buffers that go'() {
    const xen = open();
    const types = new Uint8Array(3);
    const bitmap = new Uint32Array(1);
    const pfns = frames(3);
    const errors = new Int32Array(3);
    const all = [
      xen.pageTypes(SLOW, frames(3), types),
      xen.logDirty(SLOW, true, false, bitmap, 32),
      xen.populate(SLOW, pfns, 0),
      xen.mapFrames(SLOW, frames(3), false, errors),
    ];
    for (const view of [types, bitmap, pfns, errors])
      structuredClone(view.buffer, { transfer: [view.buffer] });
    await Promise.all(all);
    assert.equal(types.length, 0);
  },

  async 'close with calls in flight'() {
    assert.equal(await handles(), 0);
    const xen = open();
    const slow = [
      xen.domainInfo(SLOW),
      xen.mapFrames(SLOW, frames(4), false, new Int32Array(4)),
      xen.pause(GONE),
    ];
    const ends = Promise.allSettled(slow);
    xen.close();
    xen.close();
    for (const call of [() => xen.domainInfo(FAST), () => xen.calls, () => xen.pause(FAST)]) {
      assert.throws(call, { code: 'EBADF', message: /closed/ });
    }
    assert.equal(await handles(), 1, 'still open for those under way');
    assert.deepEqual(
      (await ends).map(({ status }) => status),
      ['fulfilled', 'fulfilled', 'rejected'],
    );
    await collectUntil(async () => (await handles()) === 0);
    assert.equal(await handles(), 0);
  },

  async 'nobody closes'() {
    (() => {
      for (let i = 0; i < 20; i++) {
        // A callback that leads back to the object, as they do.
        /** @type {NativeXen} */
        const xen = open(() => void xen.calls);
      }
    })();
    await collectUntil(async () => (await handles()) === 0);
    assert.equal(await handles(), 0);
    // A call in flight keeps its object, and the callback.
    let said = 0;
    const call = (() => open(() => said++, 1).pause(SLOW))();
    for (let i = 0; i < 5; i++) {
      globalThis.gc?.();
      await turn();
    }
    await call;
    assert.equal(said, 1);
  },

  arguments() {
    const xen = open();
    const f = Float64Array.of(1);
    const bytes = new Uint8Array(16);
    const config = {
      hvm: true,
      hap: true,
      handle: bytes,
      maxVcpus: 1,
      maxEvtchnPort: -1,
      maxGrantFrames: 1,
      maxMaptrackFrames: 1,
      emulationFlags: 1,
    };
    const TYPE = 'ERR_INVALID_ARG_TYPE';
    const RANGE = 'ERR_OUT_OF_RANGE';
    /** @type {[keyof NativeXen, unknown[], string][]} */
    const bad = [
      ['pause', [], TYPE],
      ['pause', ['1'], TYPE],
      ['pause', [-1], RANGE],
      ['pause', [1.5], RANGE],
      ['pause', [NaN], RANGE],
      ['pause', [0x7ff0], RANGE],
      ['listDomains', [0, 0], RANGE],
      ['listDomains', [0, 1025], RANGE],
      ['pageTypes', [1, [1], bytes], TYPE],
      ['pageTypes', [1, new Float32Array(1), bytes], TYPE],
      ['pageTypes', [1, new Float64Array(0), bytes], RANGE],
      ['pageTypes', [1, new Float64Array(65537), new Uint8Array(65537)], RANGE],
      ['pageTypes', [1, new Float64Array(17), bytes], RANGE],
      ['pageTypes', [1, f, new Int8Array(1)], TYPE],
      ['pageTypes', [1, Float64Array.of(-2), bytes], RANGE],
      ['pageTypes', [1, Float64Array.of(0.5), bytes], RANGE],
      ['pageTypes', [1, Float64Array.of(NaN), bytes], RANGE],
      ['pageTypes', [1, Float64Array.of(2 ** 52), bytes], RANGE],
      ['mapFrames', [1, new Float64Array(1025), false, new Int32Array(1025)], RANGE],
      ['mapFrames', [1, f, 1, new Int32Array(1)], TYPE],
      ['mapFrames', [1, f, false, new Int32Array(0)], RANGE],
      ['mapFrames', [1, f, false, new Uint32Array(1)], TYPE],
      ['populate', [1, f, 1], RANGE],
      ['populate', [1, f], TYPE],
      ['clearPage', [1, '1'], TYPE],
      ['clearPage', [1, -2], RANGE],
      ['logDirty', [1, true, false, new Uint32Array(3), 97], RANGE],
      ['logDirty', [1, true, false, new Uint32Array(3), 0], RANGE],
      ['logDirty', [1, true, false, new Uint32Array(3), -1], RANGE],
      ['logDirty', [1, true, false, new Uint32Array(3), 2 ** 40], RANGE],
      ['logDirty', [1, true, false, bytes, 8], TYPE],
      ['logDirty', [1, 0, false, new Uint32Array(3), 8], TYPE],
      ['setHvmContext', [1, [1]], TYPE],
      ['hvmParam', [1, 4096], RANGE],
      ['setHvmParam', [1, 1, 1], TYPE],
      ['setHvmParam', [1, 1, -1n], RANGE],
      ['setHvmParam', [1, 1, 1n << 64n], RANGE],
      ['setTscInfo', [1, 0, 0, 0, 0], TYPE],
      ['setTscInfo', [1, 2 ** 32, 0, 0n, 0], RANGE],
      ['setCpuPolicy', [1, new Uint8Array(25), new Uint8Array(0)], RANGE],
      ['setCpuPolicy', [1, new Uint8Array(24), new Uint8Array(15)], RANGE],
      ['setCpuPolicy', [1, new Uint8Array(2 ** 20 + 1), new Uint8Array(0)], RANGE],
      ['setGuestWidth', [1, 5], RANGE],
      ['vcpuOnline', [1, 8192], RANGE],
      ['vcpuState', [1, 0, 4], RANGE],
      ['setVcpuState', [1, 0, 0, new Uint8Array(2 ** 20 + 1)], RANGE],
      ['setVcpuState', [1, 0, 0, 'x'], TYPE],
      ['pinTables', [1, Uint8Array.of(1, 2), f], RANGE],
      ['pinTables', [1, Uint8Array.of(0), f], RANGE],
      ['pinTables', [1, Uint8Array.of(5), f], RANGE],
      ['seedGrantTable', [1, true, 1, 2, 0], TYPE],
      ['seedGrantTable', [1, true, 1, 2, 0, 0x7ff1], RANGE],
      ['seedGrantTable', [1, 1, 1, 2, 0, 0], TYPE],
      ['shutdown', [1, 6], RANGE],
      ['resume', [1], TYPE],
      ['subscribe', [1, 0], RANGE],
      ['createDomain', [], TYPE],
      ['createDomain', [{ ...config, hvm: 1 }], TYPE],
      ['createDomain', [{ ...config, handle: new Uint8Array(15) }], RANGE],
      ['createDomain', [{ ...config, handle: [] }], TYPE],
      ['createDomain', [{ ...config, maxVcpus: 0 }], RANGE],
      ['createDomain', [{ ...config, maxEvtchnPort: -2 }], RANGE],
      ['createDomain', [{ ...config, emulationFlags: 2 ** 32 }], RANGE],
      ['createDomain', [{ ...config, emulationFlags: 0.5 }], RANGE],
      ['setMaxVcpus', [1, 0], RANGE],
      ['setMaxMemory', [1, -1], RANGE],
      ['setPagingAllocation', [1, 2 ** 21], RANGE],
      ['allocUnbound', [1, -1], RANGE],
    ];
    for (const [method, args, code] of bad) {
      const call = /** @type {(...args: unknown[]) => unknown} */ (xen[method]).bind(xen, ...args);
      assert.throws(call, { code }, `${method}(${args.map(String).join(', ')})`);
    }
    assert.deepEqual({ ...xen.calls }, {}, 'nothing was done');
    const { Xen } = load();
    assert.ok(Xen !== undefined);
    assert.throws(() => Reflect.construct(Xen, []), { code: TYPE });
    assert.throws(() => Reflect.construct(Xen, [() => {}, 0]), { code: RANGE });
  },

  receivers() {
    const { PageMap, Xen, Evtchn } = load();
    assert.ok(Xen !== undefined && Evtchn !== undefined);
    for (const receiver of [new PageMap(1), {}, null, Object.create(Xen.prototype)]) {
      for (const name of Object.getOwnPropertyNames(Xen.prototype)) {
        const { value, get } = Object.getOwnPropertyDescriptor(Xen.prototype, name) ?? {};
        if (name === 'constructor') continue;
        assert.throws(() => Reflect.apply(get ?? value, receiver, [1]), TypeError, name);
      }
      const { get } = Object.getOwnPropertyDescriptor(Evtchn.prototype, 'fd') ?? {};
      assert.ok(get !== undefined);
      assert.throws(() => Reflect.apply(get, receiver, []), TypeError);
    }
  },

  async 'process ends with calls in flight'() {
    const xen = open();
    kept.push(xen, xen.domainInfo(SLOW), xen.mapFrames(SLOW, frames(9), true, new Int32Array(9)));
    for (let i = 0; i < 6; i++) kept.push(xen.pageTypes(SLOW, frames(9), new Uint8Array(9)));
    await turn();
    process.exit(0);
  },

  async 'workers are terminated with calls in flight'() {
    for (let round = 0; round < 6; round++) {
      const workers = await Promise.all(Array.from({ length: 3 }, () => startWorker('in flight')));
      for (let i = 0; i < round; i++) await turn();
      await Promise.all(workers.map((worker) => worker.terminate()));
    }
    await collectUntil(async () => (await handles()) === 0);
    assert.equal(await handles(), 0);
    assert.deepEqual(load().mapped(), { regions: 0, bytes: 0 });
  },
};

/** @param {string} part @returns {Promise<Worker>} once it has said that it is ready */
function startWorker(part) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(fileURLToPath(import.meta.url), { workerData: { file, part } });
    worker.once('message', () => resolve(worker));
    worker.once('error', reject);
  });
}

if (isMainThread) {
  await scenarios[String(process.argv[3])]?.();
} else {
  const log = () => {};
  const xen = open(log, 1);
  // Each ends at its own time, and starts the next: there is always something under way, and never much.
  const map = async () =>
    kept.push((await xen.mapFrames(FAST, frames(64), true, new Int32Array(64))).buffer());
  const fail = () => xen.pause(GONE).catch(() => {});
  const wait = () => xen.domainInfo(SLOW);
  for (const step of [map, fail, wait]) {
    void (async () => {
      for (;;) await step();
    })();
  }
  parentPort?.postMessage('ready');
}
