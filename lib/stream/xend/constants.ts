/** Numbers of xend's save file (XendCheckpoint.py of Xen 3.0 to 4.4). */

/** First 16 bytes, no terminator. Written before every guest, Linux or not. */
export const XEND_SIGNATURE: Uint8Array = new TextEncoder().encode('LinuxGuestRecord');

/** Signature and length of the configuration. */
export const XEND_HEADER_SIZE = 20;

/** Longest configuration that is taken: 1 MiB. xend has no limit; a guest with dozens of devices has some 20 KiB. */
export const XEND_CONFIG_MAX = 1 << 20;
