/** A native addon that records what it is asked for, and answers what a test tells it to. */
import type {
  NativeAddon,
  NativeDomainInfo,
  NativePageMap,
  NativeXen,
} from '../../../../lib/host/xen/native.js';

/** One call: name, then arguments. */
export type Call = readonly [name: string, ...args: unknown[]];

/** An error as the addon throws it. */
export function nativeError(syscall: string, code: string, errno: number): Error {
  return Object.assign(new Error(`${syscall}: ${code}, so says the system`), { code, errno, syscall });
}

export function nativeInfo(domid: number, more: Partial<NativeDomainInfo> = {}): NativeDomainInfo {
  return {
    domid,
    hvm: true,
    dying: false,
    shutdown: false,
    paused: false,
    blocked: true,
    running: false,
    shutdownReason: 0,
    totPages: 100,
    maxPages: 200,
    outstandingPages: 0,
    sharedInfoFrame: 0x1234,
    onlineVcpus: 1,
    maxVcpuId: 1,
    cpuTime: 77n,
    handle: new Uint8Array(16),
    ...more,
  };
}

/** Pages that detach when they are released, as the real ones do. */
export class FakePageMap implements NativePageMap {
  readonly #buffer: ArrayBuffer;
  live = true;
  releases = 0;
  /** Releases that fail before one succeeds. */
  failures = 0;

  constructor(pages: number) {
    this.#buffer = new ArrayBuffer(pages * 4096);
  }
  get byteLength(): number {
    return this.#buffer.byteLength;
  }
  buffer(): ArrayBuffer {
    return this.#buffer;
  }
  release(): void {
    this.releases++;
    if (this.failures > 0) {
      this.failures--;
      throw nativeError('mmap', 'ENOMEM', 12);
    }
    if (this.live) structuredClone(this.#buffer, { transfer: [this.#buffer] });
    this.live = false;
  }
}

export class FakeAddon {
  readonly calls: Call[] = [];
  /** Results of methods by name: a value, or a function of the arguments. */
  readonly answers: Record<string, unknown> = {};
  readonly maps: FakePageMap[] = [];
  openFails: Error | undefined;
  log: ((level: number, message: string) => void) | undefined;
  minLevel = 0;
  opened = 0;
  closed = 0;

  /** Names of the calls made, in order. */
  get names(): string[] {
    return this.calls.map(([name]) => name);
  }

  /** The arguments of the only call of this name. */
  call(name: string): unknown[] {
    const found = this.calls.filter(([called]) => called === name);
    if (found.length !== 1) throw new Error(`${name} was called ${found.length} times`);
    return found[0]!.slice(1);
  }

  get addon(): NativeAddon {
    const open = (log: (level: number, message: string) => void, minLevel: number): NativeXen => {
      if (this.openFails !== undefined) throw this.openFails;
      this.opened++;
      this.log = log;
      this.minLevel = minLevel;
      return this.#xen();
    };
    return {
      build: { haveXen: true, xenVersion: '4.17.0', napiVersion: 8 },
      hypervisor: () => ({ major: 4, minor: 17, extra: '.4' }),
      // A constructor that returns an object is replaced by it.
      Xen: function Xen(log: (level: number, message: string) => void, minLevel: number) {
        return open(log, minLevel);
      },
    } as unknown as NativeAddon;
  }

  /** Every name is a method but those that are something else. */
  #xen(): NativeXen {
    const special: Record<string, unknown> = {
      calls: { getpageframeinfo3: 3 },
      close: () => {
        this.calls.push(['close']);
        this.closed++;
      },
    };
    const get = (_: object, name: string): unknown =>
      special[name] ?? ((...args: unknown[]) => this.#answer(name, args));
    return new Proxy({}, { get }) as NativeXen;
  }

  /** A method that settles when the returned functions say so. */
  defer(name: string): { resolve: (value?: unknown) => void; reject: (reason: unknown) => void } {
    const settle = {} as { resolve: (value?: unknown) => void; reject: (reason: unknown) => void };
    const promise = new Promise((resolve, reject) => Object.assign(settle, { resolve, reject }));
    this.answers[name] = () => promise;
    return settle;
  }

  async #answer(name: string, args: unknown[]): Promise<unknown> {
    this.calls.push([name, ...args]);
    const answer = this.answers[name];
    if (typeof answer === 'function') return await (answer as (...a: unknown[]) => unknown)(...args);
    if (answer !== undefined) return answer;
    if (name === 'domainInfo') return nativeInfo(args[0] as number);
    if (name === 'mapFrames') {
      const map = new FakePageMap((args[1] as Float64Array).length);
      this.maps.push(map);
      return map;
    }
    return undefined;
  }
}
