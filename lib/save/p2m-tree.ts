/**
 * The p2m tree of older PV kernels: arch.pfn_to_mfn_frame_list_list names a frame of mfns of frames of mfns of p2m
 * frames. All entries are as wide as the guest's words.
 */
import { PAGE_SIZE } from '../abi/pages.js';
import type { GuestWidth } from '../abi/pv.js';
import type { Domain } from '../host/host.js';
import { checkMfn, hex, p2mError, visitGuestFrames } from './guest-frames.js';
import type { P2mFrames } from './p2m-linear.js';

/**
 * Follows the tree to the frames of the p2m. Entries at the end of the frame list list that all name the same frame
 * are a tail that is not in use; one of them is kept, as libxc does.
 *
 * @param maxPfn Highest pfn as shared info tells it; `limit` the highest that is believed once the tail is gone
 * @param frameListList mfn of the root
 * @throws GuestError for a tree that cannot be right
 */
export async function walkTreeP2m(
  domain: Domain,
  width: GuestWidth,
  maxMfn: number,
  maxPfn: number,
  limit: (maxPfn: number) => void,
  frameListList: number,
): Promise<P2mFrames> {
  const fpp = PAGE_SIZE / width;
  const perList = fpp * fpp;
  const lists = Math.floor(maxPfn / perList) + 1;
  if (lists > fpp) throw p2mError(`${lists} frame lists do not fit in a frame list list`);

  const what = 'frame list list';
  const root = Float64Array.of(checkMfn(frameListList, maxMfn, `pfn_to_mfn_frame_list_list`));
  const listMfns = await readFrames(domain, width, root, lists, maxMfn, what);
  let distinct = lists - 1;
  while (distinct > 0 && listMfns[distinct - 1] === listMfns[lists - 1]) distinct--;
  maxPfn = Math.min(maxPfn, (distinct + 1) * perList - 1);
  limit(maxPfn);

  const used = listMfns.subarray(0, distinct + 1);
  const leaves = await readFrames(domain, width, used, Math.floor(maxPfn / fpp) + 1, maxMfn, 'frame list');
  return { maxPfn, leaves };
}

/** The first `count` mfns in the frames `tables`, taken as one long array. */
async function readFrames(
  domain: Domain,
  width: GuestWidth,
  tables: Float64Array,
  count: number,
  maxMfn: number,
  what: string,
): Promise<Float64Array> {
  const fpp = PAGE_SIZE / width;
  const frames = new Float64Array(count);
  await visitGuestFrames(domain, tables, what, (words, at, index) => {
    const base = index * fpp;
    for (let i = base; i < Math.min(base + fpp, count); i++) {
      const word = at + (i - base) * (width / 4);
      const low = words[word] as number;
      const mfn = width === 8 ? (words[word + 1] as number) * 0x1_0000_0000 + low : low;
      frames[i] = checkMfn(
        mfn,
        maxMfn,
        `entry ${i - base} of ${what} at mfn ${hex(tables[index] as number)}`,
      );
    }
  });
  return frames;
}
