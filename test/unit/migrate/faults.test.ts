/** Every byte of a migration as the place of a fault: the invariants of scene.ts hold after each. */
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { CancelledError, TimeoutError } from '../../../lib/errors.js';
import { encodeFrame, FrameType, type Frame } from '../../../lib/migrate/frames.js';
import { SOFTWARE } from '../../../lib/version.js';
import type { JobControl } from '../../../lib/job.js';
import { streamLength, type fakeRestore, type Fault } from './fakes.js';
import { endOf, errorOf, ID, MEMORY, play, type Ending, type Scene } from './scene.js';

/** Where each frame begins, in the bytes of its direction. */
interface Layout {
  /** Sender: HELLO with preamble, stream, YOURS, RELEASED, end. */
  readonly stream: number;
  readonly yours: number;
  readonly released: number;
  readonly senderEnd: number;
  /** Receiver: READY with preamble, RESTORED, RUNNING, end. */
  readonly restored: number;
  readonly running: number;
  readonly receiverEnd: number;
}

let layout: Layout;

beforeAll(async () => {
  const scene = play();
  await endOf(scene);
  const [toReceiver, toSender] = scene.ends.map((end) => end.sent) as [number, number];
  const length = (frame: Parameters<typeof encodeFrame>[0]): number => encodeFrame(frame).length;
  const released = toReceiver - length({ type: FrameType.RELEASED });
  const yours = released - length({ type: FrameType.YOURS, id: ID });
  const running = toSender - length({ type: FrameType.RUNNING, domid: 1, state: 'running' });
  const restored = running - length({ type: FrameType.RESTORED, domid: 1, bytes: streamLength(MEMORY) });
  layout = {
    stream: yours - streamLength(MEMORY),
    yours,
    released,
    senderEnd: toReceiver,
    restored,
    running,
    receiverEnd: toSender,
  };
  expect(restored).toBe(16 + length(READY));
});

const READY: Frame = {
  type: FrameType.READY,
  id: ID,
  version: 1,
  software: SOFTWARE,
  compression: undefined,
  host: undefined,
};

const directions = ['toReceiver', 'toSender'] as const;

function* offsets(direction: (typeof directions)[number]): Generator<number> {
  const end = direction === 'toReceiver' ? layout.senderEnd : layout.receiverEnd;
  for (let at = 0; at < end; at++) yield at;
}

/** Where the guest may be after a fault at this byte. */
function possiblePlaces(direction: (typeof directions)[number], at: number): string[] {
  if (direction === 'toReceiver') {
    if (at < layout.yours) return ['source'];
    return at < layout.released ? ['unknown'] : ['destination'];
  }
  return at < layout.running ? ['source'] : ['unknown'];
}

// Time is virtual: what waits for something that will not come costs nothing.
beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

/** Lets virtual time pass until both ends have settled. */
async function endInTime(scene: Scene, ms = 600_000): Promise<Ending> {
  const settled = { both: false };
  const ending = endOf(scene).finally(() => {
    settled.both = true;
  });
  ending.catch(() => undefined);
  for (let passed = 0; !settled.both && passed < ms; passed += 500) await vi.advanceTimersByTimeAsync(500);
  expect(settled.both, 'both ends settle in time').toBe(true);
  for (const end of scene.ends) end.forgetLate();
  expect(vi.getTimerCount(), 'timers left').toBe(0);
  return ending;
}

function playWith(direction: (typeof directions)[number], fault: Fault): Promise<Ending> {
  return endInTime(play({ [direction]: fault }));
}

describe.each(directions)('%s', (direction) => {
  test('the connection cut before every byte', async () => {
    for (const at of offsets(direction)) {
      const { sent, place } = await playWith(direction, { cutAt: at });
      expect(possiblePlaces(direction, at), `cut at ${at}`).toContain(place);
      if (place === 'source') expect(errorOf(sent).code, `cut at ${at}`).toBe('ERR_XEN_PEER_LOST');
    }
  });

  test('every byte of the handshake inverted', async () => {
    for (const at of offsets(direction)) {
      const inMemory =
        direction === 'toReceiver' && at >= layout.stream + 8 && at < layout.stream + 8 + MEMORY;
      if (inMemory) continue;
      // The last frame's garbling comes too late to matter; elsewhere some bytes are not looked at.
      const { place } = await playWith(direction, { garbleAt: at });
      if (place !== 'destination') {
        expect(possiblePlaces(direction, at).concat('source'), `garbled at ${at}`).toContain(place);
      }
    }
  });

  test('cancelled by the sender at every byte', async () => {
    for (const at of offsets(direction)) {
      const live: { scene?: Scene } = {};
      const notice = { at, act: () => live.scene?.sender.cancel('changed my mind') };
      const scene = (live.scene = play({ [direction]: { notice } }));
      const { sent, place } = await endInTime(scene);
      expect(['source', 'destination'], `cancelled at ${at}`).toContain(place);
      if (place === 'source') expect(errorOf(sent), `cancelled at ${at}`).toBeInstanceOf(CancelledError);
      const committed = direction === 'toReceiver' ? at >= layout.yours : at >= layout.running;
      expect(place === 'destination', `cancelled at ${at}`).toBe(committed);
    }
  });

  test('cancelled by the receiver at every byte', async () => {
    for (const at of offsets(direction)) {
      const live: { scene?: Scene } = {};
      const notice = { at, act: () => live.scene?.receiver.cancel('no room after all') };
      const scene = (live.scene = play({ [direction]: { notice } }));
      const { sent, received, place } = await endInTime(scene);
      expect(['source', 'destination'], `cancelled at ${at}`).toContain(place);
      if (place !== 'source') continue;
      expect(errorOf(received), `cancelled at ${at}`).toBeInstanceOf(CancelledError);
      expect(errorOf(sent).code, `cancelled at ${at}`).toMatch(/^ERR_XEN_PEER_(REFUSED|LOST)$/);
    }
  });
});

