/** Devices of xend's configuration: what becomes of each, and which are missed. */

import { describe, expect, it, test } from 'vitest';
import { build, guest, type Json } from './xend-guest.js';

describe('disks', () => {
  const file = '(uname file:/a) (mode w)';
  test.each([
    [
      '(vbd (dev hda) (uname phy:/dev/sdb) (mode w))',
      { vdev: 'hda', pdev_path: '/dev/sdb', format: 'raw', readwrite: 1 },
    ],
    [
      '(vbd (dev xvda:disk) (uname phy:vg/lv) (mode r))',
      { vdev: 'xvda', pdev_path: '/dev/vg/lv', readwrite: 0 },
    ],
    ['(vbd (dev sda1) (uname file:/with:colon))', { vdev: 'sda1', pdev_path: '/with:colon', readwrite: 0 }],
    [`(vbd (dev ioemu:hdb) ${file})`, { vdev: 'hdb' }],
    [`(vbd (dev ioemu:hdb:disk) ${file})`, { vdev: 'hdb' }],
    [`(vbd (dev /dev/xvdc) ${file})`, { vdev: 'xvdc' }],
    [`(vbd (dev 51712) ${file})`, { vdev: '51712' }],
    ['(tap (dev xvda) (uname tap:aio:/a))', { pdev_path: '/a', format: 'raw' }],
    ['(tap (dev xvda) (uname tap:sync:/a))', { pdev_path: '/a', format: 'raw' }],
    ['(tap (dev xvda) (uname tap:qcow:/a))', { pdev_path: '/a', format: 'qcow' }],
    ['(tap2 (dev xvda) (uname tap:tapdisk:vhd:/a:b))', { pdev_path: '/a:b', format: 'vhd' }],
    ['(tap2 (dev xvda) (uname tap2:ioemu:qcow2:/a))', { pdev_path: '/a', format: 'qcow2' }],
    ['(vbd (dev xvda) (uname drbd:res))', { pdev_path: 'res', format: 'raw', script: 'block-drbd' }],
    [
      '(vbd (dev hdc:cdrom) (uname file:/cd.iso) (mode w))',
      { pdev_path: '/cd.iso', format: 'raw', readwrite: 0, is_cdrom: 1, removable: 1 },
    ],
    [`(vbd (dev xvda) ${file} (backend storage))`, { backend_domname: 'storage' }],
    [`(vbd (dev xvda) ${file} (backend Domain-0))`, { backend_domname: undefined }],
  ])('%s', (device, expected) => {
    const { config, notCarried } = guest({ devices: [device] });
    const [disk] = config['disks'] as Json[];
    expect({ backend_domname: undefined, ...disk }).toMatchObject(expected);
    expect(notCarried).toEqual([]);
  });

  const gone = 'the disk is missing from the configuration';
  test.each([
    ['(vbd (dev xvda))', `device 1 (vbd): no uname: ${gone}`],
    ['(vbd (uname phy:/a))', `device 1 (vbd): dev  is no disk that libxl has: ${gone}`],
    ['(vbd (dev fd0) (uname phy:/a))', `device 1 (vbd): dev fd0 is no disk that libxl has: ${gone}`],
    ['(vbd (dev hda:disk:x) (uname phy:/a))', `device 1 (vbd): dev hda is no disk that libxl has: ${gone}`],
    ['(vbd (dev xvda) (uname /a))', `device 1 (vbd): uname /a is nothing that libxl reads: ${gone}`],
    [
      '(tap (dev xvda) (uname tap:vmdk:/a))',
      `device 1 (tap): uname tap:vmdk:/a is nothing that libxl reads: ${gone}`,
    ],
    // Not a script of any other folder.
    [
      '(vbd (dev xvda) (uname ../../tmp/x:y))',
      `device 1 (vbd): uname ../../tmp/x:y is nothing that libxl reads: ${gone}`,
    ],
  ])('%s is missing, and that is told', (device, line) => {
    const { config, notCarried } = guest({ devices: [device] });
    expect(config).not.toHaveProperty('disks');
    expect(notCarried).toEqual([line]);
  });

  test.each([
    ['(mode w!)', 1, 'mode: w! becomes w: libxl cannot say that the disk is shared'],
    ['(mode x)', 0, 'mode: x becomes r'],
    ['(mode w) (VDI 8)', 1, 'VDI: libxl has nothing like it'],
  ])('%s', (more, readwrite, line) => {
    const { config, notCarried } = guest({ devices: [`(vbd (dev xvda) (uname phy:/a) ${more})`] });
    expect(config['disks']).toMatchObject([{ readwrite }]);
    expect(notCarried).toEqual([`device 1 (vbd).${line}`]);
  });
});

