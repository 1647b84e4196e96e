/** A migration's id at its destination: refused while the matter is open, free again when it is over. */
import { EventEmitter, once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { XenMigrationError } from '../../../lib/errors.js';
import { JobControl } from '../../../lib/job.js';
import { runReceive } from '../../../lib/migrate/receiver.js';
import { runMigrate } from '../../../lib/migrate/sender.js';
import type { MigrateResult, ReceiveResult } from '../../../lib/migrate/types.js';
import { SaveSteering } from '../../../lib/save/steering.js';
import { duplexPair, FakeHost, fakeRestore, fakeSave, World, type FakeDomain } from './fakes.js';
import { ID } from './scene.js';

interface Journey {
  readonly source: FakeHost;
  readonly guest: FakeDomain;
  readonly sent: Promise<MigrateResult>;
  readonly received: Promise<ReceiveResult>;
}

/** Sends a new guest of a new host, always with the same id. */
function send(world: World, destination: FakeHost, restore = fakeRestore): Journey {
  const source = new FakeHost(world, true);
  const config = '{"c_info":{"name":"guest"}}';
  const guest = source.add({ suspended: false, paused: false, memory: new Uint8Array(350), config });
  const [peer, from] = duplexPair();
  const sendOptions = { domid: guest.domid, peer, id: ID };
  const sender = new JobControl('migrate', guest.domid, {});
  const receiver = new JobControl('receive', undefined, {});
  const sent = sender.run(() => runMigrate(sender, source, sendOptions, new SaveSteering(), fakeSave));
  const received = receiver.run(() => runReceive(receiver, destination, { from }, restore));
  for (const end of [sent, received]) end.catch(() => undefined);
  return { source, guest, sent, received };
}

async function errorOf(promise: Promise<unknown>): Promise<XenMigrationError> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(XenMigrationError);
  return error as XenMigrationError;
}

/** The guest goes on where it was, both ends say why, and nothing was done at the destination. */
async function expectRefused(
  { source, guest, sent, received }: Journey,
  destination: FakeHost,
): Promise<void> {
  const calls = [...destination.calls];
  const error = await errorOf(sent);
  expect(error).toMatchObject({ code: 'ERR_XEN_PEER_REFUSED', guest: { host: 'source', state: 'running' } });
  expect(error.message).toMatch(
    /^the receiver refused: migration .* is known here.*\(ERR_XEN_MIGRATION_KNOWN\)$/,
  );
  expect(await errorOf(received)).toMatchObject({
    code: 'ERR_XEN_MIGRATION_KNOWN',
    guest: { host: 'source' },
  });
  expect(destination.calls).toEqual(calls);
  expect(guest).toMatchObject({ suspended: false, paused: false });
  expect(source.calls).toEqual(['domainConfig 1']);
  expect(await source.toolstack.notes?.list()).toEqual([]);
}

describe('an id is refused', () => {
  test('while its migration is under way, which is not disturbed by that', async () => {
    const world = new World();
    const destination = new FakeHost(world, true);
    const [began, open] = [new EventEmitter(), new EventEmitter()];
    const beginning = once(began, 'now');
    const first = send(world, destination, async (...args) => {
      began.emit('now');
      await once(open, 'now');
      return fakeRestore(...args);
    });
    await beginning;
    const noted = await destination.toolstack.notes?.list();
    expect(noted).toMatchObject([{ role: 'receiver', id: ID }]);
    await expectRefused(send(world, destination), destination);
    expect(await destination.toolstack.notes?.list()).toEqual(noted);
    open.emit('now');
    expect(await first.sent).toMatchObject({ id: ID, peerState: 'running' });
    expect(await first.received).toMatchObject({ id: ID, sourceReleased: true });
    expect(destination.calls).toEqual(['createDomain', 'unpause 1']);
  });

  test('when its guest has arrived and the sender has not said RELEASED', async () => {
    const world = new World();
    const destination = new FakeHost(world, true);
    const first = send(world, destination);
    first.source.failing.add('destroy');
    expect(await errorOf(first.sent)).toMatchObject({ code: 'ERR_XEN_GUEST_NOT_DESTROYED' });
    expect(await first.received).toMatchObject({ sourceReleased: false });
    const noted = await destination.toolstack.notes?.list();
    expect(noted).toMatchObject([{ role: 'receiver', id: ID, domid: 1, point: 6 }]);
    await expectRefused(send(world, destination), destination);
    expect(await destination.toolstack.notes?.list()).toEqual(noted);
    expect(destination.domains.get(1)).toMatchObject({ suspended: false, paused: false });
  });

  test('when its copy here could be neither run nor destroyed', async () => {
    const world = new World();
    const destination = new FakeHost(world, true);
    destination.failing.add('unpause').add('destroy');
    const first = send(world, destination);
    expect(await errorOf(first.sent)).toMatchObject({ code: 'ERR_XEN_HANDOVER_UNKNOWN' });
    await errorOf(first.received);
    await expectRefused(send(world, destination), destination);
  });
});

describe('an id is free again', () => {
  test('after RELEASED', async () => {
    const world = new World();
    const destination = new FakeHost(world, true);
    for (const domid of [1, 2]) {
      const { sent, received } = send(world, destination);
      expect(await sent).toMatchObject({ id: ID, peerDomid: domid });
      expect(await received).toMatchObject({ id: ID, sourceReleased: true });
      expect(await destination.toolstack.notes?.list()).toEqual([]);
    }
  });

  test.each(['createDomain', 'unpause'] as const)('after a clean failure of %s', async (step) => {
    const world = new World();
    const destination = new FakeHost(world, true);
    destination.failing.add(step);
    const first = send(world, destination);
    expect(await errorOf(first.sent)).toMatchObject({ guest: { host: 'source', state: 'running' } });
    await errorOf(first.received);
    destination.failing.clear();
    const second = send(world, destination);
    expect(await second.sent).toMatchObject({ id: ID });
    expect(await second.received).toMatchObject({ sourceReleased: true });
  });
});
