/** JSON of libxl: objects of which most is only passed on, and numbers of 64 bits that JavaScript's would not hold. */
import { UsageError } from '../../errors.js';

export type JsonObject = Record<string, unknown>;

export function objectOf(value: unknown): JsonObject | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as JsonObject)
    : undefined;
}

/** Stands before the digits of a number that is kept as a string; libxl's own strings have no control characters. */
const BIG = '\u0001';
const STRING_OR_INTEGER = /"(?:[^"\\]|\\.)*"|-?\d+(?![\d.eE])/g;
const KEPT_NUMBER = /"\\u0001(-?\d+)"/g;

/**
 * Parses an object, so that `printJson` gives back its large integers digit by digit.
 *
 * @throws UsageError `the <what> is not …`
 */
export function parseJson(text: string, what: string): JsonObject {
  const kept = text.replace(STRING_OR_INTEGER, (token) =>
    token.startsWith('"') || Number.isSafeInteger(Number(token)) ? token : `"\\u0001${token}"`,
  );
  let parsed: unknown;
  try {
    parsed = JSON.parse(kept);
  } catch (cause) {
    throw new UsageError(`the ${what} is not JSON`, { cause });
  }
  const object = objectOf(parsed);
  if (object === undefined) throw new UsageError(`the ${what} is not a JSON object`);
  return object;
}

/** True for a number that `parseJson` keeps as a string. */
export function isBigNumber(value: unknown): boolean {
  return typeof value === 'string' && value.startsWith(BIG);
}

/** As libxl prints it: four spaces, a line feed at the end. */
export function printJson(value: JsonObject): string {
  return `${JSON.stringify(value, undefined, 4).replace(KEPT_NUMBER, '$1')}\n`;
}
