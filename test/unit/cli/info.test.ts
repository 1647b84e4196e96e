import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { paintFor } from '../../../lib/cli/format.js';
import { infoLines } from '../../../lib/cli/info.js';
import { abilitiesOf, survey, type Survey, type SurveyWorld } from '../../../lib/cli/survey.js';
import { AddonError } from '../../../lib/errors.js';
import type { XenProbe } from '../../../lib/host/xen/addon.js';
import { VERSION } from '../../../lib/version.js';
import { run, testIo } from './io.js';
import { HYPERVISOR } from './xen.js';

const build = { haveXen: true, xenVersion: '4.17.0', napiVersion: 8 };
const good: XenProbe = { build, hypervisor: HYPERVISOR };
const missing = new AddonError('ERR_XEN_ADDON_MISSING', 'the native addon is not built: rebuild it');

let root: string;
beforeEach(() => {
  root = mkdtempSync(path.join(tmpdir(), 'xen-migration-info-'));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

function file(name: string, mode = 0o600): string {
  const whole = path.join(root, name);
  mkdirSync(path.dirname(whole), { recursive: true });
  writeFileSync(whole, '');
  chmodSync(whole, mode);
  return whole;
}

/** A xenstored that answers any request with one string, or closes the connection. */
async function daemon(answers: boolean): Promise<net.Server> {
  const folder = path.join(root, 'run/xenstored');
  mkdirSync(folder, { recursive: true });
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined);
    socket.on('data', (request) => {
      if (!answers) {
        socket.destroy();
        return;
      }
      const reply = Buffer.alloc(18);
      request.copy(reply, 0, 0, 12);
      reply.writeUInt32LE(2, 12);
      reply.write('0\0', 16);
      socket.write(reply);
    });
  });
  server.listen(path.join(folder, 'socket'));
  await once(server, 'listening');
  return server;
}

const look = (more: Partial<SurveyWorld> = {}): Promise<Survey> =>
  survey({
    env: {},
    root,
    probe: () => good,
    ownHelpers: {
      save: [path.join(root, 'other.js'), path.join(root, 'own.js')],
      convert: [path.join(root, 'convert.js')],
    },
    ...more,
  });

