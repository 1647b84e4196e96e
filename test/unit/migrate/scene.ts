/** A whole migration between two fake hosts, and what must hold after it, however it went. */
import { expect } from 'vitest';
import { XenMigrationError } from '../../../lib/errors.js';
import { JobControl } from '../../../lib/job.js';
import { runReceive } from '../../../lib/migrate/receiver.js';
import { runMigrate, type SenderOptions } from '../../../lib/migrate/sender.js';
import type { MigrateResult, ReceiveOptions, ReceiveResult } from '../../../lib/migrate/types.js';
import { SaveSteering } from '../../../lib/save/steering.js';
import { duplexPair, FakeHost, fakeRestore, fakeSave, World, type FakeDomain, type Fault } from './fakes.js';

export const ID = '01234567-89ab-4cde-8f01-23456789abcd';
export const MEMORY = 350;

export interface SceneOptions {
  readonly toReceiver?: Fault;
  readonly toSender?: Fault;
  readonly paused?: boolean;
  /** Bytes of the guest's memory. */
  readonly memory?: number;
  readonly send?: Partial<SenderOptions>;
  readonly receive?: Partial<ReceiveOptions>;
  readonly save?: typeof fakeSave;
  readonly restore?: typeof fakeRestore;
}

export type Outcome<T> = { readonly value: T } | { readonly error: XenMigrationError };

export interface Scene {
  readonly world: World;
  readonly source: FakeHost;
  readonly destination: FakeHost;
  readonly guest: FakeDomain;
  readonly memory: Uint8Array;
  readonly sender: JobControl;
  readonly receiver: JobControl;
  readonly ends: ReturnType<typeof duplexPair>;
  readonly sent: Promise<Outcome<MigrateResult>>;
  readonly received: Promise<Outcome<ReceiveResult>>;
}

/** Starts both ends. */
export function play(options: SceneOptions = {}): Scene {
  const world = new World();
  const source = new FakeHost(world);
  const destination = new FakeHost(world);
  const memory = Uint8Array.from({ length: options.memory ?? MEMORY }, (_, i) => (i * 7) & 0xff);
  const guest = source.add({
    suspended: false,
    paused: options.paused ?? false,
    memory,
    config: '{"c_info":{"name":"guest"}}',
  });
  const ends = duplexPair(options.toReceiver, options.toSender);
  const sendOptions = { domid: guest.domid, peer: ends[0], id: ID, ...options.send };
  const receiveOptions = { from: ends[1], ...options.receive };
  const sender = new JobControl('migrate', guest.domid, sendOptions);
  const receiver = new JobControl('receive', undefined, receiveOptions);
  const steering = new SaveSteering();
  const sent = outcome(
    sender.run(() => runMigrate(sender, source, sendOptions, steering, options.save ?? fakeSave)),
  );
  const received = outcome(
    receiver.run(() => runReceive(receiver, destination, receiveOptions, options.restore ?? fakeRestore)),
  );
  return { world, source, destination, guest, memory, sender, receiver, ends, sent, received };
}

async function outcome<T>(promise: Promise<T>): Promise<Outcome<T>> {
  try {
    return { value: await promise };
  } catch (error) {
    if (!XenMigrationError.is(error)) throw error;
    return { error };
  }
}

export interface Ending {
  readonly sent: Outcome<MigrateResult>;
  readonly received: Outcome<ReceiveResult>;
  /** Where the sender says that the guest is. */
  readonly place: 'source' | 'destination' | 'unknown';
}

/** Waits for both ends and checks the invariants that no failure may break. */
export async function endOf(scene: Scene): Promise<Ending> {
  const [sent, received] = await Promise.all([scene.sent, scene.received]);
  const { world, source, destination, guest, memory } = scene;
  expect(world.mostRunning).toBeLessThanOrEqual(1);
  for (const end of scene.ends) expect(end.destroyed).toBe(true);
  const copies = [...destination.domains.values()];
  expect(copies.length).toBeLessThanOrEqual(1);
  const place = 'value' in sent ? 'destination' : sent.error.guest?.host;
  switch (place) {
    case 'source':
      expect(copies).toEqual([]);
      expect(source.domains.get(guest.domid)).toBe(guest);
      expect(guest.suspended).toBe(false);
      if ('error' in sent) expect(sent.error.guest?.state).toBe(guest.paused ? 'paused' : 'running');
      expect('error' in received).toBe(true);
      break;
    case 'destination':
      expect(copies[0]?.memory).toEqual(Buffer.from(memory));
      expect(copies[0]?.paused).toBe(guest.paused);
      expect('value' in received).toBe(true);
      break;
    case 'unknown':
      if ('error' in sent) expect(sent.error.code).toBe('ERR_XEN_HANDOVER_UNKNOWN');
      expect(source.domains.get(guest.domid)).toBe(guest);
      expect(guest.suspended).toBe(true);
      // Either it runs there, or nothing is left there; never a half-built or paused copy.
      if ('value' in received) expect(copies[0]?.paused).toBe(guest.paused);
      else expect(copies).toEqual([]);
      break;
    default:
      expect.unreachable(`the sender does not know of any place: ${String(place)}`);
  }
  return { sent, received, place };
}

/** The error of an outcome that must be one. */
export function errorOf(outcome: Outcome<unknown>): XenMigrationError {
  if ('value' in outcome) expect.unreachable('it succeeded');
  return (outcome as { error: XenMigrationError }).error;
}
