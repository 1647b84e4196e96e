/** The pieces that the machine boots from. `images()` makes those that are missing. */
import fs from 'node:fs';
import path from 'node:path';
import { heading, say } from '../../../scripts/steps.js';
import {
  dependency,
  download,
  extract,
  install,
  resolve,
  single,
  source,
  unpackSource,
  update,
} from './apt.js';
import { file, here, key, piece, run } from './cache.js';
import { cpio, extractVmlinux } from './kernel.js';

/** Dom0's Debian. Essential packages are named since nothing counts as installed; their install scripts do not run. */
const userland = [
  'base-files base-passwd bash coreutils dash diffutils findutils grep gzip hostname iproute2 libc-bin mawk mount',
  'procps sed tar util-linux busybox-static libstdc++6 libatomic1 python3-minimal strace',
  'qemu-system-xen xen-utils-4.17 xenstore-utils openssh-client openssh-server',
]
  .join(' ')
  .split(' ');

const modules =
  '9p 9pnet_virtio crc32c_generic ext4 loop overlay virtio_blk virtio_console virtio_net virtio_pci xen-evtchn xen-gntalloc xen-gntdev xen-privcmd xenfs';

/**
 * @typedef {{ xen: string, kernel: string, initrd: string, root: string }} Images paths
 * @typedef {'stock' | 'shadow'} Hypervisor Debian's own; or built from Debian's source with CONFIG_SHADOW_PAGING, which
 *   log-dirty of a PV guest needs
 */

/**
 * @param {Hypervisor} [hypervisor]
 * @returns {Promise<Images>}
 */
export async function images(hypervisor = 'stock') {
  heading(`Xen test machine: images (${hypervisor} hypervisor)`);
  await update();
  try {
    return await pieces(hypervisor);
  } catch (error) {
    if (!(error instanceof Error) || !/404|Unable to fetch|Failed to fetch/.test(error.message)) throw error;
    say('   a package has gone from the archive: getting new lists');
    await update(0);
    return pieces(hypervisor);
  }
}

/**
 * @param {Hypervisor} hypervisor
 * @returns {Promise<Images>}
 */
async function pieces(hypervisor) {
  const xen = await single('xen-hypervisor-4.17-amd64');
  const kernels = {
    dom0: await single(await dependency('linux-image-amd64', /^linux-image-\d/)),
    guest: await single(await dependency('linux-image-cloud-amd64', /^linux-image-\d/)),
  };
  // Not at once: apt locks its state, and there are two processors at best.
  const built = hypervisor === 'shadow' ? await shadowXen(xen) : await stockXen(xen);
  const vmlinux = {
    dom0: await vmlinuxOf('dom0', kernels.dom0),
    guest: await vmlinuxOf('guest', kernels.guest),
  };
  const result = {
    xen: built,
    kernel: vmlinux.dom0,
    initrd: await initrd(kernels.dom0),
    root: await rootFileSystem(kernels.guest, vmlinux.guest),
  };
  say('   ready');
  return result;
}

/** @typedef {import('./apt.js').Package} Package */

/** @param {Package} deb */
function stockXen(deb) {
  return piece('xen-stock', key(deb.name), async (target, work) => {
    await download(deb);
    await extract(deb, work);
    await run(['gzip', '-dc', path.join(work, 'boot/xen-4.17-amd64.gz')], { output: target });
  });
}

/** @param {Package} deb whose configuration is taken */
async function shadowXen(deb) {
  const names = (await source('xen')).map(({ name }) => name);
  return piece('xen-shadow', key(deb.name, names, 'CONFIG_SHADOW_PAGING'), async (target, work) => {
    say('   building Xen with shadow paging: some three minutes');
    await download(deb);
    await extract(deb, path.join(work, 'deb'));
    await unpackSource('xen', work);
    const tree = path.join(work, 'x/xen');
    const config = fs.readFileSync(path.join(work, 'deb/boot/xen-4.17-amd64.config'), 'utf8');
    const without = config.replace(/^.*CONFIG_SHADOW_PAGING.*\n/m, '');
    fs.writeFileSync(path.join(tree, '.config'), `${without}CONFIG_SHADOW_PAGING=y\n`);
    const env = { XEN_CONFIG_EXPERT: 'y', MAKEFLAGS: '', PYTHON: '/usr/bin/python3' };
    await run(['make', '-C', tree, 'olddefconfig', 'PYTHON=/usr/bin/python3'], { env });
    await run(['nice', 'make', '-C', tree, '-j2', 'PYTHON=/usr/bin/python3', 'build'], { env });
    await run(['gzip', '-dc', path.join(tree, 'xen.gz')], { output: target });
  });
}

/**
 * @param {string} name
 * @param {Package} deb
 */