describe('what is found', () => {
  test('a whole Xen host', async () => {
    const server = await daemon(true);
    file('dev/xen/privcmd');
    file('dev/xen/evtchn');
    file('usr/lib/xen-4.17/bin/libxl-save-helper');
    file('usr/libexec/xen/bin/libxl-save-helper');
    file('usr/libexec/xen/bin/convert-legacy-stream');
    const found = await look();
    server.close();
    expect(found).toMatchObject({
      version: VERSION,
      node: process.version,
      addon: { xenVersion: '4.17.0' },
      hypervisor: HYPERVISOR,
      problem: undefined,
      xenstore: { path: path.join(root, 'run/xenstored/socket'), answers: true },
      helpers: {
        save: {
          stock: ['/usr/lib/xen-4.17/bin/libxl-save-helper', '/usr/libexec/xen/bin/libxl-save-helper'],
          chosen: undefined,
          chosenIsOwn: false,
        },
        convert: { stock: ['/usr/libexec/xen/bin/convert-legacy-stream'], own: undefined },
      },
      usable: true,
    });
    expect(found.devices.map(({ path: device, access }) => [device, access])).toEqual([
      ['/dev/xen/privcmd', 'usable'],
      ['/dev/xen/hypercall', 'absent'],
      ['/dev/xen/evtchn', 'usable'],
      ['/dev/xen/xenbus', 'absent'],
    ]);
  });

  test('privcmd under its old name, and the device of hypercall buffers', async () => {
    file('proc/xen/privcmd');
    file('dev/xen/hypercall');
    const { devices } = await look();
    expect(devices.slice(0, 2).map(({ path: device, access }) => [device, access])).toEqual([
      ['/proc/xen/privcmd', 'usable'],
      ['/dev/xen/hypercall', 'usable'],
    ]);
    file('dev/xen/privcmd');
    expect((await look()).devices[0]).toMatchObject({ path: '/dev/xen/privcmd', access: 'usable' });
  });

  test('nothing at all', async () => {
    const found = await look({ probe: () => ({ problem: missing }) });
    expect(found).toMatchObject({
      addon: { path: undefined, xenVersion: undefined },
      hypervisor: undefined,
      problem: { code: 'ERR_XEN_ADDON_MISSING' },
      xenstore: { path: undefined, answers: false, problem: { code: 'ERR_XEN_XENSTORE' } },
      helpers: { save: { stock: [] }, convert: { stock: [] } },
      abilities: [],
      usable: false,
    });
  });

  test('a xenstored that is there and does not answer', async () => {
    const server = await daemon(false);
    const found = await look();
    server.close();
    expect(found).toMatchObject({ usable: false, abilities: [], xenstore: { answers: false } });
    expect(found.xenstore.problem?.code).toMatch(/^ERR_XEN_/);
  });

  test.each<[string, (own: string) => Record<string, string>, boolean]>([
    ['not set', () => ({}), false],
    ['empty', () => ({ LIBXL_SAVE_HELPER: '' }), false],
    ['our file', (own) => ({ LIBXL_SAVE_HELPER: own }), true],
    ['a link to it', () => ({ LIBXL_SAVE_HELPER: path.join(root, 'bin/ours') }), true],
    [
      'its name, found in PATH',
      () => ({ LIBXL_SAVE_HELPER: 'ours', PATH: `/nonexistent:${path.join(root, 'bin')}` }),
      true,
    ],
    [
      'another of the name before it in PATH',
      () => ({ LIBXL_SAVE_HELPER: 'ours', PATH: `${root}/x:${root}/bin` }),
      false,
    ],
    ['its name, not in PATH', () => ({ LIBXL_SAVE_HELPER: 'ours', PATH: '/nonexistent' }), false],
    ['something else', () => ({ LIBXL_SAVE_HELPER: '/bin/true' }), false],
  ])('LIBXL_SAVE_HELPER: %s', async (_name, env, isOwn) => {
    const own = file('own.js');
    file('x/ours');
    mkdirSync(path.join(root, 'bin'));
    symlinkSync(own, path.join(root, 'bin/ours'));
    const { helpers } = await look({ env: env(own) });
    expect(helpers.save.chosenIsOwn).toBe(isOwn);
    expect(helpers.save.own).toBe(own);
  });

  test('LIBXL_CONVERT_HELPER', async () => {
    const [save, convert] = [file('own.js'), file('convert.js')];
    const right = await look({ env: { LIBXL_CONVERT_HELPER: convert } });
    expect(right.helpers.convert).toMatchObject({ own: convert, chosen: convert, chosenIsOwn: true });
    expect(right.helpers.save.chosen).toBeUndefined();
    // Each is of no use in the other's place.
    const wrong = await look({ env: { LIBXL_CONVERT_HELPER: save, LIBXL_SAVE_HELPER: convert } });
    expect([wrong.helpers.save.chosenIsOwn, wrong.helpers.convert.chosenIsOwn]).toEqual([false, false]);
  });
});

describe('what can be done', () => {
  const guests = { pv: true, hvm: true, hap: true, shadow: true };
  const byXl = 'yes, by xl with our save helper';
  const live = (more: Partial<typeof guests>): unknown[] =>
    abilitiesOf({ ...HYPERVISOR, guests: { ...guests, ...more } }).map((ability) => ability.live);

  test('PV goes live only by shadow paging', () => {
    expect(live({})).toEqual([true, true, byXl]);
    expect(live({ shadow: false })).toEqual(['no: hypervisor without shadow paging', true, byXl]);
  });

  test('a hypervisor without guests of a kind', () => {
    expect(live({ pv: false })[0]).toBe('no: this hypervisor runs no PV guests');
    expect(live({ hvm: false }).slice(1)).toEqual([
      'no: this hypervisor runs no PVH guests',
      'no: this hypervisor runs no HVM guests',
    ]);
  });
});

