/** The `(image (linux …))` or `(image (hvm …))` of xend's configuration as libxl's b_info. */

import { screenOf } from './devices.js';
import { atomText, compact, defbool, Fields, type JsonObject } from './fields.js';
import { isSxpList } from './sxp.js';

const KIB_PER_MIB = 1024;
const U32 = 0x1_0000_0000;

/** xend's default of `videoram`, in MiB; QEMU's VGA memory comes on top of the guest's. */
const VIDEO_RAM_DEFAULT = 4;
const VIDEO_RAM_MAX = 1024;
/** Least that libxl takes for a standard VGA of qemu-xen-traditional. */
const STD_VGA_RAM_MIN = 8;

/** By number, as HVM_PARAM_TIMER_MODE has them. */
const TIMER_MODES = [
  'delay_for_missed_ticks',
  'no_delay_for_missed_ticks',
  'no_missed_ticks_pending',
  'one_missed_tick_pending',
] as const;
const TIMER_MODE_DEFAULT = 1;

/** By number, as XEN_DOMCTL_settscinfo has them. The fourth, native_paravirt, is gone. */
const TSC_MODES = ['default', 'always_emulate', 'native'] as const;

/** What xend calls viridian is these groups of libxl: base and freq. `viridian: True` would be more. */
const VIRIDIAN_GROUPS = [0, 1] as const;

/** Files that pygrub made of a guest's kernel, for the one start that read them. */
const TEMPORARY_KERNEL = /^\/var\/run\/xend\/boot\/|^\/var\/lib\/xen\/|\/boot_(?:kernel|ramdisk)\.[^/]*$/;

function baseName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}

/** What both kinds of guest have. */
export function commonImage(image: Fields, domain: Fields): JsonObject {
  const tscMode = image.integer('tsc_mode', 0, 3) ?? 0;
  if (tscMode >= TSC_MODES.length)
    image.lacks('tsc_mode', 'libxl no longer has native_paravirt; the default is taken');
  const offset = rtcOffset(image) ?? 0;
  const localtime = [image.flag('localtime'), domain.flag('localtime')].find((flag) => flag !== undefined);
  // The kernel's ELF notes, and a copy of the PCI devices.
  image.ignore(['notes', 'pci']);
  return compact({
    tsc_mode: tscMode === 0 ? undefined : TSC_MODES[tscMode],
    // A negative number as its two's complement: the field is unsigned, what reads it is not.
    rtc_timeoffset: offset === 0 ? undefined : (offset + U32) % U32,
    localtime: localtime === true ? 'True' : undefined,
    disable_migrate: image.flag('nomigrate') === true ? 'True' : undefined,
  });
}

// In seconds.
function rtcOffset(image: Fields): number | undefined {
  return image.integer('rtc_timeoffset', -0x8000_0000, 0x7fff_ffff);
}

/** A PV guest. Its kernel, ramdisk and boot loader matter to libxl when the guest restarts, not when it is restored. */
export function pvImage(image: Fields, domain: Fields): JsonObject {
  const loader = domain.text('bootloader');
  const loaderArgs = domain.text('bootloader_args');
  const kernel = keptFile(image, 'kernel', loader !== undefined);
  const ramdisk = keptFile(image, 'ramdisk', loader !== undefined);
  // xend takes pygrub where it is told neither boot loader nor kernel; libxl has its own in a folder of its own.
  const isPygrub = loader === undefined ? kernel === undefined : baseName(loader) === 'pygrub';
  domain.drop(
    'features',
    'libxl reads none from a configuration; the guest has those that it was built with',
  );
  // Without a frame buffer among the devices nothing shows these.
  image.ignore(['display', 'xauthority', 'videoram', 'nographic', 'keymap']);
  image.drop('device_model', 'libxl runs a QEMU of its own');
  if (image.flag('superpages') === true)
    image.lacks('superpages', 'Migration v2 knows no superpages of PV guests');
  return compact({
    kernel,
    cmdline: argsOf(image),
    ramdisk,
    bootloader: isPygrub ? 'pygrub' : loader,
    bootloader_args: loaderArgs?.split(/\s+/).filter(Boolean),
    'type.pv': {},
  });
}

// Old configurations have parts of the command line by themselves.
function argsOf(image: Fields): string | undefined {
  let args = image.text('args') ?? '';
  for (const name of ['ip', 'root']) {
    const value = image.text(name);
    if (value !== undefined && !args.includes(`${name}=`)) args = `${name}=${value} ${args}`;
  }
  return args === '' ? undefined : args.trimEnd();
}

