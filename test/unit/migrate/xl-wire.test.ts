import type { Duplex } from 'node:stream';
import { afterEach, describe, expect, test } from 'vitest';
import { PeerError } from '../../../lib/errors.js';
import { FrameType, type Frame } from '../../../lib/migrate/frames.js';
import {
  encodeReport,
  messageText,
  quoted,
  statusText,
  XL_MESSAGES,
} from '../../../lib/migrate/xl/messages.js';
import { XlReceiverWire, XlSenderWire } from '../../../lib/migrate/xl/wire.js';
import { duplexPair } from './fakes.js';

const ID = '01234567-89ab-4cde-8f01-23456789abcd';
const BANNER = 'xl migration receiver ready, send binary domain data.\n';
const READY = 'domain received, ready to unpause\0';
const PERMISSION = 'domain is yours, you are cleared to unpause\0';
const REPORT = 'my copy unpause results are as follows\0';

const hello = (paused = false): Frame => ({
  type: FrameType.HELLO,
  offer: { id: ID, software: 'test', name: 'g', hvm: true, memory: 1, paused, compression: [] },
});
const yours: Frame = { type: FrameType.YOURS, id: ID };
const ready: Frame = {
  type: FrameType.READY,
  id: ID,
  version: 1,
  software: 'test',
  compression: undefined,
  host: undefined,
};
const restored: Frame = { type: FrameType.RESTORED, domid: 7, bytes: 99 };
const running: Frame = { type: FrameType.RUNNING, domid: 7, state: 'running' };
const failed = (gone: boolean): Frame => ({
  type: FrameType.FAILED,
  reason: { code: 'ERR_XEN_HYPERCALL', message: 'no memory' },
  gone,
});

const open: Duplex[] = [];
afterEach(() => {
  for (const end of open.splice(0)) end.destroy();
});

/** A wire, and xl at the other end: what it got, and a way to say something. */
function scene<W>(make: (peer: Duplex) => W): { wire: W; xl: Duplex; got: () => string } {
  const [here, xl] = duplexPair();
  open.push(here, xl);
  const pieces: Buffer[] = [];
  xl.on('data', (piece: Buffer) => pieces.push(piece));
  xl.on('error', () => undefined);
  return { wire: make(here), xl, got: () => Buffer.concat(pieces).toString('latin1') };
}

const sender = (): ReturnType<typeof scene<XlSenderWire>> => scene((peer) => new XlSenderWire(peer));
const receiver = (options = {}): ReturnType<typeof scene<XlReceiverWire>> =>
  scene((peer) => new XlReceiverWire(peer, { id: ID, ...options }));

async function failure(promise: Promise<unknown>): Promise<PeerError> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(PeerError);
  return error as PeerError;
}

describe('messages', () => {
  test('are those of xl, byte for byte', () => {
    const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');
    expect(text(XL_MESSAGES.banner)).toBe(BANNER);
    expect(XL_MESSAGES.banner.length).toBe(54);
    expect(text(XL_MESSAGES.ready)).toBe(READY);
    expect(text(XL_MESSAGES.permission)).toBe(PERMISSION);
    expect(text(XL_MESSAGES.report)).toBe(REPORT);
    expect(text(encodeReport(3))).toBe(`${REPORT}\x03`);
    expect(messageText('ready')).toBe('domain received, ready to unpause');
  });

  test('a status is told with the name of its error', () => {
    expect(statusText(3)).toBe('status 3, ERROR_FAIL');
    expect(statusText(255)).toBe('status 255');
  });

  test('what is foreign is quoted: text as text, made harmless, all else as numbers', () => {
    expect(quoted(Buffer.from('Hi\x1b[1m you\n'))).toBe('"Hi\\u001b[1m you\\u000a"');
    expect(quoted(Uint8Array.of(0x16, 3, 1))).toBe('16 03 01');
    expect(quoted(Buffer.alloc(500, 'x')).length).toBeLessThan(200);
  });
});

