/**
 * The names of a guest on its way, as xl has them: NAME--incoming at the destination until it is told to run the guest,
 * NAME--migratedaway at the source from then on. Two domains of one name would be in each other's way where source and
 * destination are one host, and whoever looks at a host sees what is half a guest.
 */
import { objectOf, parseJson, printJson, type JsonObject } from '../toolstack/xen/json.js';
import type { Toolstack } from '../toolstack/toolstack.js';

export const INCOMING = '--incoming';
export const MIGRATED_AWAY = '--migratedaway';

/** The configuration with another name in `c_info`; as it was if it is none that has a name. */
export function configNamed(config: string, name: (own: string) => string): { config: string; own?: string } {
  let whole: JsonObject;
  try {
    whole = parseJson(config, 'domain configuration');
  } catch {
    return { config };
  }
  const create = objectOf(whole['c_info']);
  const own = create?.['name'];
  if (typeof own !== 'string' || own === '') return { config };
  return { config: printJson({ ...whole, c_info: { ...create, name: name(own) } }), own };
}

/** The guest's name in a libxl_domain_config, if it can be found. */
export function nameIn(config: string): string | undefined {
  return configNamed(config, (own) => own).own?.slice(0, 256);
}

/** The toolstack, but that what it builds is called NAME--incoming; `onName` hears of NAME. */
export function incomingToolstack(own: Toolstack, onName: (name: string) => void): Toolstack {
  if (own.rename === undefined) return own;
  const createDomain: Toolstack['createDomain'] = (config, options) => {
    const named = configNamed(config, (name) => name + INCOMING);
    if (named.own !== undefined) onName(named.own);
    return own.createDomain(named.config, options);
  };
  return overridden(own, { createDomain });
}

/** The toolstack with some of its methods replaced. */
export function overridden(own: Toolstack, methods: Partial<Toolstack>): Toolstack {
  return new Proxy(own, {
    get(target, key) {
      if (key in methods) return Reflect.get(methods, key) as unknown;
      const member: unknown = Reflect.get(target, key);
      return typeof member === 'function' ? (member.bind(target) as unknown) : member;
    },
  });
}
