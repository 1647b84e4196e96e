/** The program `xen-migrate` in processes of its own: signals, pipes, and a migration between two of them. */
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { dir, killAfterTest, program, sim, start } from './processes.js';

describe('migrate and receive', () => {
  test.each(['unix', 'tcp'])('between two processes, over %s', async (kind) => {
    const listen = kind === 'unix' ? path.join(dir, 'socket') : '127.0.0.1:0';
    const receiver = start('receive', '--listen', listen, '--once', ...sim);
    const address = await receiver.prints(/(unix|tcp):\/\/\S+/);
    const sender = start('migrate', 'web1', address, '--memory', '16M', ...sim);
    expect(await sender.ended, sender.err()).toBe(0);
    expect(await receiver.ended, receiver.err()).toBe(0);
    expect(sender.out()).toMatch(/^web1 is running there as domain 1/);
    expect(receiver.out()).toMatch(/^ {2}ok it checked its memory: [\d,]+ pages, no errors$/m);
    expect(readdirSync(dir)).toEqual([]);
  });

  test.each(['sender', 'receiver'] as const)('the %s is killed in the middle', async (victim) => {
    const receiver = start('receive', '--listen', path.join(dir, 'socket'), ...sim);
    const address = await receiver.prints(/unix:\/\/\S+/);
    const slow = ['--memory', '64M', '--bandwidth', '8M'];
    const sender = start('migrate', 'web1', address, ...slow, ...sim);
    await sender.prints(/copying while the guest runs/);
    (victim === 'sender' ? sender : receiver).child.kill('SIGKILL');
    if (victim === 'receiver') {
      expect(await sender.ended).toBe(5);
      expect(sender.err()).toMatch(/; the guest is running at the source\n$/);
      return;
    }
    await receiver.prints(/xen-migrate receive: /);
    // It goes on, and takes the next one.
    const next = start('migrate', 'web2', address, '--memory', '4M', ...sim);
    expect(await next.ended, next.err()).toBe(0);
    receiver.child.kill('SIGTERM');
    expect(await receiver.ended).toBe(0);
    expect(readdirSync(dir)).toEqual([]);
  });
});

describe('signals', () => {
  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s ends a save in good order', async (signal, code) => {
    const save = start('save', 'a', path.join(dir, 'a'), '--memory', '64M', '--bandwidth', '4M', ...sim);
    await save.prints(/copying while the guest runs/);
    save.child.kill(signal);
    expect(await save.ended).toBe(code);
    expect(save.err()).toContain(
      `xen-migrate save: stopped by ${signal}; the guest is running at the source\n`,
    );
    expect(readdirSync(dir)).toEqual([]);
  });

  test('a demo leaves no socket behind', async () => {
    const demo = start('demo', '--memory', '64M', '--bandwidth', '4M');
    await demo.prints(/copying while the guest runs/);
    expect(readdirSync(dir)).toHaveLength(1);
    demo.child.kill('SIGINT');
    expect(await demo.ended).toBe(130);
    expect(readdirSync(dir)).toEqual([]);
  });

  test('a receiver that waits ends with 0, with --once as interrupted', async () => {
    for (const [more, code] of [[[], 0] as const, [['--once'], 130] as const]) {
      const receiver = start('receive', '--listen', path.join(dir, 'socket'), ...more, ...sim);
      await receiver.prints(/unix:\/\/\S+/);
      receiver.child.kill('SIGINT');
      expect(await receiver.ended).toBe(code);
      expect(readdirSync(dir)).toEqual([]);
    }
  });
});

describe('pipes', () => {
  test('save | restore', async () => {
    const save = spawn(process.execPath, [program, 'save', 'a', '-', '--memory', '8M', ...sim]);
    const restore = start('restore', '-', '--check', ...sim);
    killAfterTest(save);
    save.stdout.pipe(restore.child.stdin as NodeJS.WritableStream);
    expect(await restore.ended, restore.err()).toBe(0);
    expect(restore.out()).toContain('restored pvh guest from the standard input');
    expect(restore.out()).toContain('no errors');
  });

  test('whoever reads the output goes away: quietly', async () => {
    const help = start('demo', '--help');
    help.child.stdout?.destroy();
    expect(await help.ended).toBe(0);
    expect(help.err()).toBe('');
    const demo = start('demo', '--memory', '8M', '--bandwidth', '0');
    await demo.prints(/Live migration/);
    demo.child.stdout?.destroy();
    // The guest arrived; that nobody read so is no failure of it.
    expect(await demo.ended, demo.err()).toBe(0);
    expect(demo.err()).not.toMatch(/EPIPE|Error/);
  });

  test('a stream whose reader goes away is a failed save, and the guest stays', async () => {
    const save = start('save', 'a', '-', '--memory', '64M', ...sim);
    await save.prints(/Xen saved domain/);
    save.child.stdout?.destroy();
    expect(await save.ended).toBe(5);
    expect(save.err()).toMatch(/; the guest is running at the source\n$/);
  });
});