describe('XlSenderWire', () => {
  test('a whole migration: what xl says becomes frames, and only the permission is said', async () => {
    const { wire, xl, got } = sender();
    await wire.send(hello());
    expect(wire.greeted).toBe(false);
    xl.write(BANNER);
    expect(await wire.receive()).toMatchObject({ type: FrameType.READY, id: ID, software: 'xl' });
    expect(wire.greeted).toBe(true);
    expect(wire.version).toBe(1);
    await wire.sink.write([Buffer.from('the stream')]);
    xl.write(READY);
    expect(await wire.receive()).toEqual({ type: FrameType.RESTORED, domid: undefined, bytes: undefined });
    await wire.send(yours);
    xl.write(`${REPORT}\0`);
    expect(await wire.receive()).toEqual({ type: FrameType.RUNNING, domid: undefined, state: 'running' });
    expect(await wire.trySend({ type: FrameType.RELEASED })).toBe(true);
    xl.end();
    await wire.close();
    expect(got()).toBe(`the stream${PERMISSION}`);
  });

  test('messages may come in single bytes, and none is read beyond its end', async () => {
    const { wire, xl } = sender();
    await wire.send(hello(true));
    for (const byte of Buffer.from(`${BANNER}${READY}${REPORT}\0rest`)) xl.write(Buffer.of(byte));
    const types = [];
    for (let i = 0; i < 3; i++) types.push((await wire.receive()).type);
    expect(types).toEqual([FrameType.READY, FrameType.RESTORED, FrameType.RUNNING]);
    expect((await failure(wire.receive())).message).toMatch(/sent "r(est)?" after its last message/);
  });

  test.each([
    ['a paused guest', 'runs', true, undefined, 'running'],
    ['a paused guest', 'stays paused', true, true, 'paused'],
    ['a guest that ran', 'is paused', false, true, 'paused'],
  ] as const)(
    '%s %s where -p of xl says so, and its word alone',
    async (_guest, _what, was, promise, state) => {
      const { wire, xl } = scene((peer) => new XlSenderWire(peer, promise));
      await wire.send(hello(was));
      xl.write(`${BANNER}${READY}${REPORT}\0`);
      await wire.receive();
      await wire.receive();
      expect(await wire.receive()).toMatchObject({ state });
    },
  );

  test('a report of failure is one only with the permission after it', async () => {
    const { wire, xl } = sender();
    await wire.send(hello());
    xl.write(`${BANNER}${READY}${REPORT}\x03`);
    await wire.receive();
    await wire.receive();
    const answer = wire.receive();
    xl.write(PERMISSION);
    expect(await answer).toEqual({
      type: FrameType.FAILED,
      reason: { code: 'ERR_XEN_XL', message: 'it could not start the guest (status 3, ERROR_FAIL)' },
      gone: true,
    });
  });

  test.each([
    [
      'nothing',
      '',
      'ERR_XEN_PEER_LOST',
      /status 3, ERROR_FAIL\), and then: .* instead of giving the guest back/,
    ],
    ['a part', PERMISSION.slice(0, 9), 'ERR_XEN_PEER_LOST', /in the middle of "domain is yours/],
    ['something else', REPORT, 'ERR_XEN_PEER_LOST', /sent "my copy .* where "domain is yours/],
  ])('a report of failure with %s after it leaves it open', async (_what, rest, code, message) => {
    const { wire, xl } = sender();
    await wire.send(hello());
    xl.end(`${BANNER}${READY}${REPORT}\x03${rest}`);
    await wire.receive();
    await wire.receive();
    const error = await failure(wire.receive());
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });

  test.each([
    ['a login message', 'Welcome to host2!\n', /"Welcome to host2!\\u000a" instead .*login script/],
    ['one before the banner', `motd\n${BANNER}`, /"motd.*instead .* standard output/],
    ['what begins like the banner', 'xl migration receiver gone', /"xl migration receiver gone" instead/],
    ['the own protocol', '\x8dXMIG\r\n\x1a', /8d 58 4d 49 47/],
    ['HTTP', 'HTTP/1.1 400 Bad Request\r\n', /the receiver speaks HTTP$/],
    ['numbers', '\x01\x02\x03', /sent 01 02 03 instead of the greeting of `xl migrate-receive`$/],
  ])('%s instead of the banner is named', async (_what, text, message) => {
    const { wire, xl } = sender();
    xl.write(Buffer.from(text, 'latin1'));
    const error = await failure(wire.receive());
    expect(error.code).toBe('ERR_XEN_PEER_PROTOCOL');
    expect(error.message).toMatch(message);
    expect(wire.greeted).toBe(false);
  });

  test.each([
    ['the banner', '', 0, /did not start there/],
    ['the rest of the banner', BANNER.slice(0, 9), 0, /in the middle of "xl migration receiver ready/],
    ['the ready message', BANNER, 1, /instead of saying that it has the guest/],
    ['the report', BANNER + READY, 2, /instead of saying whether the guest runs/],
    ['the status', BANNER + READY + REPORT, 2, /instead of saying whether the guest runs/],
  ])('an end instead of %s is a lost peer', async (_what, text, frames, message) => {
    const { wire, xl } = sender();
    xl.end(text);
    for (let i = 0; i < frames; i++) await wire.receive();
    const error = await failure(wire.receive());
    expect(error.code).toBe('ERR_XEN_PEER_LOST');
    expect(error.message).toMatch(message);
  });

  test('a wait for a message ends with its signal', async () => {
    const { wire, xl } = sender();
    xl.write(BANNER.slice(0, 5));
    const stop = new AbortController();
    const waiting = wire.receive(stop.signal);
    stop.abort(new PeerError('ERR_XEN_PEER_LOST', 'enough'));
    expect((await failure(waiting)).message).toBe('enough');
  });

  test('a failure of this side is told by the end of the connection', async () => {
    const { wire, xl, got } = sender();
    const ended = new Promise((resolve) => xl.on('end', resolve));
    expect(await wire.trySend(failed(false))).toBe(true);
    const closing = wire.close();
    await ended;
    xl.end();
    await closing;
    expect(got()).toBe('');
  });

  test('frames that xl has no words for are refused', async () => {
    const { wire } = sender();
    expect((await failure(wire.send({ type: FrameType.QUERY, id: ID }))).message).toMatch(
      /no words for QUERY/,
    );
  });
});

describe('XlReceiverWire', () => {
  test('a whole migration', async () => {
    const { wire, xl, got } = receiver();
    expect(await wire.receive()).toEqual({
      type: FrameType.HELLO,
      offer: {
        id: ID,
        software: 'xl',
        name: undefined,
        hvm: undefined,
        memory: undefined,
        paused: false,
        compression: [],
      },
    });
    expect(got()).toBe('');
    await wire.send(ready);
    xl.write(`stream${PERMISSION}`);
    await wire.source.wait(6);
    expect(Buffer.from(wire.source.take(6) as Uint8Array).toString()).toBe('stream');
    await wire.send(restored);
    expect(await wire.receive()).toEqual(yours);
    await wire.send(running);
    const released = wire.receive();
    xl.end();
    expect(await released).toEqual({ type: FrameType.RELEASED });
    await wire.close();
    expect(got()).toBe(`${BANNER}${READY}${REPORT}\0`);
  });

  test('a new migration has a new id, and says nothing of -p', async () => {
    const ids = new Set<string>();
    for (let i = 0; i < 2; i++) {
      const { wire } = scene((peer) => new XlReceiverWire(peer));
      const frame = await wire.receive();
      if (frame.type !== FrameType.HELLO) throw new Error('no HELLO');
      expect(frame.offer.paused).toBe(false);
      ids.add(frame.offer.id);
    }
    expect(ids.size).toBe(2);
  });

  test('an end instead of the permission is a sender that gave up', async () => {
    const { wire, xl } = receiver();
    await wire.receive();
    xl.end();
    expect((await failure(wire.receive())).message).toBe(
      'the sender closed the connection instead of handing the guest over',
    );
  });

  test('the permission is read strictly', async () => {
    const { wire, xl } = receiver();
    await wire.receive();
    xl.write(PERMISSION.replace('cleared', 'Cleared'));
    const error = await failure(wire.receive());
    expect(error.code).toBe('ERR_XEN_PEER_PROTOCOL');
    expect(error.message).toMatch(/^the sender sent "domain is yours, you are Cleared/);
  });

  test('after the report nothing may come but the end', async () => {
    const { wire, xl } = receiver();
    await wire.receive();
    xl.write(`${PERMISSION}x`);
    await wire.receive();
    await wire.send(running);
    expect((await failure(wire.receive())).message).toMatch(/sent "x" after its last message/);
  });

  test.each([
    ['REFUSED', { type: FrameType.REFUSED, reason: { code: 'ERR_XEN_NOT_ACCEPTED', message: 'no' } }],
    ['FAILED', failed(true)],
  ])('%s before the guest is here says nothing: the connection is to be cut', async (_name, frame) => {
    const { wire, got } = receiver();
    await wire.receive();
    await wire.send(ready);
    expect(await wire.trySend(frame)).toBe(false);
    expect(got()).toBe(BANNER);
  });

  test.each([
    ['gives the guest back only if the copy here is gone', true, `${REPORT}\x03${PERMISSION}`],
    ['does not give it back if it may be here', false, `${REPORT}\x03`],
  ])('FAILED after the permission %s', async (_what, gone, said) => {
    const { wire, xl, got } = receiver();
    await wire.receive();
    await wire.send(restored);
    xl.write(PERMISSION);
    await wire.receive();
    expect(await wire.trySend(failed(gone))).toBe(true);
    expect(got()).toBe(READY + said);
  });

  test('FAILED while the permission is awaited answers it beforehand, as xl does', async () => {
    const { wire, got } = receiver();
    await wire.receive();
    await wire.send(restored);
    expect(await wire.trySend(failed(true))).toBe(true);
    expect(got()).toBe(`${READY}${REPORT}\x03${PERMISSION}`);
  });
});

test('the two ends understand each other', async () => {
  const [a, b] = duplexPair();
  open.push(a, b);
  const from = new XlSenderWire(a);
  const to = new XlReceiverWire(b, { id: ID });
  await from.send(hello());
  await to.receive();
  await to.send(ready);
  expect((await from.receive()).type).toBe(FrameType.READY);
  await to.send(restored);
  expect((await from.receive()).type).toBe(FrameType.RESTORED);
  await from.send(yours);
  expect((await to.receive()).type).toBe(FrameType.YOURS);
  await to.send(failed(true));
  expect(await from.receive()).toMatchObject({ type: FrameType.FAILED, gone: true });
});
