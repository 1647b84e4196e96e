/** `migrate` and `receive` over their peer addresses, in processes of their own: TLS, commands, sockets of systemd, a service. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { pem } from '../unit/transport/peer/helpers.js';
import { dir, env, program, sim, start, watch, type Running } from './processes.js';

const small = [...sim, '--memory', '8M'];
const slow = [...sim, '--memory', '64M', '--bandwidth', '8M'];
const tls = (name: string): string[] => [
  '--tls-cert',
  pem(`${name}.crt`),
  '--tls-key',
  pem(`${name}.key`),
  '--tls-ca',
  pem('ca.crt'),
];

/** `xen-migrate receive --stdio`, as a shell would be told. */
const stdio = (...more: string[]): string =>
  ['exec', process.execPath, program, 'receive', '--stdio', ...sim, ...more].join(' ');

describe('over TLS', () => {
  test('a guest arrives; who has another certificate is told, and the service goes on', async () => {
    const receiver = start(
      'receive',
      '--listen',
      'tls://127.0.0.1:0',
      ...tls('server'),
      '--tls-allow',
      'a.example',
      ...sim,
    );
    const address = await receiver.prints(/tls:\/\/\S+/);
    const stranger = start('migrate', 'web1', address, ...tls('nameless'), ...small);
    expect(await stranger.ended).toBe(5);
    expect(stranger.err()).toContain('it may not accept the certificate of this side');
    await receiver.prints(/its certificate, of dom0-b, has none of the names that are allowed/);
    const sender = start('migrate', 'web1', address, ...tls('client'), '--compress', 'gzip', ...small);
    expect(await sender.ended, sender.err()).toBe(0);
    await receiver.prints(/no errors/);
    const plain = start('migrate', 'web2', address.replace('tls', 'tcp'), ...small);
    expect(await plain.ended).toBe(5);
    expect(plain.err()).toMatch(/TLS/);
    receiver.child.kill('SIGTERM');
    expect(await receiver.ended).toBe(0);
  });

  test('files that are no use are a wrong usage', async () => {
    const options = [
      '--tls-cert',
      pem('client.crt'),
      '--tls-key',
      pem('server.key'),
      '--tls-ca',
      pem('ca.crt'),
    ];
    const sender = start('migrate', 'web1', 'tls://127.0.0.1:1', ...options, ...small);
    expect(await sender.ended).toBe(2);
    expect(sender.err()).toContain('is not the key of');
  });
});

describe('over the standard streams of a command', () => {
  test.each([[[]], [['--compress', 'brotli,gzip']]])('exec: %j', async (more) => {
    const note = path.join(dir, 'said');
    const sender = start('migrate', 'web1', `exec:${stdio()} 2> ${note}`, ...more, ...small);
    expect(await sender.ended, sender.err()).toBe(0);
    expect(sender.out()).toMatch(/^web1 is running there as domain 1/);
    expect(readFileSync(note, 'latin1')).toMatch(/^received web1 as domain 1[^]*no errors\n$/);
  });

  test('the sender sees by itself that the receiver speaks as xl does', async () => {
    const sender = start(
      'migrate',
      'web1',
      `exec:${stdio('--protocol', 'xl')}`,
      '--compress',
      'gzip',
      ...small,
    );
    expect(await sender.ended, sender.err()).toBe(0);
    expect(sender.out()).toMatch(/^web1 is running there/);
    const wrong = start('migrate', 'web1', `exec:${stdio()}`, '--protocol', 'xl', ...small);
    expect(await wrong.ended).toBe(5);
    expect(wrong.err()).toMatch(/the guest is running at the source\n$/);
  });

  test('ssh:// with another ssh, which gets the remote command', async () => {
    const ssh = path.join(dir, 'ssh');
    writeFileSync(ssh, `#!/bin/sh\nfor last; do :; done\nexec /bin/sh -c "$last"\n`);
    chmodSync(ssh, 0o755);
    const sender = start(
      'migrate',
      'web1',
      'ssh://root@host2',
      '--ssh',
      ssh,
      '--remote-command',
      stdio(),
      ...small,
    );
    expect(await sender.ended, sender.err()).toBe(0);
    expect(sender.err()).toContain('sending web1 to ssh://root@host2: ');
  });

  test('what the command says when it fails', async () => {
    const sender = start('migrate', 'web1', 'exec:echo "xl: not found" >&2; exit 127', ...small);
    expect(await sender.ended).toBe(5);
    expect(sender.err()).toMatch(/xl: not found \(exit status 127\); the guest is running at the source\n$/);
  });

  test('events go to the standard error, and the exit code is that of the one guest', async () => {
    const receiver = watch(
      spawn('/bin/sh', ['-c', stdio('--json')], { env: env(), stdio: ['pipe', 'pipe', 'pipe'] }),
    );
    receiver.child.stdin?.end('Xen saved domain, xl format\n \0 \r');
    expect(await receiver.ended).toBe(5);
    expect(receiver.out()).not.toContain('event');
    expect(receiver.err()).toMatch(/"event":"failed".*without a handshake/);
  });
});

