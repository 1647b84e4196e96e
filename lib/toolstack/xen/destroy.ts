/**
 * Destroying a domain, so that nothing of it is left (libxl__destroy_domid): device model, back ends, xenstore nodes, files.
 *
 * libxl has scripts run for disks and network interfaces, and gives PCI devices back to their drivers. A domain that has
 * such devices is left to `xl destroy`; without xl on this host it is not touched.
 */
import * as fs from 'node:fs/promises';
import { Errno } from '../../abi/errno.js';
import { HypercallError, UsageError, withCleanupError, XenMigrationError } from '../../errors.js';
import type { XenstoreClient } from '../xenstore/index.js';
import type { DeviceModels } from './device-model.js';
import { findDomain, type ToolstackDomainInfo } from './hypercalls.js';
import { uuidText } from '../../bytes/uuid.js';
import { qmpSockets, restoreFile, saveFile, xsPath } from './paths.js';
import type { Parts } from './parts.js';
import { removeUserData } from './user-data.js';

/** Kinds of devices (libxl__device_kind) whose back ends end with the device model or by themselves. */
const SIMPLE_DEVICES: readonly string[] = ['console', 'vkbd', 'vfb', '9pfs', 'pvcalls', 'vdispl', 'vsnd'];

/** No-op if there is no such domain. */
export async function destroyDomain(parts: Parts, models: DeviceModels, domid: number): Promise<void> {
  const info = await findDomain(parts.calls, domid);
  if (info === undefined) {
    models.forget(domid);
    return;
  }
  const store = await parts.store();
  const why = await needsXl(store, domid);
  if (why === undefined) await destroyHere(parts, store, info);
  else await destroyByXl(parts, domid, why);
  models.forget(domid);
}

/** Throws UsageError if the domain has what only libxl can undo, and there is no xl here to do it. */
export async function assertDestroyable(parts: Parts, domid: number): Promise<void> {
  const why = await needsXl(await parts.store(), domid);
  // Whatever it answers: it is there.
  if (why === undefined || (await parts.runXl(['help'])) !== undefined) return;
  const what = `${onlyByXl(domid, why)}, and there is no xl here: let the guest go on, or leave it suspended`;
  throw new UsageError(what, { domid, phase: 'setup' });
}

function onlyByXl(domid: number, why: string): string {
  return `domain ${domid} has ${why}, which only libxl can take down properly`;
}

/** What of the domain only libxl can undo; undefined if there is nothing of the kind. */
async function needsXl(store: XenstoreClient, domid: number): Promise<string | undefined> {
  for (const kind of await store.list(`${xsPath.libxl(domid)}/device`)) {
    if (SIMPLE_DEVICES.includes(kind)) continue;
    if ((await store.list(`${xsPath.libxl(domid)}/device/${kind}`)).length > 0) return `a device (${kind})`;
  }
  const image = `${xsPath.domain(domid)}/image`;
  if ((await store.read(`${image}/device-model-domid`)) !== undefined) return 'a stub domain';
  if ((await store.read(`${image}/device-model-kill-uid`)) !== undefined) {
    return 'a device model under a user of its own';
  }
  return undefined;
}

async function destroyByXl(parts: Parts, domid: number, why: string): Promise<void> {
  const ran = await parts.runXl(['destroy', String(domid)]);
  const has = onlyByXl(domid, why);
  if (ran === undefined) {
    throw new UsageError(`${has}, and there is no xl here: destroy it with the toolstack that made it`, {
      domid,
    });
  }
  const left = await findDomain(parts.calls, domid);
  if (left === undefined || left.dying) return;
  const said = ran.stderr.trim().split('\n').slice(-3).join('; ');
  throw new XenMigrationError(
    'ERR_XEN_GUEST_NOT_DESTROYED',
    `${has}; xl destroy failed (${ran.code}): ${said}`,
    {
      domid,
    },
  );
}

