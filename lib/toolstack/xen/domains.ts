/** Names of domains, as libxl keeps them in xenstore. */
import { UsageError } from '../../errors.js';
import { findDomain } from './hypercalls.js';
import { xsPath } from './paths.js';
import type { Parts } from './parts.js';

/** First of the numbers that are no domain (DOMID_FIRST_RESERVED). */
const DOMID_FIRST_RESERVED = 0x7ff0;

/** Names of all domains that have one, by domid. */
export async function listNames(parts: Parts): Promise<Map<number, string>> {
  const store = await parts.store();
  const names = new Map<number, string>();
  for (const entry of await store.list(xsPath.domains)) {
    if (!/^\d+$/.test(entry)) continue;
    // A domain may go while they are read.
    const name = await store.read(xsPath.name(Number(entry)));
    if (name !== undefined && name !== '') names.set(Number(entry), name);
  }
  return new Map([...names].sort(([a], [b]) => a - b));
}

/**
 * The domain that a name or number means. Digits are a domid if there is such a domain, else a name like any other (to xl
 * never a name).
 *
 * @throws UsageError if there is no such domain, or several have the name
 */
export async function resolveDomain(parts: Parts, nameOrId: string): Promise<number> {
  if (/^\d+$/.test(nameOrId)) {
    const domid = Number(nameOrId);
    if (domid < DOMID_FIRST_RESERVED && (await findDomain(parts.calls, domid)) !== undefined) return domid;
  }
  const found: number[] = [];
  for (const [domid, name] of await listNames(parts)) {
    // Nodes may outlive their domain for a while.
    if (name === nameOrId && (await findDomain(parts.calls, domid)) !== undefined) found.push(domid);
  }
  const [domid] = found;
  if (domid === undefined)
    throw new UsageError(`there is no domain ${JSON.stringify(nameOrId)} on this host`);
  if (found.length > 1) {
    throw new UsageError(
      `domains ${found.join(', ')} are all named ${JSON.stringify(nameOrId)}: give the number`,
    );
  }
  return domid;
}
