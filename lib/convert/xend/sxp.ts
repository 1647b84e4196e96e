/**
 * xend's S-expressions (SXP), in which it kept a domain's configuration.
 *
 *     value    list | string | atom
 *     list     ( value… )
 *     string   in ' or ", with the escapes \a \b \t \n \v \f \r \\ \' \" \xHH \O \OO \OOO
 *     atom     a printable ASCII character, then everything up to one of {}()<>[]; # or white space
 *     comment  from # to the end of the line
 *
 * White space is space, tab, line feed, vertical tab, form feed and carriage return. xend writes what is no simple atom
 * as Python's repr() does. xend of Xen 4.0 writes an empty string as nothing: `(ramdisk )`.
 */

import { formatError, NOWHERE, StreamErrorCode, type Place } from '../../stream/codes.js';
import type { StreamFormatError } from '../../errors.js';
import { XEND_CONFIG_MAX } from '../../stream/xend/constants.js';
import { SXP_DEPTH_MAX, SXP_NODES_MAX } from './constants.js';

export const XEND_CONFIG = 'xend configuration';

/** A word or a string; the two are the same to xend. */
export interface SxpAtom {
  /** Byte offset of its first character, from the start of the stream. */
  readonly offset: number;
  /** Its UTF-8 text. Bytes that are not UTF-8 have become U+FFFD. */
  readonly text: string;
}

/** A list. Its first item, if that is an atom, is its name. */
export interface SxpList {
  /** Byte offset of its opening parenthesis. */
  readonly offset: number;
  readonly items: readonly Sxp[];
}

export type Sxp = SxpAtom | SxpList;

export function isSxpList(value: Sxp): value is SxpList {
  return 'items' in value;
}

const code = (character: string): number => character.charCodeAt(0);
const codes = (characters: string): number[] => Array.from(characters, code);

const OPEN = code('(');
const CLOSE = code(')');
const HASH = code('#');
const BACKSLASH = code('\\');
const NEWLINE = code('\n');
const X = code('x');
const ZERO = code('0');
const SEVEN = code('7');

const SPACES = new Set(codes(' \t\n\v\f\r'));
const QUOTES = new Set(codes('"\''));
const ATOM_ENDS = new Set([...SPACES, ...codes('{}()<>[];#')]);
const ESCAPES = new Map(
  (
    [
      ['a', 0x07],
      ['b', 0x08],
      ['t', 0x09],
      ['n', 0x0a],
      ['v', 0x0b],
      ['f', 0x0c],
      ['r', 0x0d],
      ['\\', BACKSLASH],
      ["'", code("'")],
      ['"', code('"')],
    ] as const
  ).map(([letter, byte]) => [code(letter), byte]),
);

interface OpenList {
  readonly offset: number;
  readonly items: Sxp[];
}

/**
 * Parses one value; only white space and comments may follow it. `place` is that of the text in the stream.
 * Throws StreamFormatError (CONFIG): not an S-expression, or beyond the limits of size, depth and number of values.
 */
export function parseSxp(bytes: Uint8Array, place: Place = NOWHERE): Sxp {
  return new Parser(bytes, place.offset).parse();
}

class Parser {
  readonly #bytes: Uint8Array;
  readonly #start: number;
  #at = 0;
  #nodes = 0;

  constructor(bytes: Uint8Array, start: number) {
    this.#bytes = bytes;
    this.#start = start;
    if (bytes.length > XEND_CONFIG_MAX) {
      throw this.#error(0, `${bytes.length} bytes are above the limit of ${XEND_CONFIG_MAX}`);
    }
  }

