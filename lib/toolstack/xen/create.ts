/** Building an empty domain to restore into, without libxl (libxl__domain_make, libxl__build_pre). */
import { HvmParam } from '../../abi/hvm.js';
import { throwIfAborted, UsageError, withCleanupError } from '../../errors.js';
import type { BackendWiring } from '../toolstack.js';
import type { XenstoreNodes } from '../xenstore/index.js';
import { destroyDomain } from './destroy.js';
import type { DeviceModels } from './device-model.js';
import { makeNodes } from './domain-nodes.js';
import { listNames } from './domains.js';
import { findDomain } from './hypercalls.js';
import { objectOf, parseJson, printJson } from './json.js';
import { uuidText } from '../../bytes/uuid.js';
import { xsPath } from './paths.js';
import type { Parts } from './parts.js';
import type { DomainPlan } from './plan.js';
import { writeConfig } from './user-data.js';

/** A domain that was built here and waits for its memory. */
export interface MadeDomain {
  readonly plan: DomainPlan;
  readonly wiring: BackendWiring;
}

/** XEN_X86_EMU_*: what Xen itself emulates. */
const EMU_LAPIC = 1;
/** XEN_X86_EMU_ALL without VPCI: LAPIC, HPET, PM, RTC, IOAPIC, PIC, VGA, IOMMU, PIT, USE_PIRQ. */
const EMU_HVM = 0x3ff;
/** LIBXL_MAXMEM_CONSTANT: room for special pages beyond the memory that the guest knows of. */
const MAXMEM_CONSTANT_KIB = 1024;
const KIB_PER_MIB = 1024;

/** Where the node of each back end's domid is; domain 0 without it. */
const STORE_DOMID = '/tool/xenstored/domid';
const CONSOLE_DOMID = '/tool/xenconsoled/domid';

/**
 * Builds the domain, paused and without memory.
 *
 * @throws UsageError if another domain has the name; HypercallError, XenstoreError, TransportError. Nothing is left then
 */
export async function createDomain(
  parts: Parts,
  models: DeviceModels,
  plan: DomainPlan,
  signal?: AbortSignal,
): Promise<{ readonly domid: number; readonly made: MadeDomain }> {
  const { calls } = parts;
  throwIfAborted(signal, 'create');
  for (const [domid, name] of plan.name === '' ? [] : await listNames(parts)) {
    if (name === plan.name) await refuseName(parts, domid, name);
  }
  const hvm = plan.kind !== 'pv';
  const domid = await calls.createDomain({
    hvm,
    hap: plan.hap,
    handle: plan.uuid,
    maxVcpus: plan.maxVcpus,
    maxEvtchnPort: plan.maxEvtchnPort,
    maxGrantFrames: plan.maxGrantFrames,
    maxMaptrackFrames: plan.maxMaptrackFrames,
    emulationFlags: plan.kind === 'hvm' ? EMU_HVM : plan.kind === 'pvh' ? EMU_LAPIC : 0,
  });
  try {
    await calls.setMaxVcpus(domid, plan.maxVcpus);
    await calls.setMaxMemory(domid, plan.targetKib + MAXMEM_CONSTANT_KIB);
    if (hvm) {
      await calls.setHvmParam(domid, HvmParam.TIMER_MODE, BigInt(plan.timerMode));
      await calls.setPagingAllocation(domid, Math.ceil(plan.pagingKib / KIB_PER_MIB));
    }
    await calls.setTscInfo(domid, plan.tscMode, 0, 0n, 0);
    const wiring = await wire(parts, domid);
    throwIfAborted(signal, 'create', domid);
    const store = await parts.store();
    await makeNodes(store, domid, plan, (nodes) => checkName(parts, nodes, domid, plan.name));
    await writeConfig(parts.folders, domid, uuidText(plan.uuid), keptConfig(plan));
    throwIfAborted(signal, 'create', domid);
    return { domid, made: { plan, wiring } };
  } catch (error) {
    try {
      await destroyDomain(parts, models, domid);
    } catch (later) {
      withCleanupError(error, later);
    }
    throw error;
  }
}

async function wire(parts: Parts, domid: number): Promise<BackendWiring> {
  const store = await parts.store();
  const backend = async (path: string): Promise<number> => Number((await store.read(path)) ?? 0) || 0;
  const storeDomid = await backend(STORE_DOMID);
  const consoleDomid = await backend(CONSOLE_DOMID);
  return {
    storeDomid,
    consoleDomid,
    storeEvtchn: await parts.calls.allocUnbound(domid, storeDomid),
    consoleEvtchn: await parts.calls.allocUnbound(domid, consoleDomid),
  };
}

/** Names are unique. In a transaction, so that two toolstacks cannot take one at once. */
async function checkName(parts: Parts, nodes: XenstoreNodes, domid: number, name: string): Promise<void> {
  if (name === '') return;
  for (const entry of await nodes.list(xsPath.domains)) {
    const other = Number(entry);
    if (other === domid || (await nodes.read(xsPath.name(other))) !== name) continue;
    await refuseName(parts, other, name);
  }
}

/** Nodes may be left of a domain that is no more. */
async function refuseName(parts: Parts, domid: number, name: string): Promise<void> {
  if ((await findDomain(parts.calls, domid)) === undefined) return;
  throw new UsageError(
    `domain ${domid} has the name ${JSON.stringify(name)} already: rename or destroy it first`,
  );
}

/** The configuration as libxl keeps it: with the UUID that the domain has. */
function keptConfig(plan: DomainPlan): string {
  const config = parseJson(plan.json, 'domain configuration');
  const create = { ...objectOf(config['c_info']), type: plan.kind, uuid: uuidText(plan.uuid) };
  return printJson({ ...config, c_info: create });
}
