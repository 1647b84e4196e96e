/** The subcommands on simulated hosts, in this process. */
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Interrupted } from '../../lib/cli/exit.js';
import { encodeFrame, encodePreamble, FrameType } from '../../lib/migrate/frames.js';
import { run, testIo, type TestIo } from '../unit/cli/io.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-cli-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const at = (name: string): string => path.join(dir, name);
const capture = (name: string): Buffer =>
  gunzipSync(readFileSync(fileURLToPath(new URL(`../golden/streams/${name}`, import.meta.url))));

describe('demo', () => {
  test.each(['pvh', 'hvm', 'pv', 'pv32'])('%s: the guest arrives, runs and is whole', async (kind) => {
    const { code, out, err } = await run(['demo', '--guest', kind, '--memory', '16M', '--bandwidth', '0']);
    expect(code, out + err).toBe(0);
    expect(out).toContain(`${kind} guest, 16 MiB, 1 vcpu, writes 20,000 pages/s (hot-set)`);
    expect(out).toMatch(/^ +1 +all +[\d,]+ pages .* runs$/m);
    expect(out).toMatch(/^ +\d+ .* stands still$/m);
    expect(out).toMatch(/^ {2}downtime +[\d.]+ ms$/m);
    expect(out).toMatch(/^ {2}ok it runs here: step [\d,]+ on arrival, [\d,]+ now$/m);
    expect(out).toMatch(/^ {2}ok it checked its memory: [\d,]+ pages, no errors$/m);
    expect(out).toMatch(/^ {2}ok nothing of it is left on the source$/m);
    // No terminal: plain lines, on the other stream.
    expect(out + err).not.toContain('\u001b');
    expect(err).toMatch(/^copying while the guest runs$/m);
  });

  test('--json', async () => {
    const argv = ['demo', '--json', '--memory', '8M', '--workload', 'idle', '--seed', '9', '--vcpus', '2'];
    const { code, out, err } = await run(argv);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(JSON.parse(out)).toMatchObject({
      ok: true,
      guest: { kind: 'pvh', memory: 8 << 20, vcpus: 2, workload: 'idle', seed: 9 },
      migration: { downtime: { total: expect.any(Number) as number } },
      destination: { domid: 1, state: 'running' },
      proof: { checkable: true, errors: 0, leftAtSource: 0 },
    });
  });

  test('redraws its lines on a terminal and takes them away again', async () => {
    const io = testIo({ tty: true, env: { LANG: 'C.UTF-8', TERM: 'xterm' } });
    const { code, out, err } = await run(['demo', '--memory', '16M', '--bandwidth', '32M'], io);
    expect(code).toBe(0);
    expect(err).toMatch(/█+/);
    expect(err).toContain('\u001b[4A\r\u001b[J');
    expect(err.endsWith('\u001b[4A\r\u001b[J')).toBe(true);
    expect(out).toContain('✓');
    expect(out).toContain('\u001b[1mdowntime\u001b[22m');
  });

  test('NO_COLOR', async () => {
    const io = testIo({ tty: true, env: { NO_COLOR: '1' } });
    const { out, err } = await run(['demo', '--memory', '8M', '--bandwidth', '0'], io);
    // eslint-disable-next-line no-control-regex -- colours are what is looked for
    expect(out + err).not.toMatch(/\u001b\[\d+m/);
  });

  test('interrupted', async () => {
    const stop = new AbortController();
    const io = testIo();
    io.stderr.onText = (text) => {
      if (text.includes('copying')) stop.abort(new Interrupted('SIGINT'));
    };
    const { code, err } = await run(['demo', '--memory', '64M', '--bandwidth', '16M'], io, stop.signal);
    expect(code).toBe(130);
    expect(err).toContain('xen-migrate demo: stopped by SIGINT; the guest is running at the source\n');
    expect(readdirSync(tmpdir()).filter((name) => name.startsWith('xen-migrate-'))).toEqual([]);
  });
});

describe('save and restore', () => {
  test.each(['pvh', 'hvm', 'pv', 'pv32'])('%s: there and back', async (kind) => {
    const guest = ['--host', 'sim', '--sim-guest', kind, '--memory', '8M'];
    const saved = await run(['save', 'web1', at('web1'), ...guest]);
    expect(saved).toMatchObject({ code: 0 });
    expect(saved.out).toContain(`saved web1 to ${at('web1')}: `);
    expect(readdirSync(dir)).toEqual(['web1']);
    expect(await run(['verify', at('web1')])).toMatchObject({ code: 0 });
    const restored = await run(['restore', at('web1'), '--host', 'sim', '--check']);
    expect(restored).toMatchObject({ code: 0 });
    expect(restored.out).toMatch(/^ {2}ok it checked its memory: [\d,]+ pages, no errors$/m);
    expect(restored.out).toContain(`restored ${kind} guest from ${at('web1')} as domain 1: `);
  });

  test.each(['libxl', 'libxc'])('--format %s', async (format) => {
    const guest = ['--host', 'sim', '--memory', '4M', '--no-live', '--format', format, '--json'];
    const { code, out } = await run(['save', 'a', at('a'), ...guest]);
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ guest: 'a', file: at('a'), iterations: [{ suspended: true }] });
    expect((await run(['verify', at('a'), '--format', format])).code).toBe(0);
    const refused = await run(['restore', at('a'), '--host', 'sim']);
    expect(refused.code).not.toBe(0);
    const config = {
      c_info: { type: 'pvh', name: 'a' },
      b_info: { max_memkb: 4096, target_memkb: 4096, max_vcpus: 1, 'type.pvh': {} },
    };
    writeFileSync(at('config'), JSON.stringify(config));
    const argv = ['restore', at('a'), '--host', 'sim', '--config', at('config'), '--check', '--json'];
    const restored = await run(argv);
    expect(restored).toMatchObject({ code: 0, err: '' });
    expect(JSON.parse(restored.out)).toMatchObject({ ok: true, proof: { checkable: true, errors: 0 } });
  });

  test('through pipes', async () => {
    const io = testIo();
    const { code, err } = await run(['save', 'a', '-', '--host', 'sim', '--memory', '4M'], io);
    expect(code).toBe(0);
    expect(err).toContain('saved a to the standard output');
    const stream = io.stdout.bytes;
    const back = testIo({ stdin: Readable.from([stream]) });
    const restored = await run(['restore', '-', '--host', 'sim', '--check'], back);
    expect(restored).toMatchObject({ code: 0 });
    expect(restored.out).toContain('restored pvh guest from the standard input');
  });

  test.each(['tinyhvm.save.gz', 'tinyhvm.migrate.gz'])(
    'a real capture is put in and taken out again: %s',
    async (name) => {
      const stream = capture(name);
      // A captured migration begins with xl's banner and ends with its handshake.
      const from = Math.max(0, stream.indexOf('Xen saved domain'));
      writeFileSync(at('in'), stream.subarray(from));
      const { code, out, err } = await run([
        'restore',
        at('in'),
        '--host',
        'sim',
        '--save-to',
        at('out'),
        '--json',
      ]);
      expect(err).toBe('');
      expect(code).toBe(0);
      const { restored, saved } = JSON.parse(out) as {
        restored: { pages: number };
        saved: { pages: number };
      };
      expect(saved.pages).toBeGreaterThan(0);
      expect(saved.pages).toBeLessThanOrEqual(restored.pages);
      expect((await run(['verify', at('out')])).code).toBe(0);
    },
  );

  test('a guest without a program cannot be checked, and that is no success', async () => {
    writeFileSync(at('in'), capture('tinyhvm.save.gz'));
    const { code, out } = await run(['restore', at('in'), '--host', 'sim', '--check']);
    expect(code).toBe(1);
    expect(out).toContain('FAILED it has no program of the simulator that could check it');
  });

  test('an interrupted save leaves no file, and the older one as it was', async () => {
    writeFileSync(at('a'), 'older');
    const stop = new AbortController();
    const io = testIo();
    io.stderr.onText = (text) => {
      if (stop.signal.aborted || !text.includes('copying')) return;
      expect(readdirSync(dir).length).toBe(2);
      stop.abort(new Interrupted('SIGTERM'));
    };
    const argv = ['save', 'a', at('a'), '--host', 'sim', '--memory', '64M', '--bandwidth', '8M'];
    const { code, err } = await run(argv, io, stop.signal);
    expect(code).toBe(143);
    expect(err).toContain('xen-migrate save: stopped by SIGTERM; the guest is running at the source\n');
    expect(readdirSync(dir)).toEqual(['a']);
    expect(readFileSync(at('a'), 'utf8')).toBe('older');
  });

  test('a cut file is refused', async () => {
    await run(['save', 'a', at('a'), '--host', 'sim', '--memory', '4M']);
    writeFileSync(at('cut'), readFileSync(at('a')).subarray(0, 1_000_000));
    const { code, out, err } = await run(['restore', at('cut'), '--host', 'sim', '--save-to', at('out')]);
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err.trim().split('\n').at(-1)).toMatch(/^xen-migrate restore: .*\(at offset 1000000\)$/);
    expect(readdirSync(dir).sort()).toEqual(['a', 'cut']);
  });
});

