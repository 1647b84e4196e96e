/** Named values of a list of xend's configuration, and account of those that nobody asked for. */

import { printable } from '../../bytes/printable.js';
import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode } from '../../stream/codes.js';
import { isSxpList, XEND_CONFIG, type Sxp, type SxpList } from './sxp.js';

// A hostile file may hold a name of a megabyte.
const NAME_MAX = 64;

/** What the converted configuration lacks, in the words that the user gets. */
export class Report {
  readonly lines: string[] = [];
  readonly #seen = new Set<string>();

  /** `path` as in `image.fda`; `why` without a full stop. The same line comes once. */
  add(path: string, why: string): void {
    const line = `${path}: ${why}`;
    if (this.#seen.has(line)) return;
    this.#seen.add(line);
    this.lines.push(line);
  }
}

/** A name or value from the file, short and fit for a terminal. */
export function shown(text: string): string {
  const short = text.length > NAME_MAX ? `${text.slice(0, NAME_MAX)}…` : text;
  return printable(short);
}

/** The text of an atom; undefined for a list. */
export function atomText(value: Sxp | undefined): string | undefined {
  return value === undefined || isSxpList(value) ? undefined : value.text;
}

/** An integer as xend wrote them; Python 2 puts an L behind a long one, .0 behind a whole float. Undefined if it is none. */
export function parseInteger(text: string): number | undefined {
  const match = /^(?:0[xX][0-9a-fA-F]{1,13}|[+-]?\d{1,16})(?=(?:L|\.0+)?$)/.exec(text);
  const value = match === null ? NaN : Number(match[0]);
  return Number.isSafeInteger(value) ? value : undefined;
}

/**
 * The items of a list after its name, which are lists themselves: `(vif (mac …) (bridge …))`. Getters answer undefined
 * for what is not there, and for what is empty or Python's None. As in xend, the first of several of one name counts.
 * What cannot be used is reported, and so is, by `finish`, whatever was not asked for.
 */
export class Fields {
  readonly path: string;
  readonly report: Report;
  readonly #list: SxpList;
  readonly #fields = new Map<string, SxpList[]>();
  readonly #read = new Set<string>();

  constructor(list: SxpList, path: string, report: Report) {
    this.path = path;
    this.report = report;
    this.#list = list;
    for (const item of list.items.slice(1)) {
      const name = isSxpList(item) ? atomText(item.items[0]) : undefined;
      if (!isSxpList(item) || name === undefined) {
        if (isSxpList(item) ? item.items.length > 0 : item.text !== '') {
          this.report.add(
            this.at(isSxpList(item) ? '()' : item.text),
            'stands where a named value is expected',
          );
        }
        continue;
      }
      const same = this.#fields.get(name);
      if (same === undefined) this.#fields.set(name, [item]);
      else same.push(item);
    }
  }

  /** Path of one of its values. */
  at(name: string): string {
    return this.path === '' ? shown(name) : `${this.path}.${shown(name)}`;
  }

  /** Says that something of `name` is not carried over. */
  lacks(name: string, why: string): void {
    this.report.add(this.at(name), why);
  }

  /** The error of a value without which there is no configuration. */
  error(name: string, reason: string): StreamFormatError {
    const { offset } = this.#fields.get(name)?.[0] ?? this.#list;
    return formatError(StreamErrorCode.CONFIG, reason, { offset, record: XEND_CONFIG, path: this.at(name) });
  }

  /** All lists of this name. */
  all(name: string): readonly SxpList[] {
    this.#read.add(name);
    return this.#fields.get(name) ?? [];
  }

  /** The first value of this name, atom or list. */
  value(name: string): Sxp | undefined {
    const lists = this.all(name);
    const [list] = lists;
    if (lists.length > 1) this.lacks(name, 'given more than once; the first counts');
    if (list !== undefined && list.items.length > 2) this.lacks(name, 'has several values; the first counts');
    return list?.items[1];
  }

  /** A text without NUL. `none`: the word None is one, too. */
  text(name: string, none = false): string | undefined {
    const value = this.value(name);
    const text = atomText(value);
    if (text === undefined) {
      if (value !== undefined && isSxpList(value) && value.items.length > 0) {
        this.lacks(name, 'is a list where a plain value is expected');
      }
      return undefined;
    }
    if (text === '' || (text === 'None' && !none)) return undefined;
    if (/[\0\uFFFD]/.test(text)) {
      this.lacks(name, 'is not UTF-8 text, and JSON can carry no other');
      return undefined;
    }
    return text;
  }

  /** An integer of min…max. */
  integer(name: string, min: number, max: number): number | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const value = parseInteger(text);
    if (value !== undefined && value >= min && value <= max) return value;
    this.lacks(name, `${shown(text)} is not a number of ${min}…${max}`);
    return undefined;
  }

  /** A number that stands for yes or no, or Python's True and False. */
  flag(name: string): boolean | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    if (text === 'True' || text === 'False') return text === 'True';
    const value = parseInteger(text);
    if (value === undefined) this.lacks(name, `${shown(text)} is neither 0 nor 1`);
    return value === undefined ? undefined : value !== 0;
  }

  /** Values that say nothing about the guest to be built. */
  ignore(names: readonly string[]): void {
    for (const name of names) this.#read.add(name);
  }

  /** Reports the value, if it is there, with the reason why it is not carried over. */
  drop(name: string, why: string): void {
    if (this.all(name).some((list) => list.items.slice(1).some((value) => !isEmpty(value))))
      this.lacks(name, why);
  }

  /** Reports all values that were not asked for; `zeroIsOff`: but those that are 0. */
  finish(zeroIsOff = false): void {
    for (const name of this.#fields.keys()) {
      if (this.#read.has(name)) continue;
      if (zeroIsOff && this.all(name).every((list) => atomText(list.items[1]) === '0')) continue;
      this.drop(name, 'libxl has nothing like it');
    }
  }
}

function isEmpty(value: Sxp): boolean {
  return isSxpList(value) ? value.items.every(isEmpty) : value.text === '' || value.text === 'None';
}

/** An object of libxl's JSON. */
export type JsonObject = Record<string, unknown>;

/** The object without its undefined members. */
export function compact(members: JsonObject): JsonObject {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}

/** libxl's defbool: undefined leaves the decision to libxl. */
export function defbool(value: boolean | undefined): 'True' | 'False' | undefined {
  if (value === undefined) return undefined;
  return value ? 'True' : 'False';
}
