import { describe, expect, test } from 'vitest';
import { commands } from '../../../lib/cli/commands.js';
import { VERSION } from '../../../lib/version.js';
import { run, testIo } from './io.js';

describe('help', () => {
  test('the overview', async () => {
    const { code, out, err } = await run(['--help']);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    await expect(out).toMatchFileSnapshot('help/overview.txt');
    expect(await run(['-h'])).toMatchObject({ code: 0, out });
    expect(await run(['help'])).toMatchObject({ code: 0, out });
    // Without any argument it is a mistake, and told as one.
    expect(await run([])).toEqual({ code: 2, out: '', err: out });
  });

  test.each(commands.map(({ name }) => name))('%s', async (name) => {
    const { code, out, err } = await run([name, '--help']);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    await expect(out).toMatchFileSnapshot(`help/${name}.txt`);
    expect(out.startsWith(`usage: xen-migrate ${name}`)).toBe(true);
    expect(out.endsWith('\n')).toBe(true);
    for (const line of out.split('\n')) expect(line.length, line).toBeLessThanOrEqual(124);
    expect(await run(['help', name])).toMatchObject({ code: 0, out });
    expect(await run([name, 'something', '-h'])).toMatchObject({ code: 0, out });
  });

  test('the list says what the commands say of themselves', async () => {
    for (const { name, summary, load } of commands) expect(await load()).toMatchObject({ name, summary });
  });

  test('--version', async () => {
    expect(await run(['--version'])).toEqual({ code: 0, out: `xen-migrate ${VERSION}\n`, err: '' });
  });
});

describe('wrong usage is one line and exit code 2', () => {
  test.each<[string[], string]>([
    [['frobnicate'], 'xen-migrate: there is no command "frobnicate"; see xen-migrate --help\n'],
    [['--frobnicate'], 'xen-migrate: unknown option --frobnicate; see xen-migrate --help\n'],
    [['help', 'frobnicate'], 'xen-migrate: there is no command "frobnicate"; see xen-migrate --help\n'],
    [['help', 'demo', 'save'], 'xen-migrate: "save" is one argument too many; see xen-migrate --help\n'],
    [['demo', '--frob'], "xen-migrate demo: unknown option '--frob'; see xen-migrate demo --help\n"],
    [
      ['demo', '--memory'],
      "xen-migrate demo: option '--memory <value>' argument missing; see xen-migrate demo --help\n",
    ],
    [['demo', 'x'], "xen-migrate demo: unexpected argument 'x'; see xen-migrate demo --help\n"],
    [['demo', '--memory', '5 apples'], '"5 apples" is no size'],
    [['demo', '--memory', '3K'], 'between 1 MiB and 64 GiB'],
    [['demo', '--workload', 'x'], '--workload: "x" is none of idle, uniform, hot-set, sweep'],
    [['demo', '--guest', 'x'], '--guest: "x" is none of pvh, hvm, pv, pv32'],
    [['demo', '--rate', '-1'], '--rate'],
    [['demo', '--max-downtime', 'soon'], '--max-downtime: "soon" is no time'],
    [['migrate'], 'xen-migrate migrate: GUEST is missing; see xen-migrate migrate --help\n'],
    [['migrate', 'a'], 'ADDRESS is missing'],
    [['migrate', 'a', 'b'], '"b" is no address'],
    [['migrate', 'a', 'ssh://-oProxyCommand=x'], 'is no address'],
    [['migrate', 'a', 'systemd', '--host', 'sim'], 'to receive from, not to connect to'],
    [['migrate', 'a', 'tls://b:1', '--host', 'sim'], 'TLS needs --tls-cert, --tls-key and --tls-ca'],
    [['migrate', 'a', '/x', '--tls-name', 'b'], 'TLS needs --tls-cert'],
    [['migrate', 'a', '/x', '--compress', 'gzip,lzma'], '--compress: "lzma" is none of'],
    [['migrate', 'a', '/x', '--protocol', 'ssh'], '--protocol: "ssh" is none of auto, xen-migration, xl'],
    [['migrate', 'a', 'tcp://192.0.2.1:9', '--host', 'sim'], 'is not on this machine'],
    [['migrate', 'a', '/x', '--host', 'qemu'], '--host: "qemu" is none of xen, sim'],
    [['receive'], '--listen ADDRESS is missing'],
    [['receive', '--listen', 'tcp://0.0.0.0:0', '--host', 'sim'], '--insecure'],
    [['receive', '--listen', '/x', '--stdio'], 'give --listen or --stdio, not both'],
    [['receive', '--listen', '/x', '--max', '0'], '--max: "0" is no whole number from 1'],
    [['receive', '--listen', 'ssh://b', '--host', 'sim'], 'to connect to, not to listen at'],
    [['receive', '--listen', 'systemd', '--host', 'sim'], 'systemd gave no sockets'],
    [['receive', '--listen', 'fd://999', '--host', 'sim'], 'fd 999 is not open'],
    [['receive', '--listen', 'localhost:0', '--tls-allow', 'a'], 'TLS needs --tls-cert'],
    [['receive', 'x', '--listen', '/x'], '"x" is one argument too many'],
    [['save', 'a'], 'FILE is missing'],
    [['save', 'a', 'b', '--format', 'zip'], '--format: "zip" is none of xl, libxl, libxc'],
    [['save', 'a', '/tmp', '--host', 'sim'], '/tmp is a directory'],
    [['restore'], 'FILE is missing'],
  ])('%j', async (argv, text) => {
    const { code, out, err } = await run(argv);
    expect(err).toContain(text);
    expect(err).toMatch(/^xen-migrate( \w+)?: [^\n]*; see xen-migrate( \w+)? --help\n$/);
    expect({ code, out }).toEqual({ code: 2, out: '' });
  });

  test('a guest is not written to a terminal', async () => {
    const { code, err } = await run(['save', 'a', '-', '--host', 'sim'], testIo({ tty: true }));
    expect({ code, err }).toMatchObject({ code: 2, err: expect.stringContaining('terminal') as string });
  });
});

