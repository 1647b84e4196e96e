/** The save helper against a libxl that is as strict as the real one, with guests that run meanwhile. */
import { afterEach, describe, expect, it } from 'vitest';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import type { SimulatedGuest } from '../../lib/host/simulated/guest.js';
import type { CreateGuestOptions } from '../../lib/host/simulated/toolstack.js';
import type { HelperMessage } from '../../lib/helper/protocol.js';
import { MemorySource } from '../../lib/transport/memory.js';
import { verify } from '../../lib/stream/verify/verify.js';
import { HelperRun, obliging, type Answerer } from '../unit/helper/fake-libxl.js';

const MIB = 1 << 20;
const busy = { kind: 'hot-set', rate: 20_000 } as const;
const ECANCELED = 125;
const EINVAL = 22;
const EPIPE = 32;
const EOPNOTSUPP = 95;

let hosts: SimulatedHost[] = [];
afterEach(async () => {
  const closing = hosts;
  hosts = [];
  await Promise.all(closing.map((host) => host.close()));
});

function newHost(seed: number): SimulatedHost {
  const host = new SimulatedHost({ memory: 256 * MIB, seed });
  hosts.push(host);
  return host;
}

const kinds = ['hvm', 'pvh', 'pv', 'pv32'] as const;
const LIVE = 1;
const DEBUG = 2;

interface Save {
  readonly host: SimulatedHost;
  readonly guest: SimulatedGuest;
  readonly run: HelperRun;
}

async function prepareSave(options: CreateGuestOptions = {}, answer?: Answerer): Promise<Save> {
  const host = newHost(1);
  const guest = await host.createGuest({ memory: 16 * MIB, kind: 'hvm', workload: busy, ...options });
  return { host, guest, run: new HelperRun(answer ?? obliging(host, guest.domid)) };
}

function startSave({ host, guest, run }: Save, flags = LIVE, env = {}, more: Partial<Argv> = {}): HelperRun {
  const { recvFd = '-1', callbacks = '136', streamType = '0' } = more;
  const argv = ['--save-domain', '11', recvFd, `${guest.domid}`, `${flags}`, callbacks, streamType];
  return run.start(host, argv, env);
}

interface Argv {
  readonly recvFd: string;
  readonly callbacks: string;
  readonly streamType: string;
}

/** Starts a restore of a stream into a domain like the guest's own. */
async function startRestore(
  from: Save,
  input: Uint8Array,
  answer?: (domid: number, host: SimulatedHost) => Answerer,
): Promise<{ host: SimulatedHost; domid: number; run: HelperRun }> {
  const host = newHost(2);
  const config = await from.host.toolstack.domainConfig(from.guest.domid);
  const domid = await host.toolstack.createDomain(config);
  const { storeEvtchn, storeDomid, consoleEvtchn, consoleDomid } = await host.toolstack.backendWiring(domid);
  const run = new HelperRun(answer?.(domid, host) ?? obliging(host, domid));
  run.fd.input = input;
  const wiring = [storeEvtchn, storeDomid, consoleEvtchn, consoleDomid].map(String);
  run.start(host, ['--restore-domain', '9', '-1', `${domid}`, ...wiring, '768', '0']);
  return { host, domid, run };
}

/** What must hold after every save, good or bad. */
async function expectQuiet({ host, guest, run }: Save): Promise<void> {
  expect(run.libxl.violations).toEqual([]);
  expect(host.mappings).toBe(0);
  expect(host.inspect(guest.domid).state.logDirty.enabled).toBe(false);
  expect(guest.deviceModel?.logDirty ?? false).toBe(false);
  // libxl resumes after a failure; the guest must be one that can be.
  await host.toolstack.resume(guest.domid);
  expect(await guest.check()).toMatchObject({ errors: 0 });
}

async function expectValid(stream: Uint8Array): Promise<void> {
  const report = await verify(new MemorySource(stream), { format: 'libxc' });
  expect(report.findings.filter((f) => f.severity === 'error')).toEqual([]);
}

