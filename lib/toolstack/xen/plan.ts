/**
 * What an empty domain needs to know of a libxl_domain_config.
 *
 * Only what can be built here is taken: a guest whose devices or rights would silently be missing is refused, with the way
 * that has them.
 */
import { UsageError } from '../../errors.js';
import { isBigNumber, objectOf, parseJson, printJson, type JsonObject } from './json.js';
import type { GuestKind } from './parts.js';
import { uuidBytes } from '../../bytes/uuid.js';

/** One domain to be built. */
export interface DomainPlan {
  readonly kind: GuestKind;
  /** May be empty: a domain without a name. */
  readonly name: string;
  /** 16 bytes. */
  readonly uuid: Uint8Array;
  readonly maxVcpus: number;
  /** Whether each vcpu is online. */
  readonly online: readonly boolean[];
  readonly maxKib: number;
  readonly targetKib: number;
  readonly videoKib: number;
  /** For Xen's paging structures; HVM and PVH. */
  readonly pagingKib: number;
  readonly hap: boolean;
  readonly maxEvtchnPort: number;
  readonly maxGrantFrames: number;
  readonly maxMaptrackFrames: number;
  /** XEN_CPUID_TSC_MODE_*. */
  readonly tscMode: number;
  /** HVM_PARAM_TIMER_MODE. */
  readonly timerMode: number;
  /** The whole configuration, as libxl shall keep it. */
  readonly json: string;
}

/** What the domain may be, beyond its configuration. */
export interface PlanOptions {
  /** HVM guests are built without a device model. Such a guest only runs if it needs none: for tests. */
  readonly hvmWithoutDeviceModel?: boolean | undefined;
}

const KINDS: readonly GuestKind[] = ['pv', 'pvh', 'hvm'];
const MAX_VCPUS = 4096;
const KIB_MAX = 2 ** 42;
/** libxl's default of b_info.event_channels. */
const EVENT_CHANNELS = 1023;
/** Xen's own defaults, which libxl leaves to it. */
const GRANT_FRAMES = 64;
const MAPTRACK_FRAMES = 1024;
const NAME_MAX = 255;

const TSC_MODES: Readonly<Record<string, number>> = { default: 0, always_emulate: 1, native: 2 };
const TIMER_MODES: readonly string[] = [
  'delay_for_missed_ticks',
  'no_delay_for_missed_ticks',
  'no_missed_ticks_pending',
  'one_missed_tick_pending',
];
/** LIBXL_TIMER_MODE_NO_DELAY_FOR_MISSED_TICKS. */
const TIMER_MODE_DEFAULT = 1;

/** Arrays of libxl_domain_config that are devices. */
const DEVICES = [
  'disks',
  'nics',
  'pcidevs',
  'rdms',
  'dtdevs',
  'vfbs',
  'vkbs',
  'vtpms',
  'p9s',
  'pvcallsifs',
  'vdispls',
  'vsnds',
  'channels',
  'usbctrls',
  'usbdevs',
  'virtios',
  'hypervisors',
];
/** Members of b_info that no empty list or false may stand for. */
const RIGHTS = [
  'ioports',
  'irqs',
  'iomem',
  'vnuma_nodes',
  'vcpu_hard_affinity',
  'vcpu_soft_affinity',
  'cpumap',
  'nodemap',
  'nested_hvm',
  'altp2m',
  'vmtrace_buf_kb',
  'vpmu',
];
/** Members of c_info likewise. */
const PLACES = ['pool_name', 'poolid', 'driver_domain', 'ssidref', 'ssid_label', 'oos'];
/** Values that say no more than their absence. */
const NOTHING: readonly unknown[] = [
  undefined,
  null,
  '',
  0,
  false,
  'False',
  '<default>',
  'disabled',
  'Pool-0',
];

/** The way for guests that need more than memory, vcpus and a console. */
export const DROP_IN = 'restore it by xl with `LIBXL_SAVE_HELPER=xen-migrate-save-helper xl restore FILE`';

