/**
 * The wire protocol of xenstored: docs/misc/xenstore.txt and io/xs_wire.h of the Xen tree. Bytes only, no I/O.
 *
 * Both directions carry messages of one form. A reply has its request's req_id and tx_id and either its request's type
 * or XS_ERROR; a watch event comes unasked, with type XS_WATCH_EVENT.
 */
import { Errno } from '../../abi/errno.js';
import { setU32, u32 } from '../../bytes/le.js';
import { UsageError, XenstoreError } from '../../errors.js';

/** enum xsd_sockmsg_type. 20 was XS_RESTRICT and is no longer in use. */
export const XenstoreType = {
  XS_CONTROL: 0,
  XS_DIRECTORY: 1,
  XS_READ: 2,
  XS_GET_PERMS: 3,
  XS_WATCH: 4,
  XS_UNWATCH: 5,
  XS_TRANSACTION_START: 6,
  XS_TRANSACTION_END: 7,
  XS_INTRODUCE: 8,
  XS_RELEASE: 9,
  XS_GET_DOMAIN_PATH: 10,
  XS_WRITE: 11,
  XS_MKDIR: 12,
  XS_RM: 13,
  XS_SET_PERMS: 14,
  XS_WATCH_EVENT: 15,
  XS_ERROR: 16,
  XS_IS_DOMAIN_INTRODUCED: 17,
  XS_RESUME: 18,
  XS_SET_TARGET: 19,
  XS_RESET_WATCHES: 21,
  XS_DIRECTORY_PART: 22,
} as const;

/** Name of an operation: `XS_READ`. */
export type XenstoreOperation = keyof typeof XenstoreType;

/** sizeof(struct xsd_sockmsg). */
export const XENSTORE_HEADER_SIZE = 16;
/** Bytes that may follow the header. A client that sends more is thrown out by xenstored. */
export const XENSTORE_PAYLOAD_MAX = 4096;
/** Bytes of an absolute path, without its NUL. */
export const XENSTORE_ABS_PATH_MAX = 3072;

/** One message, either way. `body` is a view or a copy, as whoever made it says. */
export interface XenstoreMessage {
  readonly type: number;
  readonly reqId: number;
  readonly txId: number;
  readonly body: Uint8Array;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/**
 * Encodes one message.
 *
 * | off | size | field  |                                         |
 * | --- | ---- | ------ | --------------------------------------- |
 * |   0 |    4 | type   | XS_*                                    |
 * |   4 |    4 | req_id | chosen by the client, echoed            |
 * |   8 |    4 | tx_id  | 0 outside of transactions               |
 * |  12 |    4 | len    | bytes that follow, ≤ XENSTORE_PAYLOAD_MAX |
 * |  16 |  len | body   |                                         |
 *
 * @param parts Pieces of the body, joined as they are: NULs included by the caller
 * @throws XenstoreError with E2BIG if the body is too long
 */
export function encodeMessage(
  operation: XenstoreOperation,
  reqId: number,
  txId: number,
  parts: readonly Uint8Array[],
): Uint8Array {
  let length = 0;
  for (const part of parts) length += part.length;
  if (length > XENSTORE_PAYLOAD_MAX) {
    throw new XenstoreError(
      operation,
      Errno.E2BIG,
      `the request has ${length} bytes; xenstored takes at most ${XENSTORE_PAYLOAD_MAX}`,
    );
  }
  const message = new Uint8Array(XENSTORE_HEADER_SIZE + length);
  setU32(message, 0, XenstoreType[operation]);
  setU32(message, 4, reqId);
  setU32(message, 8, txId);
  setU32(message, 12, length);
  let offset = XENSTORE_HEADER_SIZE;
  for (const part of parts) {
    message.set(part, offset);
    offset += part.length;
  }
  return message;
}

/** Cuts a byte stream into messages. Keeps at most one message, so a hostile peer cannot make it grow. */
export class MessageReader {
  readonly #buffer = new Uint8Array(XENSTORE_HEADER_SIZE + XENSTORE_PAYLOAD_MAX);
  #filled = 0;

