/** Real streams, whole and thinned out. */

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import * as S from '../../lib/stream/index.js';
import { join, pages, type Piece } from '../unit/verify/streams.js';

const root = path.resolve(import.meta.dirname, '../..');
const golden = path.join(root, 'test/golden/streams');
const local = process.env['XEN_MIGRATION_STREAMS'] ?? path.resolve(root, '../shared/streams');

export interface Capture {
  readonly name: string;
  readonly file: string;
  readonly present: boolean;
}

/** All captures of v2 streams; those that are not in the repository may be absent. */
export const captures: readonly Capture[] = [
  ['tinyhvm.save', golden],
  ['tinyhvm.migrate', golden],
  ['tinyhvm.remus', golden],
  ['pv.save', local],
  ['pvh.save', local],
].map(([name, folder]) => {
  const file = path.join(folder!, `${name!}.gz`);
  return { name: name!, file, present: existsSync(file) };
});

export function readCapture({ file }: Capture): Buffer {
  return gunzipSync(readFileSync(file));
}

/** A capture in pieces, without most of its pages: what is left is small enough to be damaged a hundred times. */
export function thinned(bytes: Uint8Array, keptRecords = 3, keptEntries = 4): Piece[] {
  const pieces: Piece[] = [];
  const reader = new S.StreamReader();
  let pageRecords = 0;
  for (let at = 0; !reader.done && at < bytes.length;) {
    const chunk = bytes.subarray(at, at + reader.want);
    const event = reader.feed(chunk);
    at += chunk.length;
    switch (event?.kind) {
      case 'xl-header':
      case 'libxl-header':
      case 'image-header':
      case 'domain-header':
        pieces.push({ name: event.kind.replaceAll('-', ' '), bytes: event.raw });
        break;
      case 'record':
        pieces.push({
          name: event.layer === 'libxl' && event.name === 'END' ? 'libxl END' : event.name,
          bytes: S.encodeRecord(event.type, event.body),
        });
        // A checkpoint's pages stand before its other records.
        if (event.name === 'CHECKPOINT_END') pageRecords = 0;
        break;
      case 'page-data':
        if (pageRecords++ < keptRecords) {
          const entries = Array.from({ length: Math.min(event.count, keptEntries) }, (_, i) => {
            return [event.pfns[i]!, event.types[i]!] as const;
          });
          pieces.push(pages(entries));
        }
        break;
      default:
        break;
    }
  }
  if (join(pieces).length > 1 << 20) throw new Error('a thinned capture of more than 1 MiB');
  return pieces;
}
