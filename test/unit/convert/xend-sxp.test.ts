/** xend's S-expressions: what they mean, and what is refused where. */

import * as fc from 'fast-check';
import { describe, expect, it, test } from 'vitest';
import { SXP_DEPTH_MAX, SXP_NODES_MAX } from '../../../lib/convert/xend/constants.js';
import { isSxpList, parseSxp, type Sxp } from '../../../lib/convert/xend/index.js';
import { StreamFormatError } from '../../../lib/errors.js';
import { XEND_CONFIG_MAX } from '../../../lib/stream/xend/constants.js';
import { HVM_GUEST, OLD_GUEST, PV_GUEST, bytesOf } from './xend-samples.js';

type Plain = string | Plain[];

function plain(value: Sxp): Plain {
  return isSxpList(value) ? value.items.map(plain) : value.text;
}

function parsed(text: string): Plain {
  return plain(parseSxp(bytesOf(text)));
}

/** As xend's show(): simple atoms bare, everything else as Python's repr(). */
function show(value: Plain): string {
  if (typeof value !== 'string') return `(${value.map(show).join(' ')})`;
  if (/^[A-Za-z0-9.\-_:/~]+$/.test(value)) return value;
  const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
  const inside = Array.from(Buffer.from(value, 'utf8'), (byte) => {
    const c = String.fromCharCode(byte);
    if (c === '\\' || c === quote) return `\\${c}`;
    if (c === '\n') return '\\n';
    if (c === '\t') return '\\t';
    if (c === '\r') return '\\r';
    return byte < 0x20 || byte > 0x7e ? `\\x${byte.toString(16).padStart(2, '0')}` : c;
  });
  return `${quote}${inside.join('')}${quote}`;
}

function errorOf(bytes: Uint8Array): {
  code: string;
  offset: number;
  record: string | undefined;
  reason: string;
} {
  try {
    parseSxp(bytes, { offset: 20 });
  } catch (error) {
    if (!(error instanceof StreamFormatError)) throw error;
    return { code: error.code, offset: error.offset, record: error.record, reason: error.reason };
  }
  return expect.fail('nothing was thrown');
}

describe('what it means', () => {
  const cases: readonly (readonly [string, Plain])[] = [
    ['a', 'a'],
    ['()', []],
    [' ( a b\t(c)\n) \v\f\r', ['a', 'b', ['c']]],
    ['(ramdisk )', ['ramdisk']],
    ["(a '')", ['a', '']],
    ["(a 'b c' \"d'e\")", ['a', 'b c', "d'e"]],
    ["('a''b'c)", ['a', 'b', 'c']],
    [String.raw`('\a\b\t\n\v\f\r\\\'\"')`, ['\x07\b\t\n\v\f\r\\\'"']],
    [String.raw`('\x41\x7a\x7A\101\60\7.')`, ['AzzA0\x07.']],
    // Python's repr of UTF-8; of hexadecimal letters xend's own reader makes something else.
    [String.raw`('caf\xc3\xa9 \303\251')`, ['café é']],
    ['(caf\u00e9)', ['café']],
    [String.raw`('\xff')`, ['\ufffd']],
    // A word ends only where xend's does: quotes, escapes and most signs are part of it.
    [`(a"b'c\\n=,@!*%$&)`, ['a"b\'c\\n=,@!*%$&']],
    ['(a(b)c)', ['a', ['b'], 'c']],
    ['({a};b<c>[d])', ['{a', '}', ';b', '<c', '>', '[d', ']']],
    ['(a#b (c\n d) # end', ['a', 'd']],
    ['# first\n(a)', ['a']],
    ["('(#' a)", ['(#', 'a']],
    ['(@ !x)', ['@', '!x']],
  ];
  test.each(cases)('%j', (text, value) => {
    expect(parsed(text)).toEqual(value);
  });

  it('knows where everything stands', () => {
    const value = parseSxp(bytesOf(" (a 'b' (c))"), { offset: 20 });
    expect(value).toEqual({
      offset: 21,
      items: [
        { offset: 22, text: 'a' },
        { offset: 24, text: 'b' },
        { offset: 28, items: [{ offset: 29, text: 'c' }] },
      ],
    });
  });

  it('is what xend wrote, whatever it wrote', () => {
    const text = fc.string({ unit: 'binary' });
    const { tree } = fc.letrec<{ tree: Plain }>((tie) => ({
      tree: fc.oneof({ maxDepth: 5 }, text, fc.array(tie('tree'), { maxLength: 5 })),
    }));
    fc.assert(
      fc.property(tree, (value) => {
        expect(parsed(show(value))).toEqual(value);
      }),
    );
  });

  test.each([PV_GUEST, HVM_GUEST, OLD_GUEST])(
    'a whole configuration, written again as it was read',
    (text) => {
      const once = show(parsed(text));
      expect(parsed(once)).toEqual(parsed(text));
      expect(once.length).toBeGreaterThan(text.length / 2);
    },
  );
});