/** What is asked for is sound, and only libxl's tools can build it. */
export class NeedsLibxl extends UsageError {}

/**
 * Reads a configuration.
 *
 * @throws UsageError if it cannot be read, or lacks what has to be there; NeedsLibxl if it asks for what cannot be built
 *   here
 */
export function planDomain(text: string, options: PlanOptions = {}): DomainPlan {
  const config = parseJson(text, 'domain configuration');
  const create = objectOf(config['c_info']);
  const build = objectOf(config['b_info']);
  if (create === undefined || build === undefined) {
    throw new UsageError('the domain configuration has no c_info and b_info');
  }
  const kind = kindOf(create, build);
  refuse(kind, config, create, build, options);

  const maxVcpus = count(build['max_vcpus'] ?? 1, 'b_info.max_vcpus', MAX_VCPUS);
  const maxKib = count(build['max_memkb'] ?? build['target_memkb'], 'b_info.max_memkb', KIB_MAX);
  const targetKib = count(build['target_memkb'] ?? maxKib, 'b_info.target_memkb', maxKib);
  const hap = kind !== 'pv' && create['hap'] !== 'False';
  const uuid = uuidOf(create['uuid']);
  return {
    kind,
    name: nameOf(create['name']),
    uuid,
    maxVcpus,
    online: onlineVcpus(build['avail_vcpus'], maxVcpus),
    maxKib,
    targetKib,
    videoKib: optional(build['video_memkb'], 'b_info.video_memkb', KIB_MAX) ?? 0,
    pagingKib:
      optional(build['shadow_memkb'], 'b_info.shadow_memkb', KIB_MAX) ?? pagingKib(maxKib, maxVcpus, hap),
    hap,
    maxEvtchnPort: optional(build['event_channels'], 'b_info.event_channels', 2 ** 31 - 1) || EVENT_CHANNELS,
    maxGrantFrames: optional(build['max_grant_frames'], 'b_info.max_grant_frames', 2 ** 20) ?? GRANT_FRAMES,
    maxMaptrackFrames:
      optional(build['max_maptrack_frames'], 'b_info.max_maptrack_frames', 2 ** 20) ?? MAPTRACK_FRAMES,
    tscMode: choice(build['tsc_mode'] ?? 'default', 'b_info.tsc_mode', TSC_MODES),
    timerMode:
      build['timer_mode'] === undefined
        ? TIMER_MODE_DEFAULT
        : choice(
            build['timer_mode'],
            'b_info.timer_mode',
            Object.fromEntries(TIMER_MODES.map((m, i) => [m, i])),
          ),
    json: printJson(config),
  };
}

/** libxl__get_required_paging_memory: 1 MiB a vcpu, and a page a MiB for the p2m, and another for shadows. */
function pagingKib(maxKib: number, vcpus: number, hap: boolean): number {
  return 4 * (256 * vcpus + (hap ? 1 : 2) * Math.floor(maxKib / 1024));
}

function kindOf(create: JsonObject, build: JsonObject): GuestKind {
  for (const type of [create['type'], build['type']]) {
    if (type === undefined) continue;
    const kind = KINDS.find((known) => known === type);
    if (kind === undefined)
      throw new UsageError(`c_info.type: ${print(type)} is none of ${KINDS.join(', ')}`);
    return kind;
  }
  const kind = KINDS.find((known) => objectOf(build[`type.${known}`]) !== undefined);
  if (kind === undefined) throw new UsageError('the domain configuration names no guest type (c_info.type)');
  return kind;
}

