/** Devices of xend's configuration as libxl's. */

import { compact, defbool, Fields, parseInteger, shown, type JsonObject } from './fields.js';
import { atomText } from './fields.js';
import { isSxpList, type SxpList } from './sxp.js';

const U32_MAX = 0xffff_ffff;

/** Formats of libxl by the drivers of blktap. */
const TAP_FORMATS = new Map([
  ['aio', 'raw'],
  ['sync', 'raw'],
  ['qcow', 'qcow'],
  ['qcow2', 'qcow2'],
  ['vhd', 'vhd'],
]);

const SCALES = new Map([
  ['G', 1e9],
  ['M', 1e6],
  ['K', 1e3],
]);
const MICROSECONDS = new Map([
  ['u', 1],
  ['m', 1e3],
]);
/** What a rate counts over unless it says so, in microseconds. */
const RATE_INTERVAL = 50_000;

// hde and beyond, and SCSI disks beyond sdp, have names that libxl does not take.
const VDEV = /^(?:xvd[a-z]{1,3}\d{0,3}|hd[a-d]\d{0,2}|sd[a-p]\d{0,2}|\d{1,9}|0x[0-9a-f]{1,7})$/;

/** What devices need to know of the guest. */
export interface DeviceContext {
  readonly hvm: boolean;
  readonly image: Fields;
  /** Options of passed-through devices that have none of their own. */
  readonly pciDefaults: {
    readonly msitranslate?: boolean | undefined;
    readonly power_mgmt?: boolean | undefined;
  };
}

/** libxl's lists of devices. */
export interface Devices {
  readonly disks: JsonObject[];
  readonly nics: JsonObject[];
  readonly pcidevs: JsonObject[];
  readonly vfbs: JsonObject[];
  readonly vkbs: JsonObject[];
  readonly ioports: JsonObject[];
  readonly irqs: number[];
  /** The frame buffer of an HVM guest, which libxl keeps with the guest and not with the devices. */
  readonly screen: Fields | undefined;
}

/** Reads all `(device (TYPE …))`. */
export function readDevices(domain: Fields, context: DeviceContext): Devices {
  const devices = {
    disks: [] as JsonObject[],
    nics: [] as JsonObject[],
    pcidevs: [] as JsonObject[],
    vfbs: [] as JsonObject[],
    vkbs: [] as JsonObject[],
    ioports: [] as JsonObject[],
    irqs: [] as number[],
    screen: undefined as Fields | undefined,
  };
  const bootable: JsonObject[] = [];
  domain.all('device').forEach((list, index) => {
    const device = list.items[1];
    const type = device !== undefined && isSxpList(device) ? atomText(device.items[0]) : undefined;
    if (device === undefined || !isSxpList(device) || type === undefined) {
      domain.lacks('device', `number ${index + 1} is no device`);
      return;
    }
    const fields = new Fields(device, `device ${index + 1} (${shown(type)})`, domain.report);
    // An identity within xend, and the state of a connection that restoring makes anew.
    fields.ignore(['uuid']);
    switch (type) {
      case 'vbd':
      case 'tap':
      case 'tap2': {
        const disk = diskOf(fields);
        if (disk === undefined) break;
        if (fields.flag('bootable') === true) bootable.push(disk);
        else devices.disks.push(disk);
        fields.finish();
        break;
      }
      case 'vif':
        devices.nics.push(nicOf(fields, context.hvm, devices.nics.length));
        fields.finish();
        break;
      case 'pci':
        devices.pcidevs.push(...pciOf(fields, context));
        break;
      case 'vfb':
        if (!context.hvm) {
          devices.vfbs.push(compact({ devid: devices.vfbs.length, ...screenOf([fields, context.image]) }));
          fields.finish(true);
        } else if (devices.screen === undefined) {
          devices.screen = fields;
        } else {
          fields.lacks('vfb', 'an HVM guest has one screen');
        }
        break;
      case 'vkbd':
        // An HVM guest gets its keyboard from libxl without being asked.
        if (!context.hvm) devices.vkbs.push({ devid: devices.vkbs.length });
        fields.ignore(['backend']);
        fields.finish();
        break;
      case 'console':
        // libxl gives every guest its text console.
        if ((fields.text('protocol') ?? 'vt100') !== 'vt100')
          fields.lacks('protocol', 'libxl has no such console');
        fields.ignore(['location', 'backend', 'other_config']);
        fields.finish();
        break;
      case 'ioports': {
        const first = fields.integer('from', 0, 0xffff);
        const last = fields.integer('to', 0, 0xffff);
        if (first === undefined || last === undefined || last < first)
          fields.lacks('from', 'not a range of ports');
        else devices.ioports.push({ first, number: last - first + 1 });
        fields.ignore(['backend']);
        fields.finish();
        break;
      }
      case 'irq': {
        const irq = fields.integer('irq', 0, U32_MAX);
        if (irq !== undefined) devices.irqs.push(irq);
        fields.ignore(['backend']);
        fields.finish();
        break;
      }
      default:
        // vtpm, vscsi, vusb, vif2.
        domain.report.add(fields.path, 'libxl has no such device: it is missing from the configuration');
    }
  });
  // xend's boot loader reads the disk that is marked, libxl's the first one.
  devices.disks.unshift(...bootable);
  return devices;
}

