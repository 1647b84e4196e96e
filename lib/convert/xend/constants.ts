/** Numbers of xend's save file (XendCheckpoint.py, sxp.py of Xen 3.0 to 4.4) and the limits of its reader. */

/** First 16 bytes, no terminator. Written before every guest, Linux or not. */
export const XEND_SIGNATURE: Uint8Array = new TextEncoder().encode('LinuxGuestRecord');

/** Signature and length of the configuration. */
export const XEND_HEADER_SIZE = 20;

/** Longest configuration that is taken: 1 MiB. xend has no limit; a guest with dozens of devices has some 20 KiB. */
export const XEND_CONFIG_MAX = 1 << 20;

/** Deepest nesting that is taken. xend's own configurations are 8 deep. */
export const SXP_DEPTH_MAX = 32;

/** Most lists and atoms that are taken. A guest with dozens of devices has some thousands. */
export const SXP_NODES_MAX = 1 << 16;

/** Most virtual processors that libxl takes in `avail_vcpus`. */
export const XEND_VCPUS_MAX = 1024;

/** Largest memory that is taken, in MiB: 16 TiB, above what a legacy stream's frame numbers reach. */
export const XEND_MEMORY_MAX = 1 << 24;