  /** True if the stream may end here. */
  get empty(): boolean {
    return this.#filled === 0;
  }

  /**
   * Takes a chunk and calls `onMessage` for each message that it completes, with a body of its own.
   *
   * @throws XenstoreError with EPROTO if a header announces more than XENSTORE_PAYLOAD_MAX; the stream is unusable then
   */
  push(chunk: Uint8Array, onMessage: (message: XenstoreMessage) => void): void {
    const buffer = this.#buffer;
    let at = 0;
    while (at < chunk.length) {
      const want = this.#filled < XENSTORE_HEADER_SIZE ? XENSTORE_HEADER_SIZE : this.#messageSize();
      const n = Math.min(want - this.#filled, chunk.length - at);
      buffer.set(chunk.subarray(at, at + n), this.#filled);
      at += n;
      this.#filled += n;
      if (this.#filled < XENSTORE_HEADER_SIZE || this.#filled < this.#messageSize()) continue;
      const message = {
        type: u32(buffer, 0),
        reqId: u32(buffer, 4),
        txId: u32(buffer, 8),
        body: buffer.slice(XENSTORE_HEADER_SIZE, this.#filled),
      };
      this.#filled = 0;
      onMessage(message);
    }
  }

  #messageSize(): number {
    const length = u32(this.#buffer, 12);
    if (length > XENSTORE_PAYLOAD_MAX) {
      const type = typeName(u32(this.#buffer, 0));
      throw protocolError(type, `a message of ${length} bytes; at most ${XENSTORE_PAYLOAD_MAX} are allowed`);
    }
    return XENSTORE_HEADER_SIZE + length;
  }
}

/** `XS_READ` for 2; `type 99` for a number that means nothing. */
export function typeName(type: number): string {
  for (const [name, value] of Object.entries(XenstoreType)) if (value === type) return name;
  return `type ${type}`;
}

/** The peer broke the protocol. */
export function protocolError(operation: string, reason: string): XenstoreError {
  return new XenstoreError(operation, Errno.EPROTO, `the answer breaks the protocol: ${reason}`);
}

/** xsd_errors of xs_wire.h. Names that it does not list count as EINVAL, as libxenstore has it. */
const errors: Readonly<Record<string, number>> = {
  EINVAL: Errno.EINVAL,
  EACCES: Errno.EACCES,
  EEXIST: Errno.EEXIST,
  EISDIR: Errno.EISDIR,
  ENOENT: Errno.ENOENT,
  ENOMEM: Errno.ENOMEM,
  ENOSPC: Errno.ENOSPC,
  EIO: Errno.EIO,
  ENOTEMPTY: Errno.ENOTEMPTY,
  ENOSYS: Errno.ENOSYS,
  EROFS: Errno.EROFS,
  EBUSY: Errno.EBUSY,
  EAGAIN: Errno.EAGAIN,
  EISCONN: Errno.EISCONN,
  E2BIG: Errno.E2BIG,
  EPERM: Errno.EPERM,
};

/** Decodes the body of XS_ERROR: the errno's name, NUL. */
export function decodeError(body: Uint8Array): { readonly errno: number; readonly name: string } {
  const text = decodeString(body);
  // Only a name goes into messages, never whatever bytes a peer sends.
  const name = /^E[A-Z0-9]{1,15}$/.test(text) ? text : 'an unknown error';
  return { errno: Object.hasOwn(errors, name) ? (errors[name] as number) : Errno.EINVAL, name };
}

/** A string and its NUL. */
export function encodeString(text: string): Uint8Array {
  return encoder.encode(`${text}\0`);
}

/**
 * A path and its NUL. Which characters are allowed is left to xenstored; what would break the message is not. Relative
 * paths are refused: xenstored takes them for domain 0's own.
 *
 * @throws UsageError if it does not begin with `/` or `@`, has a NUL, or is longer than XENSTORE_ABS_PATH_MAX
 */
export function encodePath(path: string): Uint8Array {
  if (!/^[/@]/.test(path))
    throw new UsageError(`a xenstore path must be absolute, not ${JSON.stringify(path)}`);
  if (path.includes('\0')) throw new UsageError('a xenstore path must not contain a NUL');
  const bytes = encodeString(path);
  if (bytes.length - 1 > XENSTORE_ABS_PATH_MAX) {
    throw new UsageError(
      `a xenstore path has at most ${XENSTORE_ABS_PATH_MAX} bytes, not ${bytes.length - 1}`,
    );
  }
  return bytes;
}

/** A value as it stands: no NUL is added. */
export function encodeValue(value: string | Uint8Array): Uint8Array {
  return typeof value === 'string' ? encoder.encode(value) : value;
}

/** A value, or one string, without the NUL that may end it. */
export function decodeString(body: Uint8Array): string {
  const end = body.at(-1) === 0 ? body.length - 1 : body.length;
  return decoder.decode(body.subarray(0, end));
}

/** NUL-terminated strings, one after the other. */
export function decodeStrings(operation: string, body: Uint8Array): string[] {
  if (body.length === 0) return [];
  if (body.at(-1) !== 0) throw protocolError(operation, 'the last string is not terminated');
  return decoder.decode(body.subarray(0, body.length - 1)).split('\0');
}

/** An unsigned decimal number, NUL: a transaction id, a domid. */
export function decodeNumber(operation: string, body: Uint8Array): number {
  const text = decodeString(body);
  const value = /^\d{1,10}$/.test(text) ? Number(text) : Number.NaN;
  if (!(value <= 0xffff_ffff)) throw protocolError(operation, 'a number was expected');
  return value;
}

/** Decodes XS_WATCH_EVENT: path, NUL, token, NUL; anything after that is ignored. */
export function decodeWatchEvent(body: Uint8Array): { readonly path: string; readonly token: string } {
  const [path, token] = decodeStrings('XS_WATCH_EVENT', body);
  if (path === undefined || token === undefined) {
    throw protocolError('XS_WATCH_EVENT', 'path and token were expected');
  }
  return { path, token };
}

/**
 * Decodes a reply to XS_DIRECTORY_PART: generation, NUL, then a piece of the list of NUL-terminated names. The piece
 * may break off within a name; an empty name ends the list.
 */
export function decodeDirectoryPart(body: Uint8Array): {
  readonly generation: string;
  readonly list: Uint8Array;
} {
  const end = body.indexOf(0);
  if (end < 0) throw protocolError('XS_DIRECTORY_PART', 'no generation');
  return { generation: decoder.decode(body.subarray(0, end)), list: body.subarray(end + 1) };
}

/** What a domain may do with a node. The first entry of a node names its owner, and what all others may do. */
export interface XenstorePermission {
  readonly domid: number;
  readonly access: 'none' | 'read' | 'write' | 'both';
}

const accessLetters = { n: 'none', r: 'read', w: 'write', b: 'both' } as const;

/** `r5` and its like, each with a NUL. */
export function encodePermissions(permissions: readonly XenstorePermission[]): Uint8Array {
  return encoder.encode(permissions.map(({ domid, access }) => `${access.charAt(0)}${domid}\0`).join(''));
}

export function decodePermissions(body: Uint8Array): XenstorePermission[] {
  return decodeStrings('XS_GET_PERMS', body).map((text) => {
    const match = /^([nrwb])(\d{1,5})$/.exec(text);
    if (match === null) throw protocolError('XS_GET_PERMS', 'a permission was expected');
    return { domid: Number(match[2]), access: accessLetters[match[1] as keyof typeof accessLetters] };
  });
}
