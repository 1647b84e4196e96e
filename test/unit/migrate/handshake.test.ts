import { describe, expect, test } from 'vitest';
import { PeerError } from '../../../lib/errors.js';
import { unknownHandover } from '../../../lib/migrate/sender-errors.js';
import type { ByteSource } from '../../../lib/transport/types.js';
import { fakeRestore, streamLength } from './fakes.js';
import { endOf, errorOf, ID, MEMORY, play } from './scene.js';

describe('a migration that goes well', () => {
  test('moves the guest and destroys the source copy last', async () => {
    const scene = play();
    const { sent, received } = await endOf(scene);
    expect(sent).toMatchObject({
      value: { id: ID, peerDomid: 1, peerState: 'running', bytes: streamLength(MEMORY) },
    });
    expect(received).toMatchObject({
      value: {
        id: ID,
        state: 'running',
        sourceReleased: true,
        bytes: streamLength(MEMORY),
        offer: { name: 'guest', hvm: true, memory: 4096, paused: false },
      },
    });
    expect(scene.source.calls).toEqual(['domainConfig 1', 'suspend 1', 'destroy 1']);
    expect(scene.destination.calls).toEqual(['createDomain', 'unpause 1']);
    expect(scene.sender.status).toMatchObject({ state: 'completed', phase: 'done' });
    expect(scene.receiver.status).toMatchObject({ state: 'completed', phase: 'done', domid: 1 });
  });

  test('counts the handover into the downtime', async () => {
    const { sent } = await endOf(play());
    if (!('value' in sent)) expect.unreachable();
    else {
      expect(sent.value.downtime).toMatchObject({ suspend: 1, finalPass: 2, state: 3, deviceModel: 4 });
      expect(sent.value.downtime.handover).toBeGreaterThan(0);
      expect(sent.value.downtime.total).toBeGreaterThanOrEqual(sent.value.downtime.handover);
    }
  });

  test('a paused guest stays paused', async () => {
    const scene = play({ paused: true });
    const { sent, received } = await endOf(scene);
    expect(sent).toMatchObject({ value: { peerState: 'paused' } });
    expect(received).toMatchObject({ value: { state: 'paused', offer: { paused: true } } });
    expect(scene.destination.domains.get(1)?.paused).toBe(true);
    expect(scene.destination.calls).not.toContain('unpause 1');
  });
});

test('a guest that ran is left paused where the receiver wants it so', async () => {
  const scene = play({ receive: { paused: true } });
  const [sent, received] = await Promise.all([scene.sent, scene.received]);
  expect(sent).toMatchObject({ value: { peerState: 'paused' } });
  expect(received).toMatchObject({ value: { state: 'paused' } });
  expect(scene.destination.domains.get(1)?.paused).toBe(true);
  expect(scene.destination.calls).not.toContain('unpause 1');
});

describe('a paused guest and xl', () => {
  test.each(['auto', 'xl'] as const)('nothing is sent, as xl would run it (%s)', async (protocol) => {
    const scene = play({ paused: true, send: { protocol }, receive: { protocol: 'xl' } });
    // A receiver of xl's protocol says READY before it has heard anything.
    const { sent } = await endOf(scene);
    expect(errorOf(sent)).toMatchObject({
      code: 'ERR_XEN_INVALID_ARGUMENT',
      guest: { host: 'source', state: 'paused' },
    });
    expect(errorOf(sent).message).toMatch(/`xl migrate-receive -p`.*peerLeavesPaused/);
    expect(scene.ends[0].sent).toBe(0);
    expect(scene.source.calls).toEqual(['domainConfig 1']);
    expect(scene.destination.calls).toEqual([]);
  });

  test.each([true, false])('xl leaves it paused, as the caller promises (paused: %s)', async (paused) => {
    const send = { peerLeavesPaused: true };
    const scene = play({ paused, send, receive: { protocol: 'xl', paused: true } });
    const [sent, received] = await Promise.all([scene.sent, scene.received]);
    expect(sent).toMatchObject({ value: { peerState: 'paused', peerSoftware: 'xl' } });
    expect(received).toMatchObject({ value: { state: 'paused' } });
    expect(scene.destination.domains.get(1)?.paused).toBe(true);
  });

  test('the promise is nothing to a receiver of this library, who is told', async () => {
    const { sent, received } = await endOf(play({ send: { peerLeavesPaused: true } }));
    expect(sent).toMatchObject({ value: { peerState: 'running' } });
    expect(received).toMatchObject({ value: { state: 'running' } });
  });
});