describe('what is refused', () => {
  const cases: readonly (readonly [string, number, RegExp])[] = [
    ['', 0, /empty/],
    ['  # nothing', 11, /empty/],
    [')', 0, /closes no list/],
    ['(a))', 3, /follows/],
    ['(a) b', 4, /follows/],
    ['(a)(b)', 3, /follows/],
    ['(a (b c)', 0, /not closed/],
    ['(a (b c', 3, /not closed/],
    ["(a 'b)", 3, /string is not closed/],
    ['(a "b\')', 3, /string is not closed/],
    ["(a 'b\\", 5, /escape/],
    ["(a 'b\\q')", 5, /escape/],
    ["(a 'b\\x4')", 5, /escape/],
    ["(a 'b\\xzz')", 5, /escape/],
    ["(a 'b\\400')", 5, /escape/],
    ["(a '\\8')", 4, /escape/],
    ['(a \0)', 3, /0x00/],
    ['(a \x04)', 3, /0x04/],
    ['(a \x7f)', 3, /0x7f/],
    ['(a \u00e9)', 3, /0xc3/],
  ];
  test.each(cases)('%j at %i', (text, offset, reason) => {
    const error = errorOf(bytesOf(text));
    expect(error).toMatchObject({
      code: 'ERR_XEN_STREAM_CONFIG',
      offset: 20 + offset,
      record: 'xend configuration',
    });
    expect(error.reason).toMatch(reason);
  });

  it('lists nested too deep, without end', () => {
    const nested = (depth: number): string => '('.repeat(depth) + ')'.repeat(depth);
    expect(() => parsed(nested(SXP_DEPTH_MAX))).not.toThrow();
    expect(errorOf(bytesOf(nested(SXP_DEPTH_MAX + 1)))).toMatchObject({ offset: 20 + SXP_DEPTH_MAX });
    expect(errorOf(new Uint8Array(XEND_CONFIG_MAX).fill(0x28)).reason).toMatch(/deep/);
  });

  it('too many lists and atoms', () => {
    const many = (count: number): Uint8Array => bytesOf(`(${'a '.repeat(count)})`);
    expect(() => parseSxp(many(SXP_NODES_MAX - 1))).not.toThrow();
    expect(errorOf(many(SXP_NODES_MAX)).reason).toMatch(/more than/);
    expect(errorOf(bytesOf(`(${'()'.repeat(XEND_CONFIG_MAX / 2 - 1)})`)).reason).toMatch(/more than/);
  });

  it('more bytes than the limit', () => {
    const text = (length: number): Uint8Array => new Uint8Array(length).fill(0x61);
    expect(() => parseSxp(text(XEND_CONFIG_MAX))).not.toThrow();
    expect(errorOf(text(XEND_CONFIG_MAX + 1))).toMatchObject({ code: 'ERR_XEN_STREAM_CONFIG', offset: 20 });
  });

  it('any bytes: a value, or an error that says where', () => {
    const pieces = fc.constantFrom('(', ')', "'", '"', '\\', 'x4', '#', '\n', ' ', 'a', '7', '\0', '\u00ff');
    fc.assert(
      fc.property(fc.array(pieces), (some) => {
        const bytes = bytesOf(some.join(''));
        try {
          parseSxp(bytes);
        } catch (error) {
          if (!(error instanceof StreamFormatError)) throw error;
          expect(error.code).toBe('ERR_XEN_STREAM_CONFIG');
          expect(error.offset).toBeGreaterThanOrEqual(0);
          expect(error.offset).toBeLessThanOrEqual(bytes.length);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it('every truncation of a configuration', () => {
    const bytes = bytesOf(PV_GUEST);
    for (let length = 0; length < bytes.length; length++) {
      expect(errorOf(bytes.subarray(0, length)).code).toBe('ERR_XEN_STREAM_CONFIG');
    }
  });
});
