/** What a contract test is given: the host, a test runner, and what this host cannot do. */
import type { Domain, Host } from '../../lib/host/host.js';

export type ContractGuestKind = 'hvm' | 'pvh' | 'pv' | 'pv32';

/** One host under test, with the means to put domains on it. */
export interface ContractSubject {
  readonly host: Host;
  /**
   * A running guest of at least 8 MiB and one vcpu that writes to its memory all the time, and can be suspended. It may
   * be one that an earlier test has left as it was.
   */
  createGuest(kind: ContractGuestKind): Promise<number>;
  /** Configuration, as `createDomain` takes it, of a domain of 16 MiB with two vcpus. */
  emptyConfig(kind: ContractGuestKind): string;
  /** Destroys whatever is left, guests that can be used again excepted. */
  close(): Promise<void>;
}

/** What the subject cannot be asked for. */
export interface ContractLimits {
  /** Views taken from a mapping still show the guest after `release()`. */
  readonly viewsOutliveRelease?: boolean;
  /** The hypervisor has no shadow paging: no log-dirty of PV guests. */
  readonly noShadowPaging?: boolean;
}

/** The test runner: vitest's functions and those of node:test fit. */
export interface ContractRunner {
  readonly describe: (name: string, body: () => void) => void;
  readonly it: (name: string, body: () => Promise<void>) => void;
  readonly beforeEach: (body: () => Promise<void>) => void;
  readonly afterEach: (body: () => Promise<void>) => void;
}

/** What every group of tests needs. `host` and `subject` are there while a test runs. */
export interface ContractWorld {
  readonly runner: ContractRunner;
  readonly limits: ContractLimits;
  readonly subject: ContractSubject;
  readonly host: Host;
  emptyDomain(kind: ContractGuestKind): Promise<Domain>;
  /** Opens a running guest. */
  guest(kind: ContractGuestKind): Promise<Domain>;
}

export function isHvm(kind: ContractGuestKind): boolean {
  return kind === 'hvm' || kind === 'pvh';
}
