/** Quantities from their text, as options and environment variables have them. All throw UsageError. */
import { UsageError } from './errors.js';

/** `512M`, `1.5G`, `4096`, `64KiB`: bytes. Units are powers of 1024; a `B`, `iB` or `/s` behind them changes nothing. */
export function sizeOf(text: string, option: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?(?:\/s)?$/i.exec(text);
  const unit = 'kmgt'.indexOf((match?.[2] ?? '').toLowerCase() || '?');
  const bytes = Math.round(Number(match?.[1]) * 1024 ** (unit + 1));
  if (match === null || !Number.isSafeInteger(bytes)) {
    throw new UsageError(`${option}: "${text}" is no size, such as 512M or 2G`);
  }
  return bytes;
}

/** A whole number of at least `least`. */
export function countOf(text: string, option: string, least: number, most = Number.MAX_SAFE_INTEGER): number {
  const value = /^\d+$/.test(text) ? Number(text) : NaN;
  if (!(value >= least && value <= most)) {
    const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
    throw new UsageError(`${option}: "${text}" is no whole number ${range}`);
  }
  return value;
}

/** `2500` or `2500ms`, `2.5s`, `2m`: milliseconds. */
export function durationOf(text: string, option: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|min|h)?$/.exec(text);
  const factor = { ms: 1, s: 1000, m: 60_000, min: 60_000, h: 3_600_000 }[match?.[2] ?? 'ms'] ?? NaN;
  const ms = Number(match?.[1]) * factor;
  if (!(ms > 0 && ms < 2 ** 31))
    throw new UsageError(`${option}: "${text}" is no time, such as 300ms or 90s`);
  return ms;
}
