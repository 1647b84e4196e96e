/** Giving a domain another name (libxl_domain_rename). */
import { UsageError } from '../../errors.js';
import type { XenstoreClient } from '../xenstore/index.js';
import { findDomain } from './hypercalls.js';
import { xsPath } from './paths.js';
import type { Parts } from './parts.js';

/**
 * In the domain's own nodes, and in those of its UUID, which a domain of the same UUID may have taken along.
 *
 * @throws UsageError if another domain has the name
 */
export async function renameDomain(parts: Parts, domid: number, name: string): Promise<void> {
  const store: XenstoreClient = await parts.store();
  const vm = await store.read(`${xsPath.domain(domid)}/vm`);
  const taken = await store.transaction(async (tx) => {
    for (const entry of await tx.list(xsPath.domains)) {
      const other = Number(entry);
      if (other !== domid && (await tx.read(xsPath.name(other))) === name) {
        // Nodes may be left of a domain that is no more.
        if ((await findDomain(parts.calls, other)) !== undefined) return other;
      }
    }
    await tx.write(xsPath.name(domid), name);
    const uuid = /^\/vm\/([^/]+)$/.exec(vm ?? '')?.[1];
    if (vm === undefined || uuid === undefined) return undefined;
    await tx.mkdir(vm);
    await tx.setPermissions(vm, [
      { domid: 0, access: 'none' },
      { domid, access: 'read' },
    ]);
    await tx.write(`${vm}/uuid`, uuid);
    await tx.write(`${vm}/name`, name);
    return undefined;
  });
  if (taken !== undefined) {
    throw new UsageError(`domain ${domid} cannot be named ${JSON.stringify(name)}: domain ${taken} is`, {
      domid,
    });
  }
}
