/**
 * One machine that runs: QEMU in the background, and a folder with all that belongs to it. It outlives the process that
 * started it; whoever knows its name can use it.
 *
 *   console.log   what Xen and dom0 wrote on the serial port
 *   qemu.log      what QEMU had to say
 *   pid           QEMU's
 *   monitor       socket of QEMU's monitor, for debugging
 *   agent.N       sockets of the agents in dom0, one command at a time each
 *   share/        /share in dom0
 *   pair/         of the first of two joined hosts: their networks' sockets, and the second's logs; machine/pair.js
 */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { root } from '../../../scripts/steps.js';
import { converse } from './agent.js';
import { joined } from './pair.js';

/** Short, since the path of a socket may have 107 bytes. */
const machines = path.join(os.tmpdir(), `xen-host-${process.getuid?.() ?? 0}`);

/** Commands that can run at the same time. */
const agents = 4;

/**
 * Why these (QEMU 7.2, emulating; docs/design/test-machine.md): with SMAP dom0 dies at boot; RDTSCP crashes guests with
 * hardware virtualisation; with lazy FPU switching, XSAVE state leaks between domains.
 */
const cpu = 'max,-smap,-rdtscp';
const xenOptions = 'console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all spec-ctrl=eager-fpu';

/**
 * @typedef {object} Options
 * @property {number} [memory] MiB of the machine
 * @property {number} [dom0Memory] MiB of it for dom0
 * @property {number} [processors]
 * @property {string} [xenOptions] appended to Xen's command line
 * @property {string} [dom0Options] appended to dom0's
 * @property {string} [accelerator]
 * @property {string} [share] folder for /share; default: one of the machine's own
 * @property {import('./pair.js').Place} [pair] one of two joined hosts
 */

/** @param {string} name */
export function folderOf(name) {
  if (!/^[A-Za-z0-9_.-]{1,40}$/.test(name)) throw new Error(`${name}: no name for a machine`);
  return path.join(machines, name);
}

/**
 * Starts a machine. It is not ready yet: `ready` waits for that.
 *
 * @param {string} name
 * @param {import('../image/images.js').Images} images
 * @param {Options} [options]
 */
export async function start(name, images, options = {}) {
  const folder = folderOf(name);
  if (pidOf(name) !== undefined) throw new Error(`machine ${name} runs already`);
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(path.join(folder, 'share'), { recursive: true, mode: 0o700 });
  if (options.pair !== undefined) fs.mkdirSync(path.join(options.pair.folder, 'log'), { recursive: true });
  const {
    memory = 2048,
    dom0Memory = 640,
    processors = 1,
    accelerator = 'tcg,thread=multi,tb-size=384',
  } = options;
  // Dom0's kernel ignores what it does not know; scenarios find there which hypervisor they run on.
  const marker = [
    ...(path.basename(images.xen).startsWith('xen-shadow') ? ['xen_host.shadow'] : []),
    ...(options.pair === undefined ? [] : [`xen_host.pair=${options.pair.number}`]),
  ].join(' ');
  const xen = `${xenOptions} dom0_mem=${dom0Memory}M,max:${dom0Memory}M dom0_max_vcpus=${processors} ${options.xenOptions ?? ''}`;
  const args = [
    ...[
      '-accel',
      accelerator,
      '-cpu',
      cpu,
      '-smp',
      String(processors),
      '-m',
      String(memory),
      '-machine',
      'q35',
    ],
    ...[
      '-nodefaults',
      '-display',
      'none',
      '-no-reboot',
      '-monitor',
      'unix:monitor,server=on,wait=off',
      '-name',
      `xen-host-${name}`,
    ],
    ...['-serial', 'file:console.log', '-kernel', images.xen, '-append', xen],
    ...['-initrd', `${images.kernel} console=hvc0 ${marker} ${options.dom0Options ?? ''},${images.initrd}`],
    ...[
      '-drive',
      `if=none,id=root,file=${images.root},format=raw,snapshot=on`,
      '-device',
      'virtio-blk-pci,drive=root',
    ],
    ...shared('share', options.share ?? path.join(folder, 'share'), ''),
    ...shared('project', root, ',readonly=on'),
    ...['-device', 'virtio-serial-pci'],
    ...(options.pair === undefined ? [] : joined(options.pair)),
  ];
  for (let n = 0; n < agents; n++) {
    args.push('-chardev', `socket,id=agent${n},path=agent.${n},server=on,wait=off`);
    args.push('-device', `virtserialport,chardev=agent${n},name=agent.${n}`);
  }
  const log = fs.openSync(path.join(folder, 'qemu.log'), 'w');
  const child = spawn('qemu-system-x86_64', args, {
    cwd: folder,
    detached: true,
    stdio: ['ignore', log, log],
  });
  fs.closeSync(log);
  await new Promise((resolve, reject) => {
    child.once('spawn', resolve);
    child.once('error', reject);
  });
  fs.writeFileSync(path.join(folder, 'pid'), String(child.pid));
  child.unref();
}

/**
 * @param {string} tag
 * @param {string} folder
 * @param {string} more
 */