describe.each(kinds)('a %s guest', (kind) => {
  const hvm = kind === 'hvm' || kind === 'pvh';
  const on = hvm ? ['logdirty 1'] : [];
  const off = hvm ? ['logdirty 0'] : [];

  it.each([
    ['live', LIVE],
    ['not live', 0],
    ['live and verified', LIVE | DEBUG],
  ])('is saved %s, and restored', async (_name, flags) => {
    const save = await prepareSave({ kind });
    const { run, host, guest } = save;
    expect(await startSave(save, flags).exit).toBe(0);

    const suspend = flags === 0 ? ['suspend', ...on] : [...on, 'suspend'];
    expect(run.libxl.callbacks).toEqual([...suspend, ...off, 'complete 0 0']);
    expect(run.libxl.errors).toEqual([]);
    expect(run.libxl.messages.at(0)).toMatchObject({ kind: 'log', context: 'libxl-save-helper', level: 1 });
    expect(run.fd.spoiled).toBe(false);
    const passes = run.libxl.progress.filter((text) => text.startsWith('Frames iteration'));
    expect(passes).toEqual(flags === 0 ? [] : passes.map((_, i) => `Frames iteration ${i}`));
    expect(passes.length > 1).toBe(flags !== 0);
    const others = run.libxl.progress.filter((text) => !text.startsWith('Frames iteration'));
    const memory = flags === 0 ? ['Frames'] : (flags & DEBUG) !== 0 ? ['Frames verify'] : [];
    const before = ['Start of stream', 'Domain now suspended'];
    expect(others).toEqual([...before, ...memory, 'End of stream', 'Complete']);
    if (flags !== 0) expect(run.libxl.progress[1]).toBe('Frames iteration 0');
    await expectValid(run.fd.bytes);
    // The guest is libxl's: suspended, neither destroyed nor resumed.
    expect((await host.listDomains()).find(({ domid }) => domid === guest.domid)).toMatchObject({
      shutdown: true,
      shutdownReason: 2,
    });
    const deviceModel = await host.toolstack.deviceModelState(guest.domid);

    const rest = Buffer.from('what libxl wrote behind it');
    const there = await startRestore(save, Buffer.concat([run.fd.bytes, rest]));
    expect(await there.run.exit).toBe(0);
    expect(there.run.libxl.violations).toEqual([]);
    expect(there.run.libxl.errors).toEqual([]);
    expect(there.run.libxl.callbacks).toEqual(['static_data_done 0', 'results', 'complete 0 0']);
    expect(there.run.terminate).toBeUndefined();
    expect(there.run.unblocked).toBe(true);
    // Not a byte of libxl's was read.
    expect(there.run.fd.position).toBe(run.fd.bytes.length);
    const results = there.run.libxl.messages.find((m) => m.kind === 'restore_results')!;
    await there.host.toolstack.finishRestore(there.domid, results);
    if (deviceModel !== undefined) {
      await there.host.toolstack.loadDeviceModelState(there.domid, deviceModel);
    }
    await there.host.toolstack.unpause(there.domid);
    expect(await there.host.guest(there.domid).check()).toMatchObject({ errors: 0 });
    await expectQuiet(save);
  });

  it('is left as it was by every callback that fails, and every end of libxl', async () => {
    const answers: [string, (message: HelperMessage) => number | 'gone' | undefined][] = [
      ['suspend refused', (m) => (m.kind === 'suspend' ? 0 : undefined)],
      ['libxl gone in suspend', (m) => (m.kind === 'suspend' ? 'gone' : undefined)],
    ];
    if (hvm) {
      answers.push(
        ['log-dirty refused', (m) => (m.kind === 'switch_qemu_logdirty' && m.enable === 1 ? -1 : undefined)],
        ['libxl gone in log-dirty', (m) => (m.kind === 'switch_qemu_logdirty' ? 'gone' : undefined)],
        ['libxl gone at the end', (m) => (m.kind === 'complete' ? 'gone' : undefined)],
      );
    }
    for (const [name, failing] of answers) {
      for (const flags of [0, LIVE]) {
        const save = await prepareSave({ kind });
        const answer = obliging(save.host, save.guest.domid);
        const run = new HelperRun((message, libxl) => failing(message) ?? answer(message, libxl));
        const gone = name.includes('gone');
        const exit = await startSave({ ...save, run }, flags).exit;
        expect(exit, `${name} ${flags}`).toBe(gone ? 1 : 0);
        if (!gone) {
          expect(run.libxl.complete?.retval, name).toBe(-1);
          expect(run.libxl.complete?.errno, name).toBeGreaterThan(0);
          expect(run.libxl.errors.length, name).toBeGreaterThan(0);
          if (hvm)
            expect(run.libxl.callbacks.slice(-2, -1), name).toEqual(
              flags === 0 && name === 'suspend refused' ? ['suspend'] : ['logdirty 0'],
            );
        } else if (save.guest.deviceModel !== undefined) {
          // Nobody is left who could do it.
          save.guest.deviceModel.logDirty = false;
        }
        await expectQuiet({ ...save, run });
      }
    }
  });
});

