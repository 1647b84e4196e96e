/** libxl_domain_config as JSON: what a simulated toolstack reads of one, and the one it writes for its own guests. */
import { UsageError } from '../../errors.js';
import { parseJson, printJson } from '../../toolstack/xen/json.js';
import type { DomainType } from './domain-state.js';
import { Xoshiro } from './prng.js';

/** What the simulator needs of a configuration. */
export interface DomainConfig {
  readonly type: DomainType;
  readonly name: string;
  readonly maxVcpus: number;
  /** Most pages that the domain may have, with the slack that libxl gives. */
  readonly maxPages: number;
}

const PAGE_KIB = 4;
/** LIBXL_MAXMEM_CONSTANT: what a domain may have beyond its maximum, for special pages. */
const MAXMEM_SLACK_KIB = 1024;
const MAX_VCPUS = 4096;
const MAX_MEMKB = 2 ** 40;
/** libxl_domain_type as a number. */
const TYPES: readonly (DomainType | undefined)[] = [undefined, 'hvm', 'pv', 'pvh'];

type Json = Readonly<Record<string, unknown>>;

function objectOf(value: unknown): Json | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : undefined;
}

function typeOf(value: unknown): DomainType | undefined {
  if (typeof value === 'number') return TYPES[value];
  const name = typeof value === 'string' ? value.toLowerCase() : undefined;
  return TYPES.find((type) => type !== undefined && type === name);
}

function count(value: unknown, most: number): number | undefined {
  return typeof value === 'number' && Number.isInteger(value) && value > 0 && value <= most
    ? value
    : undefined;
}

/**
 * Reads a configuration. Unknown keys do not matter; of the known ones only a guest type and a size must be there.
 * Throws UsageError if they are not.
 */
export function parseConfig(text: string): DomainConfig {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw new UsageError('the domain configuration is not JSON', { cause });
  }
  const create = objectOf(objectOf(parsed)?.['c_info']);
  const build = objectOf(objectOf(parsed)?.['b_info']);
  if (create === undefined || build === undefined) {
    throw new UsageError('the domain configuration has no c_info and b_info');
  }
  const type =
    typeOf(create['type']) ??
    typeOf(build['type']) ??
    TYPES.find((t) => t !== undefined && objectOf(build[`type.${t}`]) !== undefined);
  if (type === undefined) throw new UsageError('the domain configuration names no guest type (c_info.type)');
  const kib = count(build['max_memkb'], MAX_MEMKB) ?? count(build['target_memkb'], MAX_MEMKB);
  if (kib === undefined)
    throw new UsageError('the domain configuration names no memory size (b_info.max_memkb)');
  return {
    type,
    name: typeof create['name'] === 'string' ? create['name'] : '',
    maxVcpus: count(build['max_vcpus'], MAX_VCPUS) ?? 1,
    maxPages: Math.ceil((kib + MAXMEM_SLACK_KIB) / PAGE_KIB),
  };
}

/** The configuration of a simulated guest, as libxl would print it. */
export function makeConfig(options: {
  readonly type: DomainType;
  readonly name: string;
  readonly vcpus: number;
  readonly memkb: number;
  readonly cmdline: string;
  readonly seed: number;
}): string {
  const { type, name, vcpus, memkb, cmdline, seed } = options;
  const rng = new Xoshiro(seed);
  const hex = Array.from({ length: 4 }, () => rng.next().toString(16).padStart(8, '0')).join('');
  const uuid = [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join(
    '-',
  );
  const config = {
    c_info: { type, name, uuid, run_hotplug_scripts: 'True' },
    b_info: {
      max_vcpus: vcpus,
      avail_vcpus: Array.from({ length: vcpus }, (_, i) => i),
      max_memkb: memkb,
      target_memkb: memkb,
      video_memkb: 0,
      claim_mode: 'True',
      kernel: 'simulated',
      cmdline,
      [`type.${type}`]: {},
      arch_arm: {},
      arch_x86: { msr_relaxed: 'False' },
    },
    on_reboot: 'preserve',
    on_crash: 'preserve',
    on_soft_reset: 'soft_reset',
  };
  return `${JSON.stringify(config, undefined, 4)}\n`;
}

/** The configuration of a domain that may have been renamed since, as libxl gives it: with its present name. */
export function configWithName(config: string, name: string): string {
  const whole = parseJson(config, 'domain configuration');
  const create = objectOf(whole['c_info']);
  if (create === undefined || (create['name'] ?? '') === name || create['name'] === undefined) return config;
  return printJson({ ...whole, c_info: { ...create, name } });
}
