/** Reading frames of a PV guest by machine frame number, all of it hostile: numbers are checked before use. */
import { errnoName } from '../abi/errno.js';
import { MAX_BATCH } from '../abi/pages.js';
import { GuestError } from '../errors.js';
import type { Domain, PageMapping } from '../host/host.js';
import { SaveErrorCode } from './codes.js';

/** Maps up to 1024 frames to read them. Throws GuestError, `what` naming them, if one is not the guest's. */
export async function mapGuestFrames(domain: Domain, mfns: Float64Array, what: string): Promise<PageMapping> {
  const mapping = await domain.mapFrames(mfns, 'read');
  for (let i = 0; i < mfns.length; i++) {
    const errno = mapping.errors[i] as number;
    if (errno === 0) continue;
    mapping.release();
    throw p2mError(`${what}: mfn ${hex(mfns[i] as number)} cannot be mapped (${errnoName(errno)})`);
  }
  return mapping;
}

/**
 * Calls `visit` with the words of each frame in turn. The frames are mapped by batches and released before this
 * resolves.
 */
export async function visitGuestFrames(
  domain: Domain,
  mfns: Float64Array,
  what: string,
  visit: (words: Uint32Array, at: number, index: number) => void,
): Promise<void> {
  for (let from = 0; from < mfns.length; from += MAX_BATCH) {
    const mapping = await mapGuestFrames(domain, mfns.subarray(from, from + MAX_BATCH), what);
    try {
      for (let i = 0; i < mapping.count; i++) {
        const words = mapping.words[mapping.regionOf[i] as number] as Uint32Array;
        visit(words, (mapping.offsetOf[i] as number) / 4, from + i);
      }
    } finally {
      mapping.release();
    }
  }
}

/** Throws unless `mfn` is a frame that the machine can have. Frame 0 never belongs to a guest. */
export function checkMfn(mfn: number, maxMfn: number, what: string): number {
  if (mfn >= 1 && mfn <= maxMfn) return mfn;
  throw p2mError(`${what}: mfn ${hex(mfn)} is not in 0x1…${hex(maxMfn)}`);
}

/** The guest's p2m cannot be followed. */
export function p2mError(reason: string): GuestError {
  return new GuestError(SaveErrorCode.P2M_INVALID, reason);
}

/** A frame number for messages. */
export function hex(frame: number): string {
  return frame < 0 ? 'INVALID' : `0x${frame.toString(16)}`;
}
