/**
 * A process that can be killed at any of its calls: a host as it sees it. From its death on no call of it is begun, none
 * comes back, and its connections are closed, as the kernel does. What it did to the host stays.
 */
import type { Duplex } from 'node:stream';
import type { Domain, Host } from '../../lib/host/host.js';
import type { SimulatedNotes } from '../../lib/host/simulated/notes.js';
import { overridden } from '../../lib/migrate/naming.js';
import type { Toolstack } from '../../lib/toolstack/toolstack.js';

/** A host with notes that can be told apart by process. */
type NotedHost = Host & { readonly toolstack: Toolstack & { readonly notes: SimulatedNotes } };

/** When to die. */
export interface Death {
  /** At this call of the process, counted from 1. */
  readonly at: number;
  /** Before the call is made, or when it has been made and before it returns. */
  readonly when: 'before' | 'after';
}

export class Mortal {
  /** The host as the process sees it. */
  readonly host: Host;
  readonly name: string;
  /** Calls so far, `toolstack.destroy` and the like. */
  readonly calls: string[] = [];
  dead = false;
  readonly #real: NotedHost;
  readonly #death: Death | undefined;
  readonly #peers: Duplex[] = [];
  #onDeath: (() => void) | undefined;
  /** Resolves when the process has died. */
  readonly died = new Promise<void>((resolve) => (this.#onDeath = resolve));

  constructor(real: Host, name: string, death?: Death) {
    this.#real = real as NotedHost;
    this.name = name;
    this.#death = death;
    const notes = this.#mortal(this.#real.toolstack.notes.as(name), 'notes', ['self']);
    const { toolstack } = this.#real;
    const own = overridden(this.#mortal(toolstack, 'toolstack', ['notes']), { notes });
    this.host = new Proxy(real, {
      get: (target, key) => {
        if (key === 'toolstack') return own;
        if (key === 'openDomain') return (domid: number) => this.#openDomain(domid);
        const member: unknown = Reflect.get(target, key);
        if (typeof member !== 'function') return member;
        return this.#call(`host.${String(key)}`, member.bind(target) as (...args: never[]) => unknown);
      },
    });
  }

  /** The call at which it died, with its number; undefined if it did not. */
  get death(): string | undefined {
    return this.dead ? `call ${this.calls.length}, ${String(this.calls.at(-1))}` : undefined;
  }

  /** A connection that goes with the process. */
  holds(peer: Duplex): Duplex {
    this.#peers.push(peer);
    return peer;
  }

  kill(): void {
    if (this.dead) return;
    this.dead = true;
    this.#real.toolstack.notes.bury(this.name);
    for (const peer of this.#peers) peer.destroy();
    this.#onDeath?.();
  }

  async #openDomain(domid: number): Promise<Domain> {
    const open = this.#call('host.openDomain', (n: number) => this.#real.openDomain(n));
    return this.#mortal((await open(domid)) as Domain, 'domain', ['domid']);
  }

  #mortal<T extends object>(target: T, what: string, plain: readonly string[]): T {
    return new Proxy(target, {
      get: (_, key) => {
        const member: unknown = Reflect.get(target, key);
        if (typeof member !== 'function' || plain.includes(String(key))) return member;
        return this.#call(`${what}.${String(key)}`, member.bind(target) as (...args: never[]) => unknown);
      },
    });
  }

  #call(name: string, call: (...args: never[]) => unknown): (...args: unknown[]) => unknown {
    const never = new Promise(() => undefined);
    return (...args) => {
      if (this.dead) return never;
      this.calls.push(name);
      const mine = this.calls.length === this.#death?.at ? this.#death.when : undefined;
      if (mine === 'before') {
        this.kill();
        return never;
      }
      const result = call(...(args as never[]));
      if (!(result instanceof Promise)) {
        if (mine === 'after') this.kill();
        return result;
      }
      return result.then(
        (value: unknown) => {
          if (mine === 'after') this.kill();
          return this.dead ? never : value;
        },
        (error: unknown) => {
          if (mine === 'after') this.kill();
          if (this.dead) return never;
          throw error;
        },
      );
    };
  }
}
