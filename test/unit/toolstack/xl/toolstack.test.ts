import { afterEach, describe, expect, test } from 'vitest';
import { TimeoutError, UsageError } from '../../../../lib/errors.js';
import type { Toolstack } from '../../../../lib/toolstack/toolstack.js';
import { lastWords, XlError } from '../../../../lib/toolstack/xl/error.js';
import { needsXl } from '../../../../lib/toolstack/xl/needs.js';
import { hasXl, runXl, xl, xlDomid } from '../../../../lib/toolstack/xl/run.js';
import { checkName, xlToolstack } from '../../../../lib/toolstack/xl/toolstack.js';
import { FAKE_XL, FakeXl } from './fake.js';

const program = FAKE_XL;
let fake: FakeXl | undefined;
afterEach(() => {
  fake?.remove();
  fake = undefined;
});
const fakeXl = (mode?: string): FakeXl => (fake = new FakeXl(mode));

/** Notes what it is asked. */
function inner(more: Partial<Toolstack> = {}): { toolstack: Toolstack; asked: string[] } {
  const asked: string[] = [];
  const toolstack = new Proxy(more, {
    get: (target, key) => {
      if (key in target) return Reflect.get(target, key) as unknown;
      if (['rename', 'findByName', 'nameOf', 'notes', 'assertDestroyable'].includes(String(key)))
        return undefined;
      return async (...args: unknown[]) => {
        asked.push([key, ...args].map(String).join(' '));
      };
    },
  }) as Toolstack;
  return { toolstack, asked };
}

describe('running xl', () => {
  test('resolves to its end, whatever that is', async () => {
    fakeXl();
    expect(await runXl(['domname', '9'], { program })).toMatchObject({ exitCode: 1, stdout: '' });
    await expect(xl(['domname', '9'], { program })).rejects.toMatchObject({
      code: 'ERR_XEN_XL',
      command: 'xl domname 9',
      exitCode: 1,
      message: 'xl domname 9 failed (exit code 1): 9 is an invalid domain identifier (rc=-6)',
    });
  });

  test('finds domains by name', async () => {
    fakeXl().add(4, 'guest');
    expect(await xlDomid('guest', { program })).toBe(4);
    expect(await xlDomid('other', { program })).toBeUndefined();
  });

  test('a host without xl is an error of its own', async () => {
    const missing = { program: '/nowhere/xl' };
    await expect(runXl(['list'], missing)).rejects.toMatchObject({ code: 'ERR_XEN_XL_MISSING' });
    await expect(runXl(['list'], missing)).rejects.toThrow(/xl list: this host has no xl/);
    expect(await hasXl(missing)).toBe(false);
    fakeXl();
    expect(await hasXl({ program })).toBe(true);
  });

  test('ends with its signal, and with its time', async () => {
    fakeXl('slow').add(4, 'guest');
    const stop = new AbortController();
    const running = runXl(['destroy', '4'], { program, signal: stop.signal });
    stop.abort('enough');
    await expect(running).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED', cause: 'enough' });
    await expect(runXl(['destroy', '4'], { program, commandMs: 20 })).rejects.toBeInstanceOf(TimeoutError);
    expect(fake?.domains()).toEqual({ 4: 'guest' });
  });
});

test('the last words of xl are those that say something, made harmless', () => {
  const said = [
    'Parsing config from <saved>',
    'libxl: error: one',
    'libxl: error: two\u001b[0m',
    'xc: progress: Frames: 1/2',
    '',
    'three',
    'four',
    'xc: info: Restore successful',
  ];
  expect(lastWords(said.join('\n'))).toBe('libxl: error: two\\u001b[0m; three; four');
  expect(lastWords('Parsing config from <saved>\n')).toBe('it did not say why');
});

