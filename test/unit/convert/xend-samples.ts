/** Configurations as xend wrote them into its save files: one line, in the order of a Python dictionary. */

/** A PV guest with pygrub, two disks, two interfaces and a frame buffer, as xend of Xen 4.1 wrote it. */
export const PV_GUEST = [
  '(domain (domid 7) (cpu_weight 512) (cpu_cap 0) (on_crash restart)',
  '(uuid 1c6f8d3e-6a0b-4f8b-9a43-0d8b1f8a2c55) (bootloader_args --entry=2) (vcpus 2)',
  "(description 'web server (old)') (name web01) (on_poweroff destroy) (on_reboot restart) (cpus ((0 1) (2 3)))",
  '(bootloader /usr/bin/pygrub) (pool_name Pool-0) (maxmem 1024) (memory 768) (shadow_memory 0)',
  "(vcpu_avail '3') (features '') (on_xend_start ignore) (on_xend_stop ignore)",
  '(start_time 1324659817.52) (cpu_time 52.116203461) (online_vcpus 2)',
  "(image (linux (kernel '') (args 'root=/dev/xvda1 ro console=hvc0 xencons=\\'tty\\'') (superpages 0) (tsc_mode 0)",
  '(videoram 4) (nomigrate 0) (pci ()) (localtime 1) (device_model /usr/lib/xen/bin/qemu-dm)',
  "(notes (HV_START_LOW 4118806528) (FEATURES '!writable_page_tables|pae_pgdir_above_4gb') (SUSPEND_CANCEL 1)",
  '(VIRT_BASE 3221225472) (GUEST_VERSION 2.6) (LOADER generic) (GUEST_OS linux))))',
  '(status 2) (state -b----) (store_mfn 1843276) (console_mfn 1843275)',
  '(device (vif (bridge br0) (uuid 4c4a8d0e-1b5e-3cd2-6cba-a1bf5d6d1a0f) (script /etc/xen/scripts/vif-bridge)',
  "(mac 00:16:3e:5a:10:01) (backend 0) (rate '62500,50000')))",
  "(device (vif (bridge dmz) (ip '10.0.0.7 10.0.0.8') (uuid 0c4a8d0e-1b5e-3cd2-6cba-a1bf5d6d1a10)",
  '(script /srv/xen/vif-filter) (mac 00:16:3e:5a:10:02) (vifname web01.1) (backend netdom)))',
  '(device (vkbd (backend 0)))',
  '(device (console (protocol vt100) (location 2) (uuid 85bb4a5c-38c1-1a61-6b10-4dcf8d8e2f01)))',
  '(device (vfb (vncunused 1) (vnclisten 0.0.0.0) (vncpasswd "it\'s") (keymap de) (vnc 1) (location 0.0.0.0:5901)',
  "(uuid 6ed7a3a5-4c2d-6b6d-20c1-5bb2d3b62a4b) (xauthority '/root/.Xauthority')))",
  '(device (vbd (protocol x86_64-abi) (uuid 9d4e5a4f-85a3-3de6-3e2c-0c51b3c2a11b) (bootable 0) (dev xvdb:disk)',
  "(uname phy:vg0/web01-data) (mode w) (backend 0) (VDI '')))",
  '(device (tap2 (uname tap:aio:/srv/xen/web01.img) (uuid 3aa1d0f4-2f0c-5b53-47d4-9f2f8be47c0d) (bootable 1)',
  "(mode w) (dev xvda:disk) (backend 0) (VDI '')))",
  '(change_home_server ))',
].join(' ');

