/**
 * A libxc stream file as records, and two of them held against each other. Reads the frame (docs/specs/
 * libxc-migration-stream of the Xen tree) by itself: what is compared must not depend on the readers under test.
 *
 *     0  24  image header      24  16  domain header      then records: u32 type, u32 length, body, padding to 8
 *
 * HVM_CONTEXT is taken apart further, into Xen's save records (u16 type, u16 instance, u32 length, body).
 */
import fs from 'node:fs';

const headers = 40;

/** @type {Readonly<Record<number, string>>} */
export const recordNames = {
  0x00: 'END',
  0x01: 'PAGE_DATA',
  0x02: 'X86_PV_INFO',
  0x03: 'X86_PV_P2M_FRAMES',
  0x04: 'X86_PV_VCPU_BASIC',
  0x05: 'X86_PV_VCPU_EXTENDED',
  0x06: 'X86_PV_VCPU_XSAVE',
  0x07: 'SHARED_INFO',
  0x08: 'X86_TSC_INFO',
  0x09: 'HVM_CONTEXT',
  0x0a: 'HVM_PARAMS',
  0x0c: 'X86_PV_VCPU_MSRS',
  0x0d: 'VERIFY',
  0x0e: 'CHECKPOINT',
  0x10: 'STATIC_DATA_END',
  0x11: 'X86_CPUID_POLICY',
  0x12: 'X86_MSR_POLICY',
};

/**
 * @typedef {object} StreamRecord
 * @property {string} name
 * @property {number} offset of its header
 * @property {Buffer} bytes with header and padding; valid until the next record
 */

/**
 * @param {string} file
 * @returns {Generator<StreamRecord>} the two headers as HEADERS, then each record; TRAILING for what is behind END
 */
export function* recordsOf(file) {
  const fd = fs.openSync(file, 'r');
  try {
    const size = fs.fstatSync(fd).size;
    let buffer = Buffer.alloc(8 << 20);
    const take = (/** @type {number} */ at, /** @type {number} */ length) => {
      if (length > buffer.length) buffer = Buffer.alloc(length);
      const n = fs.readSync(fd, buffer, 0, length, at);
      if (n < length) throw new Error(`${file}: ends at ${at + n}, inside a record`);
      return buffer.subarray(0, length);
    };
    yield { name: 'HEADERS', offset: 0, bytes: take(0, headers) };
    for (let at = headers; at < size;) {
      const head = take(at, 8);
      const type = head.readUInt32LE(0);
      const length = 8 + Math.ceil(head.readUInt32LE(4) / 8) * 8;
      yield { name: recordNames[type] ?? `0x${type.toString(16)}`, offset: at, bytes: take(at, length) };
      at += length;
      if (type !== 0) continue;
      if (at < size) yield { name: 'TRAILING', offset: at, bytes: take(at, size - at) };
      return;
    }
    throw new Error(`${file}: no END`);
  } finally {
    fs.closeSync(fd);
  }
}

/** @type {Readonly<Record<number, string>>} HVM_SAVE_CODE of public/arch-x86/hvm/save.h */
const hvmNames = {
  0: 'END',
  1: 'HEADER',
  2: 'CPU',
  3: 'PIC',
  4: 'IOAPIC',
  5: 'LAPIC',
  6: 'LAPIC_REGS',
  7: 'PCI_IRQ',
  8: 'ISA_IRQ',
  9: 'PCI_LINK',
  10: 'PIT',
  11: 'RTC',
  12: 'HPET',
  13: 'PMTIMER',
  14: 'MTRR',
  15: 'VIRIDIAN_DOMAIN',
  16: 'CPU_XSAVE',
  17: 'VIRIDIAN_VCPU',
  18: 'VMCE_VCPU',
  19: 'TSC_ADJUST',
  20: 'CPU_MSR',
};

