/** The Xen host that this machine is, as the commands see it: the port, and what only people ask for. */
import type { DomainInfo, Host } from '../host/host.js';
import { loadAddon } from '../host/xen/addon.js';
import type { HypervisorVersion } from '../host/xen/native.js';
import { openXenstore, type XenstoreClient } from '../toolstack/xenstore/index.js';

/** Kinds of guests in the words of xl's configuration. */
export type XenGuestKind = 'pv' | 'pvh' | 'hvm';

/** What the toolstack noted down about a domain. */
export interface Label {
  readonly name: string | undefined;
  /** `pv`, `pvh` or `hvm`, for domains that libxl or this library built. */
  readonly type: string | undefined;
}

/** A Xen host. Closing `host` closes all of it. */
export interface XenSide {
  readonly host: Host;
  readonly hypervisor: HypervisorVersion;
  /** Labels of all domains, by domid. */
  labels(): Promise<ReadonlyMap<number, Label>>;
}

/** HVM or PVH is the toolstack's knowledge: to the hypervisor both are HVM. */
export function kindOf(info: Pick<DomainInfo, 'hvm'>, label: Label | undefined): XenGuestKind {
  if (!info.hvm) return 'pv';
  return label?.type === 'pvh' ? 'pvh' : 'hvm';
}

/** Opens this machine's Xen. Rejects with AddonError. */
export async function openXenSide(): Promise<XenSide> {
  // What loads the addon is loaded only where it is wanted.
  const { XenHost } = await import('../host/xen/host.js');
  // The command does nothing beside what it was called for.
  const host = new XenHost({ inline: true });
  return {
    host,
    hypervisor: host.hypervisor,
    labels: async () => {
      const [names, types] = await Promise.all([host.listNames(), withXenstore(readTypes)]);
      const domids = new Set([...names.keys(), ...types.keys()]);
      return new Map([...domids].map((domid) => [domid, { name: names.get(domid), type: types.get(domid) }]));
    },
  };
}

async function withXenstore<T>(use: (store: XenstoreClient) => Promise<T>): Promise<T> {
  const store = await openXenstore({ device: loadAddon() });
  try {
    return await use(store);
  } finally {
    store.close();
  }
}

/** By domid, of the domains that libxl or this library built. */
async function readTypes(store: XenstoreClient): Promise<Map<number, string>> {
  const types = new Map<number, string>();
  for (const entry of await store.list('/libxl')) {
    const type = /^\d+$/.test(entry) ? await store.read(`/libxl/${entry}/type`) : undefined;
    if (type !== undefined) types.set(Number(entry), type);
  }
  return types;
}