describe('refusals', () => {
  test('the receiver may refuse what is offered, and the sender hears why', async () => {
    const scene = play({
      receive: {
        accept: (offer) => {
          throw new Error(`no room for ${String(offer.name)}`);
        },
      },
    });
    const { sent, received } = await endOf(scene);
    expect(errorOf(sent)).toMatchObject({
      code: 'ERR_XEN_PEER_REFUSED',
      message: 'the receiver refused: no room for guest (ERR_XEN_NOT_ACCEPTED)',
      guest: { host: 'source', state: 'running' },
    });
    expect(errorOf(received)).toMatchObject({
      code: 'ERR_XEN_NOT_ACCEPTED',
      cause: new Error('no room for guest'),
    });
    expect(scene.destination.calls).toEqual([]);
    expect(scene.source.calls).toEqual(['domainConfig 1']);
  });

  test('a domain that cannot be built is told to the sender', async () => {
    const scene = play();
    scene.destination.failing.add('createDomain');
    const { sent, place } = await endOf(scene);
    expect(place).toBe('source');
    expect(errorOf(sent).message).toBe('the receiver failed: createDomain: made to fail (ERR_XEN_HYPERCALL)');
  });

  test('a guest that cannot be run there is taken back', async () => {
    const scene = play();
    scene.destination.failing.add('unpause');
    const { sent, received, place } = await endOf(scene);
    expect(place).toBe('source');
    expect(errorOf(sent)).toMatchObject({ code: 'ERR_XEN_PEER_REFUSED', phase: 'handshake' });
    expect(errorOf(received)).toMatchObject({ syscall: 'unpause', guest: { host: 'source' } });
    expect(scene.source.calls).toEqual(['domainConfig 1', 'suspend 1', 'resume 1']);
  });

  test('a guest that cannot be run nor destroyed there is nobody knows where', async () => {
    const scene = play();
    scene.destination.failing.add('unpause').add('destroy');
    const [sent, received] = [errorOf(await scene.sent), errorOf(await scene.received)];
    expect(sent).toMatchObject({ code: 'ERR_XEN_HANDOVER_UNKNOWN', guest: { host: 'unknown' } });
    // This host keeps no notes.
    expect(sent.message).toContain(
      'destroy domain 1 here; if it certainly is not, resume domain 1 (migration',
    );
    expect(sent.message).not.toContain('xen-migrate recover');
    expect(received).toMatchObject({ syscall: 'unpause', guest: { host: 'unknown' } });
    expect(received.cleanupErrors).toHaveLength(1);
    expect(scene.guest.suspended).toBe(true);
  });
});

test('a receiver that believes to be done too early is not given the guest', async () => {
  // It leaves the last byte of the stream unread, and so has another idea of its length.
  const restore: typeof fakeRestore = (control, host, source, options) => {
    let left = streamLength(MEMORY) - 1;
    const short: ByteSource = {
      get position() {
        return source.position;
      },
      take: (max) => {
        const piece = left === 0 ? Uint8Array.of(0x45) : source.take(Math.min(max, left));
        if (left > 0) left -= piece?.length ?? 0;
        return piece;
      },
      wait: (want, signal) => source.wait(want, signal),
      close: () => source.close(),
    };
    return fakeRestore(control, host, short, options);
  };
  const { sent, place } = await endOf(play({ restore }));
  expect(place).toBe('source');
  expect(errorOf(sent)).toMatchObject({
    code: 'ERR_XEN_PEER_PROTOCOL',
    message: `the receiver says that the stream had ${streamLength(MEMORY) - 1} bytes, but ${streamLength(MEMORY)} were sent`,
  });
});

test.each([true, false])('a handover that is not known names the ways out (can be asked: %s)', (askable) => {
  const lost = new PeerError('ERR_XEN_PEER_LOST', 'it is gone');
  const { message } = unknownHandover(lost, { domid: 7, id: ID, askable, noted: true });
  expect(message.includes('Once the destination can be asked, `xen-migrate recover`')).toBe(askable);
  expect(message).toMatch(/. [Ii]f the guest is there, /);
  expect(message).toContain(`\`xen-migrate recover --destroy ${ID}\` or \`xl destroy 7\``);
  expect(message).toContain(`if it certainly is not, \`xen-migrate recover --resume ${ID}\``);
});

describe('failures at the source', () => {
  test('a guest that does not suspend goes on, and nothing is left there', async () => {
    const scene = play();
    scene.source.failing.add('suspend');
    const { sent, received, place } = await endOf(scene);
    expect(place).toBe('source');
    expect(errorOf(sent)).toMatchObject({ syscall: 'suspend' });
    expect(errorOf(received)).toMatchObject({
      code: 'ERR_XEN_PEER_LOST',
      cause: { code: 'ERR_XEN_STREAM_TRUNCATED' },
    });
  });

  test('a copy that cannot be destroyed does not undo the migration', async () => {
    const scene = play();
    scene.source.failing.add('destroy');
    const { sent, received, place } = await endOf(scene);
    expect(place).toBe('destination');
    expect(errorOf(sent)).toMatchObject({
      code: 'ERR_XEN_GUEST_NOT_DESTROYED',
      guest: { host: 'destination', state: 'running' },
    });
    expect(received).toMatchObject({ value: { sourceReleased: false } });
    expect(scene.guest.suspended).toBe(true);
  });

  test('a guest that cannot be resumed after a failure is said to be suspended', async () => {
    const scene = play();
    scene.destination.failing.add('unpause');
    scene.source.failing.add('resume');
    const error = errorOf(await scene.sent);
    expect(error).toBeInstanceOf(PeerError);
    expect(error.guest).toEqual({ host: 'source', state: 'suspended' });
    expect(error.cleanupErrors).toMatchObject([{ syscall: 'resume' }]);
  });

  test('no such domain', async () => {
    const scene = play({ send: { domid: 77 } });
    const error = errorOf(await scene.sent);
    expect(error).toMatchObject({ errno: 3, guest: { host: 'none', state: 'gone' } });
    expect(errorOf(await scene.received)).toMatchObject({
      code: 'ERR_XEN_PEER_LOST',
      message: 'the sender closed the connection without a word',
    });
  });

  test('an error that is none of the library is wrapped, not lost', async () => {
    const cause = new RangeError('a defect');
    const scene = play({ save: () => Promise.reject(cause) });
    const { sent } = await endOf(scene);
    expect(errorOf(sent)).toMatchObject({ code: 'ERR_XEN_INTERNAL', message: 'a defect', cause });
  });
});
