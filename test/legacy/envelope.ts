/** What toolstacks wrote before a legacy image, for tests. */

import { encodeXlHeader, XlMandatoryFlag } from '../../lib/stream/index.js';
import { cat, text, w32be } from './bytes.js';

/** xl's configuration in a file of xl 4.2 and later. */
export function xlJson(type: 'pv' | 'hvm', name = 'guest'): string {
  return JSON.stringify({
    c_info: { type, name, uuid: '9a2b6f2e-8f6d-4c1e-8f0d-3f1d5b7c9e11', run_hotplug_scripts: 'True' },
    b_info: { max_vcpus: 1, avail_vcpus: [0], max_memkb: 32768, target_memkb: 32768, [`type.${type}`]: {} },
  });
}

/** xl's configuration in older files: its configuration file, as it was. */
export function xlText(type: 'pv' | 'hvm', name = 'guest'): string {
  const kind = type === 'pv' ? 'kernel = "/boot/vmlinuz"' : 'builder = "hvm"';
  return `name = "${name}"\n${kind}\nmemory = 32\nvcpus = 1\n`;
}

/**
 * xl's header, without the flag of v2 streams. A configuration that begins with "{" is JSON and gets its flag; undefined
 * makes a header without optional data.
 */
export function xlHeader(config: string | undefined): Uint8Array {
  if (config === undefined) return encodeXlHeader({ mandatoryFlags: 0, optionalData: new Uint8Array(0) });
  return encodeXlHeader({ mandatoryFlags: config.startsWith('{') ? XlMandatoryFlag.JSON : 0, config });
}

/** A configuration as xend 4.1 wrote it: an S-expression in one line. */
export function xendConfig(type: 'pv' | 'hvm', name = 'guest'): string {
  const notes =
    '(notes (HV_START_LOW 18446603336221196288) (FEATURES "writable_page_tables|pae_pgdir_above_4gb"))';
  const image =
    type === 'pv'
      ? `(image (linux (kernel /boot/vmlinuz) (ramdisk /boot/initrd) (args 'root=/dev/xvda1 ro') (superpages 0) (tsc_mode 0) (videoram 4) (pci ()) (nomigrate 0) ${notes}))`
      : '(image (hvm (kernel /usr/lib/xen/boot/hvmloader) (superpages 0) (videoram 4) (hpet 0) (stdvga 0) (loader /usr/lib/xen/boot/hvmloader) (boot c) (rtc_timeoffset 0) (pci ()) (pae 1) (acpi 1) (apic 1) (vnc 1) (tsc_mode 0) (nomigrate 0) (timer_mode 1) (viridian 0)))';
  return (
    `(domain (domid 7) (cpu_weight 256) (cpu_cap 0) (pool_name Pool-0) (bootloader '') (on_crash restart) ` +
    `(uuid 1d3c5b7a-9f1e-2d3c-4b5a-697887968574) (bootloader_args '') (vcpus 1) (description 'a guest, (old)') ` +
    `(name ${name}) (cpus (())) (on_reboot restart) (on_poweroff destroy) (maxmem 32) (memory 32) (shadow_memory 0) ` +
    `(features '') (on_xend_start ignore) (on_xend_stop ignore) (start_time 1300000000.25) (cpu_time 1.5) ` +
    `(online_vcpus 1) ${image} (status 2) (state -b----) (store_mfn 4660) (console_mfn 4661) ` +
    `(device (vif (bridge xenbr0) (mac 00:16:3e:11:22:33) (script /etc/xen/scripts/vif-bridge) ` +
    `(uuid 2d3c5b7a-9f1e-2d3c-4b5a-697887968574) (backend 0))) ` +
    `(device (vbd (protocol x86_64-abi) (uuid 3d3c5b7a-9f1e-2d3c-4b5a-697887968574) (bootable 1) (dev xvda1:disk) ` +
    `(uname phy:/dev/vg0/guest) (mode w) (backend 0) (VDI ''))))`
  );
}

/** xend's header: "LinuxGuestRecord", u32 length (big-endian), the configuration. */
export function xendHeader(config: string): Uint8Array {
  return cat(text('LinuxGuestRecord'), w32be(config.length), text(config));
}