// The domain that serves a device, unless it is domain 0. xend wrote the name of any other one.
function backendOf(fields: Fields): string | undefined {
  const backend = fields.text('backend');
  return backend === '0' || backend === 'Domain-0' ? undefined : backend;
}

function diskOf(fields: Fields): JsonObject | undefined {
  const missing = (why: string): JsonObject | undefined => {
    fields.report.add(fields.path, `${why}: the disk is missing from the configuration`);
    return undefined;
  };
  const [name = '', kind = 'disk', ...more] = (fields.text('dev') ?? '').replace(/^ioemu:/, '').split(':');
  const vdev = name.slice(name.lastIndexOf('/') + 1);
  if (!VDEV.test(vdev) || more.length > 0) return missing(`dev ${shown(name)} is no disk that libxl has`);
  if (kind !== 'disk' && kind !== 'cdrom') fields.lacks('dev', `${shown(kind)} becomes a disk`);
  const cdrom = kind === 'cdrom';
  const uname = fields.text('uname');
  const image = uname === undefined ? undefined : imageOf(uname);
  if (uname === undefined && !cdrom) return missing('no uname');
  if (uname !== undefined && image === undefined)
    return missing(`uname ${shown(uname)} is nothing that libxl reads`);
  const mode = fields.text('mode') ?? 'r';
  if (mode !== 'r' && mode !== 'w') {
    fields.lacks(
      'mode',
      `${shown(mode)} becomes ${mode === 'w!' ? 'w: libxl cannot say that the disk is shared' : 'r'}`,
    );
  }
  // The way to the device (driver, protocol), and Xen-API's view of it.
  fields.ignore(['driver', 'protocol', 'type', 'bootable']);
  return compact({
    backend_domname: backendOf(fields),
    pdev_path: image?.path,
    vdev,
    format: image?.format ?? 'empty',
    script: image?.script,
    removable: cdrom ? 1 : undefined,
    readwrite: !cdrom && mode.startsWith('w') ? 1 : 0,
    is_cdrom: cdrom ? 1 : undefined,
  });
}

interface DiskImage {
  readonly path: string;
  readonly format: string;
  readonly script?: string;
}

