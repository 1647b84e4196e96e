/** The Xen host that this machine is, as the commands see it: the port, and what only people ask for. */
import type { DomainInfo, Host } from '../host/host.js';
import { loadAddon } from '../host/xen/addon.js';
import type { HypervisorVersion } from '../host/xen/native.js';
import { openXenstore, type XenstoreClient } from '../toolstack/xenstore/index.js';

/** Kinds of guests in the words of xl's configuration. */
export type XenGuestKind = 'pv' | 'pvh' | 'hvm';

/** A Xen host. Closing `host` closes all of it. */
export interface XenSide {
  readonly host: Host;
  readonly hypervisor: HypervisorVersion;
  /** Names that the toolstack gave, by domid. A domain without one is absent. */
  names(): Promise<ReadonlyMap<number, string>>;
  /** HVM or PVH is the toolstack's knowledge: to the hypervisor both are HVM. */
  kind(info: DomainInfo): Promise<XenGuestKind>;
}

/** Opens this machine's Xen. Rejects with AddonError. */
export async function openXenSide(): Promise<XenSide> {
  // What loads the addon is loaded only where it is wanted.
  const { XenHost } = await import('../host/xen/host.js');
  const host = new XenHost();
  return {
    host,
    hypervisor: host.hypervisor,
    names: () => withXenstore(readNames),
    kind: async (info) => {
      if (!info.hvm) return 'pv';
      const type = await withXenstore((store) => store.read(`/libxl/${info.domid}/type`));
      return type === 'pvh' ? 'pvh' : 'hvm';
    },
  };
}

async function readNames(store: XenstoreClient): Promise<Map<number, string>> {
  const names = new Map<number, string>();
  for (const entry of await store.list('/local/domain')) {
    const name = await store.read(`/local/domain/${entry}/name`);
    if (name !== undefined && name !== '') names.set(Number(entry), name);
  }
  return names;
}

async function withXenstore<T>(use: (store: XenstoreClient) => Promise<T>): Promise<T> {
  const store = await openXenstore({ device: loadAddon() });
  try {
    return await use(store);
  } finally {
    store.close();
  }
}
