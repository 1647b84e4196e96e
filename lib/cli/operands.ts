/** The arguments of a command that are no options. */
import { UsageError } from '../errors.js';

/** Exactly these operands, in order. Throws UsageError that names the missing or the superfluous one. */
export function operands<const Names extends readonly string[]>(
  given: readonly string[],
  names: Names,
): { [K in keyof Names]: string } {
  const missing = names[given.length];
  if (missing !== undefined) throw new UsageError(`${missing} is missing`);
  const extra = given[names.length];
  if (extra !== undefined) throw new UsageError(`"${extra}" is one argument too many`);
  return given as unknown as { [K in keyof Names]: string };
}
