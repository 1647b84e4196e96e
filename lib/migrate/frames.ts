/**
 * The frames of the library's own migration protocol, version 1: encoding and decoding, no I/O.
 *
 * All integers are little-endian. Both ends open with a preamble, the receiver at once, the sender when it has heard
 * the receiver's; then they speak in frames. Between READY and RESTORED the sender's direction carries the xl header
 * and libxl stream as a file would hold them, compressed if both agreed to that. The preamble, the
 * frame header and REFUSED stay what they are in every later version, so that two versions can always tell each
 * other why they cannot talk. docs/reference/handshake.md has the whole picture.
 */
import { printable } from '../bytes/printable.js';
import { PeerError, XenMigrationError } from '../errors.js';
import { isNoteId } from '../toolstack/notes.js';

/** First bytes of either direction. Bytes that no text protocol sends, and a line end that text-mode channels break. */
export const MAGIC: Uint8Array = Uint8Array.of(0x8d, 0x58, 0x4d, 0x49, 0x47, 0x0d, 0x0a, 0x1a);

export const PREAMBLE_LENGTH = 16;
export const FRAME_HEADER_LENGTH = 8;

/** Most bytes of a frame's body. */
export const MAX_BODY = 16384;

/** Versions of the protocol that this library speaks. */
export const PROTOCOL_VERSIONS = { lowest: 1, highest: 1 } as const;

/** Numbers of the frames. 1…7 are the synchronisation points of the session; 3, the stream's end, has no frame. */
export const FrameType = {
  HELLO: 1,
  READY: 2,
  RESTORED: 4,
  YOURS: 5,
  RUNNING: 6,
  RELEASED: 7,
  REFUSED: 0x10,
  FAILED: 0x11,
  QUERY: 0x20,
  STATUS: 0x21,
} as const;

/** What the sender tells of the guest before anything else. */
export interface MigrationOffer {
  /** The migration's id, a UUID: both ends log it, and whoever has to resolve a lost handover looks for it. */
  readonly id: string;
  /** Name and version of the sender's software. */
  readonly software: string;
  /** The guest's name, if its configuration gives one. */
  readonly name: string | undefined;
  /** HVM or PVH; undefined if the sender does not say, as xl. */
  readonly hvm: boolean | undefined;
  /** The memory that the guest may have, bytes; undefined if the sender does not say. */
  readonly memory: number | undefined;
  /** The guest is paused and shall stay so. */
  readonly paused: boolean;
  /** Compressions that the sender would use for the stream, best first; empty for none. */
  readonly compression: readonly string[];
}

/**
 * What a host knows of a migration to it.
 *
 * - `arrived`: the guest was told to run there, and did
 * - `absent`: it has no copy and never will
 * - `pending`: not decided yet; ask again
 */
export type MigrationStanding = 'arrived' | 'absent' | 'pending';

/** Why one end gave up. */
export interface PeerReason {
  /** `ERR_XEN_…` code of the error on that side. */
  readonly code: string;
  /** Its message, with control characters made visible. */
  readonly message: string;
}

export type Frame =
  | { readonly type: typeof FrameType.HELLO; readonly offer: MigrationOffer }
  | {
      readonly type: typeof FrameType.READY;
      readonly id: string;
      readonly version: number;
      readonly software: string;
      /** One of those that were offered, or undefined. */
      readonly compression: string | undefined;
      /** `NoteStore.incarnation` of the receiver's host, if it has one. */
      readonly host: string | undefined;
    }
  | {
      readonly type: typeof FrameType.RESTORED;
      /** Undefined from xl, which does not say; likewise the bytes. */
      readonly domid: number | undefined;
      readonly bytes: number | undefined;
    }
  | { readonly type: typeof FrameType.YOURS; readonly id: string }
  | {
      readonly type: typeof FrameType.RUNNING;
      readonly domid: number | undefined;
      readonly state: 'running' | 'paused';
    }
  | { readonly type: typeof FrameType.RELEASED }
  | { readonly type: typeof FrameType.REFUSED; readonly reason: PeerReason }
  | {
      readonly type: typeof FrameType.FAILED;
      readonly reason: PeerReason;
      /** True: this side has no copy that runs or could. False: it cannot tell. */
      readonly gone: boolean;
    }
  | { readonly type: typeof FrameType.QUERY; readonly id: string }
  | {
      readonly type: typeof FrameType.STATUS;
      readonly id: string;
      readonly standing: MigrationStanding;
      readonly domid: number | undefined;
      /** Of an arrived guest: what it was told to do. */
      readonly state: 'running' | 'paused' | undefined;
      readonly host: string | undefined;
    };

