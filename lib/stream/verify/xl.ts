/** Checks of xl's header. */

import type { XlHeaderEvent } from '../events.js';
import { XlMandatoryFlag } from '../xl/constants.js';
import { parseXlConfig } from '../xl/header.js';
import { attempt, type VerifyContext } from './context.js';

/**
 * The reader has checked magic, byte order, flags and lengths. Left to check: a configuration that the flags call JSON
 * is JSON. Remembers the guest type that it names.
 */
export function checkXlHeader(context: VerifyContext, event: XlHeaderEvent): void {
  const { mandatoryFlags, config } = event.header;
  if (config === undefined || (mandatoryFlags & XlMandatoryFlag.JSON) === 0) return;
  const parsed = attempt(context.findings, () => parseXlConfig(config, event));
  const info = parsed?.['c_info'];
  if (typeof info !== 'object' || info === null) return;
  const type = (info as { type?: unknown }).type;
  if (type === 'pv' || type === 'hvm' || type === 'pvh') context.configType = type;
}
