/** Numbers of xl's save file (Xen's tools/xl/xl.h, struct save_file_header). */

/** First 32 bytes, no terminator: "Xen saved domain, xl format\n \0 \r". */
export const XL_MAGIC: Uint8Array = new TextEncoder().encode('Xen saved domain, xl format\n \0 \r');

/** Fixed part: magic and four words. */
export const XL_HEADER_SIZE = 48;

/** The byteorder word, as it reads in the byte order of its writer. */
export const XL_BYTEORDER = 0x0102_0304;

/** Bits of mandatory_flags: a reader that does not know one must refuse. */
export const XlMandatoryFlag = {
  /** The configuration is JSON; without it, xl.cfg text. */
  JSON: 1,
  /** A libxl v2 stream follows; without it, a legacy libxc stream. */
  STREAM_V2: 2,
} as const;

/** Longest optional data that a reader takes: 16 MiB. xl has no limit; a configuration is some kilobytes. */
export const XL_OPTIONAL_DATA_MAX = 16 << 20;

/** The configuration's length before the configuration. */
export const XL_CONFIG_LENGTH_SIZE = 4;

/** What xl's sender writes behind the stream of a migration, with its NUL. */
export const XL_HANDOVER = 'domain is yours, you are cleared to unpause\0';