export type FrameName = keyof typeof FrameType;

const names = new Map<number, FrameName>(
  Object.entries(FrameType).map(([name, type]) => [type, name as FrameName]),
);

/** Name of a frame type, for messages. */
export function frameName(type: number): string {
  return names.get(type) ?? `unknown (0x${type.toString(16)})`;
}

/** The error for a peer that breaks the protocol. */
export function protocolError(message: string, cause?: unknown): PeerError {
  return new PeerError('ERR_XEN_PEER_PROTOCOL', message, cause === undefined ? {} : { cause });
}

/** Versions as a preamble gives them. */
export interface Preamble {
  readonly lowest: number;
  readonly highest: number;
}

/**
 * | off | size | field                                    |
 * |-----|------|------------------------------------------|
 * | 0   | 8    | magic 8D 'X' 'M' 'I' 'G' CR LF 1A        |
 * | 8   | 2    | highest version that the speaker speaks  |
 * | 10  | 2    | lowest version that it speaks            |
 * | 12  | 4    | 0; not looked at                         |
 */
export function encodePreamble(versions: Preamble = PROTOCOL_VERSIONS): Uint8Array {
  const bytes = new Uint8Array(PREAMBLE_LENGTH);
  bytes.set(MAGIC);
  const view = new DataView(bytes.buffer);
  view.setUint16(8, versions.highest, true);
  view.setUint16(10, versions.lowest, true);
  return bytes;
}

/** Decodes the versions of a preamble whose magic has been checked. */
export function decodePreamble(bytes: Uint8Array): Preamble {
  const view = new DataView(bytes.buffer, bytes.byteOffset, PREAMBLE_LENGTH);
  const highest = view.getUint16(8, true);
  const lowest = view.getUint16(10, true);
  if (lowest > highest || lowest === 0) {
    throw protocolError(`the peer claims to speak protocol versions ${lowest} to ${highest}`);
  }
  return { lowest, highest };
}

/** The version that both ends speak, or undefined. */
export function commonVersion(peer: Preamble, own: Preamble = PROTOCOL_VERSIONS): number | undefined {
  const version = Math.min(peer.highest, own.highest);
  return version >= peer.lowest && version >= own.lowest ? version : undefined;
}

/** `1`, or `1 to 3`. */
export function versionsText(versions: Preamble): string {
  return versions.lowest === versions.highest
    ? `${versions.highest}`
    : `${versions.lowest} to ${versions.highest}`;
}

/**
 * | off | size | field                                       |
 * |-----|------|---------------------------------------------|
 * | 0   | 4    | type, `FrameType`                           |
 * | 4   | 4    | n, length of the body, at most 16384        |
 * | 8   | n    | body: a JSON object in UTF-8                |
 *
 * Members that a reader does not know are ignored.
 */
export function encodeFrame(frame: Frame): Uint8Array {
  const body = Buffer.from(JSON.stringify(bodyOf(frame)), 'utf8');
  const bytes = new Uint8Array(FRAME_HEADER_LENGTH + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, frame.type, true);
  view.setUint32(4, body.length, true);
  bytes.set(body, FRAME_HEADER_LENGTH);
  return bytes;
}

function bodyOf(frame: Frame): object {
  switch (frame.type) {
    case FrameType.HELLO:
      return frame.offer;
    case FrameType.REFUSED:
    case FrameType.FAILED: {
      const { type: _, reason, ...rest } = frame;
      return { ...reason, ...rest };
    }
    default: {
      const { type: _, ...body } = frame;
      return body;
    }
  }
}

/** Decodes and checks a frame header. Throws PeerError ERR_XEN_PEER_PROTOCOL. */
export function decodeFrameHeader(bytes: Uint8Array): { type: number; length: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, FRAME_HEADER_LENGTH);
  const type = view.getUint32(0, true);
  const length = view.getUint32(4, true);
  if (!names.has(type)) throw protocolError(`the peer sent a frame of unknown type 0x${type.toString(16)}`);
  if (length > MAX_BODY) {
    throw protocolError(
      `the peer announced a ${frameName(type)} frame of ${length} bytes; at most ${MAX_BODY} are allowed`,
    );
  }
  return { type, length };
}

