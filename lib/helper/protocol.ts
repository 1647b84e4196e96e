/**
 * The protocol between libxl and its save helper (libxl_save_msgs_gen.pl, libxl_save_callout.c), as bytes: no I/O.
 *
 * Frame, helper → libxl:
 *
 *     off size field
 *     0   2    length of what follows, < 65536
 *     2   2    message number (Message)
 *     4   …    arguments, packed
 *
 * int, unsigned, uint32_t: 4 bytes. unsigned long, xen_pfn_t: 8 bytes. STRING: u32 size with the NUL, then the bytes and
 * the NUL. All in the host's byte order, which is little-endian on every host that has this protocol.
 *
 * Reply, libxl → helper, to those messages alone that have one: int, 4 bytes.
 *
 * libxl drops a message that it does not understand without a word, so what is sent must be right.
 */

/** Numbers of the messages; the same in Xen 4.14 and all later ones. */
export const Message = {
  LOG: 1,
  PROGRESS: 2,
  SUSPEND: 3,
  POSTCOPY: 4,
  CHECKPOINT: 5,
  WAIT_CHECKPOINT: 6,
  SWITCH_QEMU_LOGDIRTY: 7,
  STATIC_DATA_DONE: 8,
  RESTORE_RESULTS: 9,
  COMPLETE: 10,
} as const;

/** Levels of libxentoollog (XTL_*). libxl aborts the whole process for any other number. */
export const LogLevel = {
  DEBUG: 1,
  VERBOSE: 2,
  DETAIL: 3,
  PROGRESS: 4,
  INFO: 5,
  NOTICE: 6,
  WARN: 7,
  ERROR: 8,
  CRITICAL: 9,
} as const;

export type LogLevel = (typeof LogLevel)[keyof typeof LogLevel];

/** Static data that libxl has to make up (XGR_SDD_MISSING_*). */
export const MISSING_CPUID = 1;
export const MISSING_MSR = 2;

/** Bytes of a reply. */
export const REPLY_SIZE = 4;

/** errnoval of a log message that is about no errno. */
const NO_ERRNO = 0xffff_ffff;

/** Longest string sent, in bytes: a frame holds two, and must stay below 64 KiB. */
const MAX_STRING = 16 * 1024;

/** Puts a frame together. */
class FrameWriter {
  #bytes = new Uint8Array(64);
  #view = new DataView(this.#bytes.buffer);
  #length = 2;

  constructor(message: number) {
    this.#room(2);
    this.#view.setUint16(this.#length, message, true);
    this.#length += 2;
  }

  u32(value: number): this {
    this.#room(4);
    this.#view.setUint32(this.#length, value, true);
    this.#length += 4;
    return this;
  }

  u64(value: number | bigint): this {
    this.#room(8);
    this.#view.setBigUint64(this.#length, BigInt(value), true);
    this.#length += 8;
    return this;
  }

  /** C strings on the other side: a NUL inside would end them, and libxentoollog wants no line ends. */
  string(text: string): this {
    const bytes = shorten(new TextEncoder().encode(text.replaceAll(/[\0\r\n]+/g, ' ')));
    this.u32(bytes.length + 1);
    this.#room(bytes.length + 1);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
    this.#bytes[this.#length++] = 0;
    return this;
  }

  end(): Uint8Array {
    this.#view.setUint16(0, this.#length - 2, true);
    return this.#bytes.subarray(0, this.#length);
  }

  #room(more: number): void {
    if (this.#length + more <= this.#bytes.length) return;
    const bigger = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length + more));
    bigger.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = bigger;
    this.#view = new DataView(bigger.buffer);
  }
}

/** Cuts at MAX_STRING, but not inside a character. */
function shorten(utf8: Uint8Array): Uint8Array {
  if (utf8.length <= MAX_STRING) return utf8;
  let end = MAX_STRING;
  while (((utf8[end] as number) & 0xc0) === 0x80) end--;
  return utf8.subarray(0, end);
}

/**
 * LOG: u32 level, u32 errnoval, STRING context, STRING text.
 *
 * @param errno Positive; undefined if the text speaks of none. libxl adds what it means
 */
export function encodeLog(
  level: LogLevel,
  errno: number | undefined,
  context: string,
  text: string,
): Uint8Array {
  return new FrameWriter(Message.LOG)
    .u32(level)
    .u32(errno ?? NO_ERRNO)
    .string(context)
    .string(text)
    .end();
}

/** PROGRESS: STRING context, STRING what, unsigned long done, unsigned long total. A single step is 0 of 0. */
export function encodeProgress(context: string, what: string, done: number, total: number): Uint8Array {
  return new FrameWriter(Message.PROGRESS).string(context).string(what).u64(done).u64(total).end();
}

