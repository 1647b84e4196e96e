/** libxl's configuration made of xend's: whole guests, each rule by itself, and what a hostile file can do. */

import * as fc from 'fast-check';
import { describe, expect, it, test } from 'vitest';
import { StreamFormatError } from '../../../lib/errors.js';
import { XEND_CONFIG_MAX } from '../../../lib/stream/xend/constants.js';
import { XL_OPTIONAL_DATA_MAX } from '../../../lib/stream/index.js';
import { UUID, build, convert, guest, hvm, type Json } from './xend-guest.js';
import { HVM_GUEST, OLD_GUEST, PV_FULL, PV_GUEST } from './xend-samples.js';

describe('whole guests', () => {
  it('PV of xend 4.1', () => {
    const { config, name, guest: kind, notCarried } = convert(PV_GUEST);
    expect({ name, kind }).toEqual({ name: 'web01', kind: 'pv' });
    expect(config).toEqual({
      c_info: { type: 'pv', name: 'web01', uuid: '1c6f8d3e-6a0b-4f8b-9a43-0d8b1f8a2c55' },
      b_info: {
        max_vcpus: 2,
        avail_vcpus: [0, 1],
        vcpu_hard_affinity: [
          [0, 1],
          [2, 3],
        ],
        numa_placement: 'False',
        max_memkb: 1_048_576,
        target_memkb: 786_432,
        localtime: 'True',
        sched_params: { weight: 512, cap: 0 },
        cmdline: "root=/dev/xvda1 ro console=hvc0 xencons='tty'",
        bootloader: 'pygrub',
        bootloader_args: ['--entry=2'],
        'type.pv': {},
      },
      // The bootable one first.
      disks: [
        { pdev_path: '/srv/xen/web01.img', vdev: 'xvda', format: 'raw', readwrite: 1 },
        { pdev_path: '/dev/vg0/web01-data', vdev: 'xvdb', format: 'raw', readwrite: 1 },
      ],
      nics: [
        {
          devid: 0,
          mac: '00:16:3e:5a:10:01',
          bridge: 'br0',
          script: 'vif-bridge',
          nictype: 'vif',
          rate_bytes_per_interval: 62_500,
          rate_interval_usecs: 50_000,
        },
        {
          backend_domname: 'netdom',
          devid: 1,
          mac: '00:16:3e:5a:10:02',
          ip: '10.0.0.7 10.0.0.8',
          bridge: 'dmz',
          ifname: 'web01.1',
          script: '/srv/xen/vif-filter',
          nictype: 'vif',
        },
      ],
      vfbs: [
        {
          devid: 0,
          vnc: { enable: 'True', listen: '0.0.0.0', passwd: "it's", findunused: 'True' },
          sdl: { enable: 'False' },
          keymap: 'de',
        },
      ],
      vkbs: [{ devid: 0 }],
      on_poweroff: 'destroy',
      on_reboot: 'restart',
      on_crash: 'restart',
    });
    expect(notCarried).toEqual([
      'image.device_model: libxl runs a QEMU of its own',
      'description: libxl has nothing like it',
    ]);
  });

  it('HVM of xend 4.1', () => {
    const { config, name, guest: kind, notCarried } = convert(HVM_GUEST);
    expect({ name, kind }).toEqual({ name: 'winsrv', kind: 'hvm' });
    expect(config).toEqual({
      c_info: { type: 'hvm', hap: 'True', name: 'winsrv', uuid: '7f8a3a54-7f1b-8d43-8b4e-6f3c5f5d1c11' },
      b_info: {
        max_vcpus: 4,
        avail_vcpus: [0, 1, 2, 3],
        // 2048 MiB and 8 of video memory.
        max_memkb: 2_105_344,
        target_memkb: 2_105_344,
        video_memkb: 8192,
        shadow_memkb: 18_432,
        rtc_timeoffset: 0xffff_ffff - 3599,
        cpuid: [
          { leaf: 1, ecx: 'xxxxxxxxxx00xxxxxxxxxxxxxxxxxxxx', edx: 'k'.repeat(32) },
          { leaf: 0x8000_0001, ecx: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxx0xx' },
        ],
        sched_params: { weight: 256, cap: 50 },
        device_model_version: 'qemu_xen_traditional',
        timer_mode: 'no_delay_for_missed_ticks',
        apic: 'True',
        'type.hvm': {
          pae: 'True',
          acpi: 'True',
          viridian_enable: [0, 1],
          timeoffset: '-3600',
          hpet: 'False',
          vpt_align: 'True',
          vga: { kind: 'cirrus' },
          vnc: { enable: 'True', display: 3, findunused: 'True' },
          keymap: 'de',
          sdl: { enable: 'False' },
          serial: 'pty',
          boot: 'cd',
          usb: 'True',
          usbdevice: 'tablet',
          xen_platform_pci: 'True',
        },
      },
      disks: [
        { pdev_path: '/srv/xen/winsrv.img', vdev: 'hda', format: 'raw', readwrite: 1 },
        { vdev: 'hdc', format: 'empty', removable: 1, readwrite: 0, is_cdrom: 1 },
      ],
      nics: [
        {
          devid: 0,
          model: 'e1000',
          mac: '00:16:3e:77:01:02',
          bridge: 'xenbr0',
          script: 'vif-bridge',
          nictype: 'vif_ioemu',
        },
      ],
      pcidevs: [
        { func: 0, dev: 0x1a, bus: 0, domain: 0, vdevfn: 0x28, msitranslate: true, power_mgmt: false },
      ],
      on_poweroff: 'destroy',
      on_reboot: 'restart_rename',
      on_crash: 'coredump_restart',
    });
    expect(notCarried).toEqual([
      "device 4 (vfb).vnc: no vncpasswd and no vnclisten in the file: xend's own configuration may have had it",
      'on_xend_stop: there is no xend to start or stop',
      'cpuid_check: libxl does not ask what the host can do',
      'image.guest_os_type: libxl has nothing like it',
      'image.fda: libxl has nothing like it',
    ]);
  });

  it('PV of xend 3', () => {
    const { config, notCarried } = convert(OLD_GUEST);
    expect(config).toEqual({
      c_info: { type: 'pv', name: 'old', uuid: '4a1fe6bc-07d6-a41d-db0e-3ec15fc5a5f0' },
      b_info: {
        max_vcpus: 1,
        avail_vcpus: [0],
        max_memkb: 262_144,
        target_memkb: 262_144,
        sched_params: { weight: 256, cap: 0 },
        kernel: '/boot/vmlinuz-2.6.18-xen',
        cmdline: 'root=/dev/sda1 ip=10.0.0.9',
        ramdisk: '/boot/initrd-2.6.18-xen',
        'type.pv': {},
      },
      disks: [{ pdev_path: '/dev/vg0/old', vdev: 'sda1', format: 'raw', readwrite: 1 }],
      nics: [{ devid: 0, mac: '00:16:3E:0A:0B:0C', script: 'vif-bridge', nictype: 'vif' }],
      on_poweroff: 'destroy',
      on_reboot: 'restart',
      on_crash: 'restart',
    });
    expect(notCarried).toEqual([]);
  });

  it('nothing is lost in JSON', () => {
    const { config } = convert(PV_FULL);
    expect(JSON.parse(JSON.stringify(config))).toEqual(config);
  });
});

describe('the guest', () => {
  test.each([
    ['', { max_vcpus: 1, avail_vcpus: [0] }],
    ['(vcpus 3)', { max_vcpus: 3, avail_vcpus: [0, 1, 2] }],
    ["(vcpus 3) (vcpu_avail '6')", { max_vcpus: 3, avail_vcpus: [1, 2] }],
    ['(vcpus 3) (vcpu_avail 5L)', { max_vcpus: 3, avail_vcpus: [0, 2] }],
    [`(vcpus 65) (vcpu_avail ${2n ** 64n + 1n})`, { max_vcpus: 65, avail_vcpus: [0, 64] }],
    ['(vcpus 2) (vcpu_avail 4)', { max_vcpus: 2, avail_vcpus: [0, 1] }],
    ['(vcpus 2) (vcpu_avail x)', { max_vcpus: 2, avail_vcpus: [0, 1] }],
  ])('virtual processors: %s', (domain, expected) => {
    expect(build({ domain })).toMatchObject(expected);
  });

  const affinities: readonly (readonly [string, unknown])[] = [
    ['(vcpus 2) (cpus (() ()))', undefined],
    ['(vcpus 2) (cpus ((0 2) (1)))', [[0, 2], [1]]],
    // libxl takes the last for the largest.
    ['(vcpus 1) (cpus ((3 1 3)))', [[1, 3]]],
    ['(vcpus 2) (cpus ((1) ()))', [[1]]],
    ['(vcpus 2) (cpus (() (1)))', undefined],
    ['(vcpus 1) (cpus ((0) (1) (2)))', [[0]]],
    ['(vcpus 2) (cpus (0-2,^1 4))', [[0, 2], [4]]],
    [
      '(vcpus 2) (cpus 0-2,^1)',
      [
        [0, 2],
        [0, 2],
      ],
    ],
    ['(vcpus 1) (cpus ((x)))', undefined],
    ['(vcpus 1) (cpus 3-1)', undefined],
    ['(vcpus 1) (cpus 0-99999)', undefined],
  ];
  test.each(affinities)('where they may run: %s', (domain, expected) => {
    const info = build({ domain });
    expect(info['vcpu_hard_affinity']).toEqual(expected);
    expect(info['numa_placement']).toBe(expected === undefined ? undefined : 'False');
  });

  test.each([
    [
      '(vcpus 2) (cpus (() (1)))',
      'cpus: libxl cannot say that one virtual processor is pinned and one before it is not',
    ],
    ['(cpus ((x)))', 'cpus: no numbers of processors'],
    ['(vcpus 2) (vcpu_avail 4)', 'vcpu_avail: 4 names no virtual processor; all are taken'],
    ['(maxmem 32)', 'maxmem: 32 MiB are less than memory, which is taken for both'],
    ['(on_crash explode)', 'on_crash: explode is no action; restart is taken'],
    ['(cpu_weight heavy)', 'cpu_weight: heavy is not a number of 1…65535'],
    ['(cpu_weight (1))', 'cpu_weight: is a list where a plain value is expected'],
    ['(cpu_cap 1) (cpu_cap 2)', 'cpu_cap: given more than once; the first counts'],
    ['(cpu_cap 1 2)', 'cpu_cap: has several values; the first counts'],
    [
      '(features pae)',
      'features: libxl reads none from a configuration; the guest has those that it was built with',
    ],
    ['(security_label xsm:a:b)', 'security_label: labels of old are not those of the new host'],
    ['(backend (blkif))', 'backend: libxl has nothing like it'],
    ['(unheard of)', 'unheard: libxl has nothing like it'],
    ['stray', 'stray: stands where a named value is expected'],
    ['(() a)', '(): stands where a named value is expected'],
    [String.raw`(bootloader '/caf\xe9')`, 'bootloader: is not UTF-8 text, and JSON can carry no other'],
    [String.raw`(bootloader '/boot\x00')`, 'bootloader: is not UTF-8 text, and JSON can carry no other'],
    ['(cpuid ((1 ((ecx xx)))))', 'cpuid: 1 is no policy of a leaf'],
    ['(on_xend_start start)', 'on_xend_start: there is no xend to start or stop'],
  ])('what is not carried over is told: %s', (domain, line) => {
    expect(guest({ domain }).notCarried).toEqual([line]);
  });

  test.each(['(description )', "(description '')", '(security_label None)', '(x ())', '(x (() ()))', '()'])(
    'what is empty is not missed: %s',
    (domain) => {
      expect(guest({ domain }).notCarried).toEqual([]);
    },
  );

  it('is named None if that is its name', () => {
    expect(convert(`(domain (name None) ${UUID} (memory 64) (image (linux)))`).name).toBe('None');
  });

  test.each([
    ['(bootloader /usr/lib/xen/bin/pygrub)', '', { bootloader: 'pygrub', kernel: '/k' }],
    ['(bootloader /opt/loader)', '', { bootloader: '/opt/loader', kernel: '/k' }],
    ['', '', { kernel: '/k' }],
  ])('boot: %s %s', (domain, image, expected) => {
    const { bootloader, kernel } = build({ domain, image });
    expect({ bootloader, kernel }).toEqual({ bootloader: undefined, ...expected });
  });

  it('files of one start are not kept', () => {
    const image =
      '(linux (kernel /var/run/xend/boot/boot_kernel.a1) (ramdisk /var/run/xend/boot/boot_ramdisk.b2))';
    const text = `(domain (name n) ${UUID} (memory 64) (bootloader pygrub) (image ${image}))`;
    const { config, notCarried } = convert(text);
    expect(config['b_info']).not.toHaveProperty('kernel');
    expect(config['b_info']).not.toHaveProperty('ramdisk');
    expect(notCarried).toEqual([
      'image.kernel: a temporary file of the boot loader, which makes it anew',
      'image.ramdisk: a temporary file of the boot loader, which makes it anew',
    ]);
  });

  it('boots by pygrub if xend had neither kernel nor boot loader', () => {
    const { config } = convert(`(domain (name n) ${UUID} (memory 64) (image (linux)))`);
    expect(config['b_info']).toMatchObject({ bootloader: 'pygrub' });
  });

  test.each([
    ['(tsc_mode 1)', { tsc_mode: 'always_emulate' }, []],
    ['(tsc_mode 2)', { tsc_mode: 'native' }, []],
    ['(tsc_mode 3)', {}, ['image.tsc_mode: libxl no longer has native_paravirt; the default is taken']],
    ['(nomigrate 1)', { disable_migrate: 'True' }, []],
    ['(superpages 1)', {}, ['image.superpages: Migration v2 knows no superpages of PV guests']],
    ['(vcpus 2)', { max_vcpus: 2 }, []],
  ])('image of a PV guest: %s', (image, expected, lines) => {
    const { config, notCarried } = guest({ image });
    expect(config['b_info']).toMatchObject(expected);
    expect(notCarried).toEqual(lines);
  });
});

describe('an HVM guest', () => {
  it("has xend's defaults where xend's file says nothing", () => {
    const { config } = guest({ kind: 'hvm' });
    expect(config['c_info']).not.toHaveProperty('hap');
    expect(config['b_info']).toMatchObject({
      max_memkb: 68 * 1024,
      video_memkb: 4096,
      device_model_version: 'qemu_xen_traditional',
      timer_mode: 'no_delay_for_missed_ticks',
      apic: 'False',
      'type.hvm': {
        pae: 'False',
        acpi: 'False',
        hpet: 'False',
        vpt_align: 'True',
        usb: 'False',
        xen_platform_pci: 'True',
        vga: { kind: 'cirrus' },
        vnc: { enable: 'False' },
        sdl: { enable: 'False' },
      },
    });
  });

  it('has the viridian groups that xend gave it, and no more', () => {
    expect(hvm('(viridian 1)')['viridian_enable']).toEqual([0, 1]);
    expect(hvm('(viridian 0)')).not.toHaveProperty('viridian_enable');
    expect(hvm('(viridian 1)')).not.toHaveProperty('viridian');
  });

  it('is not started by the firmware as by a kernel', () => {
    const old = guest({ kind: 'hvm', image: '(kernel /usr/lib/xen/boot/hvmloader) (args x)' });
    expect(old.config['b_info']).not.toHaveProperty('kernel');
    expect(old.config['b_info']).not.toHaveProperty('cmdline');
    expect(old.notCarried).toEqual(['image.args: there is no kernel to give it to']);
    const direct = build({ kind: 'hvm', image: '(kernel /boot/k) (ramdisk /boot/r) (args x)' });
    expect(direct).toMatchObject({ kernel: '/boot/k', ramdisk: '/boot/r', cmdline: 'x' });
  });

  it('has as much memory for a standard VGA as libxl wants', () => {
    const { config, notCarried } = guest({ kind: 'hvm', image: '(stdvga 1)' });
    expect(config['b_info']).toMatchObject({
      video_memkb: 8192,
      max_memkb: 72 * 1024,
      target_memkb: 72 * 1024,
    });
    expect(config['b_info']).toMatchObject({ 'type.hvm': { vga: { kind: 'std' } } });
    expect(notCarried).toEqual([
      'image.videoram: 4 MiB become 8, the least that libxl takes for a standard VGA',
    ]);
  });

  test.each([
    ['(serial pty)', { serial: 'pty' }],
    ['(serial (pty /dev/ttyS1))', { serial_list: ['pty', '/dev/ttyS1'] }],
    ['(rtc_timeoffset 0)', { timeoffset: '0' }],
    ['(rtc_timeoffset -60)', { timeoffset: '-60' }],
    [
      '(sdl 1) (display :1) (xauthority /x) (opengl 0)',
      { sdl: { enable: 'True', opengl: 'False', display: ':1', xauthority: '/x' } },
    ],
    [
      '(vnc 1) (vnclisten ::1) (vncpasswd p) (vncunused 0)',
      { vnc: { enable: 'True', listen: '::1', passwd: 'p', findunused: 'False' } },
    ],
  ])('%s', (image, expected) => {
    expect(hvm(image)).toMatchObject(expected);
  });

  it("takes its screen from the frame buffer's configuration first", () => {
    const { config } = guest({
      kind: 'hvm',
      image: '(vnc 0) (vnclisten 1.1.1.1) (vncdisplay 4) (keymap us)',
      devices: ['(vfb (vnc 1) (vnclisten 2.2.2.2) (vncpasswd p))'],
    });
    expect(config).not.toHaveProperty('vfbs');
    expect(config['b_info']).toMatchObject({
      'type.hvm': { vnc: { enable: 'True', listen: '2.2.2.2', display: 4, passwd: 'p' }, keymap: 'us' },
    });
  });

  test.each([
    ['/usr/lib/xen/boot/hvmloader', []],
    ['/opt/firmware', ['image.loader: libxl has a firmware of its own']],
  ])('firmware %s', (loader, lines) => {
    const { config, notCarried } = guest({ kind: 'hvm', image: `(loader ${loader})` });
    expect(JSON.stringify(config)).not.toContain(loader);
    expect(notCarried).toEqual(lines);
  });

  test.each([
    ['/usr/lib/xen/bin/qemu-dm', undefined, []],
    ['/usr/lib/xen/bin/stubdom-dm', 'True', []],
    ['/opt/qemu', undefined, ["image.device_model: qemu-xen-traditional's is taken"]],
  ])('device model %s', (model, stubdomain, lines) => {
    const { config, notCarried } = guest({ kind: 'hvm', image: `(device_model ${model})` });
    expect((config['b_info'] as Json)['device_model_stubdomain']).toBe(stubdomain);
    expect(config['b_info']).not.toHaveProperty('device_model');
    expect(notCarried).toEqual(lines);
  });
});

describe('refused', () => {
  const image = '(image (linux))';
  const cases: readonly (readonly [string, number, string | undefined])[] = [
    ['domain', 20, undefined],
    ['()', 20, undefined],
    ['(vm (name n))', 20, undefined],
    ['((domain))', 20, undefined],
    [`(domain ${UUID} (memory 64) ${image})`, 20, 'name'],
    [`(domain (name '') ${UUID} (memory 64) ${image})`, 28, 'name'],
    [`(domain (name (a)) ${UUID} (memory 64) ${image})`, 28, 'name'],
    [String.raw`(domain (name 'a\x00') ${UUID} (memory 64) ${image})`, 28, 'name'],
    [`(domain (name n) (memory 64) ${image})`, 20, 'uuid'],
    [`(domain (name n) (uuid 123) (memory 64) ${image})`, 37, 'uuid'],
    [`(domain (memory 64) (name n) ${UUID})`, 20, 'image'],
    [`(domain (image (vmx)) (name n) ${UUID} (memory 64))`, 28, 'image'],
    [`(domain (image linux) (name n) ${UUID} (memory 64))`, 28, 'image'],
    [`(domain (name n) ${UUID} ${image})`, 20, 'memory'],
    [`(domain (memory 0) (name n) ${UUID} ${image})`, 28, 'memory'],
    [`(domain (memory -5) (name n) ${UUID} ${image})`, 28, 'memory'],
    [`(domain (memory 1e3) (name n) ${UUID} ${image})`, 28, 'memory'],
    [`(domain (memory 99999999999) (name n) ${UUID} ${image})`, 28, 'memory'],
    [`(domain (vcpus 0) (memory 64) (name n) ${UUID} ${image})`, 28, 'vcpus'],
    [`(domain (vcpus 1025) (memory 64) (name n) ${UUID} ${image})`, 28, 'vcpus'],
    [`(domain (vcpus many) (memory 64) (name n) ${UUID} ${image})`, 28, 'vcpus'],
  ];
  test.each(cases)('%s', (text, offset, path) => {
    let thrown: unknown;
    try {
      convert(text);
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(StreamFormatError);
    expect(thrown).toMatchObject({
      code: 'ERR_XEN_STREAM_CONFIG',
      offset,
      path,
      record: 'xend configuration',
    });
  });
});

describe('hostile', () => {
  it('names of a megabyte, and names that move the cursor, come short and plain', () => {
    const { notCarried } = guest({ domain: `(${'x'.repeat(100_000)} 1) ('\\x1b[2J\\n' 1)` });
    expect(notCarried).toEqual([
      `${'x'.repeat(64)}…: libxl has nothing like it`,
      '\\u001b[2J\\u000a: libxl has nothing like it',
    ]);
  });

  it('names that JavaScript knows are names as others are', () => {
    const { config, notCarried } = guest({ domain: '(__proto__ 1) (constructor 1) (toString 1)' });
    expect(notCarried).toHaveLength(3);
    expect(Object.getPrototypeOf(config)).toBe(Object.prototype);
  });

  const most = (vcpus: number, ranges: number): string => {
    const cpus = `${'0-1023,'.repeat(ranges)}0`;
    return `(vcpus ${vcpus}) (cpus (${`${cpus} `.repeat(vcpus)}))`;
  };

  it('the largest configuration fits into the header of xl', () => {
    expect(build({ domain: most(128, 1000) })['vcpu_hard_affinity']).toHaveLength(128);
    const args = (count: number): string => `(bootloader_args '${'a '.repeat(count)}')`;
    for (const domain of [most(128, 1000), args(XEND_CONFIG_MAX / 2 - 200)]) {
      expect(domain.length).toBeGreaterThan(XEND_CONFIG_MAX * 0.8);
      const json = JSON.stringify(guest({ domain }).config, undefined, 4);
      expect(json.length).toBeGreaterThan(1 << 20);
      expect(json.length).toBeLessThan(XL_OPTIONAL_DATA_MAX);
    }
  });

  it('as many processors as there are numbers are not written down', () => {
    const { config, notCarried } = guest({ domain: most(1024, 140) });
    expect(config['b_info']).not.toHaveProperty('vcpu_hard_affinity');
    expect(notCarried).toEqual(['cpus: too many processors']);
  });

  it('whatever is put in place of any value: a configuration, or the error of a field', () => {
    const words = PV_FULL.split(/(?<=[( )])|(?=[( )])/);
    const odd = fc.constantFrom(
      '()',
      "''",
      '-1',
      '99999999999999999999',
      'None',
      '(a b)',
      "'\\x00'",
      'domain',
      '((()))',
      ' ',
    );
    fc.assert(
      fc.property(fc.nat(words.length - 1), odd, (at, word) => {
        const text = words.with(at, /[()]/.test(words[at]!) ? words[at]! : ` ${word} `).join('');
        try {
          const { config } = convert(text);
          expect(JSON.stringify(config)).not.toMatch(/null|NaN|\\u0000/);
        } catch (error) {
          if (!(error instanceof StreamFormatError)) throw error;
          expect(error.code).toBe('ERR_XEN_STREAM_CONFIG');
        }
      }),
      { numRuns: 2000 },
    );
  });
});