export function shared(tag, folder, more) {
  const id = `fs-${tag}`;
  const option = `local,id=${id},path=${folder.replaceAll(',', ',,')},security_model=none,multidevs=remap${more}`;
  return ['-fsdev', option, '-device', `virtio-9p-pci,fsdev=${id},mount_tag=${tag}`];
}

/**
 * @param {string} name
 * @returns {number | undefined} QEMU's process, if it runs
 */
export function pidOf(name) {
  try {
    const pid = Number(fs.readFileSync(path.join(folderOf(name), 'pid'), 'utf8'));
    const command = fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0');
    return command.includes(`xen-host-${name}`) ? pid : undefined;
  } catch {
    return undefined;
  }
}

/** @returns {string[]} names of the machines that run */
export function running() {
  const names = fs.existsSync(machines) ? fs.readdirSync(machines) : [];
  return names.filter((name) => pidOf(name) !== undefined);
}

/**
 * Waits until dom0 takes commands.
 *
 * @param {string} name
 * @param {{ seconds?: number, signal?: AbortSignal }} [options] limit of time
 * @throws Error with the end of the console's log, if the machine dies or takes longer
 */
export async function ready(name, { seconds = 180, signal } = {}) {
  const timeout = AbortSignal.timeout(seconds * 1000);
  const limit = signal === undefined ? timeout : AbortSignal.any([timeout, signal]);
  while (!fs.existsSync(path.join(folderOf(name), 'agent.0'))) {
    if (pidOf(name) === undefined || limit.aborted) throw died(name);
    await sleep(50);
  }
  try {
    const code = await execute(name, 'true', { signal: limit });
    if (code === 0) return;
  } catch (error) {
    throw died(name, error);
  }
  throw died(name);
}

/**
 * Runs a shell command in dom0.
 *
 * @param {string} name
 * @param {string} command
 * @param {{ stdin?: NodeJS.ReadableStream, stdout?: (data: Buffer) => void, stderr?: (data: Buffer) => void,
 *   signal?: AbortSignal }} [options] a signal that aborts ends the command with SIGTERM
 * @returns {Promise<number>} its exit code
 * @throws Error if the machine ends, or on abort
 */
export async function execute(name, command, options = {}) {
  const folder = folderOf(name);
  for (;;) {
    for (let n = 0; n < agents; n++) {
      if (pidOf(name) === undefined) throw died(name);
      const lock = path.join(folder, `agent.${n}.lock`);
      if (!take(lock)) continue;
      try {
        return await converse(path.join(folder, `agent.${n}`), command, options);
      } catch (error) {
        if (pidOf(name) === undefined) throw died(name, error);
        throw error;
      } finally {
        fs.rmSync(lock, { force: true });
      }
    }
    await sleep(200);
  }
}

/** @param {string} lock */
function take(lock) {
  try {
    const owner = fs.readlinkSync(lock);
    if (fs.existsSync(`/proc/${owner}`)) return false;
    fs.rmSync(lock, { force: true });
  } catch {
    // Nobody has it.
  }
  try {
    fs.symlinkSync(String(process.pid), lock);
    return true;
  } catch {
    return false;
  }
}

/** @param {string} name @returns {string} */
export function consoleOf(name) {
  const log = path.join(folderOf(name), 'console.log');
  return fs.existsSync(log) ? fs.readFileSync(log, 'utf8').replaceAll('\r', '') : '';
}

/**
 * @param {string} name
 * @param {unknown} [cause]
 */
function died(name, cause) {
  const qemu = path.join(folderOf(name), 'qemu.log');
  const said = fs.existsSync(qemu) ? fs.readFileSync(qemu, 'utf8').slice(-2000) : '';
  const last = consoleOf(name).trimEnd().split('\n').slice(-25).join('\n');
  const state = pidOf(name) === undefined ? 'does not run' : 'does not answer';
  return new Error(
    `machine ${name} ${state}\n${said}\n${last}\nWhole console: ${folderOf(name)}/console.log`,
    { cause },
  );
}

/**
 * Ends a machine. There is nothing in it to be saved.
 *
 * @param {string} name
 * @param {number} [grace] seconds that it has to power off by itself before it is killed; 0: killed at once
 * @returns {Promise<boolean>} whether it powered off by itself
 */
export async function stop(name, grace = 0) {
  if (grace > 0 && pidOf(name) !== undefined) {
    const signal = AbortSignal.timeout(grace * 1000);
    // The answer of the agent may get lost, the machine being gone.
    await execute(name, 'sync; setsid sh -c "sleep 0.2; poweroff -f" >/dev/null 2>&1 &', { signal }).catch(
      () => {},
    );
    while (!signal.aborted && pidOf(name) !== undefined) await sleep(100);
  }
  const alone = pidOf(name) === undefined;
  for (let n = 0, pid = pidOf(name); pid !== undefined; n++, pid = pidOf(name)) {
    process.kill(pid, n < 20 ? 'SIGTERM' : 'SIGKILL');
    await sleep(100);
  }
  return alone;
}