/**
 * @typedef {object} Difference
 * @property {string} where such as `X86_TSC_INFO+16` or `HVM_CONTEXT.PIT.0+36`; offsets are of the body, in words of 8
 *   bytes
 * @property {string} a the word, hexadecimal
 * @property {string} b
 */

/**
 * Compares two streams record by record, contents byte by byte.
 *
 * @param {string} a
 * @param {string} b
 * @returns {{ records: number, pages: number, differences: Difference[] }}
 */
export function compare(a, b) {
  /** @type {Difference[]} */
  const differences = [];
  let records = 0;
  let pages = 0;
  const others = recordsOf(b);
  for (const one of recordsOf(a)) {
    const { value: other, done } = others.next();
    if (done === true)
      return {
        records,
        pages,
        differences: [...differences, { where: one.name, a: 'present', b: 'absent' }],
      };
    records++;
    if (one.name === 'PAGE_DATA') pages += one.bytes.readUInt32LE(8);
    if (one.bytes.equals(other.bytes)) continue;
    if (one.name !== other.name || one.bytes.length !== other.bytes.length) {
      const shape = (/** @type {StreamRecord} */ { name, bytes }) => `${name} of ${bytes.length} bytes`;
      const where = `record ${records} at ${one.offset}`;
      // Behind a record of another shape nothing can be compared.
      return { records, pages, differences: [...differences, { where, a: shape(one), b: shape(other) }] };
    }
    differences.push(...wordsThatDiffer(one, other.bytes));
  }
  const { value: more, done } = others.next();
  if (done !== true) differences.push({ where: more.name, a: 'absent', b: 'present' });
  return { records, pages, differences };
}

/** @param {StreamRecord} one @param {Buffer} other @returns {Difference[]} */
function wordsThatDiffer(one, other) {
  const body = one.bytes.subarray(8);
  const otherBody = other.subarray(8);
  if (one.name !== 'HVM_CONTEXT') return words(placeOf(one), body, otherBody);
  /** @type {Difference[]} */
  const found = [];
  for (let at = 0; at + 8 <= body.length;) {
    const head = body.subarray(at, at + 8);
    const place = `HVM_CONTEXT.${hvmNames[head.readUInt16LE(0)] ?? head.readUInt16LE(0)}.${head.readUInt16LE(2)}`;
    if (!head.equals(otherBody.subarray(at, at + 8)))
      return [...found, ...words(`${place} header`, head, otherBody.subarray(at, at + 8))];
    const end = at + 8 + head.readUInt32LE(4);
    found.push(...words(place, body.subarray(at + 8, end), otherBody.subarray(at + 8, end)));
    at = end;
  }
  return found;
}

/** @param {StreamRecord} record */
function placeOf({ name, offset, bytes }) {
  if (name === 'PAGE_DATA') return `PAGE_DATA at ${offset}`;
  return name.startsWith('X86_PV_VCPU_') ? `${name}.${bytes.readUInt32LE(8)}` : name;
}

/** Words told of one record. */
const most = 16;

/** @param {string} place @param {Buffer} a @param {Buffer} b @returns {Difference[]} */
function words(place, a, b) {
  /** @type {Difference[]} */
  const found = [];
  for (let at = 0; at < a.length && found.length < most; at += 8) {
    const [x, y] = [a.subarray(at, at + 8), b.subarray(at, at + 8)];
    if (!x.equals(y)) found.push({ where: `${place}+${at}`, a: hex(x), b: hex(y) });
  }
  return found;
}

/** @param {Buffer} bytes little-endian */
function hex(bytes) {
  return `0x${Buffer.from(bytes).reverse().toString('hex')}`;
}

/**
 * The order of a stream's records: neighbours of one name are one entry, with their number.
 *
 * @param {string} file
 * @returns {{ order: string[], records: number }}
 */
export function shapeOf(file) {
  /** @type {string[]} */
  const order = [];
  let records = 0;
  for (const { name } of recordsOf(file)) {
    records++;
    if (order.at(-1) !== name) order.push(name);
  }
  return { order, records };
}