describe('sockets of systemd', () => {
  /** A receiver that is started as systemd does it. */
  function activated(sockets: (net.Server | net.Socket)[], names: string, ...more: string[]): Running {
    const fds = sockets.map((socket) => (socket as unknown as { _handle: { fd: number } })._handle.fd);
    // The process that is told the variables has to be the one that they name.
    const line = `LISTEN_PID=$$ exec ${process.execPath} ${program} receive ${[...sim, ...more].join(' ')}`;
    return watch(
      spawn('/bin/sh', ['-c', line], {
        env: env({ LISTEN_FDS: String(fds.length), LISTEN_FDNAMES: names }),
        stdio: ['ignore', 'pipe', 'pipe', ...fds],
      }),
    );
  }

  async function listening(at: string | number): Promise<net.Server> {
    const server = net.createServer((socket) => socket.destroy());
    if (typeof at === 'string') server.listen(at);
    else server.listen(at, '127.0.0.1');
    await once(server, 'listening');
    return server;
  }

  test('several that listen: a Unix one, and TLS on the TCP one', async () => {
    const servers = [await listening(path.join(dir, 'socket')), await listening(0)];
    const { port } = servers[1]?.address() as net.AddressInfo;
    const receiver = activated(servers, 'plain:secure', '--listen', 'systemd', ...tls('server'));
    await receiver.prints(/listening at tls:\/\/\S+/);
    // From here on the child alone listens. Closing would remove the path of the Unix socket, so that has another name.
    renameSync(path.join(dir, 'socket'), path.join(dir, 'kept'));
    for (const server of servers) server.close();
    const one = start('migrate', 'web1', path.join(dir, 'kept'), ...small);
    expect(await one.ended, one.err()).toBe(0);
    const two = start('migrate', 'web2', `tls://127.0.0.1:${port}`, ...tls('client'), ...small);
    expect(await two.ended, two.err()).toBe(0);
    await receiver.prints(/received web2/);
    receiver.child.kill('SIGTERM');
    expect(await receiver.ended).toBe(0);
  });

  test('only those of a name', async () => {
    const servers = [await listening(path.join(dir, 'a')), await listening(path.join(dir, 'b'))];
    const receiver = activated(servers, 'first:second', '--listen', 'systemd:second', '--once');
    await receiver.prints(/listening at/);
    servers[1]?.close();
    servers[0]?.close();
    receiver.child.kill('SIGINT');
    expect(await receiver.ended).toBe(130);
  });

  test('a connection that was accepted already (Accept=yes)', async () => {
    const file = path.join(dir, 'socket');
    const server = net.createServer({ pauseOnConnect: true });
    server.listen(file);
    await once(server, 'listening');
    const accepted = once(server, 'connection');
    const sender = start('migrate', 'web1', file, ...small);
    const [socket] = (await accepted) as [net.Socket];
    const receiver = activated([socket], 'connection', '--listen', 'systemd');
    await once(receiver.child, 'spawn');
    socket.destroy();
    server.close();
    expect(await sender.ended, sender.err() + receiver.err()).toBe(0);
    expect(await receiver.ended).toBe(0);
    expect(receiver.out()).toMatch(/^received web1/);
  });

  test.each([
    ['client', 0, 0],
    ['other-client', 5, 5],
  ])('an accepted TCP connection, over TLS: %s', async (certificate, sent, received) => {
    const server = net.createServer({ pauseOnConnect: true });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const accepted = once(server, 'connection');
    const { port } = server.address() as net.AddressInfo;
    const sender = start('migrate', 'web1', `tls://127.0.0.1:${port}`, ...tls(certificate), ...small);
    const [socket] = (await accepted) as [net.Socket];
    const receiver = activated([socket], 'connection', '--listen', 'systemd', '--json', ...tls('server'));
    await once(receiver.child, 'spawn');
    socket.destroy();
    server.close();
    expect(await sender.ended, sender.err() + receiver.err()).toBe(sent);
    expect(await receiver.ended).toBe(received);
    if (received === 0) {
      const event = JSON.parse(receiver.out()) as object;
      expect(event).toMatchObject({ event: 'received', name: 'web1', certificateName: 'dom0 a' });
    } else expect(receiver.err()).toMatch(/its certificate is of another CA/);
  });

  test('a TCP socket that others can reach is not listened at in the clear', async () => {
    const server = net.createServer();
    server.listen(0, '0.0.0.0');
    await once(server, 'listening');
    const receiver = activated([server], 'x', '--listen', 'systemd');
    expect(await receiver.ended).toBe(2);
    expect(receiver.err()).toMatch(/can be reached from other machines/);
    server.close();
  });

  test('variables that are for another process', async () => {
    const receiver = watch(
      spawn(process.execPath, [program, 'receive', '--listen', 'systemd', ...sim], {
        env: env({ LISTEN_PID: '1', LISTEN_FDS: '1' }),
        stdio: ['ignore', 'pipe', 'pipe'],
      }),
    );
    expect(await receiver.ended).toBe(2);
    expect(receiver.err()).toMatch(/are for process 1, and this is \d+/);
  });
});

