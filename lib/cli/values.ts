/** Values of options, from their text. All throw UsageError. */
import { UsageError } from '../errors.js';

export { countOf, durationOf, sizeOf } from '../quantities.js';

/** One of a few words. */
export function choiceOf<T extends string>(text: string, option: string, choices: readonly T[]): T {
  const choice = choices.find((c) => c === text);
  if (choice === undefined) throw new UsageError(`${option}: "${text}" is none of ${choices.join(', ')}`);
  return choice;
}
