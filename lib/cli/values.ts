/** Values of options that are words. */
import { UsageError } from '../errors.js';

/** One of a few words. Throws UsageError. */
export function choiceOf<T extends string>(text: string, option: string, choices: readonly T[]): T {
  const choice = choices.find((c) => c === text);
  if (choice === undefined) throw new UsageError(`${option}: "${text}" is none of ${choices.join(', ')}`);
  return choice;
}
