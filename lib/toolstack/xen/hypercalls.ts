/**
 * What the toolstack asks of the hypervisor, event channels and descriptors. The real host passes the native addon's
 * own objects; lib/host/xen/native.ts says what each call does and how it fails.
 */
import { HypercallError, UsageError, XenMigrationError } from '../../errors.js';
import { Errno } from '../../abi/errno.js';

/** XEN_DOMCTL_getdomaininfo, as far as the toolstack looks. */
export interface ToolstackDomainInfo {
  readonly domid: number;
  /** HVM or PVH. */
  readonly hvm: boolean;
  readonly dying: boolean;
  readonly shutdown: boolean;
  readonly paused: boolean;
  /** SHUTDOWN_*; meaningful only if `shutdown`. */
  readonly shutdownReason: number;
  readonly maxVcpuId: number;
  /** The 16 bytes of the domain's UUID. */
  readonly handle: Uint8Array;
}

/** XEN_DOMCTL_createdomain. */
export interface CreateDomainArguments {
  readonly hvm: boolean;
  readonly hap: boolean;
  readonly handle: Uint8Array;
  readonly maxVcpus: number;
  readonly maxEvtchnPort: number;
  readonly maxGrantFrames: number;
  readonly maxMaptrackFrames: number;
  /** XEN_X86_EMU_*. */
  readonly emulationFlags: number;
}

/** Hypercalls. Rejections have a positive `errno` and a `syscall`; ESRCH: no such domain. */
export interface Hypercalls {
  listDomains(first: number, max: number): Promise<readonly ToolstackDomainInfo[]>;
  domainInfo(domid: number): Promise<ToolstackDomainInfo>;
  hvmParam(domid: number, index: number): Promise<bigint>;
  setHvmParam(domid: number, index: number, value: bigint): Promise<void>;
  setTscInfo(domid: number, mode: number, khz: number, nsec: bigint, incarnation: number): Promise<void>;
  pause(domid: number): Promise<void>;
  unpause(domid: number): Promise<void>;
  shutdown(domid: number, reason: number): Promise<void>;
  resume(domid: number, fast: boolean): Promise<void>;
  destroy(domid: number): Promise<void>;
  /** `port`: the guest's own port, whose other end gets an event when the domain shuts down. */
  subscribe(domid: number, port: number): Promise<void>;
  createDomain(config: CreateDomainArguments): Promise<number>;
  setMaxVcpus(domid: number, vcpus: number): Promise<void>;
  setMaxMemory(domid: number, kib: number): Promise<void>;
  setPagingAllocation(domid: number, mib: number): Promise<void>;
  allocUnbound(domid: number, remote: number): Promise<number>;
}

/** An open event-channel device; none of the calls waits. */
export interface EventChannels {
  /** Readable while an event is pending. */
  readonly fd: number;
  bindInterdomain(domid: number, remotePort: number): number;
  notify(port: number): void;
  /** Takes one pending event; −1 if there is none. */
  pending(): number;
  close(): void;
}

/** Calls back once when `fd` can be read, again after `rearm`. With `keepAlive` the process does not end meanwhile. */
export type WatchReadable = (
  fd: number,
  callback: () => void,
  keepAlive: boolean,
) => { rearm(): void; close(): void };

/** Makes an error of this library of what a hypercall rejected with. */
export type WrapError = (cause: unknown, domid?: number) => XenMigrationError;

/** The plain `WrapError`. The real host has a better one, which knows what to advise. */
export const hypercallError: WrapError = (cause, domid) => {
  if (XenMigrationError.is(cause)) return cause;
  const { errno, syscall, message } = cause as { errno?: unknown; syscall?: unknown; message?: unknown };
  const text = typeof message === 'string' ? message : String(cause);
  if (typeof errno !== 'number') return new UsageError(text, { cause, domid });
  return new HypercallError(typeof syscall === 'string' ? syscall : 'xen', errno, text, { cause, domid });
};

/** The same hypercalls, rejecting with errors of this library. The first number of the arguments is the domid. */
export function wrapped(calls: Hypercalls, wrap: WrapError): Hypercalls {
  return new Proxy(calls, {
    get(target, name) {
      const method: unknown = Reflect.get(target, name);
      if (typeof method !== 'function') return method;
      return async (...args: unknown[]): Promise<unknown> => {
        try {
          return (await Reflect.apply(method, target, args)) as unknown;
        } catch (cause) {
          throw wrap(cause, typeof args[0] === 'number' ? args[0] : undefined);
        }
      };
    },
  });
}

/** The domain, or undefined if there is none. */
export async function findDomain(calls: Hypercalls, domid: number): Promise<ToolstackDomainInfo | undefined> {
  try {
    return await calls.domainInfo(domid);
  } catch (error) {
    if (error instanceof HypercallError && error.errno === Errno.ESRCH) return undefined;
    throw error;
  }
}