describe('SIGTERM', () => {
  it('at every message ends a save with all undone', async () => {
    // One message after the other is the moment, until a save no longer notices.
    let noticed = 0;
    for (let at = 1; at < 400; at = Math.ceil(at * 1.4)) {
      const save = await prepareSave({ kind: at % 2 === 0 ? 'hvm' : 'pv' });
      const { run } = save;
      let seen = 0;
      run.libxl.onMessage = () => {
        if (++seen >= at) run.terminate?.();
      };
      expect(await startSave(save).exit).toBe(0);
      const complete = run.libxl.complete!;
      if (complete.retval === 0) {
        expect(seen).toBeGreaterThan(0);
        await expectQuiet(save);
        break;
      }
      noticed++;
      expect(complete).toMatchObject({ retval: -1, errno: ECANCELED });
      expect(run.fd.spoiled).toBe(true);
      expect(run.libxl.errors.join()).toMatch(/SIGTERM/);
      await expectQuiet(save);
    }
    expect(noticed).toBeGreaterThan(5);
  });

  it('while libxl suspends the guest waits for its answer', async () => {
    const save = await prepareSave();
    const answer = obliging(save.host, save.guest.domid);
    const run: HelperRun = new HelperRun(async (message, libxl) => {
      if (message.kind !== 'suspend') return answer(message, libxl);
      run.terminate!();
      await new Promise((resolve) => setTimeout(resolve, 30));
      return answer(message, libxl);
    });
    expect(await startSave({ ...save, run }).exit).toBe(0);
    expect(run.libxl.callbacks).toEqual(['logdirty 1', 'suspend', 'logdirty 0', `complete -1 ${ECANCELED}`]);
    await expectQuiet({ ...save, run });
  });

  it('during a write that nobody takes ends it', async () => {
    const save = await prepareSave();
    const { run } = save;
    run.fd.before = async (index) => {
      if (index !== 5) return;
      setTimeout(() => run.terminate!(), 20);
      await run.fd.stall();
    };
    expect(await startSave(save).exit).toBe(0);
    expect(run.libxl.callbacks).toEqual(['logdirty 1', 'logdirty 0', `complete -1 ${ECANCELED}`]);
    await expectQuiet(save);
  });

  it('while log-dirty is turned off, and again and again, changes nothing', async () => {
    const save = await prepareSave();
    const { run } = save;
    run.libxl.onMessage = (message) => {
      if (message.kind !== 'switch_qemu_logdirty' && message.kind !== 'complete') return;
      run.terminate!();
      run.terminate!();
    };
    expect(await startSave(save).exit).toBe(0);
    expect(run.libxl.callbacks).toEqual(['logdirty 1', 'logdirty 0', `complete -1 ${ECANCELED}`]);
    await expectQuiet(save);
  });
});

