/** xend's configuration of a domain as libxl's, which xl keeps in its header. */

import { XEND_MEMORY_MAX, XEND_VCPUS_MAX } from './constants.js';
import { readDevices, type Devices } from './devices.js';
import { atomText, compact, Fields, parseInteger, Report, shown, type JsonObject } from './fields.js';
import { commonImage, hvmImage, pvImage } from './image.js';
import { isSxpList, XEND_CONFIG, type Sxp, type SxpList } from './sxp.js';
import { formatError, StreamErrorCode } from '../../stream/codes.js';

const KIB_PER_MIB = 1024;
// Processors of a host that a virtual one may be pinned to.
const CPU_MAX = 1023;
// Of all virtual processors together, so that a hostile file's configuration fits into xl's header.
const PINS_MAX = 1 << 17;
const CPUID_POLICY = /^[01xks]{32}$/;

/** By the names of xm and those of Xen-API. */
const ACTIONS = new Map([
  ['destroy', 'destroy'],
  ['restart', 'restart'],
  ['preserve', 'preserve'],
  ['rename-restart', 'restart_rename'],
  ['rename_restart', 'restart_rename'],
  ['coredump-destroy', 'coredump_destroy'],
  ['coredump_and_destroy', 'coredump_destroy'],
  ['coredump-restart', 'coredump_restart'],
  ['coredump_and_restart', 'coredump_restart'],
]);

/** State of the domain that was saved. It says nothing about the one that is restored. */
const STATE = [
  'domid',
  'status',
  'state',
  'store_mfn',
  'console_mfn',
  'start_time',
  'up_time',
  'cpu_time',
  'online_vcpus',
  'shutdown_reason',
] as const;

/** What `configOfXend` finds. */
export interface XendConfig {
  /** libxl's domain configuration: c_info, b_info, disks, nics, …, for `JSON.stringify`. */
  readonly config: Record<string, unknown>;
  readonly name: string;
  readonly guest: 'pv' | 'hvm';
  /** What `config` lacks or has otherwise: a path in xend's configuration and a reason each, for people. */
  readonly notCarried: string[];
}

/**
 * Makes libxl's configuration of xend's. Restoring needs no file that it names but those of devices.
 * Throws StreamFormatError (CONFIG) if name, uuid, memory or kind of the guest are missing or cannot be right.
 */
export function configOfXend(sxp: Sxp): XendConfig {
  if (!isSxpList(sxp) || atomText(sxp.items[0]) !== 'domain') {
    throw formatError(StreamErrorCode.CONFIG, 'not a domain', { offset: sxp.offset, record: XEND_CONFIG });
  }
  const report = new Report();
  const domain = new Fields(sxp, '', report);
  const { image, guest } = imageOf(domain);
  const hvm = guest === 'hvm';
  const name = required(domain, 'name', domain.text('name', true));
  const uuid = uuidOf(domain);
  const devices = readDevices(domain, {
    hvm,
    image,
    pciDefaults: { msitranslate: image.flag('pci_msitranslate'), power_mgmt: image.flag('pci_power_mgmt') },
  });
  const common = commonImage(image, domain);
  const special = hvm
    ? hvmImage(image, domain, devices.screen)
    : { build: pvImage(image, domain), create: {}, videoKib: 0 };
  const vcpus = vcpusOf(domain, image);
  const pool = domain.text('pool_name');
  const config = compact({
    c_info: compact({
      type: guest,
      ...special.create,
      name,
      uuid,
      pool_name: pool === 'Pool-0' ? undefined : pool,
    }),
    b_info: compact({
      ...vcpus,
      ...affinityOf(domain, vcpus.max_vcpus),
      ...memoryOf(domain, special.videoKib),
      ...common,
      cpuid: cpuidOf(domain),
      sched_params: compact({
        weight: domain.integer('cpu_weight', 1, 0xffff),
        cap: domain.integer('cpu_cap', 0, 0xffff),
      }),
      ...resourcesOf(devices),
      ...special.build,
    }),
    ...deviceLists(devices),
    on_poweroff: actionOf(domain, 'on_poweroff', 'destroy'),
    on_reboot: actionOf(domain, 'on_reboot', 'restart'),
    on_crash: actionOf(domain, 'on_crash', 'restart'),
  });
  for (const when of ['on_xend_start', 'on_xend_stop']) {
    if ((domain.text(when) ?? 'ignore') !== 'ignore') domain.lacks(when, 'there is no xend to start or stop');
  }
  domain.drop('security_label', 'labels of old are not those of the new host');
  domain.drop('cpuid_check', 'libxl does not ask what the host can do');
  domain.ignore(STATE);
  image.finish(true);
  domain.finish();
  return { config, name, guest, notCarried: report.lines };
}