/** Decodes and checks a frame's body. Throws PeerError ERR_XEN_PEER_PROTOCOL. */
export function decodeFrame(type: number, bytes: Uint8Array): Frame {
  const body = new Body(type, bytes);
  switch (type) {
    case FrameType.HELLO:
      return {
        type,
        offer: {
          id: body.id(),
          software: body.text('software', 100),
          name: body.has('name') ? body.text('name', 256) : undefined,
          hvm: body.has('hvm') ? body.flag('hvm') : undefined,
          memory: body.has('memory') ? body.count('memory') : undefined,
          paused: body.flag('paused'),
          compression: body.has('compression') ? body.texts('compression', 16, 16) : [],
        },
      };
    case FrameType.READY:
      return {
        type,
        id: body.id(),
        version: body.count('version'),
        software: body.text('software', 100),
        compression: body.has('compression') ? body.text('compression', 16) : undefined,
        host: body.has('host') ? body.text('host', 64) : undefined,
      };
    case FrameType.RESTORED:
      return { type, domid: body.count('domid'), bytes: body.count('bytes') };
    case FrameType.YOURS:
      return { type, id: body.id() };
    case FrameType.RUNNING:
      return { type, domid: body.count('domid'), state: body.runState() };
    case FrameType.QUERY:
      return { type, id: body.id() };
    case FrameType.STATUS: {
      const standing = body.text('standing', 16);
      if (standing !== 'arrived' && standing !== 'absent' && standing !== 'pending')
        throw body.wrong('standing');
      return {
        type,
        id: body.id(),
        standing,
        domid: body.has('domid') ? body.count('domid') : undefined,
        state: standing === 'arrived' ? body.runState() : undefined,
        host: body.has('host') ? body.text('host', 64) : undefined,
      };
    }
    case FrameType.RELEASED:
      return { type };
    case FrameType.REFUSED:
      return { type, reason: body.reason() };
    case FrameType.FAILED:
      return { type, reason: body.reason(), gone: body.flag('gone') };
    default:
      throw protocolError(`frame of unknown type 0x${type.toString(16)}`);
  }
}

/** The members of a frame's body, each taken with its check. */
class Body {
  readonly #name: string;
  readonly #members: Readonly<Record<string, unknown>>;

  constructor(type: number, bytes: Uint8Array) {
    this.#name = frameName(type);
    let value: unknown;
    try {
      value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
    } catch (cause) {
      throw protocolError(`the body of the peer's ${this.#name} frame is no JSON text`, cause);
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw protocolError(`the body of the peer's ${this.#name} frame is no JSON object`);
    }
    this.#members = value as Record<string, unknown>;
  }

  wrong(member: string): PeerError {
    return protocolError(`the peer's ${this.#name} frame has no usable "${member}"`);
  }

  has(member: string): boolean {
    return Object.hasOwn(this.#members, member);
  }

  text(member: string, longest: number): string {
    const value = this.has(member) ? this.#members[member] : undefined;
    if (typeof value !== 'string' || value.length > longest) throw this.wrong(member);
    return printable(value);
  }

  texts(member: string, most: number, longest: number): readonly string[] {
    const value = this.has(member) ? this.#members[member] : undefined;
    if (!Array.isArray(value) || value.length > most) throw this.wrong(member);
    return value.map((text: unknown) => {
      if (typeof text !== 'string' || text.length > longest) throw this.wrong(member);
      return printable(text);
    });
  }

  runState(): 'running' | 'paused' {
    const state = this.text('state', 16);
    if (state !== 'running' && state !== 'paused') throw this.wrong('state');
    return state;
  }

  count(member: string): number {
    const value = this.has(member) ? this.#members[member] : undefined;
    if (!Number.isSafeInteger(value) || (value as number) < 0) throw this.wrong(member);
    return value as number;
  }

  flag(member: string): boolean {
    const value = this.has(member) ? this.#members[member] : undefined;
    if (typeof value !== 'boolean') throw this.wrong(member);
    return value;
  }

  id(): string {
    const id = this.text('id', 36);
    if (!isNoteId(id)) throw this.wrong('id');
    return id;
  }

  reason(): PeerReason {
    return { code: this.text('code', 64), message: this.text('message', MAX_REASON) };
  }
}

/** Most characters of a reason's message. */
export const MAX_REASON = 2000;

/** What an error is to the peer. */
export function reasonOf(error: unknown): PeerReason {
  const message = error instanceof Error ? error.message : String(error);
  return {
    code: XenMigrationError.is(error) ? error.code : 'ERR_XEN_INTERNAL',
    message: message.slice(0, MAX_REASON),
  };
}