describe('a save', () => {
  it.each([
    ['a reader that is gone', 'EPIPE', EPIPE],
    ['a full disk', 'ENOSPC', 28],
    ['a lost connection', 'ECONNRESET', 104],
    ['a page that cannot be read', 'EFAULT', 14],
  ])('to %s says so', async (_name, code, errno) => {
    for (const index of [0, 3, 6]) {
      const save = await prepareSave();
      const { run } = save;
      run.fd.before = (n) => {
        if (n === index)
          throw Object.assign(new Error(`writev: ${code}`), { code, errno, syscall: 'writev' });
      };
      expect(await startSave(save).exit).toBe(0);
      expect(run.libxl.complete).toMatchObject({ retval: -1, errno });
      expect(run.libxl.errors.join('\n')).toMatch(new RegExp(`writing fd 11: .*${code}`));
      await expectQuiet(save);
    }
  });

  it('with a refused hypercall gives its errno', async () => {
    for (const call of [
      'info',
      'maxGpfn',
      'pageTypes',
      'mapFrames',
      'logDirty',
      'tscInfo',
      'hvmContext',
    ] as const) {
      const save = await prepareSave();
      save.host.faults.add({ call, errno: 12 });
      expect(await startSave(save).exit).toBe(0);
      expect(save.run.libxl.complete, call).toMatchObject({ retval: -1, errno: 12 });
      await expectQuiet(save);
    }
  });

  it('of no domain says so', async () => {
    const save = await prepareSave();
    const run = save.run.start(save.host, ['--save-domain', '11', '-1', '999', '1', '136', '0']);
    expect(await run.exit).toBe(0);
    expect(run.libxl.callbacks).toEqual(['complete -1 3']);
  });

  it('takes its limits from the environment', async () => {
    const save = await prepareSave();
    expect(await startSave(save, LIVE, { XEN_MIGRATE_MAX_ITERATIONS: '1' }).exit).toBe(0);
    expect(save.run.libxl.progress.filter((text) => text.startsWith('Frames'))).toEqual([
      'Frames iteration 0',
      'Frames iteration 1',
    ]);
  });

  it('with a limit that cannot be fails before anything happened', async () => {
    for (const env of [{ XEN_MIGRATE_MAX_ITERATIONS: 'x' }, { XEN_MIGRATE_NO_SUCH: '1' }]) {
      const save = await prepareSave();
      expect(await startSave(save, LIVE, env).exit).toBe(0);
      expect(save.run.libxl.callbacks).toEqual([`complete -1 ${EINVAL}`]);
      expect(save.run.libxl.errors.join()).toContain(Object.keys(env)[0]);
      expect(save.run.opened).toBe(0);
      expect(save.run.fd.bytes.length).toBe(0);
    }
  });

  it.each(['1', '2'])('of stream type %s is refused', async (streamType) => {
    const save = await prepareSave();
    expect(await startSave(save, LIVE, {}, { streamType, callbacks: '248' }).exit).toBe(0);
    expect(save.run.libxl.callbacks).toEqual([`complete -1 ${EOPNOTSUPP}`]);
    expect(save.run.opened).toBe(0);
  });

  it('of a guest whose device model libxl does not want asked is refused', async () => {
    const save = await prepareSave();
    expect(await startSave(save, LIVE, {}, { callbacks: '8' }).exit).toBe(0);
    expect(save.run.libxl.callbacks).toEqual([`complete -1 ${EINVAL}`]);
    await expectQuiet(save);
  });

  it('ignores a back channel that it has no use for', async () => {
    const save = await prepareSave();
    expect(await startSave(save, LIVE, {}, { recvFd: '0' }).exit).toBe(0);
    expect(save.run.libxl.complete).toMatchObject({ retval: 0 });
  });

  it('takes any answer to suspend but 0 for yes, and asks the hypervisor', async () => {
    const save = await prepareSave();
    const run = new HelperRun((message) => (message.kind === 'suspend' ? -1 : 0));
    expect(await startSave({ ...save, run }).exit).toBe(0);
    expect(run.libxl.complete?.retval).toBe(-1);
    expect(run.libxl.errors.join()).toMatch(/has not been suspended/);
    await expectQuiet({ ...save, run });
  });

  it('without libxl from the beginning does nothing', async () => {
    const save = await prepareSave();
    save.run.libxl.gone = true;
    expect(await startSave(save).exit).toBe(1);
    expect(save.run.complaints.join()).toMatch(/libxl is gone/);
    expect(save.run.fd.bytes.length).toBe(0);
    await expectQuiet(save);
  });

  it('ends when libxl goes away in the middle', async () => {
    const save = await prepareSave({ memory: 32 * MIB });
    save.run.libxl.onMessage = (message) => {
      if (message.kind === 'progress' && message.what === 'Frames iteration 0') save.run.libxl.gone = true;
    };
    expect(await startSave(save).exit).toBe(1);
    save.guest.deviceModel!.logDirty = false;
    await expectQuiet(save);
  });
});

