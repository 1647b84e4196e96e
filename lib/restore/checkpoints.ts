/**
 * Checkpointed streams (Remus). What comes before the first CHECKPOINT record is applied as it comes; from then on all
 * bytes wait in a spool until the checkpoint that they belong to is complete, and are applied then. So the guest is
 * always either as it was at a complete checkpoint or, while bytes of a complete one are applied, on its way to it.
 *
 * In a libxl stream a checkpoint is complete with libxl's CHECKPOINT_END, in a bare libxc stream with CHECKPOINT.
 */
import type { DomainHeaderEvent, ImageHeaderEvent, StreamEvent } from '../stream/events.js';
import { encodeRecord, RECORD_HEADER_SIZE } from '../stream/framing.js';
import { LibxcRecord } from '../stream/libxc/constants.js';
import { LibxcReader } from '../stream/libxc/reader.js';
import { LibxlRecord } from '../stream/libxl/constants.js';
import { encodeLibxlHeader } from '../stream/libxl/header.js';
import { LibxlReader } from '../stream/libxl/reader.js';
import { CheckpointSpool, type SpoolOptions } from '../transport/spool.js';

/** Where the first CHECKPOINT record stands. */
export interface CheckpointStart {
  /** True for a libxc stream without libxl's records around it. */
  readonly bare: boolean;
  readonly image: ImageHeaderEvent;
  readonly domain: DomainHeaderEvent;
  /** Offset of the first byte after the CHECKPOINT record. */
  readonly position: number;
}

export class Checkpoints {
  readonly #bare: boolean;
  readonly #spool: CheckpointSpool;
  // Follows the stream's own reader, from one complete checkpoint to the next.
  readonly #reader: LibxcReader | LibxlReader;
  #complete: number;

  constructor(start: CheckpointStart, spool: SpoolOptions) {
    this.#bare = start.bare;
    this.#spool = new CheckpointSpool(spool);
    this.#reader = readerAfterCheckpoint(start);
    // Without libxl's records nothing more belongs to the first one.
    this.#complete = start.bare ? 1 : 0;
  }

  /** Checkpoints that were complete, and are applied. */
  get complete(): number {
    return this.#complete;
  }

  /** Keeps bytes that the stream's reader has been fed. Throws as the spool does. */
  append(bytes: Uint8Array, offset: number): Promise<void> | undefined {
    return this.#spool.append(bytes, offset);
  }

  /** What the event, whose bytes are kept, makes of them: a complete checkpoint, or nothing any more. */
  decide(event: StreamEvent): 'apply' | 'drop' | undefined {
    if (event.kind !== 'record') return undefined;
    if (event.layer === 'libxl') return event.type === LibxlRecord.CHECKPOINT_END ? 'apply' : undefined;
    if (event.type === LibxcRecord.END) return 'drop';
    return event.type === LibxcRecord.CHECKPOINT && this.#bare ? 'apply' : undefined;
  }

  /** Hands the events of the kept bytes to `handle`, all but CHECKPOINT. */
  async apply(handle: (event: StreamEvent) => Promise<void> | undefined): Promise<void> {
    const reader = this.#reader;
    await this.#spool.drain(async (bytes) => {
      for (let at = 0; at < bytes.length;) {
        const piece = bytes.subarray(at, at + reader.want);
        at += piece.length;
        const event = reader.feed(piece);
        if (event === undefined || isCheckpoint(event)) continue;
        const work = handle(event);
        if (work !== undefined) await work;
      }
    });
    this.#complete++;
  }

  /** The stream ended: forgets what is kept. True if that was more than the END record. */
  async drop(): Promise<boolean> {
    const unfinished = this.#spool.size > RECORD_HEADER_SIZE;
    await this.#spool.close();
    return unfinished;
  }

  async close(): Promise<void> {
    await this.#spool.close();
  }
}

/** A reader that stands behind the first CHECKPOINT: it is told the stream's headers and that record again. */
function readerAfterCheckpoint({
  bare,
  image,
  domain,
  position,
}: CheckpointStart): LibxcReader | LibxlReader {
  const around = bare ? [] : [encodeLibxlHeader(), encodeRecord(LibxlRecord.LIBXC_CONTEXT)];
  const before = Buffer.concat([...around, image.raw, domain.raw, encodeRecord(LibxcRecord.CHECKPOINT)]);
  const options = { offset: position - before.length };
  const reader = bare ? new LibxcReader(options) : new LibxlReader(options);
  for (let at = 0; at < before.length;) {
    const piece = before.subarray(at, at + reader.want);
    reader.feed(piece);
    at += piece.length;
  }
  return reader;
}

function isCheckpoint(event: StreamEvent): boolean {
  return event.kind === 'record' && event.layer === 'libxc' && event.type === LibxcRecord.CHECKPOINT;
}
