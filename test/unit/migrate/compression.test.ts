/** What the two ends agree on to compress the stream with, and that it is done. */
import { describe, expect, test } from 'vitest';
import { JobControl } from '../../../lib/job.js';
import { FrameType } from '../../../lib/migrate/frames.js';
import { runMigrate } from '../../../lib/migrate/sender.js';
import { Wire } from '../../../lib/migrate/wire.js';
import { SaveSteering } from '../../../lib/save/steering.js';
import { XenMigrationError } from '../../../lib/errors.js';
import { duplexPair, FakeHost, fakeSave, streamLength, World } from './fakes.js';
import { endOf, ID, play, type SceneOptions } from './scene.js';

/** What is repeated every 256 bytes: any algorithm makes little of it. */
const MEMORY = 20_000;
const GZIP_MAGIC = Buffer.of(0x1f, 0x8b);

/** A migration, and what the sender's direction carried. */
async function carried(
  offered: readonly string[] | undefined,
  taken: readonly string[] | undefined,
): Promise<{ wire: Buffer; streamOnWire: number }> {
  const options: SceneOptions = {
    memory: MEMORY,
    send: { compression: offered },
    receive: taken === undefined ? {} : { compression: taken },
  };
  const scene = play(options);
  const pieces: Buffer[] = [];
  const [, receiver] = scene.ends;
  const push = receiver.push.bind(receiver);
  receiver.push = (piece: Buffer | null) => {
    if (piece !== null) pieces.push(Buffer.from(piece));
    return push(piece);
  };
  const { sent, received } = await endOf(scene);
  if (!('value' in sent && 'value' in received)) expect.unreachable('it failed');
  expect(sent).toMatchObject({ value: { bytes: streamLength(MEMORY) } });
  const streamOnWire = (received as { value: { bytes: number } }).value.bytes;
  return { wire: Buffer.concat(pieces), streamOnWire };
}

describe('the compression', () => {
  test('is the first offered that the receiver has, and fewer bytes travel than the stream has', async () => {
    const { wire, streamOnWire } = await carried(['zstd', 'gzip', 'brotli'], ['brotli', 'gzip']);
    expect(streamOnWire).toBeLessThan(streamLength(MEMORY) / 4);
    expect(wire.length).toBeLessThan(streamLength(MEMORY) / 2);
    expect(wire.includes(GZIP_MAGIC)).toBe(true);
  });

  test('is chosen by the order of the sender', async () => {
    const { wire, streamOnWire } = await carried(['brotli', 'gzip'], ['gzip', 'brotli']);
    expect(streamOnWire).toBeLessThan(streamLength(MEMORY) / 4);
    expect(wire.includes(GZIP_MAGIC)).toBe(false);
  });

  test('is used with a receiver that says nothing of it', async () => {
    const { streamOnWire } = await carried(['gzip'], undefined);
    expect(streamOnWire).toBeLessThan(streamLength(MEMORY) / 4);
  });

  test.each([
    ['nothing was offered', undefined, ['gzip']],
    ['none is common', ['zstd'], ['gzip']],
    ['the receiver wants none', ['gzip'], []],
    ['the receiver does not know what is offered', ['lzma'], undefined],
  ])('is none if %s', async (_what, offered, taken) => {
    const { streamOnWire } = await carried(offered, taken);
    expect(streamOnWire).toBe(streamLength(MEMORY));
  });
});

test.each([
  ['another', ['gzip', 'zstd'], 'brotli'],
  ['one though none was offered', [], 'gzip'],
])('a READY that names %s is refused, before anything is sent', async (_what, offered, chosen) => {
  const source = new FakeHost(new World());
  const config = '{"c_info":{"name":"guest"}}';
  const guest = source.add({ suspended: false, paused: false, memory: new Uint8Array(MEMORY), config });
  const [peer, from] = duplexPair();
  const options = { domid: guest.domid, peer, id: ID, compression: offered };
  const control = new JobControl('migrate', guest.domid, {});
  const sent = control.run(() => runMigrate(control, source, options, new SaveSteering(), fakeSave));
  sent.catch(() => undefined);
  const wire = new Wire(from, 'receiver');
  await wire.connected(new AbortController().signal);
  expect(await wire.receive()).toMatchObject({ type: FrameType.HELLO, offer: { compression: offered } });
  await wire.send({
    type: FrameType.READY,
    id: ID,
    version: wire.version,
    software: 'test',
    compression: chosen,
    host: undefined,
  });
  const error: unknown = await sent.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(XenMigrationError);
  expect(error).toMatchObject({
    code: 'ERR_XEN_PEER_PROTOCOL',
    message: `the receiver chose a compression that was not offered: ${chosen}`,
    guest: { host: 'source', state: 'running' },
  });
  await expect(wire.receive()).rejects.toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
  wire.destroy(new Error('over'));
  expect(source.calls).toEqual(['domainConfig 1']);
});
