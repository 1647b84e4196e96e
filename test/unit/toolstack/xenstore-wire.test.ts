/** The wire protocol of xenstored, byte by byte, and peers that break it. */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { XenstoreError } from '../../../lib/errors.js';
import { openXenstore, type XenstoreClient } from '../../../lib/toolstack/xenstore/index.js';
import {
  MessageReader,
  XENSTORE_PAYLOAD_MAX,
  XenstoreType,
  decodeDirectoryPart,
  decodeError,
  decodeNumber,
  decodePermissions,
  decodeStrings,
  decodeWatchEvent,
  encodeMessage,
  encodePath,
  encodePermissions,
  encodeString,
  encodeValue,
  type XenstoreMessage,
  type XenstoreOperation,
} from '../../../lib/toolstack/xenstore/wire.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

describe('messages', () => {
  it('are a header of four little-endian numbers and a body', () => {
    const message = encodeMessage('XS_WRITE', 0x0102_0304, 0xfffe_fdfc, [
      encodePath('/a'),
      encodeValue('hi'),
    ]);
    expect([...message]).toEqual([
      ...[11, 0, 0, 0],
      ...[4, 3, 2, 1],
      ...[0xfc, 0xfd, 0xfe, 0xff],
      ...[5, 0, 0, 0],
      ...[0x2f, 0x61, 0, 0x68, 0x69],
    ]);
  });

  it('are of at most XENSTORE_PAYLOAD_MAX bytes', () => {
    const body = new Uint8Array(XENSTORE_PAYLOAD_MAX);
    expect(encodeMessage('XS_READ', 1, 0, [body])).toHaveLength(16 + 4096);
    expect(() => encodeMessage('XS_READ', 1, 0, [body, new Uint8Array(1)])).toThrow(
      expect.objectContaining({ errno: 7, operation: 'XS_READ' }),
    );
  });

  it('come out of a stream however it is cut', () => {
    const message = fc.record({
      operation: fc.constantFrom(...(Object.keys(XenstoreType) as XenstoreOperation[])),
      reqId: fc.nat(0xffff_ffff),
      txId: fc.nat(0xffff_ffff),
      body: fc.uint8Array({ maxLength: 300 }),
    });
    fc.assert(
      fc.property(
        fc.array(message, { maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 90 })),
        (sent, cuts) => {
          const stream = Buffer.concat(
            sent.map(({ operation, reqId, txId, body }) => encodeMessage(operation, reqId, txId, [body])),
          );
          const reader = new MessageReader();
          const got: XenstoreMessage[] = [];
          for (let at = 0, i = 0; at < stream.length; i++) {
            const end = at + (cuts[i] ?? stream.length);
            const chunk = stream.subarray(at, end);
            reader.push(Uint8Array.from(chunk), (one) => got.push(one));
            at = end;
          }
          expect(reader.empty).toBe(true);
          expect(got).toEqual(
            sent.map(({ operation, ...rest }) => ({
              type: XenstoreType[operation],
              ...rest,
              body: rest.body,
            })),
          );
        },
      ),
    );
  });

  it('whose length is too large are refused at their header', () => {
    const header = encodeMessage('XS_READ', 1, 0, []);
    header.set([1, 16, 0, 0], 12);
    const reader = new MessageReader();
    expect(() => reader.push(header, () => expect.fail())).toThrow(/4097 bytes; at most 4096/);
    header.set([255, 255, 255, 255], 12);
    expect(() => new MessageReader().push(header, () => expect.fail())).toThrow(/4294967295 bytes/);
  });
});

