/** Legacy (v1) images restored on the Xen of today: real ones of Xen 4.5.5, and such as the tests write of guests that run. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { Guest } from '../lib/guest.js';
import { project } from '../lib/host.js';

/** @typedef {import('../lib/context.js').Context} Context */

const images = {
  pv: 'xen-4.5.5-pv64-nonlive-xsave.xlsave',
  remus: 'xen-4.5.5-pv64-remus-compressed.xlremus',
  hvm: 'xen-4.5.5-hvm-nonlive.xlsave',
  hvmMigration: 'xen-4.5.5-hvm-live.xlmigrate',
};

/**
 * The file of a real image. Undefined, and told aloud, if it is not here: the large ones are not in the repository.
 *
 * @param {Context} t
 * @param {keyof typeof images} which
 */
function imageOf(t, which) {
  const file = path.join('/share/streams', images[which]);
  if (fs.existsSync(file)) return file;
  t.log(
    `!!! ${images[which]} is absent: NOTHING WAS PROVED HERE. XEN_MIGRATION_STREAMS names the folder with it.`,
  );
  return undefined;
}

/** @param {Context} t for `xl` */
const byHelper = (t) => ({ env: { LIBXL_CONVERT_HELPER: t.bin('xen-migrate-convert-helper') } });

let count = 0;

/**
 * A guest that is in an image, with a name of its own, and what xl is given instead of the configuration in the image: its
 * paths are those of another machine.
 *
 * @param {Context} t
 * @param {'pv' | 'hvm'} type
 */
function guestOf(t, type) {
  const name = `legacy-${type}${++count}`;
  const config = t.file(`${name}.cfg`);
  // HVM with its kernel, as QEMU would else be another machine than the one in the image.
  const kind = type === 'hvm' ? 'tiny' : 'pv';
  const lines = fs.readFileSync(`/xen-host/guest/${kind}.cfg`, 'utf8');
  fs.writeFileSync(config, `${lines}name = "${name}"\n`);
  return new Guest(t, name, kind, config);
}

/**
 * The guest of an image of 4.5.5 goes on where it was saved: the one without an OS had not run an instruction, Linux had
 * been telling ticks for a while.
 *
 * @param {Context} t
 * @param {Guest} guest
 */
async function lives(t, guest) {
  if (guest.type === 'tiny') {
    await guest.tinyGoesOn(120);
    const { stdout } = await t.xl(['qemu-monitor-command', guest.name, 'info status']);
    assert.equal(stdout.trim(), 'VM status: running');
    return;
  }
  const ticks = await guest.waitFor(/^TICK (\d+) \d+\.\d+$/, { seconds: 240, count: 3 });
  const [first = 0, second = 0, third = 0] = ticks.map(([, n]) => Number(n));
  assert.deepEqual([second, third], [first + 1, first + 2], 'ticks in a row');
  assert.ok(first > 1, `the first tick after the restore is ${first}`);
  assert.deepEqual(
    guest.lines().filter((line) => line.includes('GUEST UP') || line.includes('Linux version')),
    [],
    'it did not boot',
  );
  t.log(`ticks ${first}, ${second}, ${third}`);
}

/**
 * @param {Context} t
 * @param {readonly string[]} args
 */
async function convert(t, ...args) {
  const { stdout } = await t.run([t.bin('xen-migrate'), 'convert', ...args, '--temporary', t.folder]);
  t.log(stdout.trim());
  return stdout;
}

/** Without LIBXL_CONVERT_HELPER, so that a file that is still legacy cannot pass. @param {Context} t @param {Guest} guest @param {string} file */
async function restoreV2(t, guest, file) {
  await t.xl(['restore', guest.config, file], { env: { LIBXL_CONVERT_HELPER: '/bin/false' } });
}

/** A part of a file as a new one. @param {string} from @param {string} to @param {number} start @param {Uint8Array} head goes before it */
function copyFrom(from, to, start, head) {
  const [source, target] = [fs.openSync(from, 'r'), fs.openSync(to, 'w')];
  fs.writeSync(target, head);
  const buffer = Buffer.alloc(1 << 20);
  for (let at = start, n; (n = fs.readSync(source, buffer, 0, buffer.length, at)) > 0; at += n)
    fs.writeSync(target, buffer, 0, n);
  fs.closeSync(source);
  fs.closeSync(target);
}

