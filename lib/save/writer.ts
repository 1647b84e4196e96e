/** Writing records: one place where bytes are counted and where a cancelled job stops. */
import type { JobControl } from '../job.js';
import { encodeRecord, recordViews } from '../stream/framing.js';
import type { ByteSink } from '../transport/types.js';

/** Bodies up to this size are copied into one block with their header; larger ones go out as views. */
const SMALL_BODY = 8192;

/** Writes a stream to a sink for one job. */
export class RecordWriter {
  readonly #sink: ByteSink;
  readonly #control: JobControl;
  #bytes = 0;

  constructor(sink: ByteSink, control: JobControl) {
    this.#sink = sink;
    this.#control = control;
  }

  /** Bytes written: their writes resolved. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Writes views, in order. A destroyed socket calls back without an error, so that a write that "succeeded" after
   * the job was cancelled is a failed one.
   */
  async write(views: readonly Uint8Array[]): Promise<void> {
    let size = 0;
    for (const view of views) size += view.length;
    await this.#sink.write(views);
    this.#control.throwIfCancelled();
    this.#bytes += size;
  }

  /** Writes a libxc or libxl record. `body` is borrowed until the promise settles. */
  record(type: number, body?: Uint8Array): Promise<void> {
    return this.write(
      body === undefined || body.length <= SMALL_BODY ? [encodeRecord(type, body)] : recordViews(type, body),
    );
  }

  /** Tells the sink that this was all. */
  async end(): Promise<void> {
    await this.#sink.end();
    this.#control.throwIfCancelled();
  }
}