describe('other devices', () => {
  test.each([
    ['10Mb/s', { rate_bytes_per_interval: 62_500, rate_interval_usecs: 50_000 }],
    ['1GB/s@20ms', { rate_bytes_per_interval: 20_000_000, rate_interval_usecs: 20_000 }],
    ['300B/s@1s', { rate_bytes_per_interval: 300, rate_interval_usecs: 1_000_000 }],
    ['8Kb/s@500us', {}],
    ["'1000,20'", { rate_bytes_per_interval: 1000, rate_interval_usecs: 20 }],
    ["'4294967295,0'", {}],
  ])('rate of an interface: %s', (rate, expected) => {
    const { config, notCarried } = guest({ devices: [`(vif (mac 00:16:3e:00:00:01) (rate ${rate}))`] });
    expect(config['nics']).toEqual([{ devid: 0, mac: '00:16:3e:00:00:01', nictype: 'vif', ...expected }]);
    expect(notCarried).toEqual([]);
  });

  test.each([
    ['(vif)', ['.mac: none that is valid: the guest gets a new one']],
    ['(vif (mac 1:2))', ['.mac: none that is valid: the guest gets a new one']],
    ['(vif (mac 00:16:3e:00:00:01) (rate fast))', ['.rate: fast is no rate']],
    ['(vif (mac 00:16:3e:00:00:01) (accel sfc))', ['.accel: libxl has nothing like it']],
    ['(vtpm (instance 1))', [': libxl has no such device: it is missing from the configuration']],
    ['(vscsi (feature-host 0))', [': libxl has no such device: it is missing from the configuration']],
    ['(console (protocol rfb))', ['.protocol: libxl has no such console']],
    ['(ioports (from 0x3ff) (to 0x3f8))', ['.from: not a range of ports']],
    ['(irq (irq many))', ['.irq: many is not a number of 0…4294967295']],
    [
      '(pci (dev (domain 0) (bus 0)))',
      ['.dev: no PCI address: the device is missing from the configuration'],
    ],
    [
      '(pci (dev (domain 0) (bus 0) (slot 0x20) (func 0)))',
      ['.dev: no PCI address: the device is missing from the configuration'],
    ],
    [
      '(pci (dev (domain 0) (bus 0) (slot 1) (func 0) (opts (x 1))))',
      ['.dev.opts.x: libxl has nothing like it'],
    ],
    ['(pci (backend pcidom))', ['.backend: libxl passes devices through from domain 0 alone']],
  ])('%s', (device, lines) => {
    const type = /\w+/.exec(device)?.[0] ?? '';
    expect(guest({ devices: [device] }).notCarried).toEqual(lines.map((line) => `device 1 (${type})${line}`));
  });

  test.each(['', 'vbd', '()', '(())', '((a))'])('what is no device is told: (device %s)', (device) => {
    expect(guest({ devices: [device] }).notCarried).toEqual(['device: number 1 is no device']);
  });

  it('interfaces of an HVM guest are emulated unless they say otherwise', () => {
    const types = ['', '(type ioemu)', '(type netfront)', '(type paravirtualised)'];
    const devices = types.map((type, i) => `(vif (mac 00:16:3e:00:00:0${i}) ${type})`);
    const nictypes = (kind: 'hvm' | 'linux'): unknown[] =>
      (guest({ kind, devices }).config['nics'] as Json[]).map((nic) => nic['nictype']);
    expect(nictypes('hvm')).toEqual(['vif_ioemu', 'vif_ioemu', 'vif', 'vif']);
    expect(nictypes('linux')).toEqual(['vif', 'vif', 'vif', 'vif']);
  });

  it('passed-through devices take the options of all where they have none', () => {
    const dev = '(domain 0) (bus 0x3) (slot 0x1f) (func 7)';
    const { config } = guest({
      image: '(pci_msitranslate 1) (pci_power_mgmt 0)',
      devices: [`(pci (dev ${dev}) (dev ${dev} (vdevfn 0x100) (opts (msitranslate 0))))`],
    });
    const place = { domain: 0, bus: 3, dev: 31, func: 7 };
    expect(config['pcidevs']).toEqual([
      { ...place, msitranslate: true, power_mgmt: false },
      { ...place, msitranslate: false, power_mgmt: false },
    ]);
  });

  it('ports and interrupts', () => {
    const devices = ['(ioports (from 0x3f8) (to 1023))', '(irq (irq 4))'];
    expect(build({ devices })).toMatchObject({ ioports: [{ first: 0x3f8, number: 8 }], irqs: [4] });
  });
});