describe('a service', () => {
  test('takes no more than --max at a time, and tells who has to wait', async () => {
    const receiver = start('receive', '--listen', path.join(dir, 'socket'), '--max', '1', ...sim);
    const address = await receiver.prints(/unix:\/\/\S+/);
    const first = start('migrate', 'web1', address, ...slow);
    await first.prints(/copying while the guest runs/);
    // Whoever says nothing does not count.
    const silent = net.connect(path.join(dir, 'socket'));
    await once(silent, 'connect');
    const second = start('migrate', 'web2', address, ...small);
    expect(await second.ended).toBe(5);
    expect(second.err()).toMatch(
      /takes one guest at a time; try again later \(ERR_XEN_NOT_ACCEPTED\); the guest is running at the source/,
    );
    first.child.kill('SIGTERM');
    expect(await first.ended).toBe(143);
    await receiver.prints(/xen-migrate receive: the sender closed the connection after/);
    const third = start('migrate', 'web3', address, ...small);
    expect(await third.ended, third.err()).toBe(0);
    silent.destroy();
    receiver.child.kill('SIGTERM');
    expect(await receiver.ended).toBe(0);
  });

  test('connections that say nothing are limited', async () => {
    const file = path.join(dir, 'socket');
    const receiver = start('receive', '--listen', file, ...sim);
    await receiver.prints(/unix:\/\/\S+/);
    const crowd = Array.from({ length: 64 }, () => net.connect(file));
    // Each is greeted; then it is one of the silent.
    await Promise.all(crowd.map((socket) => once(socket, 'readable')));
    const late = net.connect(file);
    late.on('error', () => undefined).resume();
    await once(late, 'close');
    expect(crowd.filter((socket) => socket.destroyed || socket.readableEnded)).toEqual([]);
    for (const socket of crowd) socket.destroy();
    let sender = start('migrate', 'web1', file, ...small);
    // The others may not be gone yet for the receiver.
    while ((await sender.ended) !== 0) sender = start('migrate', 'web1', file, ...small);
    receiver.child.kill('SIGTERM');
    expect(await receiver.ended).toBe(0);
    expect(receiver.err()).toBe('');
  });

  test('SIGTERM: what can go on at its source does, nothing new is taken, and all is well', async () => {
    const file = path.join(dir, 'socket');
    const receiver = start('receive', '--listen', file, ...sim);
    await receiver.prints(/unix:\/\/\S+/);
    const sender = start('migrate', 'web1', file, ...slow);
    await sender.prints(/copying while the guest runs/);
    receiver.child.kill('SIGTERM');
    expect(await sender.ended).toBe(5);
    expect(sender.err()).toMatch(/stopped by SIGTERM.*the guest is running at the source\n$/);
    expect(await receiver.ended).toBe(0);
    expect(readdirSync(dir)).toEqual([]);
  });

  test('systemd is told when it is ready and when it stops', async () => {
    const log = path.join(dir, 'log');
    const tool = path.join(dir, 'systemd-notify');
    writeFileSync(tool, `#!/bin/sh\necho "$NOTIFY_SOCKET $*" >> ${log}\n`);
    chmodSync(tool, 0o755);
    const receiver = watch(
      spawn(process.execPath, [program, 'receive', '--listen', path.join(dir, 'socket'), ...sim], {
        env: env({ PATH: `${dir}:${process.env['PATH'] ?? ''}`, NOTIFY_SOCKET: '/run/n' }),
        stdio: ['ignore', 'pipe', 'pipe'],
      }),
    );
    const said = async (text: string): Promise<void> => {
      await expect
        .poll(() => (readdirSync(dir).includes('log') ? readFileSync(log, 'latin1') : ''), {
          timeout: 30_000,
        })
        .toContain(text);
    };
    await said('/run/n READY=1\n');
    receiver.child.kill('SIGTERM');
    expect(await receiver.ended).toBe(0);
    await said('/run/n STOPPING=1\n');
  });
});