// phy:PATH, file:PATH, tap:[tapdisk:|ioemu:]DRIVER:PATH, tap2:…, SCRIPT:TARGET.
function imageOf(uname: string): DiskImage | undefined {
  const match = /^([^:]+):(.+)$/s.exec(uname);
  const [, type = '', rest = ''] = match ?? [];
  switch (type) {
    case '':
      return undefined;
    case 'phy':
      return { path: rest.startsWith('/') ? rest : `/dev/${rest}`, format: 'raw' };
    case 'file':
      return { path: rest, format: 'raw' };
    case 'tap':
    case 'tap2': {
      const [, driver = '', path = ''] = /^(?:tapdisk:|ioemu:)?([^:]+):(.+)$/s.exec(rest) ?? [];
      const format = TAP_FORMATS.get(driver);
      return format === undefined ? undefined : { path, format };
    }
    default:
      return /^[a-z][-a-z0-9_]*$/.test(type)
        ? { path: rest, format: 'raw', script: `block-${type}` }
        : undefined;
  }
}

function nicOf(fields: Fields, hvm: boolean, devid: number): JsonObject {
  const mac = fields.text('mac');
  const goodMac = mac !== undefined && /^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$/i.test(mac);
  if (!goodMac) fields.lacks('mac', 'none that is valid: the guest gets a new one');
  // An HVM guest's interface is QEMU's beside the paravirtual one unless its type says otherwise.
  const type = fields.text('type') ?? 'ioemu';
  const script = fields.text('script');
  return compact({
    backend_domname: backendOf(fields),
    devid,
    model: fields.text('model'),
    mac: goodMac ? mac : undefined,
    ip: fields.text('ip'),
    bridge: fields.text('bridge'),
    ifname: fields.text('vifname'),
    // xend's folder is where libxl looks by itself, whatever its place on the new host.
    script: script?.replace(/^\/etc\/xen\/scripts\/(?=[^/]+$)/, ''),
    nictype: hvm && type === 'ioemu' ? 'vif_ioemu' : 'vif',
    ...rateOf(fields),
  });
}

/**
 * `BYTES,MICROSECONDS` as xend put it into xenstore, or `10Mb/s@50ms` as the user wrote it. Numbers out of range mean
 * no limit, as they do to xend.
 */
function rateOf(fields: Fields): JsonObject {
  const rate = fields.text('rate');
  if (rate === undefined) return {};
  const numbers = storedRate(rate) ?? writtenRate(rate);
  if (numbers === undefined) fields.lacks('rate', `${shown(rate)} is no rate`);
  const [bytes, microseconds] = numbers ?? [0, 0];
  if (bytes === 0 || microseconds === 0 || bytes > U32_MAX || microseconds > U32_MAX) return {};
  return { rate_bytes_per_interval: bytes, rate_interval_usecs: microseconds };
}

function storedRate(rate: string): [number, number] | undefined {
  const match = /^(\d{1,10}),(\d{1,10})$/.exec(rate);
  return match === null ? undefined : [Number(match[1]), Number(match[2])];
}

function writtenRate(rate: string): [number, number] | undefined {
  const match = /^(\d{1,12})([GMK]?)([Bb])\/s(?:@(\d{1,10})([mu]?)s)?$/.exec(rate);
  if (match === null) return undefined;
  const [, amount, scale = '', unit, interval, part = ''] = match;
  const perSecond = Math.floor((Number(amount) * (SCALES.get(scale) ?? 1)) / (unit === 'b' ? 8 : 1));
  const microseconds =
    interval === undefined ? RATE_INTERVAL : Number(interval) * (MICROSECONDS.get(part) ?? 1e6);
  return [Math.floor((perSecond * microseconds) / 1e6), microseconds];
}

