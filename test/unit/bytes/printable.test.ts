import { expect, test } from 'vitest';
import { printable } from '../../../lib/bytes/printable.js';

test.each([
  ['plain ü😀', 'plain ü😀'],
  ['a\tb\u007f\u2066c', 'a\\u0009b\\u007f\\u2066c'],
  ['\u001b[31m\r\n\u0000', '\\u001b[31m\\u000d\\u000a\\u0000'],
  ['\u0085\u2028\u2029\u202e\u200f', '\\u0085\\u2028\\u2029\\u202e\\u200f'],
])('%j', (text, shown) => {
  expect(printable(text)).toBe(shown);
});