describe('bodies', () => {
  it('of errors are names; unknown ones count as EINVAL', () => {
    expect(decodeError(bytes('ENOENT\0'))).toEqual({ errno: 2, name: 'ENOENT' });
    expect(decodeError(bytes('EAGAIN\0'))).toEqual({ errno: 11, name: 'EAGAIN' });
    expect(decodeError(bytes('ENOTEMPTY'))).toEqual({ errno: 39, name: 'ENOTEMPTY' });
    expect(decodeError(bytes('EWHATEVER\0'))).toEqual({ errno: 22, name: 'EWHATEVER' });
    for (const strange of ['', 'constructor\0', '\u001b[31mE', 'E'.repeat(400)]) {
      expect(decodeError(bytes(strange))).toEqual({ errno: 22, name: 'an unknown error' });
    }
  });

  it('of lists are strings with a NUL each', () => {
    expect(decodeStrings('X', bytes(''))).toEqual([]);
    expect(decodeStrings('X', bytes('a\0bc\0'))).toEqual(['a', 'bc']);
    expect(() => decodeStrings('X', bytes('a\0b'))).toThrow(/not terminated/);
  });

  it('of numbers are decimal, and fit 32 bits', () => {
    expect(decodeNumber('X', bytes('4294967295\0'))).toBe(0xffff_ffff);
    for (const wrong of ['', '\0', '-1\0', '0x10\0', '4294967296\0', '1 \0', '1\u00002\0']) {
      expect(() => decodeNumber('X', bytes(wrong))).toThrow(/a number was expected/);
    }
  });

  it('of events are path and token; more is ignored', () => {
    expect(decodeWatchEvent(bytes('/a\0token\0'))).toEqual({ path: '/a', token: 'token' });
    expect(decodeWatchEvent(bytes('@releaseDomain\0t\0more\0'))).toEqual({
      path: '@releaseDomain',
      token: 't',
    });
    for (const wrong of ['', '/a\0', '/a\0token'])
      expect(() => decodeWatchEvent(bytes(wrong))).toThrow(XenstoreError);
  });

  it('of permissions are a letter and a domid', () => {
    const list = [
      { domid: 0, access: 'none' },
      { domid: 1, access: 'read' },
      { domid: 65_535, access: 'write' },
      { domid: 7, access: 'both' },
    ] as const;
    expect(encodePermissions(list)).toEqual(bytes('n0\0r1\0w65535\0b7\0'));
    expect(decodePermissions(encodePermissions(list))).toEqual(list);
    for (const wrong of ['x1\0', 'r\0', 'r-1\0', 'r123456\0', 'r1']) {
      expect(() => decodePermissions(bytes(wrong))).toThrow(XenstoreError);
    }
  });

  it('of a part of a list begin with its generation', () => {
    expect(decodeDirectoryPart(bytes('12\0a\0b'))).toEqual({ generation: '12', list: bytes('a\0b') });
    expect(() => decodeDirectoryPart(bytes('12'))).toThrow(/no generation/);
  });
});