/**
 * Every step is taken, whatever the ones before it did; the first error is thrown at the end. The domain itself goes
 * last: as long as it is there, no new domain can have its number, and what is removed is its own.
 */
async function destroyHere(parts: Parts, store: XenstoreClient, info: ToolstackDomainInfo): Promise<void> {
  const { calls, folders } = parts;
  const { domid } = info;
  const uuid = uuidText(info.handle);
  let first: unknown;
  const attempt = async (step: () => Promise<unknown>): Promise<void> => {
    try {
      await step();
    } catch (error) {
      first = first === undefined ? error : withCleanupError(first, error);
    }
  };
  if (!info.dying) await attempt(() => unlessGone(calls.pause(domid)));
  await attempt(() => endDeviceModel(parts, store, domid));
  await attempt(() => removeBackends(store, domid));
  await attempt(() => removeNodes(store, domid));
  await attempt(() => removeUserData(folders, domid, uuid));
  for (const path of [saveFile(folders, domid), restoreFile(folders, domid), ...qmpSockets(folders, domid)]) {
    await attempt(() => fs.rm(path, { force: true }));
  }
  await attempt(() => unlessGone(calls.destroy(domid)));
  // eslint-disable-next-line @typescript-eslint/only-throw-error -- as it came
  if (first !== undefined) throw first;
}

/** A domain that was dying, or that somebody else destroys, may go at any moment: that is what was wanted. */
async function unlessGone(call: Promise<void>): Promise<void> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof HypercallError) || error.errno !== Errno.ESRCH) throw error;
  }
}

/** Ends QEMU, if the process is the one that it is said to be. */
async function endDeviceModel(parts: Parts, store: XenstoreClient, domid: number): Promise<void> {
  const pid = Number((await store.read(`${xsPath.domain(domid)}/image/device-model-pid`)) ?? 0);
  await store.remove(xsPath.deviceModel(domid));
  if (Number.isInteger(pid) && pid > 1) await parts.endDeviceModel(pid, domid);
}

/** SIGHUP for the process, as libxl has it, if its command line has the domain's number: pids are used again. */
export async function endProcess(pid: number, domid: number): Promise<void> {
  let command: string[];
  try {
    command = (await fs.readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
  } catch {
    return;
  }
  const at = command.indexOf('-xen-domid');
  if (at === -1 || command[at + 1] !== String(domid)) return;
  try {
    process.kill(pid, 'SIGHUP');
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ESRCH') throw error;
  }
}

/** Removes back ends, and the folders above them that become empty. */
async function removeBackends(store: XenstoreClient, domid: number): Promise<void> {
  const devices = `${xsPath.libxl(domid)}/device`;
  for (const kind of await store.list(devices)) {
    for (const device of await store.list(`${devices}/${kind}`)) {
      const path = await store.read(`${devices}/${kind}/${device}/backend`);
      // The node is libxl's own, but what it names is removed: only a back end of this very domain.
      const match =
        path === undefined ? null : /^\/local\/domain\/\d+\/backend\/[^/]+\/(\d+)\/[^/]+$/.exec(path);
      if (path === undefined || match?.[1] !== String(domid)) continue;
      await store.transaction(async (tx) => {
        await tx.remove(path);
        for (let up = parent(path); up.includes('/backend'); up = parent(up)) {
          if ((await tx.list(up)).length > 0) break;
          await tx.remove(up);
        }
      });
    }
  }
}

async function removeNodes(store: XenstoreClient, domid: number): Promise<void> {
  const home = xsPath.domain(domid);
  const vm = await store.read(`${home}/vm`);
  await store.transaction(async (tx) => {
    if (vm !== undefined && /^\/vm\/[^/]+$/.test(vm)) await tx.remove(vm);
    await tx.remove(home);
    await tx.remove(xsPath.libxl(domid));
  });
}

function parent(path: string): string {
  return path.slice(0, path.lastIndexOf('/'));
}
