/** Pre-copy policies: when to stop sending a running guest's memory and suspend it. */
import {
  DEFAULT_MAX_ITERATIONS,
  DEFAULT_MIN_REMAINING,
  type PresentLimits,
  type SaveSteering,
} from './steering.js';
import type { PrecopyDecision, PrecopyPolicy, PrecopyStats } from './types.js';

/**
 * A pass counts as progress when it leaves fewer dirty pages than this share of the fewest left by any before it.
 * What a guest dirties scatters by some per cent from pass to pass; that is no progress.
 */
export const PROGRESS_SHARE = 0.9;

/**
 * After so many passes in a row without progress further ones are wasted: the guest dirties memory as fast as it is
 * sent. More than libxc's five passes can have, so that libxc's limits never meet it.
 */
export const STALLED_PASSES = 5;

/**
 * libxc's policy (simple_precopy_policy in xg_sr_save.c): stop with fewer than 50 dirty pages, or after five passes.
 * The default, as far as no other limits are given.
 */
export function xenDefaultPolicy(stats: PrecopyStats): PrecopyDecision {
  return enough(stats, DEFAULT_MAX_ITERATIONS, DEFAULT_MIN_REMAINING) ? 'stop-and-copy' : 'continue';
}

/**
 * libxc's policy with other numbers, and with two more reasons to stop: the downtime is as short as it need be, or
 * passes stopped helping. Reads the limits at each call, so that they may change meanwhile.
 */
export function limitsPolicy(steering: SaveSteering): PrecopyPolicy {
  return (stats) => (withinLimits(stats, steering.limits) ? 'stop-and-copy' : 'continue');
}

function withinLimits(stats: PrecopyStats, limits: PresentLimits): boolean {
  if (enough(stats, limits.maxIterations, limits.minRemaining)) return true;
  // Without a fresh count the other two are about the past.
  if (stats.dirtyCount < 0) return false;
  const { maxDowntimeMs } = limits;
  const { expectedDowntime } = stats;
  if (maxDowntimeMs !== undefined && expectedDowntime !== undefined && expectedDowntime <= maxDowntimeMs)
    return true;
  return stats.stalledPasses >= STALLED_PASSES;
}

function enough(stats: PrecopyStats, maxIterations: number, minRemaining: number): boolean {
  return (stats.dirtyCount >= 0 && stats.dirtyCount < minRemaining) || stats.iteration >= maxIterations;
}