/** An HVM guest with qemu-dm, as xend of Xen 4.1 wrote it. */
export const HVM_GUEST = [
  '(domain (domid 12) (cpu_weight 256) (cpu_cap 50) (on_crash coredump-restart)',
  "(uuid 7f8a3a54-7f1b-8d43-8b4e-6f3c5f5d1c11) (bootloader_args '') (vcpus 4)",
  "(description '') (name winsrv) (on_poweroff destroy) (on_reboot rename-restart) (cpus (() () () ()))",
  "(bootloader '') (pool_name Pool-0) (maxmem 2048) (memory 2048) (shadow_memory 18)",
  "(vcpu_avail '15') (features '') (on_xend_start ignore) (on_xend_stop shutdown)",
  '(start_time 1324659999.17) (cpu_time 1181.2) (online_vcpus 4)',
  "(image (hvm (kernel '') (superpages 0) (videoram 8) (hpet 0) (stdvga 0) (loader /usr/lib/xen/boot/hvmloader)",
  '(vncunused 1) (xen_platform_pci 1) (nomigrate 0) (serial pty) (boot cd) (rtc_timeoffset -3600) (pci ()) (pae 1)',
  '(vpt_align 1) (hap 1) (viridian 1) (acpi 1) (localtime 0) (timer_mode 1) (vnc 1) (nographic 0) (guest_os_type default)',
  "(pci_msitranslate 1) (apic 1) (sdl 0) (monitor 0) (isa 0) (usbdevice tablet) (vncdisplay '3') (fda /srv/xen/boot.flp)",
  "(device_model /usr/lib/xen/bin/qemu-dm) (keymap de) (pci_power_mgmt 0) (usb 1) (xauthority '/root/.Xauthority')",
  '(tsc_mode 0) (notes (SUSPEND_CANCEL 1))))',
  '(status 2) (state r-----) (store_mfn 1044476)',
  '(device (vif (bridge xenbr0) (mac 00:16:3e:77:01:02) (script /etc/xen/scripts/vif-bridge) (type ioemu)',
  '(model e1000) (uuid 2f6aa4f6-31ad-1be7-1ab0-93ad1e1d66a5) (backend 0)))',
  '(device (vkbd (backend 0)))',
  '(device (console (protocol vt100) (location 2) (uuid 0fbf6ed7-8ac4-1f09-4a06-4eb3b6a4e0c9)))',
  '(device (vfb (vncunused 1) (vnc 1) (uuid 1b12ee2d-2b9f-88ac-0a39-3d27f04c6cb7) (location 127.0.0.1:5903)',
  "(vncdisplay '3') (xauthority '/root/.Xauthority')))",
  '(device (vbd (uuid 5fcd4be1-2ccb-a7d0-b51a-bd31db4fe1a1) (bootable 1) (dev hda:disk)',
  "(uname file:/srv/xen/winsrv.img) (mode w) (backend 0) (VDI '')))",
  "(device (vbd (uuid 8d4f1b8e-8f14-6d8c-7ea1-0a3a2f8a3dd2) (bootable 0) (dev hdc:cdrom) (mode r) (backend 0) (VDI '')))",
  '(device (pci (dev (slot 0x1a) (domain 0x0000) (key 0000:00:1a.0) (bus 0x00) (vdevfn 0x28) (func 0x0)',
  '(opts (msitranslate 1)) (opts (power_mgmt 0)) (uuid 03f2d1c9-0c24-4a09-8ef6-aa65b7cf33a8))',
  '(uuid 5b0e0b70-8b8d-4c0e-a6ec-62d4c1a3cf4f) (backend 0)))',
  "(cpuid (('1' ((ecx xxxxxxxxxx00xxxxxxxxxxxxxxxxxxxx) (edx kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk)))",
  "('2147483649' ((ecx xxxxxxxxxxxxxxxxxxxxxxxxxxxxx0xx)))))",
  '(cpuid_check ((1 ((ecx xxxxxxxxxxxxxxxxxxxxxxxxxx1xxxxx))))))',
].join(' ');