describe('time', () => {
  describe.each(directions)('%s', (direction) => {
    test('silence from every byte on ends within the limits', async () => {
      for (const at of offsets(direction)) {
        const scene = play({ [direction]: { silentAt: at } });
        const { sent, place } = await endInTime(scene, 600_000);
        // A receiver that waits for YOURS in vain says so before the sender's own time is up.
        const toldInTime = direction === 'toReceiver' && at >= layout.yours && at < layout.released;
        expect(toldInTime ? ['source'] : possiblePlaces(direction, at), `silent at ${at}`).toContain(place);
        if (place === 'source') {
          expect(errorOf(sent).code, `silent at ${at}`).toMatch(/^ERR_XEN_(TIMEOUT|PEER_REFUSED|PEER_LOST)$/);
        }
      }
    });

    test('a short delay at any byte does no harm', async () => {
      for (const at of offsets(direction)) {
        const scene = play({ [direction]: { late: { at, ms: 5000 } } });
        const { place } = await endInTime(scene, 20_000);
        expect(place, `late at ${at}`).toBe('destination');
      }
    });

    test('a delay beyond the limits, with everything arriving in the end', async () => {
      for (const at of offsets(direction)) {
        const scene = play({ [direction]: { late: { at, ms: 200_000 } } });
        const { place } = await endInTime(scene, 600_000);
        // A late YOURS finds a receiver that has said FAILED: the guest is back at the source.
        const places = at >= layout.yours ? ['source', 'destination'] : ['source'];
        expect(
          direction === 'toReceiver' ? places : possiblePlaces(direction, at),
          `late at ${at}`,
        ).toContain(place);
      }
    });
  });

  test.each([
    ['hello', 'toSender', (): number => 3],
    ['switchover', 'toSender', (): number => layout.restored],
  ] as const)('the sender names the phase %s (%s)', async (phase, direction, at) => {
    const scene = play({ [direction]: { silentAt: at() } });
    const { sent } = await endInTime(scene, 600_000);
    expect(errorOf(sent)).toMatchObject({ name: 'TimeoutError', phase });
  });

  test('a receiver that takes nothing: the sender gives up', async () => {
    const restore: typeof fakeRestore = (control) => {
      control.enter('memory');
      return new Promise((_resolve, reject) => {
        control.signal.addEventListener('abort', () => reject(control.signal.reason as Error));
      });
    };
    const receive = { timeouts: { totalMs: 200_000 } };
    const scene = play({ restore, receive, memory: 5_000_000 });
    const { sent, place } = await endInTime(scene);
    expect(place).toBe('source');
    expect(errorOf(sent)).toMatchObject({ name: 'TimeoutError', phase: 'stall', ms: 60_000 });
  });

  test('a sender that sends nothing more: the receiver gives up', async () => {
    const scene = play({
      toReceiver: { silentAt: layout.stream + 100 },
      send: { timeouts: { switchoverMs: 400_000 } },
    });
    const { sent, received, place } = await endInTime(scene);
    expect(place).toBe('source');
    expect(errorOf(received)).toMatchObject({ name: 'TimeoutError', phase: 'stall', ms: 180_000 });
    expect(errorOf(sent)).toMatchObject({
      code: 'ERR_XEN_PEER_REFUSED',
      message: 'the receiver failed: the sender has sent nothing for 180 s (ERR_XEN_TIMEOUT)',
    });
  });

  test.each(['sender', 'receiver'] as const)(
    'memory that does not begin to move: setup (%s)',
    async (role) => {
      const never = (control: JobControl): Promise<never> =>
        new Promise((_resolve, reject) => {
          control.signal.addEventListener('abort', () => reject(control.signal.reason as Error));
        });
      const scene = play({
        ...(role === 'sender' ? { save: never } : { restore: never }),
        [role === 'sender' ? 'receive' : 'send']: { timeouts: { setupMs: 300_000, switchoverMs: 300_000 } },
      });
      const { sent, received, place } = await endInTime(scene);
      expect(place).toBe('source');
      expect(errorOf(role === 'sender' ? sent : received)).toMatchObject({
        name: 'TimeoutError',
        phase: 'setup',
        ms: 60_000,
      });
    },
  );

  test('the limit of the whole migration', async () => {
    const scene = play({
      send: { timeouts: { totalMs: 1500 } },
      toReceiver: { late: { at: 300, ms: 3000 } },
    });
    const { sent, place } = await endInTime(scene, 20_000);
    expect(place).toBe('source');
    expect(errorOf(sent)).toBeInstanceOf(TimeoutError);
    expect(errorOf(sent)).toMatchObject({ phase: 'total', ms: 1500 });
  });

  test('a decision of `accept` that does not come', async () => {
    const scene = play({ receive: { accept: () => new Promise<void>(() => undefined) } });
    const { sent, received } = await endInTime(scene, 20_000);
    expect(errorOf(sent).code).toMatch(/^ERR_XEN_(TIMEOUT|PEER_REFUSED)$/);
    expect(errorOf(received)).toMatchObject({ phase: 'hello' });
  });
});