describe('a restore', () => {
  async function stream(): Promise<{ save: Save; bytes: Buffer }> {
    const save = await prepareSave();
    await startSave(save, 0).exit;
    return { save, bytes: save.run.fd.bytes };
  }

  it('that fails gives empty results and an errno', async () => {
    const { save, bytes } = await stream();
    const bad = Buffer.from(bytes);
    bad[8] = 0;
    const cases: [string, Uint8Array, RegExp, number][] = [
      ['cut off', bytes.subarray(0, bytes.length - 100), /TSC_INFO|HVM|record|ends/, 61],
      ['empty', new Uint8Array(0), /ends/, 61],
      ['no stream', bad, /XENF|id/, 74],
    ];
    for (const [name, input, text, errno] of cases) {
      const there = await startRestore(save, input);
      expect(await there.run.exit, name).toBe(0);
      expect(there.run.libxl.callbacks.slice(-2), name).toEqual(['results none', `complete -1 ${errno}`]);
      expect(there.run.libxl.errors.join('\n'), name).toMatch(text);
      expect(there.run.libxl.violations).toEqual([]);
      expect(there.host.mappings).toBe(0);
      // The domain is libxl's to destroy.
      expect(await there.host.listDomains()).toHaveLength(1);
    }
  });

  it('whose static data libxl cannot complete fails', async () => {
    const { save, bytes } = await stream();
    const there = await startRestore(save, bytes, () => (m) => (m.kind === 'static_data_done' ? 3 : 0));
    expect(await there.run.exit).toBe(0);
    expect(there.run.libxl.callbacks).toEqual([
      'static_data_done 0',
      'results none',
      `complete -1 ${EINVAL}`,
    ]);
  });

  it('ends when libxl is gone', async () => {
    const { save, bytes } = await stream();
    const there = await startRestore(save, bytes, () => (m) => (m.kind === 'static_data_done' ? 'gone' : 0));
    expect(await there.run.exit).toBe(1);
    expect(there.run.complaints.join()).toMatch(/libxl is gone/);
  });

  it('whose memory runs out says so', async () => {
    const { save, bytes } = await stream();
    const host = newHost(3);
    const config = await save.host.toolstack.domainConfig(save.guest.domid);
    const domid = await host.toolstack.createDomain(config);
    host.faults.add({ call: 'populate', errno: 12, times: 1000 });
    const run = new HelperRun(obliging(host, domid));
    run.fd.input = bytes;
    run.start(host, ['--restore-domain', '9', '-1', `${domid}`, '1', '0', '2', '0', '768', '0']);
    expect(await run.exit).toBe(0);
    expect(run.libxl.complete).toMatchObject({ retval: -1, errno: 12 });
  });
});

describe('without libxl', () => {
  it('a person is told what this is', async () => {
    const save = await prepareSave();
    for (const argv of [[], ['--help'], ['--save-domain', '1']]) {
      const run = new HelperRun(() => 0).start(save.host, argv);
      expect(await run.exit).toBe(2);
      expect(run.complaints.join()).toMatch(/LIBXL_SAVE_HELPER/);
      expect(run.libxl.messages).toEqual([]);
    }
  });
});