describe('how it is told', () => {
  const plain = paintFor({}, {});
  const whole: Survey = {
    version: '1.2.3',
    node: 'v20.20.2',
    addon: { path: '/opt/x/xen_migration.node', xenVersion: '4.17.0' },
    hypervisor: { ...HYPERVISOR, guests: { pv: true, hvm: true, hap: true, shadow: false } },
    problem: undefined,
    devices: [
      { path: '/dev/xen/privcmd', use: 'hypercalls', access: 'usable' },
      { path: '/dev/xen/evtchn', use: 'events', access: 'denied' },
      { path: '/dev/xen/xenbus', use: 'xenstore', access: 'absent' },
    ],
    xenstore: { path: '/run/xenstored/socket', answers: true, problem: undefined },
    helpers: {
      save: {
        variable: 'LIBXL_SAVE_HELPER',
        stock: ['/usr/lib/x/libxl-save-helper'],
        own: '/opt/x/main.js',
        chosen: undefined,
        chosenIsOwn: false,
      },
      convert: {
        variable: 'LIBXL_CONVERT_HELPER',
        stock: ['/usr/lib/x/convert-legacy-stream'],
        own: '/opt/x/convert.js',
        chosen: '/opt/x/convert.js',
        chosenIsOwn: true,
      },
    },
    abilities: abilitiesOf({ ...HYPERVISOR, guests: { pv: true, hvm: true, hap: true, shadow: false } }),
    usable: true,
  };

  test('a Xen host', () => {
    expect(`${infoLines(whole, plain, false).join('\n')}\n`).toMatchInlineSnapshot(`
      "xen-migration 1.2.3, Node v20.20.2

        addon           ok  /opt/x/xen_migration.node, built with Xen 4.17.0
        hypervisor      ok  Xen 4.17.7; guests: PV, HVM; paging: hardware-assisted
                            xen-3.0-x86_64 hvm-3.0-x86_64
        devices         ok  /dev/xen/privcmd (hypercalls)
                        NO  /dev/xen/evtchn: no permission (events)
                        NO  /dev/xen/xenbus: absent (xenstore)
        xenstore        ok  /run/xenstored/socket answers
        save helper         xl's own: /usr/lib/x/libxl-save-helper
                            ours: /opt/x/main.js
                            LIBXL_SAVE_HELPER is not set: xl uses its own
        convert helper      xl's own: /usr/lib/x/convert-legacy-stream
                            ours: /opt/x/convert.js
                            LIBXL_CONVERT_HELPER is /opt/x/convert.js: xl uses ours

      What can be done here
              save   restore                           live migration
        pv    yes    yes                               no: hypervisor without shadow paging
        pvh   yes    yes                               yes
        hvm   yes    yes, by xl with our save helper   yes, by xl with our save helper
        Guests with disks, network or other devices: restore and migration by xl with our save helper.
      "
    `);
  });

  test.each<[string, Partial<Survey>, string]>([
    ['not built', { addon: { path: undefined, xenVersion: undefined }, problem: missing }, 'NO  not built'],
    [
      'a library missing',
      {
        addon: { path: undefined, xenVersion: undefined },
        problem: { code: 'ERR_XEN_ADDON_LIBRARY', message: 'needs libx' },
      },
      'NO  cannot be loaded',
    ],
    [
      'without Xen',
      { addon: { path: '/x.node', xenVersion: undefined }, hypervisor: undefined },
      'NO  /x.node, built without Xen',
    ],
    ['no hypervisor', { hypervisor: undefined }, 'NO  none that answers'],
    ['no xenstore', { xenstore: { path: undefined, answers: false, problem: undefined } }, 'NO  absent'],
    [
      'silent xenstore',
      { xenstore: { path: '/s', answers: false, problem: undefined } },
      'NO  /s does not answer',
    ],
    [
      'our helper',
      { helpers: { ...whole.helpers, save: { ...whole.helpers.save, chosen: 'ours', chosenIsOwn: true } } },
      'LIBXL_SAVE_HELPER is ours: xl uses ours',
    ],
    [
      'another helper',
      { helpers: { ...whole.helpers, save: { ...whole.helpers.save, chosen: '/x\u001b[2J' } } },
      'LIBXL_SAVE_HELPER is /x\\u001b[2J: that is not ours',
    ],
  ])('%s', (_name, more, text) => {
    const lines = infoLines({ ...whole, ...more }, plain, false);
    expect(lines.some((line) => line.endsWith(text))).toBe(true);
  });

  test('what is missing stands at the end, each with its cure', () => {
    const problem = { code: 'ERR_XEN_NO_PRIVCMD', message: 'no Xen to speak to' };
    const store = { code: 'ERR_XEN_XENSTORE', message: 'there is no xenstored' };
    const lines = infoLines(
      { ...whole, problem, xenstore: { ...whole.xenstore, answers: false, problem: store }, usable: false },
      plain,
      true,
    );
    expect(lines.slice(-5)).toEqual([
      'No guest can be worked with here:',
      '  no Xen to speak to [ERR_XEN_NO_PRIVCMD]',
      '  there is no xenstored [ERR_XEN_XENSTORE]',
      '',
      'Streams can be verified and inspected, and with --host sim all else be tried on simulated hosts.',
    ]);
    expect(lines.join('\n')).not.toContain('What can be done');
  });

  test('exit codes and JSON', async () => {
    for (const usable of [true, false]) {
      const io = testIo({ survey: async () => ({ ...whole, usable }) });
      const { code, out, err } = await run(['info', '--json'], io);
      expect({ code, err }).toEqual({ code: usable ? 0 : 4, err: '' });
      expect(JSON.parse(out)).toMatchObject({ usable, hypervisor: { major: 4, minor: 17 } });
    }
  });
});
