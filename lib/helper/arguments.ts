/**
 * The argument vector that libxl gives its save helper (libxl_save_callout.c). All numbers are decimal:
 *
 *     --save-domain    io_fd recv_fd      domid flags cbflags stream_type
 *     --restore-domain io_fd send_back_fd domid store_evtchn store_domid console_evtchn console_domid cbflags stream_type
 */
import { UsageError } from '../errors.js';
import type { BackendWiring } from '../toolstack/toolstack.js';
import { Message } from './protocol.js';

/** XCFLAGS_* of `flags`. */
export const SaveFlag = { LIVE: 1, DEBUG: 2 } as const;

/** XC_STREAM_*. */
export const StreamType = { PLAIN: 0, REMUS: 1, COLO: 2 } as const;

export interface SaveArguments {
  readonly mode: 'save';
  readonly ioFd: number;
  /** COLO's back channel, −1 without one. Of a plain save it may be anything. */
  readonly recvFd: number;
  readonly domid: number;
  readonly live: boolean;
  readonly debug: boolean;
  readonly callbacks: number;
  readonly streamType: number;
}

export interface RestoreArguments {
  readonly mode: 'restore';
  readonly ioFd: number;
  /** −1 without a back channel. */
  readonly sendBackFd: number;
  readonly domid: number;
  readonly wiring: BackendWiring;
  readonly callbacks: number;
  readonly streamType: number;
}

export type HelperArguments = SaveArguments | RestoreArguments;

/** Domids end where Xen's special ones begin (DOMID_FIRST_RESERVED). */
const MAX_DOMID = 0x7fef;
const MAX_INT = 0x7fff_ffff;
const MAX_U32 = 0xffff_ffff;

const usage = `this is libxl's helper for xl save, restore and migrate, not a command: give its path to xl as LIBXL_SAVE_HELPER`;

/** True if libxl wants the callback with this message number. */
export function wants(callbacks: number, message: number): boolean {
  return (callbacks & (1 << message)) !== 0;
}

/** Reads `process.argv.slice(2)`. Throws UsageError unless it is exactly what libxl gives. */
export function parseHelperArguments(argv: readonly string[]): HelperArguments {
  const [mode, ...rest] = argv;
  switch (mode) {
    case '--save-domain':
      return saveArguments(new Numbers(mode, rest, 6));
    case '--restore-domain':
      return restoreArguments(new Numbers(mode, rest, 9));
    default:
      throw new UsageError(`${mode === undefined ? 'no arguments' : `unknown mode "${mode}"`}: ${usage}`);
  }
}

function saveArguments(numbers: Numbers): SaveArguments {
  const ioFd = numbers.next('io_fd', 0, MAX_INT);
  const recvFd = numbers.next('recv_fd', -1, MAX_INT);
  const domid = numbers.next('domid', 0, MAX_DOMID);
  const flags = numbers.next('flags', 0, SaveFlag.LIVE | SaveFlag.DEBUG);
  const callbacks = numbers.next('cbflags', 0, MAX_U32);
  const streamType = numbers.next('stream_type', StreamType.PLAIN, StreamType.COLO);
  if (!wants(callbacks, Message.SUSPEND)) {
    throw new UsageError(`cbflags ${callbacks}: a save needs the suspend callback`);
  }
  const live = (flags & SaveFlag.LIVE) !== 0;
  const debug = (flags & SaveFlag.DEBUG) !== 0;
  return { mode: 'save', ioFd, recvFd, domid, live, debug, callbacks, streamType };
}

function restoreArguments(numbers: Numbers): RestoreArguments {
  const ioFd = numbers.next('io_fd', 0, MAX_INT);
  const sendBackFd = numbers.next('send_back_fd', -1, MAX_INT);
  const domid = numbers.next('domid', 0, MAX_DOMID);
  const wiring = {
    storeEvtchn: numbers.next('store_evtchn', 0, MAX_U32),
    storeDomid: numbers.next('store_domid', 0, MAX_DOMID),
    consoleEvtchn: numbers.next('console_evtchn', 0, MAX_U32),
    consoleDomid: numbers.next('console_domid', 0, MAX_DOMID),
  };
  const callbacks = numbers.next('cbflags', 0, MAX_U32);
  const streamType = numbers.next('stream_type', StreamType.PLAIN, StreamType.COLO);
  return { mode: 'restore', ioFd, sendBackFd, domid, wiring, callbacks, streamType };
}

/** Takes numbers one after the other. */
class Numbers {
  readonly #texts: readonly string[];
  #at = 0;

  constructor(mode: string, texts: readonly string[], count: number) {
    if (texts.length !== count) {
      throw new UsageError(`${mode} takes ${count} numbers, not ${texts.length}: ${usage}`);
    }
    this.#texts = texts;
  }

  next(name: string, least: number, most: number): number {
    const text = this.#texts[this.#at++] as string;
    const value = /^(?:-1|0|[1-9]\d{0,9})$/.test(text) ? Number(text) : NaN;
    if (value >= least && value <= most) return value;
    throw new UsageError(`${name}: "${text}" is no number from ${least} to ${most}`);
  }
}