  parse(): Sxp {
    const open: OpenList[] = [];
    let found: Sxp | undefined;
    while (this.#skipBlanks()) {
      if (found !== undefined) throw this.#error(this.#at, 'something follows the configuration');
      const at = this.#at;
      const byte = this.#bytes[at] as number;
      let value: Sxp;
      if (byte === OPEN) {
        if (open.length === SXP_DEPTH_MAX) {
          throw this.#error(at, `lists are nested more than ${SXP_DEPTH_MAX} deep`);
        }
        open.push({ offset: this.#start + at, items: [] });
        this.#at++;
        continue;
      } else if (byte === CLOSE) {
        const list = open.pop();
        if (list === undefined) throw this.#error(at, 'a parenthesis closes no list');
        this.#at++;
        value = this.#count(list, at);
      } else {
        const text = QUOTES.has(byte) ? this.#string(byte) : this.#atom(byte);
        value = this.#count({ offset: this.#start + at, text }, at);
      }
      const list = open.at(-1);
      if (list === undefined) found = value;
      else list.items.push(value);
    }
    const list = open.at(-1);
    if (list !== undefined) throw this.#error(list.offset - this.#start, 'a list is not closed');
    if (found === undefined) throw this.#error(this.#at, 'empty');
    return found;
  }

  // False at the end.
  #skipBlanks(): boolean {
    while (this.#at < this.#bytes.length) {
      const byte = this.#bytes[this.#at] as number;
      if (byte === HASH) {
        const end = this.#bytes.indexOf(NEWLINE, this.#at);
        this.#at = end < 0 ? this.#bytes.length : end;
      } else if (SPACES.has(byte)) {
        this.#at++;
      } else {
        return true;
      }
    }
    return false;
  }

  // A separator may begin an atom, though it ends every other one.
  #atom(first: number): string {
    const begin = this.#at;
    if (first <= 0x20 || first >= 0x7f) {
      throw this.#error(begin, `byte 0x${first.toString(16).padStart(2, '0')} begins neither list nor atom`);
    }
    do this.#at++;
    while (this.#at < this.#bytes.length && !ATOM_ENDS.has(this.#bytes[this.#at] as number));
    return decode(this.#bytes.subarray(begin, this.#at));
  }

  #string(quote: number): string {
    const begin = this.#at++;
    const content: number[] = [];
    for (;;) {
      const byte = this.#bytes[this.#at];
      if (byte === undefined) throw this.#error(begin, 'a string is not closed');
      if (byte === BACKSLASH) {
        content.push(this.#escape());
        continue;
      }
      this.#at++;
      if (byte === quote) return decode(Uint8Array.from(content));
      content.push(byte);
    }
  }

  // xend's own reader takes the letters of \xHH for other digits, and drops what follows an unknown escape. Its
  // writer means what Python means, and writes no escape but Python's.
  #escape(): number {
    const begin = this.#at++;
    const letter = this.#bytes[this.#at++];
    const plain = letter === undefined ? undefined : ESCAPES.get(letter);
    if (plain !== undefined) return plain;
    let digits: RegExpExecArray | null = null;
    if (letter === X) {
      digits = /^[0-9A-Fa-f]{2}/.exec(this.#ahead(2));
    } else if (letter !== undefined && letter >= ZERO && letter <= SEVEN) {
      this.#at--;
      digits = /^[0-7]{1,3}/.exec(this.#ahead(3));
    }
    const value = digits === null ? NaN : parseInt(digits[0], letter === X ? 16 : 8);
    if (digits === null || value > 0xff) throw this.#error(begin, 'not an escape that SXP has');
    this.#at += digits[0].length;
    return value;
  }

  #ahead(count: number): string {
    return String.fromCharCode(...this.#bytes.subarray(this.#at, this.#at + count));
  }

  #count<T extends Sxp>(value: T, at: number): T {
    if (++this.#nodes > SXP_NODES_MAX) {
      throw this.#error(at, `more than ${SXP_NODES_MAX} lists and atoms`);
    }
    return value;
  }

  #error(at: number, reason: string): StreamFormatError {
    return formatError(StreamErrorCode.CONFIG, reason, { offset: this.#start + at, record: XEND_CONFIG });
  }
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
}