describe('a peer', () => {
  let dir: string;
  let server: Server;
  let client: XenstoreClient;
  /** Plays xenstored: gets each request, writes what it likes. */
  let play: (socket: Socket, request: XenstoreMessage) => void;

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'xenstore-'));
    server = createServer((socket) => {
      const reader = new MessageReader();
      socket.on('error', () => undefined);
      socket.on('data', (chunk) => reader.push(chunk, (request) => play(socket, request)));
    });
    await new Promise<void>((resolve) => server.listen(join(dir, 'socket'), resolve));
    client = await openXenstore({ path: join(dir, 'socket') });
  });
  afterEach(async () => {
    client.close();
    await new Promise((resolve) => server.close(resolve));
    await rm(dir, { recursive: true, force: true });
  });

  const answer = (reqId: number, operation: XenstoreOperation, body: string): Uint8Array =>
    encodeMessage(operation, reqId, 0, [bytes(body)]);
  const tooLong = (): Uint8Array => {
    const header = answer(1, 'XS_READ', '');
    header.set([1, 16, 0, 0], 12);
    return header;
  };
  const unknownType = (): Uint8Array => {
    const message = answer(1, 'XS_READ', 'x');
    message[0] = 99;
    return message;
  };

  it.each([
    ['an answer of another type', () => answer(1, 'XS_DIRECTORY', 'x'), /it is of type XS_DIRECTORY/],
    ['an answer of an unknown type', unknownType, /it is of type type 99/],
    ['an answer to what was not asked', () => answer(77, 'XS_READ', 'x'), /there is no request 77/],
    ['an answer to request 0', () => answer(0, 'XS_READ', 'x'), /there is no request 0/],
    [
      'an answer twice',
      () => Buffer.concat([answer(1, 'XS_READ', 'x'), answer(1, 'XS_READ', 'x')]),
      /no request 1/,
    ],
    ['too long an answer', tooLong, /at most 4096/],
    ['an event without token', () => answer(0, 'XS_WATCH_EVENT', '/a\0'), /path and token/],
    ['an event without end', () => answer(0, 'XS_WATCH_EVENT', '/a\0t'), /not terminated/],
  ])('that gives %s is hung up on', async (_name, message, reason) => {
    play = (socket) => socket.write(message());
    await client.read('/a').catch(() => undefined);
    await expect(client.read('/b')).rejects.toMatchObject({
      errno: 71,
      message: expect.stringMatching(reason) as string,
    });
    expect(client.failure).toBeInstanceOf(XenstoreError);
  });

  it('may answer in any order, with events in between', async () => {
    const held: XenstoreMessage[] = [];
    play = (socket, request) => {
      held.push(request);
      if (held.length < 3) return;
      socket.write(answer(0, 'XS_WATCH_EVENT', '/nobody\0unknown token\0'));
      for (const { reqId } of held.reverse()) {
        socket.write(answer(reqId, 'XS_READ', `value ${reqId}`));
        socket.write(answer(0, 'XS_WATCH_EVENT', '/nobody\0unknown token\0'));
      }
    };
    expect(await Promise.all([client.read('/a'), client.read('/b'), client.read('/c')])).toEqual([
      'value 1',
      'value 2',
      'value 3',
    ]);
  });

  it('may give an event before the answer to the watch', async () => {
    play = (socket, { reqId, body }) => {
      const [path, token] = decodeStrings('XS_WATCH', body);
      socket.write(answer(0, 'XS_WATCH_EVENT', `${path ?? ''}\0${token ?? ''}\0`));
      socket.write(answer(reqId, 'XS_WATCH', 'OK\0'));
    };
    const watch = await client.watch('/w');
    expect(await watch.next()).toBe('/w');
  });

  it.each([
    ['XS_TRANSACTION_START', 'x\0', () => client.transaction(() => undefined)],
    ['XS_DIRECTORY', 'a\0b', () => client.list('/')],
    ['XS_GET_PERMS', 'q1\0', () => client.getPermissions('/')],
    ['XS_IS_DOMAIN_INTRODUCED', 'maybe\0', () => client.isIntroduced(1)],
  ] as const)('whose answer to %s makes no sense is told so', async (operation, body, ask) => {
    play = (socket, { reqId }) => socket.write(answer(reqId, operation, body));
    await expect(ask()).rejects.toMatchObject({ errno: 71, operation });
  });

  it('whose list has no end is not followed for ever', async () => {
    let requests = 0;
    play = (socket, { type, reqId }) => {
      requests += 1;
      if (type === XenstoreType.XS_DIRECTORY) socket.write(answer(reqId, 'XS_ERROR', 'E2BIG\0'));
      else socket.write(answer(reqId, 'XS_DIRECTORY_PART', `1\0${'x'.repeat(4000)}`));
    };
    await expect(client.list('/')).rejects.toThrow(/more than 4194304 bytes/);
    expect(requests).toBeLessThan(1100);
    play = (socket, { type, reqId }) => {
      if (type === XenstoreType.XS_DIRECTORY) socket.write(answer(reqId, 'XS_ERROR', 'E2BIG\0'));
      else socket.write(answer(reqId, 'XS_DIRECTORY_PART', '1\0'));
    };
    await expect(client.list('/')).rejects.toThrow(/does not end/);
    let generation = 0;
    play = (socket, { type, reqId }) => {
      generation += 1;
      if (type === XenstoreType.XS_DIRECTORY) socket.write(answer(reqId, 'XS_ERROR', 'E2BIG\0'));
      else socket.write(answer(reqId, 'XS_DIRECTORY_PART', `${generation}\0name\0`));
    };
    await expect(client.list('/')).rejects.toMatchObject({ errno: 11 });
    expect(generation).toBeLessThan(100);
  });

  it('that cannot give a list in parts is told as E2BIG', async () => {
    play = (socket, { type, reqId }) =>
      socket.write(answer(reqId, 'XS_ERROR', type === XenstoreType.XS_DIRECTORY ? 'E2BIG\0' : 'ENOSYS\0'));
    await expect(client.list('/')).rejects.toMatchObject({ errno: 7, operation: 'XS_DIRECTORY' });
  });

  it('may cut a list anywhere', async () => {
    const list = bytes(`${encodeList(['one', 'two', 'three'])}\0`);
    for (let size = 1; size <= list.length; size++) {
      play = (socket, { type, reqId, body }) => {
        if (type === XenstoreType.XS_DIRECTORY) {
          socket.write(answer(reqId, 'XS_ERROR', 'E2BIG\0'));
          return;
        }
        const offset = Number(decodeStrings('', body)[1]);
        const part = [encodeString('9'), list.subarray(offset, offset + size)];
        socket.write(encodeMessage('XS_DIRECTORY_PART', reqId, 0, part));
      };
      expect(await client.list('/')).toEqual(['one', 'two', 'three']);
    }
  });
});

function encodeList(names: readonly string[]): string {
  return names.map((name) => `${name}\0`).join('');
}