/** A PV guest as an xend of Xen 3 wrote it: an empty string is nothing at all. */
export const OLD_GUEST = [
  '(domain (domid 3) (uuid 4A1FE6BC07D6A41DDB0E3EC15FC5A5F0) (vcpus 1) (cpu_cap 0) (cpu_weight 256.0)',
  '(memory 256) (shadow_memory 0) (maxmem 256) (bootloader ) (bootloader_args ) (features )',
  '(name old) (on_poweroff destroy) (on_reboot restart) (on_crash restart) (localtime 0)',
  '(image (linux (kernel /boot/vmlinuz-2.6.18-xen) (ramdisk /boot/initrd-2.6.18-xen) (ip 10.0.0.9) (root /dev/sda1)',
  '(args )))',
  '(device (vif (backend 0) (script vif-bridge) (mac 00:16:3E:0A:0B:0C)))',
  '(device (vbd (backend 0) (dev sda1) (uname phy:/dev/vg0/old) (mode w)))',
  '(state -b----) (shutdown_reason poweroff) (cpu_time 20.3) (online_vcpus 1) (up_time 3312.4) (start_time 1160000000.1)',
  '(store_mfn 17413) (console_mfn 17412))',
].join(' ');

/** A PV guest with everything that is carried over and that PV_GUEST lacks. */
export const PV_FULL = [
  '(domain (uuid 00000000-0000-4000-8000-000000000001) (name full-pv) (vcpus 3) (vcpu_avail 5) (cpus 0-3,^1)',
  '(memory 512) (maxmem 1024) (shadow_memory 2) (pool_name fast)',
  '(cpu_weight 128) (cpu_cap 150) (on_poweroff preserve) (on_reboot coredump-restart) (on_crash rename-restart)',
  '(image (linux (kernel /boot/vmlinuz) (ramdisk /boot/initrd) (args quiet) (tsc_mode 2) (nomigrate 1)',
  '(rtc_timeoffset 7200) (pci_msitranslate 1)))',
  '(device (vif (mac 00:16:3e:00:00:01) (rate 10Mb/s@20ms)))',
  '(device (vfb (type sdl) (display :0.0) (xauthority /root/.Xauthority) (opengl 0)))',
  '(device (vbd (dev xvda1:disk) (uname phy:/dev/vg0/a) (mode w)))',
  '(device (vbd (dev /dev/xvda2) (uname drbd:r0) (mode w) (backend storage)))',
  '(device (tap (dev 51715) (uname tap:qcow:/a.qcow) (mode r)))',
  '(device (tap2 (dev xvda4) (uname tap2:tapdisk:vhd:/b.vhd) (mode w)))',
  '(device (tap2 (dev xvda5) (uname tap:ioemu:qcow2:/c.qcow2) (mode w)))',
  '(device (pci (dev (domain 0x0) (bus 0x3) (slot 0x1f) (func 0x7) (vdevfn 0x100))))',
  '(device (ioports (from 0x3f8) (to 0x3ff))) (device (irq (irq 4)))',
  '(cpuid ((0x7,0 ((ebx 00000000000000000000000000000000))))))',
].join(' ');

/** An HVM guest with everything that is carried over and that HVM_GUEST lacks. */
export const HVM_FULL = [
  '(domain (uuid 00000000-0000-4000-8000-000000000002) (name full-hvm) (memory 256) (maxmem 512)',
  '(image (hvm (kernel /boot/direct) (ramdisk /boot/initrd) (args quiet) (stdvga 1) (videoram 16) (timer_mode 2)',
  '(viridian 0) (nestedhvm 1) (nx 1) (hap 0) (oos 1) (serial (pty null)) (soundhw sb16) (usb 1) (usbdevice mouse)',
  '(gfx_passthru 1) (nographic 1) (acpi 0) (apic 0) (pae 0) (xen_platform_pci 0) (vpt_align 0) (hpet 1) (tsc_mode 1)',
  '(device_model /usr/lib/xen/bin/stubdom-dm) (sdl 1) (opengl 1) (display :1) (xauthority /x) (keymap fr)',
  '(vnc 1) (vnclisten 127.0.0.1) (vncpasswd secret) (vncunused 0) (vncdisplay 2)))',
  '(device (vif (mac 00:16:3e:00:00:02) (type netfront))))',
].join(' ');

export function bytesOf(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}