/** A receiver in this process. */
async function startReceiver(...more: string[]): Promise<{
  readonly io: TestIo;
  readonly address: string;
  readonly stop: AbortController;
  readonly ended: Promise<{ code: number; out: string; err: string }>;
}> {
  const io = testIo();
  const stop = new AbortController();
  const ended = run(['receive', '--host', 'sim', ...more], io, stop.signal);
  const address = await new Promise<string>((resolve, reject) => {
    io.stdout.onText = (text) => {
      const found = /((?:unix|tcp):\/\/[^\s"]+)/.exec(text)?.[1];
      if (found !== undefined) resolve(found);
    };
    void ended.then(({ err }) => reject(new Error(err)));
  });
  return { io, address, stop, ended };
}

describe('migrate and receive', () => {
  const guest = ['--host', 'sim', '--memory', '8M'];

  test.each(['unix', 'tcp'])('over %s', async (kind) => {
    const listen = kind === 'unix' ? `unix://${at('socket')}` : 'tcp://127.0.0.1:0';
    const { address, ended } = await startReceiver('--listen', listen, '--once');
    const sent = await run(['migrate', 'web1', address, ...guest, '--sim-guest', 'pv']);
    expect(sent.err).toContain(`sending web1 to ${address}: pv guest, 8 MiB`);
    expect(sent.code).toBe(0);
    expect(sent.out).toMatch(/^web1 is running there as domain 1: /);
    const received = await ended;
    expect(received).toMatchObject({ code: 0, err: '' });
    expect(received.out).toMatch(/^received web1 as domain 1: pv guest, running; /m);
    expect(received.out).toMatch(/^ {2}ok it runs here/m);
    expect(received.out).toMatch(/^ {2}ok it checked its memory: [\d,]+ pages, no errors$/m);
    expect(readdirSync(dir)).toEqual([]);
  });

  test('several guests, events as JSON, stopped by SIGTERM', async () => {
    const { io, address, ended, stop } = await startReceiver('--listen', at('socket'), '--json');
    const [a, b] = await Promise.all([
      run(['migrate', 'a', address, ...guest, '--json', '--workload', 'idle']),
      run(['migrate', 'b', address, ...guest, '--json', '--no-live']),
    ]);
    expect([a.code, b.code]).toEqual([0, 0]);
    expect(JSON.parse(a.out)).toMatchObject({ guest: 'a', address, peerState: 'running' });
    // The guests' checks come after the senders have been told.
    await expect.poll(() => io.stdout.text.split('\n').length).toBe(4);
    stop.abort(new Interrupted('SIGTERM'));
    const { code, out, err } = await ended;
    expect({ code, err }).toEqual({ code: 0, err: '' });
    const events = out
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(events[0]).toEqual({ event: 'listening', address });
    expect(
      events
        .slice(1)
        .map((e) => [e['event'], e['ok'], e['name']])
        .sort(),
    ).toEqual([
      ['received', true, 'a'],
      ['received', true, 'b'],
    ]);
  });

  test.each<[string, Uint8Array, string]>([
    ['HTTP', Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'), 'the sender speaks HTTP'],
    [
      'TLS',
      Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
      'the sender speaks TLS, but this connection is a plain one',
    ],
    [
      'a bare xl stream',
      Buffer.from('Xen saved domain, xl format\n \0 \r'),
      'the sender sent a bare xl save stream without a handshake',
    ],
    [
      'garbage',
      Buffer.from('0001020304050607', 'hex'),
      'does not speak the migration protocol of this library (it began with 00 01 02',
    ],
    [
      'another version',
      Buffer.concat([encodePreamble({ lowest: 7, highest: 9 })]),
      'the sender speaks version 7 to 9 of the protocol, this side 1',
    ],
    [
      'a huge frame',
      Buffer.concat([encodePreamble(), Buffer.from('01000000ffffffff', 'hex')]),
      'announced a HELLO frame of 4294967295 bytes; at most 16384 are allowed',
    ],
    [
      'the wrong frame',
      Buffer.concat([encodePreamble(), encodeFrame({ type: FrameType.RELEASED })]),
      'the sender sent RELEASED where HELLO was due',
    ],
  ])('a peer that speaks %s is refused, and the receiver goes on', async (_name, bytes, text) => {
    const { io, address, ended } = await startReceiver('--listen', at('socket'), '--once');
    const socket = net.connect(at('socket'));
    socket.on('error', () => undefined).resume();
    socket.end(bytes);
    await once(socket, 'close');
    await expect.poll(() => io.stderr.text).toContain(text);
    expect(io.stderr.text).toMatch(/^xen-migrate receive: [^\n]*\n$/);
    expect((await run(['migrate', 'a', address, ...guest])).code).toBe(0);
    expect(await ended).toMatchObject({ code: 0 });
  });

  test('a connection without a word is nobody’s failure', async () => {
    const { io, address, ended } = await startReceiver('--listen', at('socket'), '--once');
    const socket = net.connect(at('socket'));
    await once(socket, 'connect');
    socket.destroy();
    expect((await run(['migrate', 'a', address, ...guest])).code).toBe(0);
    expect((await ended).code).toBe(0);
    expect(io.stderr.text).toBe('');
  });

  test.each<[string, string, string]>([
    [
      'xl, and goes',
      'xl migration receiver ready, send binary domain data.\n',
      'the receiver closed the connection',
    ],
    ['SSH', 'SSH-2.0-OpenSSH_9.2\r\n', 'the receiver speaks SSH'],
    ['HTTP', 'HTTP/1.1 400 Bad Request\r\n\r\n', 'the receiver speaks HTTP'],
  ])('a receiver that speaks %s', async (_name, greeting, text) => {
    const server = net.createServer((socket) => {
      socket.on('error', () => undefined).resume();
      socket.end(greeting);
    });
    server.listen(at('socket'));
    await once(server, 'listening');
    const { code, out, err } = await run(['migrate', 'a', at('socket'), ...guest]);
    server.close();
    expect({ code, out }).toEqual({ code: 5, out: '' });
    expect(err).toContain(text);
    expect(err).toContain('; the guest is running at the source\n');
  });

  test('interrupted at either end, the guest stays', async () => {
    const slow = ['--host', 'sim', '--memory', '64M', '--bandwidth', '8M'];
    for (const who of ['sender', 'receiver'] as const) {
      const receiver = await startReceiver('--listen', at(who), '--once');
      const stop = new AbortController();
      const io = testIo();
      io.stderr.onText = (text) => {
        if (!text.includes('copying')) return;
        (who === 'sender' ? stop : receiver.stop).abort(new Interrupted('SIGINT'));
      };
      const sent = await run(['migrate', 'a', receiver.address, ...slow], io, stop.signal);
      expect(sent.code).toBe(who === 'sender' ? 130 : 5);
      expect(sent.err).toContain('the guest is running at the source\n');
      const received = await receiver.ended;
      expect(received.code).toBe(who === 'sender' ? 5 : 130);
    }
  });
});