function pciOf(fields: Fields, { pciDefaults }: DeviceContext): JsonObject[] {
  const devices: JsonObject[] = [];
  for (const list of fields.all('dev')) {
    const dev = new Fields(list, `${fields.path}.dev`, fields.report);
    const place = ['domain', 'bus', 'slot', 'func'].map((name) => hexOf(dev, name));
    const [domain, bus, slot, func] = place;
    const within = [0xffff, 0xff, 0x1f, 0x7].every((max, i) => (place[i] ?? Infinity) <= max);
    if (!within) {
      dev.report.add(dev.path, 'no PCI address: the device is missing from the configuration');
      continue;
    }
    // 0x100: wherever there is room.
    const vdevfn = hexOf(dev, 'vdevfn') ?? 0x100;
    const options = new Map(
      dev
        .all('opts')
        .map((option) => option.items[1])
        .filter((option): option is SxpList => option !== undefined && isSxpList(option))
        .map((option) => [atomText(option.items[0]) ?? '', atomText(option.items[1]) ?? '']),
    );
    const option = (name: 'msitranslate' | 'power_mgmt'): boolean | undefined => {
      const text = options.get(name);
      options.delete(name);
      return text === undefined ? pciDefaults[name] : (parseInteger(text) ?? 0) !== 0;
    };
    devices.push(
      compact({
        func,
        dev: slot,
        bus,
        domain,
        vdevfn: vdevfn < 0x100 ? vdevfn : undefined,
        msitranslate: option('msitranslate'),
        power_mgmt: option('power_mgmt'),
      }),
    );
    for (const name of options.keys()) dev.lacks(`opts.${name}`, 'libxl has nothing like it');
    dev.ignore(['uuid', 'key', 'vdevfn', 'vslot', 'state']);
    dev.finish();
  }
  if (fields.text('backend') !== undefined && backendOf(fields) !== undefined) {
    fields.lacks('backend', 'libxl passes devices through from domain 0 alone');
  }
  fields.ignore(['state', 'sub_state']);
  fields.finish();
  return devices;
}

// xend's addresses are hexadecimal, with or without 0x.
function hexOf(fields: Fields, name: string): number | undefined {
  const text = fields.text(name)?.replace(/^0x/i, '') ?? '';
  return /^[0-9a-f]{1,8}$/i.test(text) ? parseInt(text, 16) : undefined;
}

/** VNC, SDL and keymap, each from the first of the sources that has it. */
export function screenOf(sources: readonly Fields[]): {
  vnc: JsonObject;
  sdl: JsonObject;
  keymap: string | undefined;
} {
  const first = <T>(get: (fields: Fields) => T | undefined): T | undefined =>
    sources.map(get).find((value) => value !== undefined);
  // All sources are asked before anything is decided, so that each knows what was read of it.
  const types = sources.map((fields) => fields.text('type'));
  const enabled = (name: 'vnc' | 'sdl'): boolean =>
    types.includes(name) || sources.map((fields) => fields.flag(name)).includes(true);
  const [vnc, sdl] = [enabled('vnc'), enabled('sdl')];
  const listen = first((fields) => fields.text('vnclisten'));
  const passwd = first((fields) => fields.text('vncpasswd'));
  const display = first((fields) => fields.integer('vncdisplay', 0, 0xffff));
  const unused = first((fields) => fields.flag('vncunused'));
  const xDisplay = first((fields) => fields.text('display'));
  const xauthority = first((fields) => fields.text('xauthority'));
  const opengl = first((fields) => fields.flag('opengl'));
  const keymap = first((fields) => fields.text('keymap'));
  for (const fields of sources) fields.ignore(['location', 'protocol', 'backend', 'other_config']);
  if (vnc && (passwd === undefined || listen === undefined)) {
    const absent = [passwd === undefined ? 'vncpasswd' : '', listen === undefined ? 'vnclisten' : ''];
    const [fields] = sources;
    fields?.lacks(
      'vnc',
      `no ${absent.filter(Boolean).join(' and no ')} in the file: xend's own configuration may have had it`,
    );
  }
  return {
    vnc: vnc
      ? compact({ enable: 'True', listen, passwd, display, findunused: defbool(unused) })
      : { enable: 'False' },
    sdl: sdl
      ? compact({ enable: 'True', opengl: defbool(opengl), display: xDisplay, xauthority })
      : { enable: 'False' },
    keymap,
  };
}
