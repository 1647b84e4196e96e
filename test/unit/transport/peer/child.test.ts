/** Programs as peers: ssh and exec. */
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Duplex } from 'node:stream';
import { afterAll, describe, expect, test } from 'vitest';
import { connectPeer } from '../../../../lib/transport/peer/index.js';
import { openConnection } from '../../../../lib/transport/socket.js';
import { drain, pattern } from '../helpers.js';
import { closed, readAll } from './helpers.js';

const dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-child-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

function script(name: string, text: string): string {
  const file = path.join(dir, name);
  writeFileSync(file, `#!/bin/sh\n${text}\n`);
  chmodSync(file, 0o755);
  return file;
}

const alive = (pid: number): boolean => {
  try {
    // A zombie would still be there.
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

/** The first line that a peer sends. */
async function firstLine(peer: Duplex): Promise<string> {
  let text = '';
  while (!text.includes('\n')) {
    const chunk = peer.read() as Buffer | null;
    if (chunk === null) await new Promise((resolve) => peer.once('readable', resolve));
    else text += chunk.toString();
  }
  return text.trim();
}

describe('exec:', () => {
  test('both directions, each ended by itself, with large amounts', async () => {
    const peer = await connectPeer('exec:cat; echo over');
    const { source, sink } = openConnection(peer);
    const bytes = pattern(5_000_000);
    const draining = drain(source);
    await sink.write([bytes.subarray(0, 3_000_000)]);
    await Promise.all([
      sink.write([bytes.subarray(3_000_000, 3_000_001)]),
      sink.write([bytes.subarray(3_000_001)]),
    ]);
    await sink.end();
    const out = await draining;
    expect(out.subarray(0, -5).equals(bytes)).toBe(true);
    expect(out.subarray(-5).toString()).toBe('over\n');
    await source.close();
    peer.destroy();
    await closed(peer);
  });

  test('what it said before it failed is read, then comes the error with its standard error', async () => {
    const peer = await connectPeer('exec:echo hello; echo why >&2; printf "\\033[31mtwice\\n" >&2; exit 3');
    const source = openConnection(peer, { name: 'the receiver' }).source;
    expect(await source.wait(1)).toBe(true);
    expect(Buffer.from(source.take(100) ?? []).toString()).toBe('hello\n');
    await expect(source.wait(1)).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_LOST',
      message: expect.stringMatching(
        /^echo hello; .*: why \/ \\u001b\[31mtwice \(exit status 3\)$/,
      ) as string,
    });
    await closed(peer);
  });

  test('also if nobody reads at first, and the writer gets the same error', async () => {
    const peer = await connectPeer('exec:echo hello; echo no >&2; exec 0<&-; exit 1');
    const { source, sink } = openConnection(peer);
    await expect(
      (async () => {
        for (;;) await sink.write([pattern(100_000)]);
      })(),
    ).rejects.toThrow(/no \(exit status 1\)/);
    void source.close();
    await closed(peer);
  });

  test('only the end of a long standard error is kept', async () => {
    const peer = await connectPeer('exec:seq 1 100000 >&2; echo last >&2; exit 1');
    const error = await readAll(peer).catch((e: unknown) => e as Error);
    expect(error).toMatchObject({
      message: expect.stringMatching(/100000 \/ last \(exit status 1\)$/) as string,
    });
    expect((error as Error).message.length).toBeLessThan(10_000);
  });

  test('killed by a signal', async () => {
    await expect(readAll(await connectPeer('exec:kill -9 $$'))).rejects.toThrow(/killed by SIGKILL/);
  });

  test('an end in good order is no error, whoever closes first', async () => {
    expect(await readAll(await connectPeer('exec:echo done'))).toBe('done\n');
    const lingering = await connectPeer('exec:exec 1>&-; cat > /dev/null');
    // It has closed its output but runs: that is an end, not a failure.
    expect(await readAll(lingering)).toBe('');
    lingering.destroy();
    await closed(lingering);
  });

  test('destroying it ends the program and its children, also those that do not want to', async () => {
    const stubborn = `trap '' TERM; (trap '' TERM; exec sleep 1000) & echo $$ $!; wait`;
    const peer = await connectPeer(`exec:${stubborn}`);
    const pids = (await firstLine(peer)).split(' ').map(Number);
    expect(pids.map(alive)).toEqual([true, true]);
    peer.destroy(new Error('no more'));
    await closed(peer);
    expect(alive(pids[0] ?? 0)).toBe(false);
    while (alive(pids[1] ?? 0)) await new Promise((resolve) => setTimeout(resolve, 5));
  });

  test('a standard error that another program holds open delays nothing for ever', async () => {
    const peer = await connectPeer('exec:sleep 1000 >/dev/null <&1 & echo $!; echo bad >&2; exit 4');
    const pid = Number(await firstLine(peer));
    await expect(readAll(peer)).rejects.toThrow(/bad \(exit status 4\)/);
    await closed(peer);
    process.kill(pid, 'SIGKILL');
  });

  test('it has no terminal and is in no group with us', async () => {
    const peer = await connectPeer('exec:ps -o pgid= -o tty= -p $$; echo $$');
    const [group, tty, pid] = (await readAll(peer)).trim().split(/\s+/);
    expect(group).toBe(pid);
    expect(tty).toBe('?');
  });

  test('an aborted signal', async () => {
    const signal = AbortSignal.abort(new Error('stop'));
    await expect(connectPeer('exec:cat', { signal })).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
  });
});

describe('ssh://', () => {
  test('what ssh is given', async () => {
    const ssh = script('ssh-args', 'for a; do echo "<$a>"; done');
    const args = async (address: string, more: object = {}): Promise<string> =>
      (await readAll(await connectPeer(address, { sshCommand: ssh, ...more }))).replaceAll('\n', '');
    expect(await args('ssh://host2')).toBe(
      '<-T><-o><BatchMode=yes><-o><ConnectTimeout=10><--><host2><xl migrate-receive>',
    );
    expect(
      await args('ssh://root@[fe80::1]:2222', {
        timeoutMs: 2500,
        remoteCommand: 'xen-migrate receive --stdio',
        sshCommand: `${ssh} -i  /root/key`,
      }),
    ).toBe(
      '<-i></root/key><-T><-o><BatchMode=yes><-o><ConnectTimeout=3><-p><2222><--><root@fe80::1>' +
        '<xen-migrate receive --stdio>',
    );
    expect(await args('ssh://host2', { sshCommand: [ssh, 'a b'] })).toMatch(/^<a b><-T>/);
  });

  test('the ssh of the environment', async () => {
    process.env['XEN_MIGRATE_SSH'] = script('ssh-env', 'echo from the environment');
    try {
      expect(await readAll(await connectPeer('ssh://h'))).toBe('from the environment\n');
    } finally {
      delete process.env['XEN_MIGRATE_SSH'];
    }
  });

  test('its words are in the error', async () => {
    const ssh = script('ssh-denied', 'echo "root@h: Permission denied (publickey)." >&2; exit 255');
    await expect(readAll(await connectPeer('ssh://h', { sshCommand: ssh }))).rejects.toThrow(
      'ssh h: root@h: Permission denied (publickey). (exit status 255)',
    );
  });

  test('no such program', async () => {
    const sshCommand = path.join(dir, 'nothing');
    await expect(connectPeer('ssh://h', { sshCommand })).rejects.toMatchObject({
      code: 'ERR_XEN_TRANSPORT',
      message: `cannot start ssh h: there is no program ${sshCommand}`,
    });
    await expect(connectPeer('ssh://h', { sshCommand: ' ' })).rejects.toThrow(/the ssh command is empty/);
    await expect(connectPeer('ssh://h', { remoteCommand: '' })).rejects.toThrow(/remote command is empty/);
  });

  test('the real one asks nothing and says what is wrong; so do we where there is none', async () => {
    const failing = connectPeer('ssh://127.0.0.1:1', { sshCommand: 'ssh -F none' }).then(readAll);
    await expect(failing).rejects.toThrow(
      existsSync('/usr/bin/ssh')
        ? /^ssh 127\.0\.0\.1: .*Connection refused.*\(exit status 255\)$/
        : /^cannot start ssh 127\.0\.0\.1: there is no program ssh$/,
    );
  });

  test('a program that never answers is gone after it was destroyed', async () => {
    const file = path.join(dir, 'pid');
    const ssh = script('ssh-silent', `echo $$ > ${file}; exec sleep 1000`);
    const peer = await connectPeer('ssh://h', { sshCommand: ssh });
    while (!existsSync(file) || readFileSync(file).length === 0) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    peer.destroy();
    await closed(peer);
    expect(alive(Number(readFileSync(file)))).toBe(false);
  });
});