function refuse(
  kind: GuestKind,
  config: JsonObject,
  create: JsonObject,
  build: JsonObject,
  options: PlanOptions,
): void {
  if (kind === 'hvm' && options.hvmWithoutDeviceModel !== true) {
    throw new NeedsLibxl(`an HVM guest needs a device model (QEMU), which only libxl starts: ${DROP_IN}`);
  }
  const cannot = (field: string, value: unknown): never => {
    throw new NeedsLibxl(`${field} (${print(value)}) cannot be built without libxl: ${DROP_IN}`);
  };
  for (const name of DEVICES) {
    const list = config[name];
    if (Array.isArray(list) ? list.length > 0 : list !== undefined) cannot(name, list);
  }
  const check = (prefix: string, from: JsonObject, names: readonly string[]): void => {
    for (const name of names) {
      const value = from[name];
      if (NOTHING.includes(value) || (Array.isArray(value) && value.length === 0)) continue;
      // oos (out-of-sync shadow pages) is on unless somebody asks otherwise.
      if (name === 'oos' && value === 'True') continue;
      cannot(`${prefix}.${name}`, value);
    }
  };
  check('b_info', build, RIGHTS);
  check('c_info', create, PLACES);
  const passthrough = create['passthrough'];
  if (!NOTHING.includes(passthrough) && passthrough !== 'default') cannot('c_info.passthrough', passthrough);
  const pv = objectOf(build['type.pv']);
  if (pv?.['e820_host'] === 'True') cannot('b_info.type.pv.e820_host', true);
  const relaxed = objectOf(build['arch_x86'])?.['msr_relaxed'];
  if (!NOTHING.includes(relaxed)) cannot('b_info.arch_x86.msr_relaxed', relaxed);
  const sched = objectOf(build['sched_params']) ?? {};
  const { weight = 256, cap = 0 } = sched;
  const isDefault = weight === 256 && cap === 0;
  if (!isDefault) cannot('b_info.sched_params', { weight, cap });
}

function nameOf(value: unknown): string {
  if (value === undefined) return '';
  // libxl takes digits for a domid, and xenstore a slash for another node.
  if (typeof value === 'string' && value.length <= NAME_MAX && !/[/\p{Cc}]|^\d+$/u.test(value)) return value;
  throw new UsageError(`c_info.name: ${print(value)} cannot be a domain's name`);
}

function uuidOf(value: unknown): Uint8Array {
  if (value === undefined) return uuidBytes(crypto.randomUUID()) as Uint8Array;
  const uuid = typeof value === 'string' ? uuidBytes(value) : undefined;
  if (uuid === undefined) throw new UsageError(`c_info.uuid: ${print(value)} is no UUID`);
  return uuid;
}

/** b_info.avail_vcpus lists those that are online. libxl's default: the first alone. */
function onlineVcpus(value: unknown, max: number): boolean[] {
  const list = value ?? [0];
  if (!Array.isArray(list)) throw new UsageError('b_info.avail_vcpus is not a list');
  const online = new Array<boolean>(max).fill(false);
  for (const vcpu of list) {
    if (typeof vcpu !== 'number' || !Number.isInteger(vcpu) || vcpu < 0 || vcpu >= max) {
      throw new UsageError(`b_info.avail_vcpus: ${print(vcpu)} is no vcpu of ${max}`);
    }
    online[vcpu] = true;
  }
  return online;
}

function count(value: unknown, field: string, most: number): number {
  if (typeof value === 'number' && Number.isInteger(value) && value > 0 && value <= most) return value;
  if (value === undefined) throw new UsageError(`the domain configuration has no ${field}`);
  throw new UsageError(`${field}: ${print(value)} is no number from 1 to ${most}`);
}

/** A number that may be left out, or be all ones, which is libxl's "default". */
function optional(value: unknown, field: string, most: number): number | undefined {
  if (value === undefined || isBigNumber(value) || value === -1 || value === 0xffff_ffff) return undefined;
  return value === 0 ? 0 : count(value, field, most);
}

function choice(value: unknown, field: string, of: Readonly<Record<string, number>>): number {
  const number =
    typeof value === 'number' ? value : Object.hasOwn(of, String(value)) ? of[String(value)] : undefined;
  if (number !== undefined && Object.values(of).includes(number)) return number;
  throw new UsageError(`${field}: ${print(value)} is none of ${Object.keys(of).join(', ')}`);
}

function print(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length > 100 ? `${text.slice(0, 97)}…` : text;
}