describe('xlToolstack', () => {
  test('pauses, unpauses, renames and destroys by xl, and leaves the rest to the other', async () => {
    fakeXl().add(4, 'guest');
    const { toolstack: own, asked } = inner();
    const toolstack = xlToolstack(own, { program });
    await toolstack.pause(4);
    await toolstack.unpause(4);
    await toolstack.rename?.(4, 'guest--incoming');
    expect(fake?.domains()).toEqual({ 4: 'guest--incoming' });
    await toolstack.resume(4);
    await toolstack.setDeviceModelLogDirty(4, true);
    await toolstack.destroy(4);
    expect(fake?.domains()).toEqual({});
    expect(asked).toEqual(['resume 4', 'setDeviceModelLogDirty 4 true', 'destroy 4']);
    expect(fake?.log).toEqual([
      'pause 4',
      'unpause 4',
      'domid guest--incoming',
      'rename 4 guest--incoming',
      'destroy 4',
    ]);
  });

  test('domains that are not xl’s are left to the other', async () => {
    fakeXl().add(4, 'guest');
    const { toolstack: own, asked } = inner({ rename: async () => undefined });
    const toolstack = xlToolstack(own, { program, isXls: (domid) => domid === 5 });
    await toolstack.pause(4);
    await toolstack.unpause(4);
    await toolstack.rename?.(4, 'other');
    await toolstack.destroy(4);
    expect(asked).toEqual(['pause 4', 'unpause 4', 'destroy 4']);
    expect(fake?.log).toEqual([]);
  });

  test('destroying what is gone is nothing, what stays is an error', async () => {
    fakeXl('undestroyable').add(4, 'guest');
    const { toolstack: own, asked } = inner();
    const toolstack = xlToolstack(own, { program });
    await toolstack.destroy(5);
    expect(asked).toEqual(['destroy 5']);
    await expect(toolstack.destroy(4)).rejects.toMatchObject({
      code: 'ERR_XEN_GUEST_NOT_DESTROYED',
      message: 'domain 4 could not be destroyed: libxl: error: it stays',
    });
    expect(asked).toEqual(['destroy 5']);
  });

  test('a name that another domain has is refused', async () => {
    fakeXl().add(4, 'guest');
    fake?.add(5, 'other');
    const toolstack = xlToolstack(inner().toolstack, { program });
    await expect(toolstack.rename?.(4, 'other')).rejects.toThrow(
      'domain 4 cannot be named "other": domain 5 is',
    );
    await toolstack.rename?.(4, 'guest');
    expect(fake?.domains()).toEqual({ 4: 'guest', 5: 'other' });
  });

  test.each(['-f', '', 'a/b', 'a\nb', '17', 'x'.repeat(256)])('%j is no name for xl', (name) => {
    expect(() => checkName(name)).toThrow(UsageError);
  });

  test('what xl can destroy is destroyable; without xl the other is asked', async () => {
    fakeXl();
    const refuse = async (): Promise<void> => {
      throw new UsageError('no');
    };
    const { toolstack: own } = inner({ assertDestroyable: refuse });
    await xlToolstack(own, { program }).assertDestroyable?.(4);
    await expect(xlToolstack(own, { program: '/nowhere/xl' }).assertDestroyable?.(4)).rejects.toThrow('no');
  });

  test('errors of xl are of their class', async () => {
    fakeXl();
    await expect(xlToolstack(inner().toolstack, { program }).unpause(9)).rejects.toBeInstanceOf(XlError);
  });
});

describe('needsXl', () => {
  const config = (more: object = {}, type = 'pvh', build: object = {}): string =>
    JSON.stringify({ c_info: { type, name: 'g' }, b_info: { max_memkb: 65536, ...build }, ...more });

  test.each([
    ['PVH', config(), false],
    ['PV', config({}, 'pv'), false],
    ['PVH with empty lists', config({ disks: [], nics: [] }), false],
    ['HVM', config({}, 'hvm'), true],
    ['a disk', config({ disks: [{ pdev_path: '/x' }] }), true],
    ['a network interface', config({ nics: [{ devid: 0 }] }), true],
    ['a PCI device', config({ pcidevs: [{}] }), true],
    ['vNUMA', config({}, 'pvh', { vnuma_nodes: [{}] }), true],
    ['no JSON', 'xl.cfg', false],
    ['no memory', '{"c_info":{"type":"pvh"},"b_info":{}}', false],
    ['an unknown type', config({}, 'arm'), false],
  ])('%s', (_what, text, needed) => {
    expect(needsXl(text)).toBe(needed);
  });
});
