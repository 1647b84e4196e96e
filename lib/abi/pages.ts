/**
 * Guest pages and their types, from Xen's public domctl.h (XEN_DOMCTL_PFINFO_*).
 *
 * Everywhere in this library a page type is the nibble 0…15: bits 31–28 of the domctl word, bits 63–60 of a
 * PAGE_DATA entry.
 */

/** Bytes in a page. */
export const PAGE_SIZE = 4096;
export const PAGE_SHIFT = 12;

/** Frames that one getpageframeinfo3 hypercall takes; larger requests fail with E2BIG. Also the sender's batch. */
export const MAX_BATCH = 1024;

/** Page types. */
export const PageType = {
  NOTAB: 0x0,
  L1TAB: 0x1,
  L2TAB: 0x2,
  L3TAB: 0x3,
  L4TAB: 0x4,
  /** Or-ed into L1…L4: the guest has the table pinned. */
  PINNED: 0x8,
  BROKEN: 0xd,
  XALLOC: 0xe,
  XTAB: 0xf,
} as const;

/** True for the type nibbles that exist (5–8 do not). */
export function isKnownPageType(type: number): boolean {
  return type >= 0 && type <= 0xf && (type < 5 || type > 8);
}

/** True if a PAGE_DATA entry of this type is followed by page contents. */
export function pageTypeHasData(type: number): boolean {
  return type < PageType.BROKEN;
}

/** True if restoring an entry of this type allocates memory. */
export function pageTypeNeedsMemory(type: number): boolean {
  return type < PageType.BROKEN || type === PageType.XALLOC;
}

/** Level 1…4 of a page-table type, 0 for all others. */
export function pageTableLevel(type: number): number {
  const level = type & 7;
  return (type < 5 && level > 0) || (type >= 9 && type <= 12) ? level : 0;
}

/** Name as Xen's headers and this library's reports spell it. */
export function pageTypeName(type: number): string {
  const level = pageTableLevel(type);
  if (level > 0) return `L${String(level)}TAB${type & PageType.PINNED ? '|PINNED' : ''}`;
  switch (type) {
    case PageType.NOTAB:
      return 'NOTAB';
    case PageType.BROKEN:
      return 'BROKEN';
    case PageType.XALLOC:
      return 'XALLOC';
    case PageType.XTAB:
      return 'XTAB';
    default:
      return `unknown (0x${type.toString(16)})`;
  }
}
