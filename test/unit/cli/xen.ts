/** A Xen host for the commands, made of a simulated one: with a control domain, names, and its guests left alone. */
import type { DomainInfo, Host } from '../../../lib/host/host.js';
import type { HypervisorVersion } from '../../../lib/host/xen/native.js';
import type { Label, XenSide } from '../../../lib/cli/xen-side.js';
import { SimulatedHost } from '../../../lib/host/simulated/host.js';
import type { GuestKind } from '../../../lib/host/simulated/guest.js';

export const HYPERVISOR: HypervisorVersion = {
  major: 4,
  minor: 17,
  extra: '.7',
  capabilities: 'xen-3.0-x86_64 hvm-3.0-x86_64 ',
  guests: { pv: true, hvm: true, hap: true, shadow: true },
};

const DOM0: DomainInfo = {
  domid: 0,
  hvm: false,
  paused: false,
  dying: false,
  shutdown: false,
  shutdownReason: 0,
  maxVcpuId: 3,
  totPages: (640 << 20) / 4096,
  maxPages: (640 << 20) / 4096,
  sharedInfoFrame: 1,
  use: { running: true, blocked: false, onlineVcpus: 2, cpuMs: 65_840 },
};

export class FakeXen {
  readonly sim = new SimulatedHost();
  /** Of domains that have another label than their configuration says. */
  readonly labels = new Map<number, Label>([[0, { name: 'Domain-0', type: undefined }]]);
  hypervisor: HypervisorVersion = HYPERVISOR;
  /** Domains of whom the hypervisor tells something else than the simulator does. */
  readonly infos = new Map<number, Partial<DomainInfo>>();
  opened = 0;
  closed = 0;

  async guest(name: string, kind: GuestKind = 'pvh', memory = 8 << 20): Promise<number> {
    return (await this.sim.createGuest({ name, kind, memory })).domid;
  }

  readonly openXen = async (): Promise<XenSide> => {
    this.opened++;
    return {
      host: this.#host(),
      hypervisor: this.hypervisor,
      labels: () => this.#labels(),
    };
  };

  async #labels(): Promise<Map<number, Label>> {
    const labels = new Map<number, Label>();
    for (const { domid } of await this.sim.listDomains()) {
      if (this.labels.has(domid)) continue;
      const config = JSON.parse(await this.sim.toolstack.domainConfig(domid)) as { c_info: Label };
      const { type } = config.c_info;
      const name = await this.sim.toolstack.nameOf(domid);
      labels.set(domid, { name, type });
    }
    return new Map([...labels, ...this.labels]);
  }

  #host(): Host {
    const { sim } = this;
    return {
      kind: 'xen',
      toolstack: sim.toolstack,
      xenVersion: () => sim.xenVersion(),
      listDomains: async () =>
        [DOM0, ...(await sim.listDomains())].map((info) => ({ ...info, ...this.infos.get(info.domid) })),
      openDomain: (domid) => sim.openDomain(domid),
      mapMachineToPhys: () => sim.mapMachineToPhys(),
      // A real guest outlives the command.
      close: async () => {
        this.closed++;
      },
    };
  }
}
