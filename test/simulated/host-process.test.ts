import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';

/** Where the set-up of the tests put JavaScript of `lib/testing.ts`, for processes of their own. */
const testing = new URL('../../node_modules/.cache/xen-migration/lib/testing.js', import.meta.url).href;

/** Runs a module in a process of its own, to its end. Its exit code must be 0. */
async function run(body: string): Promise<string> {
  const code = `
    import { SimulatedHost } from ${JSON.stringify(testing)};
    const workload = { kind: 'uniform', rate: Infinity };
    const small = { memory: 4 << 20, workload };
    const steps = async (guest, n) => { while (guest.stats().steps < n) await new Promise((r) => setTimeout(r, 2)); };
    ${body}`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', code]);
  return stdout.trim();
}

describe('a process with simulated guests', () => {
  it('ends although a guest runs', async () => {
    const out = await run(`
      const host = new SimulatedHost();
      const guest = await host.createGuest({ ...small, kind: 'hvm' });
      await steps(guest, 100);
      console.log(guest.stats().running);`);
    expect(out).toBe('true');
  });

  it('ends when guests that keep it alive are closed', async () => {
    const out = await run(`
      const host = new SimulatedHost({ keepAlive: true });
      const kinds = ['hvm', 'pvh', 'pv', 'pv32'];
      const guests = await Promise.all(kinds.map((kind) => host.createGuest({ ...small, kind })));
      for (const guest of guests) await steps(guest, 100);
      await guests[0].crash();
      await host.toolstack.destroy(guests[1].domid);
      await host.toolstack.suspend(guests[2].domid, { live: true });
      await host.close();
      console.log('closed');`);
    expect(out).toBe('closed');
  });

  it('lives as long as a guest that is to keep it alive', async () => {
    const out = await run(`
      const host = new SimulatedHost({ keepAlive: true });
      const guest = await host.createGuest(small);
      process.once('beforeExit', () => console.log('left'));
      setTimeout(() => { console.log('waited'); void host.close(); }, 50).unref();`);
    expect(out).toBe('waited\nleft');
  });

  it('does not end while an answer of a guest is awaited', async () => {
    const out = await run(`
      const host = new SimulatedHost();
      const guest = await host.createGuest(small);
      await host.toolstack.suspend(guest.domid, { live: true });
      console.log((await guest.check()).errors, host.guest(guest.domid) === guest);`);
    expect(out).toBe('0 true');
  });
});
