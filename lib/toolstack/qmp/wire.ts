/**
 * The QEMU Machine Protocol (docs/interop/qmp-spec of the QEMU tree): one JSON object in each line. Bytes only, no I/O.
 */

/** Bytes of one line that are taken; the answers to the commands used here have some hundred. libxl's limit. */
export const QMP_LINE_MAX = 1024 * 1024;

/** Version of a QEMU. */
export interface QemuVersion {
  readonly major: number;
  readonly minor: number;
  readonly micro: number;
  /** The distribution's own name for it, or empty. */
  readonly package: string;
}

/** Something happened in QEMU. */
export interface QmpEvent {
  /** `STOP`, `RESUME`, `SHUTDOWN`, … */
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/**
 * What QEMU says. `id` is the command's, undefined if QEMU could not even read it.
 *
 * | message                                  | kind     |
 * | ---------------------------------------- | -------- |
 * | `{"QMP": {"version", "capabilities"}}`   | greeting |
 * | `{"return": value, "id"}`                | return   |
 * | `{"error": {"class", "desc"}, "id"}`     | error    |
 * | `{"event": name, "data", "timestamp"}`   | event    |
 */
export type QmpMessage =
  | { readonly kind: 'greeting'; readonly version: QemuVersion }
  | { readonly kind: 'return'; readonly id: unknown; readonly value: unknown }
  | { readonly kind: 'error'; readonly id: unknown; readonly errorClass: string; readonly text: string }
  | { readonly kind: 'event'; readonly event: QmpEvent };

/** The bytes are not QMP. The message says why, without the bytes. */
export class QmpSyntaxError extends Error {}

const decoder = new TextDecoder();
const LF = 0x0a;

/** Cuts a byte stream into lines. */
export class LineReader {
  #pieces: Uint8Array[] = [];
  #length = 0;

  /**
   * Takes a chunk, which is the caller's again afterwards, and calls `onLine` for each line that it completes.
   *
   * @throws QmpSyntaxError if a line is longer than QMP_LINE_MAX
   */
  push(chunk: Uint8Array, onLine: (line: string) => void): void {
    let at = 0;
    for (;;) {
      const end = chunk.indexOf(LF, at);
      const piece = chunk.subarray(at, end < 0 ? chunk.length : end);
      if (this.#length + piece.length > QMP_LINE_MAX) {
        throw new QmpSyntaxError(`a line of more than ${QMP_LINE_MAX} bytes`);
      }
      if (end < 0) {
        if (piece.length > 0) this.#pieces.push(piece.slice());
        this.#length += piece.length;
        return;
      }
      const line = decoder.decode(Buffer.concat([...this.#pieces, piece]));
      this.#pieces = [];
      this.#length = 0;
      at = end + 1;
      if (line.trim() !== '') onLine(line);
    }
  }
}

/**
 * Decodes one line.
 *
 * @throws QmpSyntaxError if it is not JSON, or none of the messages above
 */
export function decodeLine(line: string): QmpMessage {
  let message: unknown;
  try {
    message = JSON.parse(line);
  } catch {
    throw new QmpSyntaxError('a line that is not JSON');
  }
  if (!isObject(message)) throw new QmpSyntaxError('a line that is not a JSON object');
  const { id } = message;
  if ('return' in message) return { kind: 'return', id, value: message['return'] };
  if ('error' in message) {
    const error = isObject(message['error']) ? message['error'] : {};
    return {
      kind: 'error',
      id,
      errorClass: textOf(error['class'], 'unknown class'),
      text: textOf(error['desc'], 'no description'),
    };
  }
  if ('event' in message) {
    const data = isObject(message['data']) ? message['data'] : {};
    return { kind: 'event', event: { name: textOf(message['event'], 'unknown'), data } };
  }
  if ('QMP' in message) {
    const greeting = isObject(message['QMP']) ? message['QMP'] : {};
    return { kind: 'greeting', version: decodeVersion(greeting['version']) };
  }
  throw new QmpSyntaxError('a line that is neither answer nor event');
}

/**
 * Decodes `{"qemu": {"major", "minor", "micro"}, "package"}`, as in the greeting and the answer to query-version.
 *
 * @throws QmpSyntaxError if it is something else
 */
export function decodeVersion(value: unknown): QemuVersion {
  const version = isObject(value) ? value : {};
  const numbers = isObject(version['qemu']) ? version['qemu'] : {};
  const number = (name: string): number => {
    const part = numbers[name];
    if (typeof part !== 'number' || !Number.isSafeInteger(part))
      throw new QmpSyntaxError('a version without numbers');
    return part;
  };
  return {
    major: number('major'),
    minor: number('minor'),
    micro: number('micro'),
    package: textOf(version['package'], ''),
  };
}

/** Encodes one command. */
export function encodeCommand(
  id: string,
  command: string,
  args: Readonly<Record<string, unknown>> | undefined,
): string {
  return `${JSON.stringify({ execute: command, arguments: args, id })}\r\n`;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A string, of a length that fits into a message. */
function textOf(value: unknown, otherwise: string): string {
  return typeof value === 'string' ? value.slice(0, 500) : otherwise;
}