function required<T>(domain: Fields, name: string, value: T | undefined): T {
  if (value === undefined) throw domain.error(name, 'missing, or not what it must be');
  return value;
}

function imageOf(domain: Fields): { image: Fields; guest: 'pv' | 'hvm' } {
  const list = domain.value('image');
  const kind = list !== undefined && isSxpList(list) ? atomText(list.items[0]) : undefined;
  if (kind !== 'linux' && kind !== 'hvm') {
    throw domain.error('image', kind === undefined ? 'missing' : `${shown(kind)} is neither linux nor hvm`);
  }
  return { image: new Fields(list as SxpList, 'image', domain.report), guest: kind === 'hvm' ? 'hvm' : 'pv' };
}

function uuidOf(domain: Fields): string {
  const text = required(domain, 'uuid', domain.text('uuid'));
  const digits = text.replaceAll('-', '').toLowerCase();
  if (!/^[0-9a-f]{32}$/.test(digits)) throw domain.error('uuid', `${shown(text)} is no UUID`);
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

/** xend's memory is in MiB and does not count the video memory; libxl's is in KiB and does. */
function memoryOf(domain: Fields, videoKib: number): JsonObject {
  const memory = required(domain, 'memory', domain.integer('memory', 1, XEND_MEMORY_MAX));
  const most = domain.integer('maxmem', 0, XEND_MEMORY_MAX) ?? 0;
  if (most !== 0 && most < memory)
    domain.lacks('maxmem', `${most} MiB are less than memory, which is taken for both`);
  const shadow = domain.integer('shadow_memory', 0, XEND_MEMORY_MAX) ?? 0;
  return compact({
    max_memkb: Math.max(memory, most) * KIB_PER_MIB + videoKib,
    target_memkb: memory * KIB_PER_MIB + videoKib,
    // 0: as much as libxl finds right.
    shadow_memkb: shadow === 0 ? undefined : shadow * KIB_PER_MIB,
  });
}

function vcpusOf(domain: Fields, image: Fields): { max_vcpus: number; avail_vcpus: number[] } {
  // The older place wins, as in xend.
  const given = [image.text('vcpus'), domain.text('vcpus')].find((text) => text !== undefined);
  const count = given === undefined ? 1 : (parseInteger(given) ?? 0);
  if (count < 1 || count > XEND_VCPUS_MAX) throw domain.error('vcpus', `not a number of 1…${XEND_VCPUS_MAX}`);
  const all = Array.from({ length: count }, (_, vcpu) => vcpu);
  const text = domain.text('vcpu_avail');
  if (text === undefined) return { max_vcpus: count, avail_vcpus: all };
  // A bit for each: more than a number holds.
  const map = /^\d{1,400}(?=L?$)/.exec(text);
  const bits = map === null ? 0n : BigInt(map[0]);
  const available = all.filter((vcpu) => ((bits >> BigInt(vcpu)) & 1n) === 1n);
  if (available.length > 0) return { max_vcpus: count, avail_vcpus: available };
  domain.lacks('vcpu_avail', `${shown(text)} names no virtual processor; all are taken`);
  return { max_vcpus: count, avail_vcpus: all };
}

/**
 * `(cpus ((0 1) (2 3)))`: the processors of the host that each virtual one may run on, none for all of them. Before
 * Xen 4.0 one text for all of them, `0-3,^1`.
 */
function affinityOf(domain: Fields, vcpus: number): JsonObject {
  const value = domain.value('cpus');
  if (value === undefined) return {};
  const lacks = (why: string): JsonObject => {
    domain.lacks('cpus', why);
    return {};
  };
  const pinned = isSxpList(value)
    ? value.items.slice(0, vcpus).map(cpuListOf)
    : Array<number[] | undefined>(vcpus).fill(cpuRangesOf(value.text));
  // libxl leaves alone those at the end that it is told nothing of.
  while (pinned.at(-1)?.length === 0) pinned.pop();
  if (pinned.length === 0) return {};
  if (pinned.includes(undefined)) return lacks('no numbers of processors');
  if (pinned.some((list) => list?.length === 0)) {
    return lacks('libxl cannot say that one virtual processor is pinned and one before it is not');
  }
  if (pinned.reduce((sum, list) => sum + (list?.length ?? 0), 0) > PINS_MAX)
    return lacks('too many processors');
  // libxl places a guest by itself unless told otherwise, and refuses to if there is an affinity.
  return { vcpu_hard_affinity: pinned, numa_placement: 'False' };
}

function cpuListOf(value: Sxp): number[] | undefined {
  if (!isSxpList(value)) return cpuRangesOf(value.text);
  const cpus = value.items.map((item) => parseInteger(atomText(item) ?? '') ?? NaN);
  return cpus.every((cpu) => cpu >= 0 && cpu <= CPU_MAX) ? sorted(cpus) : undefined;
}

function cpuRangesOf(text: string): number[] | undefined {
  const map = new Uint8Array(CPU_MAX + 1);
  for (const part of text.split(',').filter(Boolean)) {
    const match = /^(\^?)(\d{1,4})(?:-(\d{1,4}))?$/.exec(part.trim());
    if (match === null) return undefined;
    const [, not, from, to = from] = match;
    if (Number(to) > CPU_MAX) return undefined;
    map.fill(not === '^' ? 0 : 1, Number(from), Number(to) + 1);
  }
  return Array.from(map.keys()).filter((cpu) => map[cpu] === 1);
}

// libxl takes the last one for the largest.
function sorted(cpus: Iterable<number>): number[] {
  return [...new Set(cpus)].sort((a, b) => a - b);
}

/** `(cpuid ((LEAF[,SUBLEAF] ((eax POLICY) …)) …))`, a POLICY being 32 characters for 32 bits. */
function cpuidOf(domain: Fields): JsonObject[] | undefined {
  const value = domain.value('cpuid');
  if (value === undefined || !isSxpList(value)) return undefined;
  const policies: JsonObject[] = [];
  for (const item of value.items) {
    const [head, registers] = isSxpList(item) ? item.items : [];
    const leaves = (atomText(head) ?? '').split(',').map(parseInteger);
    const [leaf, subleaf] = leaves;
    const policy: JsonObject = compact({ leaf, subleaf });
    const inRange = leaves.length <= 2 && leaves.every((n) => n !== undefined && n >= 0 && n <= 0xffff_ffff);
    const entries = registers !== undefined && isSxpList(registers) ? registers.items : [];
    const good = entries.map((entry) => {
      const [register = '', bits = ''] = isSxpList(entry)
        ? entry.items.map((part) => atomText(part) ?? '')
        : [];
      const known = ['eax', 'ebx', 'ecx', 'edx'].includes(register) && CPUID_POLICY.test(bits);
      if (known) policy[register] = bits;
      return known;
    });
    if (!inRange || good.includes(false))
      domain.lacks('cpuid', `${shown(atomText(head) ?? '')} is no policy of a leaf`);
    if (inRange && good.includes(true)) policies.push(policy);
  }
  return policies.length === 0 ? undefined : policies;
}

function actionOf(domain: Fields, name: string, missing: string): string {
  const text = domain.text(name) ?? missing;
  const action = ACTIONS.get(text);
  if (action === undefined) domain.lacks(name, `${shown(text)} is no action; ${missing} is taken`);
  return action ?? missing;
}

function resourcesOf({ ioports, irqs }: Devices): JsonObject {
  return compact({
    ioports: ioports.length === 0 ? undefined : ioports,
    irqs: irqs.length === 0 ? undefined : irqs,
  });
}

function deviceLists({ disks, nics, pcidevs, vfbs, vkbs }: Devices): JsonObject {
  return Object.fromEntries(
    Object.entries({ disks, nics, pcidevs, vfbs, vkbs }).filter(([, list]) => list.length > 0),
  );
}
