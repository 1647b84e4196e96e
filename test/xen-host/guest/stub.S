/*
 * Protected-mode part of a bzImage that is none. Through `kernel=`, QEMU hands a kernel to a Xen guest byte by byte over
 * an I/O port: 40 s for 14 MB under emulation. So QEMU gets Linux' own real-mode part with this in place of the rest,
 * which it puts straight into the guest's memory in pieces (dom0/init). Offsets in boot_params:
 * Documentation/arch/x86/boot.rst.
 *
 * Linux unpacks itself where it is put, at 16 MiB, and needs 51 MiB there (init_size): so the initramfs has to lie
 * above, and the guest needs 96 MiB. Zeros after the initramfs do no harm.
 */
#define KERNEL 0x1000000
#define INITRAMFS 0x5000000
#define INITRAMFS_SIZE 0x100000

  .code32
  .globl _start
_start:
  movl $KERNEL, 0x214(%esi)          /* code32_start */
  movl $INITRAMFS, 0x218(%esi)       /* ramdisk_image */
  movl $INITRAMFS_SIZE, 0x21c(%esi)  /* ramdisk_size */
  mov $KERNEL, %eax
  jmp *%eax
