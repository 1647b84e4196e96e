/**
 * The name of a guest that is on its way.
 *
 * Where source and destination are one host, or a host has another guest of the name, two domains would have the same name
 * until the source's is gone. As xl migrate-receive does, the guest is called NAME--incoming until then.
 */
import { debug } from '../debug.js';
import { objectOf, parseJson, printJson } from '../toolstack/xen/json.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import type { XenSide } from './xen-side.js';

/** xl's own ending. */
const INCOMING = '--incoming';

/** Names one guest that is being received. */
export class IncomingName {
  /** The host's, but for the name of what it builds. */
  readonly toolstack: Toolstack;
  readonly #xen: XenSide;
  /** The name that the guest is to have in the end; undefined as long as it has its own. */
  #wanted: string | undefined;

  constructor(xen: XenSide) {
    this.#xen = xen;
    const own = xen.host.toolstack;
    const createDomain: Toolstack['createDomain'] = async (config, options) =>
      own.createDomain(await this.#named(config), options);
    this.toolstack = new Proxy(own, {
      get(target, key) {
        if (key === 'createDomain') return createDomain;
        const member: unknown = Reflect.get(target, key);
        return typeof member === 'function' ? (member.bind(target) as unknown) : member;
      },
    });
  }

  /**
   * Gives the guest its own name, if that is free by now. Never rejects: the guest runs, under whatever name.
   *
   * @returns The name that it could not be given, or undefined if all is well
   */
  async settle(domid: number): Promise<string | undefined> {
    const name = this.#wanted;
    if (name === undefined) return undefined;
    try {
      if (await this.#isTaken(name)) return name;
      await this.#xen.rename(domid, name);
      return undefined;
    } catch (error) {
      debug('domain %d cannot be renamed to %s: %O', domid, name, error);
      return name;
    }
  }

  async #named(config: string): Promise<string> {
    const whole = parseJson(config, 'domain configuration');
    const create = objectOf(whole['c_info']);
    const name = create?.['name'];
    if (typeof name !== 'string' || name === '' || !(await this.#isTaken(name))) return config;
    this.#wanted = name;
    return printJson({ ...whole, c_info: { ...create, name: name + INCOMING } });
  }

  async #isTaken(name: string): Promise<boolean> {
    const [domains, labels] = await Promise.all([this.#xen.host.listDomains(), this.#xen.labels()]);
    return domains.some(({ domid, dying }) => !dying && labels.get(domid)?.name === name);
  }
}
