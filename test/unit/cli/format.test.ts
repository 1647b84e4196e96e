import { describe, expect, test } from 'vitest';
import {
  bytesText,
  countText,
  paintFor,
  rateText,
  speaksUnicode,
  tableLines,
  timeText,
  widthOf,
  wrapped,
} from '../../../lib/cli/format.js';
import { choiceOf } from '../../../lib/cli/values.js';
import { downtimeLines, factLines, roundsLines } from '../../../lib/cli/report.js';
import { UsageError } from '../../../lib/errors.js';
import { countOf, durationOf, sizeOf } from '../../../lib/quantities.js';

const plain = paintFor({}, {});

test.each([
  [0, '0 bytes'],
  [96, '96 bytes'],
  [1023, '1023 bytes'],
  [1024, '1 KiB'],
  [1536, '1.50 KiB'],
  [15.2 * 1024 * 1024, '15.2 MiB'],
  [1023.6 * 1024, '1.00 MiB'],
  [512 * 2 ** 20, '512 MiB'],
  [2 ** 40 * 3, '3 TiB'],
  [2 ** 60 * 5, '5120 PiB'],
])('%d bytes are %s', (bytes, text) => {
  expect(bytesText(bytes)).toBe(text);
});

test.each([
  [0, '0 ms'],
  [0.123, '0.12 ms'],
  [9.996, '10.0 ms'],
  [38.44, '38.4 ms'],
  [999.4, '999 ms'],
  [999.9, '1.00 s'],
  [2610, '2.61 s'],
  [119_000, '119 s'],
  [200_400, '3 min 20 s'],
])('%d ms are %s', (ms, text) => {
  expect(timeText(ms)).toBe(text);
});

test.each([
  ['', 5, ['']],
  ['one two three', 7, ['one two', 'three']],
  ['one incomprehensible word', 6, ['one', 'incomprehensible', 'word']],
])('"%s" in %d columns', (text, columns, lines) => {
  expect(wrapped(text, columns)).toEqual(lines);
});

test('counts and rates', () => {
  expect(countText(131072.4)).toBe('131,072');
  expect(rateText(2 ** 20 * 196)).toBe('196 MiB/s');
});

describe('values', () => {
  test.each([
    ['512M', 512 * 2 ** 20],
    ['1.5G', 1.5 * 2 ** 30],
    ['4096', 4096],
    ['64KiB', 65536],
    ['2mb', 2 ** 21],
    ['100M/s', 100 * 2 ** 20],
    ['0', 0],
  ])('size %s', (text, bytes) => {
    expect(sizeOf(text, '--x')).toBe(bytes);
  });
  test.each(['', 'M', '-1', '1e3', '1..5M', '9999999P', '99999999T', 'all'])('no size: "%s"', (text) => {
    expect(() => sizeOf(text, '--x')).toThrow(UsageError);
  });
  test.each([
    ['2500', 2500],
    ['300ms', 300],
    ['2.5s', 2500],
    ['2m', 120_000],
    ['1h', 3_600_000],
  ])('time %s', (text, ms) => {
    expect(durationOf(text, '--x')).toBe(ms);
  });
  test.each(['', '0', '-1s', '1d', 's', '99999h'])('no time: "%s"', (text) => {
    expect(() => durationOf(text, '--x')).toThrow(UsageError);
  });
  test('counts', () => {
    expect(countOf('5', '--x', 1)).toBe(5);
    for (const text of ['0', '1.5', '', 'x', '-3', '9999999999999999999']) {
      expect(() => countOf(text, '--x', 1)).toThrow(/of at least 1$/);
    }
    expect(() => countOf('9', '--x', 1, 8)).toThrow(/from 1 to 8$/);
  });
  test('choices', () => {
    expect(choiceOf('b', '--x', ['a', 'b'] as const)).toBe('b');
    expect(() => choiceOf('c', '--x', ['a', 'b'])).toThrow('--x: "c" is none of a, b');
  });
});

describe('terminal', () => {
  test('colours only where they are wanted', () => {
    expect(paintFor({ isTTY: true }, { TERM: 'xterm' }).bold('x')).toBe('\u001b[1mx\u001b[22m');
    expect(paintFor({ isTTY: true }, { NO_COLOR: '1' }).bold('x')).toBe('x');
    expect(paintFor({ isTTY: true }, { NO_COLOR: '' }).bold('x')).not.toBe('x');
    expect(paintFor({ isTTY: true }, { TERM: 'dumb' }).bold('x')).toBe('x');
    expect(paintFor({ isTTY: false }, {}).bold('x')).toBe('x');
  });
  test('characters beyond ASCII only where the locale has them', () => {
    expect(speaksUnicode({ LANG: 'de_DE.UTF-8' })).toBe(true);
    expect(speaksUnicode({ LANG: 'C.utf8' })).toBe(true);
    expect(speaksUnicode({ LC_ALL: 'C', LANG: 'de_DE.UTF-8' })).toBe(false);
    expect(speaksUnicode({ LC_ALL: '', LANG: 'de_DE.UTF-8' })).toBe(true);
    expect(speaksUnicode({})).toBe(false);
  });
  test('columns line up, colours or not', () => {
    const { bold } = paintFor({ isTTY: true }, {});
    const lines = tableLines(
      [
        ['a', bold('bbb'), 'c'],
        ['aaaa', 'b', ''],
      ],
      ['left', 'right', 'left'],
    );
    expect(lines.map(widthOf)).toEqual([14, 10]);
    expect(lines[1]).toBe('aaaa     b');
  });
});

describe('report', () => {
  test('rounds', () => {
    const pass = { dirtyPages: 1044480, sentPages: 1044480, bytes: 545e6, ms: 3900, rate: 140e6 };
    const lines = roundsLines(
      [
        { ...pass, iteration: 0, dataPages: 131072, suspended: false },
        { ...pass, iteration: 1, dirtyPages: 138, dataPages: 138, bytes: 566e3, ms: 2.2, suspended: true },
      ],
      plain,
    );
    expect(lines).toEqual([
      'pass   dirty            sent      data      time        rate   guest',
      '   1     all   131,072 pages   520 MiB    3.90 s   134 MiB/s   runs',
      '   2     138       138 pages   553 KiB   2.20 ms   134 MiB/s   stands still',
    ]);
  });

  test('downtime: parts that took no time are left out, what is not accounted for is named', () => {
    const downtime = { suspend: 2, finalPass: 10, state: 1, deviceModel: 0, handover: 20, total: 38.4 };
    expect(downtimeLines(downtime, plain)).toEqual([
      'downtime       38.4 ms',
      '  suspend         2 ms   asking the guest until it stood still',
      '  last pages     10 ms   what it had written since the last pass',
      '  state           1 ms   processors, timers, parameters',
      '  handover       20 ms   from the last byte until it ran there',
      '  the rest     5.40 ms   writing out, tidying up',
    ]);
  });

  test('facts', () => {
    const facts = [
      { ok: true, text: 'it runs' },
      { ok: false, text: 'it is whole' },
    ];
    expect(factLines(facts, plain, true)).toEqual(['✓ it runs', '✗ it is whole']);
    expect(factLines(facts, plain, false)).toEqual(['ok it runs', 'FAILED it is whole']);
  });
});