function vmlinuxOf(name, deb) {
  return piece(`vmlinux-${name}`, key(deb.name, file('image/kernel.js')), async (target, work) => {
    await download(deb);
    await extract(deb, work);
    await extractVmlinux(bzImage(work), target, work);
  });
}

/** @param {string} folder of an unpacked kernel package */
function bzImage(folder) {
  const name = fs.readdirSync(path.join(folder, 'boot')).find((entry) => entry.startsWith('vmlinuz-'));
  if (name === undefined) throw new Error('the kernel package holds no kernel');
  return path.join(folder, 'boot', name);
}

const own = ['init', 'agent.c', 'cable', 'initramfs-init'].map((name) => `dom0/${name}`);
const guests = [
  'init.c',
  'tiny.S',
  'tiny.ld',
  ...['pv', 'pvh', 'hvm', 'tiny'].map((name) => `${name}.cfg`),
].map((name) => `guest/${name}`);

/**
 * Dom0's initramfs: modules to reach the root, and everything that is ours, so that a change of it costs seconds.
 *
 * @param {Package} kernel
 */
async function initrd(kernel) {
  const busybox = await single('busybox-static');
  const sum = key(kernel.name, busybox.name, modules, [...own, ...guests].map(file), file('image/kernel.js'));
  return piece('initrd', sum, async (target, work) => {
    const [deb, tree, mine] = ['deb', 'tree', 'tree/own'].map((name) => path.join(work, name));
    if (deb === undefined || tree === undefined || mine === undefined) return;
    for (const folder of ['bin', 'lib/modules', 'own/guest'])
      fs.mkdirSync(path.join(tree, folder), { recursive: true });
    for (const wanted of [kernel, busybox]) {
      await download(wanted);
      await extract(wanted, deb);
    }
    fs.copyFileSync(path.join(deb, 'bin/busybox'), path.join(tree, 'bin/busybox'));
    await copyModules(deb, tree);
    fs.copyFileSync(path.join(here, 'dom0/initramfs-init'), path.join(tree, 'init'));
    for (const name of ['init', 'cable'])
      fs.copyFileSync(path.join(here, 'dom0', name), path.join(mine, name));
    await compile('dom0/agent.c', path.join(mine, 'agent'));
    await guestFiles(path.join(mine, 'guest'), path.join(work, 'guest'));
    for (const program of ['init', 'own/init', 'own/cable']) fs.chmodSync(path.join(tree, program), 0o755);
    await cpio(tree, path.join(work, 'cpio'));
    await run(['gzip', '-1', '-c', path.join(work, 'cpio')], { output: target });
  });
}

/**
 * Modules with all that they need, in the order of loading.
 *
 * @param {string} deb
 * @param {string} tree
 */
async function copyModules(deb, tree) {
  const [version = ''] = fs.readdirSync(path.join(deb, 'lib/modules'));
  await run(['depmod', '-b', deb, version]);
  /** @type {Set<string>} */
  const order = new Set();
  for (const name of modules.split(' ')) {
    const text = await run(['modprobe', '-d', deb, '-S', version, '--show-depends', name]);
    for (const [, module = ''] of text.matchAll(/^insmod (\S+)/gm)) order.add(module);
  }
  const names = [...order].map((module) => path.basename(module));
  for (const module of order) {
    await run(['strip', '-g', '-o', path.join(tree, 'lib/modules', path.basename(module)), module]);
  }
  fs.writeFileSync(path.join(tree, 'modules'), names.map((name) => `/lib/modules/${name}\n`).join(''));
}

/**
 * @param {string} source file of test/xen-host
 * @param {string} target
 */
async function compile(source, target) {
  await run([
    'gcc',
    '-static',
    '-O2',
    '-s',
    '-Wall',
    '-Wextra',
    '-Werror',
    '-o',
    target,
    path.join(here, source),
  ]);
}

/**
 * What guests are made from, but for the kernels: initramfs, the one without an OS, configurations.
 *
 * @param {string} target
 * @param {string} tree
 */
async function guestFiles(target, tree) {
  for (const folder of ['dev', 'proc', 'sys', 'sbin'])
    fs.mkdirSync(path.join(tree, folder), { recursive: true });
  await compile('guest/init.c', path.join(tree, 'init'));
  fs.symlinkSync('/init', path.join(tree, 'sbin/poweroff'));
  await cpio(tree, path.join(target, 'initramfs'));
  if (fs.statSync(path.join(target, 'initramfs')).size > 1 << 20)
    throw new Error('initramfs above 1 MiB: guest/stub.S');
  const stub = path.join(tree, 'stub.o');
  await run(['gcc', '-m32', '-c', '-o', stub, path.join(here, 'guest/stub.S')]);
  await run(['objcopy', '-O', 'binary', '-j', '.text', stub, path.join(target, 'stub')]);
  const script = path.join(here, 'guest/tiny.ld');
  const link = ['-nostdlib', '-static', '-no-pie', `-Wl,-T,${script},--build-id=none,-n`];
  await run(['gcc', '-m32', ...link, '-o', path.join(target, 'tiny'), path.join(here, 'guest/tiny.S')]);
  for (const name of guests.filter((name) => name.endsWith('.cfg'))) {
    fs.copyFileSync(path.join(here, name), path.join(target, path.basename(name)));
  }
}

