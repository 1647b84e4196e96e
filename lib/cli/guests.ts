/** Which guest a command works on: one of a Xen host, found by name or number, or one made on a simulated host. */
import { printable } from '../bytes/printable.js';
import { debug } from '../debug.js';
import { GuestError, UsageError } from '../errors.js';
import type { DomainInfo } from '../host/host.js';
import { SaveErrorCode } from '../save/codes.js';
import { bytesText, countText } from './format.js';
import type { OpenHost } from './hypervisor.js';
import { createGuest, planText, type GuestPlan } from './simulated.js';
import { kindOf, type Label, type XenSide } from './xen-side.js';

/** Guests that a message lists; a host may have hundreds. */
const LISTED = 12;

/** The guest that a command works on. */
export interface Guest {
  readonly domid: number;
  readonly name: string;
  /** Pages of memory that it has. */
  readonly pages: number;
  /** `pvh guest, 512 MiB, 1 vcpu`. */
  readonly about: string;
  readonly paused: boolean;
  /** Why a live save or migration cannot be had here, if that is known beforehand. */
  readonly notLive: string | undefined;
}

/** Finds GUEST on a Xen host; makes it on a simulated one. Throws GuestError if there is no such guest, UsageError for dom0. */
export async function takeGuest(open: OpenHost, plan: GuestPlan, operand: string): Promise<Guest> {
  if (open.kind === 'xen') return findGuest(open.xen, operand);
  const { domid } = await createGuest(open.host, plan, operand);
  return {
    domid,
    name: operand,
    pages: plan.memory / 4096,
    about: planText(plan),
    paused: false,
    notLive: undefined,
  };
}

async function findGuest(xen: XenSide, operand: string): Promise<Guest> {
  const [domains, labels] = await Promise.all([xen.host.listDomains(), xen.labels()]);
  const info = lookUp(operand, domains, labels);
  if (info === undefined) throw unknownGuest(operand, domains, labels);
  if (info.domid === 0) throw new UsageError(`"${operand}" is the control domain, which cannot be moved`);
  const label = labels.get(info.domid);
  const name = label?.name ?? `domain ${info.domid}`;
  const kind = kindOf(info, label);
  const vcpus = info.maxVcpuId + 1;
  const about = `${kind} guest, ${bytesText(info.totPages * 4096)}, ${vcpus} ${vcpus === 1 ? 'vcpu' : 'vcpus'}`;
  const noShadow = kind === 'pv' && xen.hypervisor.guests?.shadow === false;
  return {
    domid: info.domid,
    name: printable(name),
    pages: info.totPages,
    about,
    paused: info.paused,
    notLive: noShadow
      ? 'this hypervisor has no shadow paging and cannot tell which pages a PV guest writes'
      : undefined,
  };
}

/** A guest that has come to the host. */
export interface Arrived {
  readonly kind: string;
  /** Undefined if nobody named it. */
  readonly name: string | undefined;
}

/** What a guest is that has come to the host. Never rejects: a guest may be gone again at once, and did arrive. */
export async function arrivedGuest(open: OpenHost, domid: number, guestType: 'pv' | 'hvm'): Promise<Arrived> {
  if (open.kind === 'sim') return { kind: open.host.guest(domid).kind, name: undefined };
  try {
    const info = (await open.host.listDomains()).find((domain) => domain.domid === domid);
    const label = (await open.xen.labels()).get(domid);
    return { kind: kindOf(info ?? { hvm: guestType === 'hvm' }, label), name: label?.name };
  } catch (error) {
    debug('domain %d has arrived, and cannot be asked about: %O', domid, error);
    return { kind: guestType, name: undefined };
  }
}

/** As XenHost.resolveDomain: digits are a domid if there is such a domain, else a name like any other. */
function lookUp(
  operand: string,
  domains: readonly DomainInfo[],
  labels: ReadonlyMap<number, Label>,
): DomainInfo | undefined {
  const byId = /^\d+$/.test(operand) ? domains.find(({ domid }) => domid === Number(operand)) : undefined;
  return byId ?? domains.find(({ domid }) => labels.get(domid)?.name === operand);
}

function unknownGuest(
  operand: string,
  domains: readonly DomainInfo[],
  labels: ReadonlyMap<number, Label>,
): GuestError {
  const there = domains
    .filter(({ domid }) => domid !== 0)
    .map(({ domid }) => {
      const name = labels.get(domid)?.name;
      return name === undefined ? `domain ${domid}` : `${name} (${domid})`;
    });
  const more = there.length - LISTED;
  const list = there.slice(0, LISTED).join(', ') + (more > 0 ? ` and ${countText(more)} more` : '');
  const rest = there.length === 0 ? 'no guest is here' : `there ${there.length === 1 ? 'is' : 'are'} ${list}`;
  return new GuestError(SaveErrorCode.GUEST_GONE, `there is no guest "${operand}" on this host: ${rest}`);
}
