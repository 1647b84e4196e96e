/** What shall become of tmem, as an option or an environment variable says it. */
import { UsageError } from '../errors.js';
import type { TmemChoice } from './tmem.js';

const EXPORT = 'export=';

/** The words for it, for help and messages. */
export const TMEM_CHOICES = 'refuse, drop-ephemeral or export=FOLDER';

/** `refuse`, `drop-ephemeral`, `export=FOLDER`. Throws UsageError that names the option. */
export function tmemChoiceOf(text: string, option: string): TmemChoice {
  if (text === 'refuse' || text === 'drop-ephemeral') return text;
  if (text.startsWith(EXPORT) && text.length > EXPORT.length) return { export: text.slice(EXPORT.length) };
  throw new UsageError(`${option}: "${text}" is none of ${TMEM_CHOICES}`);
}