describe('without a hypervisor', () => {
  test.each([
    ['migrate', 'guest', '/run/socket'],
    ['receive', '--listen', '/run/socket'],
    ['save', 'guest', 'file'],
    ['restore', 'file'],
  ])('%s names --host sim and exits with 4', async (...argv) => {
    const { code, out, err } = await run(argv);
    expect({ code, out }).toEqual({ code: 4, out: '' });
    expect(err).toMatch(/^xen-migrate \w+: [^\n]*; add --host sim to use a simulated host\n$/);
  });
});

describe('errors', () => {
  test('a missing file', async () => {
    const { code, out, err } = await run(['restore', '/nonexistent/guest', '--host', 'sim']);
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err).toMatch(/^xen-migrate restore: [^\n]*ENOENT[^\n]*\n$/);
  });

  test('NODE_DEBUG shows stack and cause', async () => {
    const io = testIo({ env: { NODE_DEBUG: 'net,xen-migration' } });
    const { code, err } = await run(['restore', '/nonexistent/guest', '--host', 'sim'], io);
    expect(code).toBe(1);
    expect(err).toContain('TransportError');
    expect(err).toMatch(/\[cause\]: \[?Error: ENOENT/);
    expect(err).toMatch(/\n\s+at /);
  });

  test('nobody listens', async () => {
    const { code, err } = await run([
      'migrate',
      'a',
      '/nonexistent/socket',
      '--host',
      'sim',
      '--memory',
      '1M',
    ]);
    expect({ code, err }).toEqual({
      code: 5,
      err: 'xen-migrate migrate: cannot connect to unix:///nonexistent/socket: there is no such socket\n',
    });
  });
});