/** SUSPEND, without arguments. Reply: not 0 if the guest is suspended. */
export function encodeSuspend(): Uint8Array {
  return new FrameWriter(Message.SUSPEND).end();
}

/** SWITCH_QEMU_LOGDIRTY: u32 domid, unsigned enable. Reply: 0 if done. */
export function encodeSwitchQemuLogdirty(domid: number, enable: boolean): Uint8Array {
  return new FrameWriter(Message.SWITCH_QEMU_LOGDIRTY)
    .u32(domid)
    .u32(enable ? 1 : 0)
    .end();
}

/** STATIC_DATA_DONE: unsigned missing (MISSING_*). Reply: 0 if done. */
export function encodeStaticDataDone(missing: number): Uint8Array {
  return new FrameWriter(Message.STATIC_DATA_DONE).u32(missing).end();
}

/** RESTORE_RESULTS: xen_pfn_t store frame, xen_pfn_t console frame. No reply. */
export function encodeRestoreResults(storeGfn: number, consoleGfn: number): Uint8Array {
  return new FrameWriter(Message.RESTORE_RESULTS).u64(storeGfn).u64(consoleGfn).end();
}

/** COMPLETE: int retval, int errnoval. Reply: 0. libxl reads nothing after it. */
export function encodeComplete(retval: number, errno: number): Uint8Array {
  return new FrameWriter(Message.COMPLETE).u32(retval).u32(errno).end();
}

/** A message as libxl reads it. */
export type HelperMessage =
  | { kind: 'log'; level: number; errno: number | undefined; context: string; text: string }
  | { kind: 'progress'; context: string; what: string; done: number; total: number }
  | { kind: 'suspend' | 'postcopy' | 'checkpoint' | 'wait_checkpoint' }
  | { kind: 'switch_qemu_logdirty'; domid: number; enable: number }
  | { kind: 'static_data_done'; missing: number }
  | { kind: 'restore_results'; storeGfn: number; consoleGfn: number }
  | { kind: 'complete'; retval: number; errno: number };

/**
 * Reads one frame, length included, as strictly as libxl does. Undefined for what libxl would drop: an unknown number,
 * arguments that are cut off or followed by more, a string without its NUL.
 */
export function decodeFrame(frame: Uint8Array): HelperMessage | undefined {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  let at = 2;
  let sound = frame.length >= 4 && view.getUint16(0, true) === frame.length - 2;
  const take = (size: number): number => {
    const from = at;
    at += size;
    sound &&= at <= frame.length;
    return from;
  };
  const u32 = (): number => {
    const from = take(4);
    return sound ? view.getUint32(from, true) : 0;
  };
  const u64 = (): number => {
    const from = take(8);
    return sound ? Number(view.getBigUint64(from, true)) : 0;
  };
  const string = (): string => {
    const size = u32();
    const from = take(size);
    sound &&= size > 0 && frame[at - 1] === 0;
    return sound ? new TextDecoder().decode(frame.subarray(from, at - 1)) : '';
  };
  if (!sound) return undefined;
  const read = (): HelperMessage | undefined => {
    switch (view.getUint16(take(2), true)) {
      case Message.LOG: {
        const [level, errno] = [u32(), u32()];
        return {
          kind: 'log',
          level,
          errno: errno === NO_ERRNO ? undefined : errno,
          context: string(),
          text: string(),
        };
      }
      case Message.PROGRESS:
        return { kind: 'progress', context: string(), what: string(), done: u64(), total: u64() };
      case Message.SUSPEND:
        return { kind: 'suspend' };
      case Message.POSTCOPY:
        return { kind: 'postcopy' };
      case Message.CHECKPOINT:
        return { kind: 'checkpoint' };
      case Message.WAIT_CHECKPOINT:
        return { kind: 'wait_checkpoint' };
      case Message.SWITCH_QEMU_LOGDIRTY:
        return { kind: 'switch_qemu_logdirty', domid: u32(), enable: u32() };
      case Message.STATIC_DATA_DONE:
        return { kind: 'static_data_done', missing: u32() };
      case Message.RESTORE_RESULTS:
        return { kind: 'restore_results', storeGfn: u64(), consoleGfn: u64() };
      case Message.COMPLETE:
        return { kind: 'complete', retval: u32() | 0, errno: u32() | 0 };
      default:
        return undefined;
    }
  };
  const message = read();
  const whole = (): boolean => sound && at === frame.length;
  return whole() ? message : undefined;
}