/**
 * Dom0's root: Debian packages unpacked, Node of this machine, kernels of the guests.
 *
 * @param {Package} kernel of the guests
 * @param {string} vmlinux the same, raw
 */
async function rootFileSystem(kernel, vmlinux) {
  const packages = (await resolve(userland)).map(({ name }) => name);
  const node = fs.realpathSync(process.execPath);
  const { size, mtimeMs } = fs.statSync(node);
  const sum = key(
    packages,
    kernel.name,
    process.version,
    size,
    mtimeMs,
    [rootFileSystem, hvmKernel].map(String),
    etc,
  );
  return piece('root', sum, async (target, work) => {
    const tree = path.join(work, 'tree');
    for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
      fs.mkdirSync(path.join(tree, 'usr', name), { recursive: true });
      fs.symlinkSync(`usr/${name}`, path.join(tree, name));
    }
    for (const wanted of await install(userland)) await extract(wanted, tree);
    const folders =
      'dev proc sys run tmp root share project xen-host boot usr/share usr/local/bin var/lib/xen var/lib/xenstored var/log/xen';
    for (const name of folders.split(' ')) fs.mkdirSync(path.join(tree, name), { recursive: true });
    for (const name of ['doc', 'man', 'locale', 'info']) {
      fs.rmSync(path.join(tree, 'usr/share', name), { recursive: true, force: true });
    }
    fs.rmSync(path.join(tree, 'var/run'), { recursive: true, force: true });
    fs.symlinkSync('/run', path.join(tree, 'var/run'));
    fs.copyFileSync(node, path.join(tree, 'usr/bin/node'));
    for (const [name, text] of Object.entries(etc)) fs.writeFileSync(path.join(tree, 'etc', name), text);
    await busyboxLinks(tree);
    await run(['ldconfig', '-r', tree]);
    await download(kernel);
    await extract(kernel, path.join(work, 'kernel'));
    await hvmKernel(bzImage(path.join(work, 'kernel')), path.join(tree, 'boot/hvm'));
    fs.copyFileSync(vmlinux, path.join(tree, 'boot/vmlinux-guest'));
    // Sparse: a size costs nothing until something is written.
    await run([
      'mke2fs',
      '-q',
      '-t',
      'ext4',
      '-O',
      '^has_journal',
      '-m',
      '0',
      '-E',
      'root_owner=0:0',
      '-d',
      tree,
      target,
      '4G',
    ]);
  });
}

/**
 * The kernel for HVM guests, which QEMU's slow way for `kernel=` shall not carry: guest/stub.S says how it gets there.
 * The pieces have 1 MiB, since QEMU can write to no more than that of a Xen guest's memory at a time; dom0/init puts
 * them into the guest's configuration.
 *
 * @param {string} bzImage
 * @param {string} target folder
 */
async function hvmKernel(bzImage, target) {
  fs.mkdirSync(target);
  const image = fs.readFileSync(bzImage);
  const setup = ((image[0x1f1] || 4) + 1) * 512;
  fs.writeFileSync(path.join(target, 'setup'), image.subarray(0, setup));
  const size = 1 << 20;
  for (let at = setup, n = 0; at < image.length; at += size, n++) {
    const name = `piece-${String(n).padStart(2, '0')}`;
    fs.writeFileSync(path.join(target, name), image.subarray(at, at + size));
  }
}

const etc = {
  passwd:
    'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\nsshd:x:100:65534:sshd:/run/sshd:/bin/false\n',
  group: 'root:x:0:\nnogroup:x:65534:\n',
  hosts: '127.0.0.1 localhost xen-host\n',
};

/** @param {string} tree Programs that no package has brought, by busybox. */
async function busyboxLinks(tree) {
  const names = (await run([path.join(tree, 'bin/busybox'), '--list'])).trim().split('\n');
  for (const name of [...names, 'sh', 'awk']) {
    const there = ['bin', 'sbin'].some((folder) => {
      return fs.lstatSync(path.join(tree, 'usr', folder, name), { throwIfNoEntry: false }) !== undefined;
    });
    if (!there) fs.symlinkSync('/bin/busybox', path.join(tree, 'usr/bin', name));
  }
}

if (process.argv[1] === import.meta.filename) {
  console.log(await images(process.argv[2] === 'shadow' ? 'shadow' : 'stock'));
}