// What a boot loader fetched from the guest's disk, it fetches again.
function keptFile(image: Fields, name: 'kernel' | 'ramdisk', loaded: boolean): string | undefined {
  const file = image.text(name);
  if (file === undefined || !TEMPORARY_KERNEL.test(file)) return file;
  image.lacks(name, `a temporary file${loaded ? ' of the boot loader, which makes it anew' : ' of xend'}`);
  return undefined;
}

/** What an HVM guest has, and what of c_info it decides. */
export interface HvmImage {
  readonly build: JsonObject;
  readonly create: JsonObject;
  /** KiB that libxl counts to the guest's memory and xend does not. */
  readonly videoKib: number;
}

/**
 * An HVM guest. Where the file says nothing, xend's defaults are spelt out: libxl's are others. `screen` is the frame
 * buffer among the devices.
 */
export function hvmImage(image: Fields, domain: Fields, screen: Fields | undefined): HvmImage {
  const bool = (name: string, missing: boolean): unknown => defbool(image.flag(name) ?? missing);
  const standardVga = image.flag('stdvga') === true;
  const videoRam = image.integer('videoram', 1, VIDEO_RAM_MAX) ?? VIDEO_RAM_DEFAULT;
  const videoKib = Math.max(videoRam, standardVga ? STD_VGA_RAM_MIN : 0) * KIB_PER_MIB;
  if (videoKib !== videoRam * KIB_PER_MIB) {
    image.lacks(
      'videoram',
      `${videoRam} MiB become ${STD_VGA_RAM_MIN}, the least that libxl takes for a standard VGA`,
    );
  }
  const timerMode = image.integer('timer_mode', 0, TIMER_MODES.length - 1) ?? TIMER_MODE_DEFAULT;
  const model = image.text('device_model');
  const stubdomain = model !== undefined && baseName(model) === 'stubdom-dm';
  if (model !== undefined && !['qemu-dm', 'stubdom-dm'].includes(baseName(model))) {
    image.lacks('device_model', "qemu-xen-traditional's is taken");
  }
  const { vnc, sdl, keymap } = screenOf(screen === undefined ? [image] : [screen, image]);
  screen?.finish(true);
  const loader = image.text('loader');
  if (loader !== undefined && baseName(loader) !== 'hvmloader')
    image.lacks('loader', 'libxl has a firmware of its own');
  for (const name of ['bootloader', 'bootloader_args', 'features']) domain.drop(name, 'for PV guests only');
  const build = compact({
    video_memkb: videoKib,
    // The guest's device state is qemu-dm's, and no other QEMU reads it.
    device_model_version: 'qemu_xen_traditional',
    device_model_stubdomain: stubdomain ? 'True' : undefined,
    ...directBoot(image),
    timer_mode: TIMER_MODES[timerMode],
    nested_hvm: image.flag('nestedhvm') === true ? 'True' : undefined,
    apic: bool('apic', false),
    'type.hvm': compact({
      pae: bool('pae', false),
      acpi: bool('acpi', false),
      nx: defbool(image.flag('nx')),
      viridian_enable: image.flag('viridian') === true ? VIRIDIAN_GROUPS : undefined,
      timeoffset: rtcOffset(image)?.toString(),
      hpet: bool('hpet', false),
      vpt_align: bool('vpt_align', true),
      nographic: image.flag('nographic') === true ? 'True' : undefined,
      vga: { kind: standardVga ? 'std' : 'cirrus' },
      vnc,
      keymap,
      sdl,
      gfx_passthru: image.flag('gfx_passthru') === true ? 'True' : undefined,
      ...serialOf(image),
      boot: image.text('boot'),
      usb: bool('usb', false),
      usbdevice: image.text('usbdevice'),
      soundhw: image.text('soundhw'),
      xen_platform_pci: bool('xen_platform_pci', true),
    }),
  });
  const create = compact({ hap: defbool(image.flag('hap')), oos: defbool(image.flag('oos')) });
  return { build, create, videoKib };
}

// xend before 4.0 called the firmware a kernel; libxl would start one as an operating system.
function directBoot(image: Fields): JsonObject {
  const kernel = image.text('kernel');
  if (kernel === undefined || baseName(kernel) === 'hvmloader') {
    for (const name of ['ramdisk', 'args']) image.drop(name, 'there is no kernel to give it to');
    return {};
  }
  return { kernel, ramdisk: image.text('ramdisk'), cmdline: image.text('args') };
}

function serialOf(image: Fields): JsonObject {
  const value = image.value('serial');
  if (value === undefined || !isSxpList(value)) return { serial: image.text('serial') };
  const ports = value.items.map(atomText).filter((port) => port !== undefined && port !== '');
  if (ports.length !== value.items.length) image.lacks('serial', 'some ports are no text');
  return ports.length === 0 ? {} : { serial_list: ports };
}