/** Size of xl's header, and its configuration. @param {string} file */
function headerOf(file) {
  const fd = fs.openSync(file, 'r');
  const bytes = Buffer.alloc(1 << 16);
  fs.readSync(fd, bytes, 0, bytes.length, 0);
  fs.closeSync(fd);
  const size = 48 + bytes.readUInt32LE(44);
  return { fixed: Buffer.from(bytes.subarray(0, 48)), size, config: bytes.toString('utf8', 52, size - 1) };
}

/** As xend 4.1 wrote the configuration of such a guest. @param {string} name */
const sxp = (
  name,
) => `(domain (domid 3) (cpu_weight 256) (cpu_cap 0) (pool_name Pool-0) (bootloader '') (on_crash preserve) \
(uuid 6f2d9c52-37b1-4c0a-9a3e-6d6f1a0b9c41) (bootloader_args '') (vcpus 1) (description '') (name ${name}) (cpus (())) \
(on_reboot preserve) (on_poweroff destroy) (maxmem 96) (memory 96) (shadow_memory 0) (features '') (on_xend_start ignore) \
(on_xend_stop ignore) (start_time 1300000000.25) (cpu_time 1.5) (online_vcpus 1) (image (linux (kernel /no/such/kernel) \
(ramdisk /no/such/initrd) (args 'console=hvc0') (superpages 0) (tsc_mode 0) (videoram 4) (pci ()) (nomigrate 0) \
(notes (HV_START_LOW 18446603336221196288) (FEATURES 'writable_page_tables|pae_pgdir_above_4gb')))) (status 2) \
(state -b----) (store_mfn 4660) (console_mfn 4661))`;

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  .../** @type {const} */ (['pv', 'hvm']).flatMap((type) => [
    {
      name: `stock xl restores a ${type} guest of Xen 4.5.5 with our convert helper`,
      /** @param {Context} t */
      async run(t) {
        const image = imageOf(t, type);
        if (image === undefined) return;
        const guest = guestOf(t, type);
        const { seconds } = await t.xl(['restore', guest.config, image], byHelper(t));
        t.measure(`xl restore of a legacy ${type} image, s`, seconds);
        await lives(t, guest);
      },
    },
    {
      name: `a ${type} image of Xen 4.5.5, converted by xen-migrate and restored by stock xl`,
      /** @param {Context} t */
      async run(t) {
        const image = imageOf(t, type);
        if (image === undefined) return;
        const guest = guestOf(t, type);
        const converted = t.file('converted');
        await convert(t, image, converted);
        await t.run([t.bin('xen-migrate'), 'verify', converted]);
        await restoreV2(t, guest, converted);
        await lives(t, guest);
      },
    },
  ]),
  {
    name: 'a live migration from Xen 4.5.5 arrives: xl migrate-receive with our convert helper, hand-over and all',
    async run(t) {
      const image = imageOf(t, 'hvmMigration');
      if (image === undefined) return;
      const { fixed, size, config } = headerOf(image);
      const guest = guestOf(t, 'hvm');
      // Paths of the machine that sent it.
      const wanted = JSON.parse(config);
      delete wanted.b_info.device_model;
      delete wanted.b_info['type.hvm'].firmware;
      wanted.b_info.kernel = '/xen-host/guest/tiny';
      wanted.c_info.name = guest.name;
      const text = Buffer.from(`${JSON.stringify(wanted)}\0`);
      const length = Buffer.alloc(4);
      length.writeUInt32LE(text.length);
      fixed.writeUInt32LE(4 + text.length, 44);
      const capture = t.file('capture');
      copyFrom(image, capture, size, Buffer.concat([fixed, length, text]));
      // A pipe: what the helper read beyond the image would be gone, and xl wait for its hand-over in vain.
      const { stdout } = await t.sh(`cat ${capture} | xl migrate-receive -e`, byHelper(t));
      assert.match(stdout, /domain received, ready to unpause/);
      assert.match(stdout, /my copy unpause results are as follows\0\0$/);
      await lives(t, guest);
      assert.deepEqual(
        (await t.domains()).map(({ name }) => name),
        [guest.name],
      );
    },
  },
  {
    name: 'a compressed Remus image of Xen 4.5.5: its last checkpoint goes on',
    async run(t) {
      const image = imageOf(t, 'remus');
      if (image === undefined) return;
      const converted = t.file('converted');
      assert.match(await convert(t, image, converted), /of Remus with compressed pages: .* checkpoint \d+/);
      const guest = guestOf(t, 'pv');
      await restoreV2(t, guest, converted);
      await lives(t, guest);
      await guest.destroy();
      fs.rmSync(converted);

      // And by the helper, whose output is a pipe: it looks at the file twice.
      const again = guestOf(t, 'pv');
      await t.xl(['restore', again.config, image], { env: { ...byHelper(t).env, TMPDIR: t.folder } });
      await lives(t, again);
    },
  },
  {
    name: 'a file of xend, converted: restored by stock xl with the configuration that was made of its own',
    async run(t) {
      const image = imageOf(t, 'pv');
      if (image === undefined) return;
      const guest = guestOf(t, 'pv');
      const config = Buffer.from(sxp(guest.name));
      const length = Buffer.alloc(4);
      length.writeUInt32BE(config.length);
      const file = t.file('xend');
      copyFrom(
        image,
        file,
        headerOf(image).size,
        Buffer.concat([Buffer.from('LinuxGuestRecord'), length, config]),
      );
      const converted = t.file('converted');
      await convert(t, file, converted);
      assert.deepEqual(fs.readFileSync(`${converted}.sxp`), config);
      await t.xl(['restore', converted], { env: { LIBXL_CONVERT_HELPER: '/bin/false' } });
      await lives(t, guest);
      const [{ config: now }] = JSON.parse((await t.xl(['list', '-l', guest.name])).stdout);
      assert.equal(now.c_info.uuid, '6f2d9c52-37b1-4c0a-9a3e-6d6f1a0b9c41');
      assert.equal(now.on_crash, 'preserve');
    },
  },
  {
    name: 'a damaged legacy image, and a restore that libxl gives up: xl says so and ends, nothing is left',
    async run(t) {
      const image = imageOf(t, 'hvm');
      if (image === undefined) return;
      const { config } = guestOf(t, 'hvm');
      const damaged = t.file('damaged');
      fs.copyFileSync(image, damaged);
      fs.truncateSync(damaged, 20_000_000);
      const cut = await t.xl(['restore', config, damaged], { ...byHelper(t), fails: true });
      assert.notEqual(cut.code, 0);
      // The offset is that in the image, which begins behind xl's header.
      const end = 20_000_000 - headerOf(image).size;
      assert.match(cut.stderr, new RegExp(`xen-migrate-convert-helper: .* short \\(at offset ${end}\\)\n`));

      // The save helper dies at once, and libxl ends the convert helper, which waits for a sender that says no more.
      const fifo = t.file('fifo');
      const script = `mkfifo ${fifo}; exec 9<>${fifo}; head -c 5000000 ${image} >&9 &
        timeout 300 xl migrate-receive -e <${fifo}; code=$?; kill %1; exit $code`;
      const env = { ...byHelper(t).env, LIBXL_SAVE_HELPER: '/bin/false' };
      const given = await t.sh(script, { env, fails: true });
      assert.notEqual(given.code, 0);
      assert.notEqual(given.code, 124);
      assert.match(given.stderr, /xen-migrate-convert-helper: .*(SIGTERM|EPIPE)/);
      assert.deepEqual(await t.domains(), []);
      assert.equal((await t.sh('pgrep -f [c]onvert-helper || true')).stdout, '');
    },
  },
  .../** @type {const} */ (['pv', 'hvm']).map((type) => ({
    name: `a ${type} guest saved by xl, made legacy, goes on after stock xl restore with our convert helper`,
    /** @param {Context} t */
    async run(t) {
      const guest = await t.guest(type, { fill: 16, ...(type === 'hvm' && { memory: 96 }) });
      const [saved, legacy] = [t.file('saved'), t.file('legacy')];
      const tick = guest.lastTick() ?? 0;
      await t.xl(['save', guest.name, saved]);
      const { stdout } = await t.run([
        'node',
        path.join(project, 'test/xen-host/lib/legacy.js'),
        saved,
        legacy,
      ]);
      t.log(stdout.trim());
      fs.rmSync(saved);
      const mark = guest.mark();
      await t.xl(['restore', legacy], byHelper(t));
      await guest.goesOn(mark);
      assert.ok((guest.lastTick() ?? 0) > tick);
    },
  })),
];
