/** Limits of the reader of xend's configurations. Those of the file's head are in lib/stream/xend. */

/** Deepest nesting that is taken. xend's own configurations are 8 deep. */
export const SXP_DEPTH_MAX = 32;

/** Most lists and atoms that are taken. A guest with dozens of devices has some thousands. */
export const SXP_NODES_MAX = 1 << 16;

/** Most virtual processors that libxl takes in `avail_vcpus`. */
export const XEND_VCPUS_MAX = 1024;

/** Largest memory that is taken, in MiB: 16 TiB, above what a legacy stream's frame numbers reach. */
export const XEND_MEMORY_MAX = 1 << 24;
