/**
 * Legacy (v1) images of Xen 4.0 to 4.5 to Migration v2 streams (convert-legacy-stream, which xen-utils has for it).
 *
 * An image goes through in one pass: page batches become PAGE_DATA as they come, the rest when its checkpoint is complete.
 * Only an image of Remus needs more, since its last complete checkpoint is what comes out: see remus.ts.
 */
import { tmpdir } from 'node:os';
import { StreamFormatError, UsageError, withCleanupError } from '../errors.js';
import { JobControl, now } from '../job.js';
import { formatError, StreamErrorCode } from '../stream/codes.js';
import type { StreamEvent } from '../stream/events.js';
import { LegacyChunk } from '../stream/legacy/constants.js';
import type { LegacyHeader, LegacyHeaderEvent } from '../stream/legacy/events.js';
import { StreamReader } from '../stream/stream-reader.js';
import { XlMandatoryFlag } from '../stream/xl/constants.js';
import { encodeXlHeader } from '../stream/xl/header.js';
import { openSink, openSource } from '../transport/open.js';
import type { ByteSink, ByteSource } from '../transport/types.js';
import { wholeFile } from '../transport/whole.js';
import { loadBase } from './base.js';
import { CheckpointState } from './checkpoint.js';
import { RemusCheckpoints } from './remus.js';
import { TmemKeeper } from './tmem.js';
import type { ConvertJob, ConvertOptions, ConvertOutput, ConvertResult } from './types.js';
import { ConvertedWriter } from './writer.js';
import { configOfXend, parseSxp } from './xend/index.js';

/**
 * Starts to convert a legacy image, bare or behind xl's or xend's header, to a v2 stream.
 *
 * Of a Remus image the last complete checkpoint comes out. Its checkpoints, and the guest's memory if they are compressed,
 * are kept in a temporary file meanwhile; compressed ones need an input that can be read twice, or an output that is a
 * file.
 *
 * @returns The running job; its `result` rejects with StreamFormatError for what is wrong with the image,
 *   TransportError, CancelledError. Nothing is left under the name of a file that `to` is then
 * @throws UsageError for options that cannot be
 */
export function startConvert(options: ConvertOptions): ConvertJob {
  const { width, heartbeat } = options;
  if (width !== undefined && ![32, 64].includes(width)) throw new UsageError(`width: ${String(width)}`);
  if (heartbeat !== undefined && !(heartbeat > 0)) throw new UsageError(`heartbeat: ${heartbeat} ms`);
  const control = new JobControl('convert', undefined, options);
  const result = control.run(async () => {
    const { to } = options;
    if (typeof to !== 'string' || to === '-') return (await convertInto(control, options, to)).result;
    let done: Converted | undefined;
    try {
      await wholeFile(to, async (path) => {
        done = await convertInto(control, options, path);
      });
      return (done as unknown as Converted).result;
    } catch (error) {
      // The image was complete, but not put in its place.
      await done?.undo().catch((later: unknown) => void withCleanupError(error, later));
      throw error;
    }
  });
  return {
    result,
    get status() {
      return control.status;
    },
    update: () => undefined,
    cancel: (reason) => control.cancel(reason),
  };
}

/** Converts a legacy image. See `startConvert`. */
export function convert(options: ConvertOptions): Promise<ConvertResult> {
  return startConvert(options).result;
}

/** A conversion that is over, and what takes back all of it but the image itself. */
interface Converted {
  readonly result: ConvertResult;
  undo(): Promise<void>;
}

async function convertInto(
  control: JobControl,
  options: ConvertOptions,
  to: ConvertOptions['to'],
): Promise<Converted> {
  const { signal } = control;
  const source = await openSource(options.from, { signal });
  let converted: Converted;
  try {
    const sink = await openSink(to, { signal });
    // Without this a write to a pipe that nobody reads would wait for ever.
    const onAbort = (): void => sink.abort(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    const conversion = new Conversion(
      control,
      options,
      source,
      sink,
      typeof to === 'string' ? to : undefined,
    );
    try {
      converted = { result: await conversion.run(), undo: () => conversion.undo() };
    } catch (error) {
      sink.abort(error);
      await conversion.undo().catch((later: unknown) => void withCleanupError(error, later));
      throw error;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
    await conversion.release();
  } catch (error) {
    await source.close().catch((later: unknown) => void withCleanupError(error, later));
    throw error;
  }
  await source.close();
  return converted;
}

class Conversion {
  readonly #control: JobControl;
  readonly #options: ConvertOptions;
  readonly #source: ByteSource;
  readonly #sink: ByteSink;
  /** The output's path, if it has one. */
  readonly #path: string | undefined;
  readonly #reader: StreamReader;
  readonly #tmem: TmemKeeper;
  readonly #began = now();
  #input: ConvertResult['input'] = 'legacy';
  #xend: ConvertResult['xend'];
  #output: ConvertOutput | undefined;
  #writer: ConvertedWriter | undefined;
  #header: LegacyHeader | undefined;
  #state: CheckpointState | undefined;
  /** The last complete checkpoint. */
  #complete: CheckpointState | undefined;
  #checkpoints = 0;
  /** Offset of its end. */
  #completeEnd = 0;
  #compression = false;
  #remus: RemusCheckpoints | undefined;

  constructor(
    control: JobControl,
    options: ConvertOptions,
    source: ByteSource,
    sink: ByteSink,
    path: string | undefined,
  ) {
    this.#control = control;
    this.#options = options;
    this.#source = source;
    this.#sink = sink;
    this.#path = path;
    this.#reader = newReader(options);
    this.#tmem = new TmemKeeper(options.tmem ?? 'refuse');
  }

  async run(): Promise<ConvertResult> {
    this.#control.enter('memory');
    const cutOffAt = await this.#read().catch((error: unknown) => {
      throw this.#withWayOut(error);
    });
    const writer = this.#writer as ConvertedWriter;
    const header = this.#header as LegacyHeader;
    await this.#remus?.writeOut(writer, this.#control.signal);
    this.#control.enter('state');
    await writer.end(this.#complete as CheckpointState, this.#options.skipQemu);
    this.#control.enter('complete');
    // What the guest loses is safe before the image without it is.
    const tmem = await this.#tmem.end();
    await this.#sink.end();
    this.#control.throwIfCancelled();
    this.#control.note({ transferred: writer.bytes, pages: writer.dataPages });
    return {
      output: this.#output as ConvertOutput,
      input: this.#input,
      guest: header.guest,
      width: header.wordSize === 8 ? 64 : 32,
      guestWidth: header.guestWidth,
      p2mSize: header.p2mSize,
      bytesRead: this.#reader.position,
      bytesWritten: writer.bytes,
      pages: writer.pages,
      dataPages: writer.dataPages,
      checkpoints: this.#checkpoints,
      cutOffAt,
      compressed: this.#compression && this.#checkpoints > 1,
      temporaryBytes: this.#remus?.bytes ?? 0,
      tmem,
      xend: this.#xend,
      elapsed: now() - this.#began,
    };
  }

  /** Damage behind complete checkpoints is not passed over, but need not be the end of the guest. */
  #withWayOut(error: unknown): unknown {
    if (!(error instanceof StreamFormatError) || this.#checkpoints === 0) return error;
    const { code, reason, offset, record, path } = error;
    const before = `${this.#checkpoints} ${this.#checkpoints === 1 ? 'checkpoint before this is' : 'checkpoints before this are'} complete`;
    const wayOut = `to get the last of them, convert the first ${this.#completeEnd} bytes alone`;
    return formatError(code as StreamErrorCode, `${reason} (${before}; ${wayOut})`, { offset, record, path });
  }

  /** After a failure: nothing is left. */
  async undo(): Promise<void> {
    try {
      await this.#tmem.abort();
    } finally {
      await this.release();
    }
  }

  /** Gives up what is temporary. */
  async release(): Promise<void> {
    await this.#remus?.close();
  }

  /** Reads the image to its end. Resolves to where a checkpoint was cut off. */
  async #read(): Promise<number | undefined> {
    const reader = this.#reader;
    const source = this.#source;
    while (!reader.done) {
      const bytes = source.take(reader.want);
      if (bytes === undefined) {
        if (await this.#more(reader.want)) continue;
        try {
          const last = reader.end();
          if (last !== undefined) await this.#event(last);
        } catch (error) {
          // The sender of a Remus image never says that it stops.
          const cutOff = (error as StreamFormatError).code === StreamErrorCode.TRUNCATED;
          if (!cutOff || this.#checkpoints === 0) throw error;
          return reader.position;
        }
        return undefined;
      }
      const event = reader.feed(bytes);
      if (event === undefined) continue;
      const work = this.#event(event);
      if (work !== undefined) await work;
    }
    return undefined;
  }

  /** Waits for bytes. False at the end, or when the image may be over and nothing comes. */
  async #more(want: number): Promise<boolean> {
    const { signal } = this.#control;
    const { heartbeat } = this.#options;
    if (heartbeat === undefined || this.#checkpoints === 0 || !this.#reader.atBoundary) {
      return this.#source.wait(want, signal);
    }
    const silence = new AbortController();
    const timer = setTimeout(() => silence.abort(), heartbeat);
    try {
      return await this.#source.wait(want, AbortSignal.any([signal, silence.signal]));
    } catch (error) {
      if (!silence.signal.aborted || signal.aborted) throw error;
      return false;
    } finally {
      clearTimeout(timer);
    }
  }

  #event(event: StreamEvent): Promise<void> | undefined {
    const writer = this.#writer;
    switch (event.kind) {
      case 'page-bytes':
        this.#control.note({ transferred: writer?.bytes ?? 0, pages: writer?.dataPages ?? 0 });
        return this.#checkpoints === 0
          ? writer?.contents(event.bytes)
          : this.#remus?.contents(event.bytes, event.offset, false);
      case 'page-data':
        return this.#checkpoints === 0 ? writer?.batch(event) : this.#later().then((r) => r.table(event));
      case 'legacy-chunk':
        return this.#chunk(event);
      case 'legacy-tail':
        return this.#tail(event);
      case 'legacy-tmem':
        return this.#tmem.take(event) ?? undefined;
      case 'legacy-header':
        return this.#begin(event);
      case 'xl-header': {
        this.#input = 'xl';
        const { mandatoryFlags, optionalFlags, optionalData } = event.header;
        if ((mandatoryFlags & XlMandatoryFlag.STREAM_V2) !== 0) throw notLegacy('xl', event.offset);
        this.#open('xl');
        if (this.#output !== 'xl') return undefined;
        const flags = mandatoryFlags | XlMandatoryFlag.STREAM_V2;
        return this.#writer?.write([encodeXlHeader({ mandatoryFlags: flags, optionalFlags, optionalData })]);
      }
      case 'xend-header': {
        this.#input = 'xend';
        this.#open('xl');
        const place = { offset: event.offset + event.raw.length - event.config.length };
        const { config, notCarried, guest } = configOfXend(parseSxp(event.config, place));
        this.#xend = { config: event.config, notCarried, guest };
        return this.#output === 'xl'
          ? this.#writer?.write([encodeXlHeader({ config: JSON.stringify(config, undefined, 4) })])
          : undefined;
      }
      case 'libxl-header':
      case 'image-header':
        throw notLegacy(event.layer, event.offset);
      default:
        return undefined;
    }
  }

  #open(fallback: ConvertOutput): ConvertedWriter {
    this.#output ??= this.#options.output ?? fallback;
    return (this.#writer ??= new ConvertedWriter(this.#sink, this.#output));
  }

  async #begin({ header, offset }: LegacyHeaderEvent): Promise<void> {
    this.#header = header;
    if (this.#xend !== undefined && this.#xend.guest !== header.guest) {
      const reason = `the configuration is of a guest of kind ${this.#xend.guest}, the image of one of ${header.guest}`;
      throw formatError(StreamErrorCode.CONFIG, reason, { offset, record: 'xend header' });
    }
    this.#control.note({ total: header.p2mSize });
    const writer = this.#open('libxl');
    this.#state = this.#newState();
    if (this.#input === 'legacy' && this.#output === 'xl') await writer.write([encodeXlHeader({})]);
    await writer.headers(header);
  }

  #chunk(event: Extract<StreamEvent, { kind: 'legacy-chunk' }>): Promise<void> | undefined {
    switch (event.id) {
      case LegacyChunk.ENABLE_COMPRESSION:
        this.#compression = true;
        return undefined;
      case LegacyChunk.COMPRESSED_DATA:
        return this.#later().then((remus) => remus.contents(event.body, event.offset, true));
      case LegacyChunk.TSC_INFO:
        if (this.#checkpoints === 0) return this.#writer?.tscInfo(event.body);
        break;
    }
    this.#state?.chunk(event);
    return undefined;
  }

  #tail(event: Extract<StreamEvent, { kind: 'legacy-tail' }>): Promise<void> | undefined {
    this.#state?.tail(event);
    if (!event.completes) return undefined;
    const committed =
      this.#checkpoints === 0 ? undefined : this.#remus?.commit(event.offset, this.#control.signal);
    if (committed !== undefined) {
      return committed.then(() => {
        this.#completed();
      });
    }
    this.#completed();
    return undefined;
  }

  #completed(): void {
    this.#complete = this.#state;
    this.#state = this.#newState();
    this.#checkpoints++;
    this.#completeEnd = this.#reader.position;
  }

  #newState(): CheckpointState {
    return new CheckpointState(this.#header as LegacyHeader, this.#output as ConvertOutput);
  }

  /** What keeps the checkpoints after the first. */
  async #later(): Promise<RemusCheckpoints> {
    if (this.#remus !== undefined) return this.#remus;
    const { p2mSize } = this.#header as LegacyHeader;
    this.#remus = new RemusCheckpoints(this.#options.temporary ?? tmpdir(), p2mSize);
    if (this.#compression) {
      const written = this.#path === undefined || this.#path === '-' ? undefined : this.#path;
      const { signal } = this.#control;
      await loadBase(this.#remus.memory, {
        options: this.#options,
        reader: newReader(this.#options),
        written,
        signal,
      });
    }
    return this.#remus;
  }
}

function newReader({ guest, width, output, skipQemu = false }: ConvertOptions): StreamReader {
  const wordSize = width === undefined ? undefined : width === 32 ? 4 : 8;
  return new StreamReader({ legacy: { guest, wordSize, skipQemu: skipQemu && output === 'libxc' } });
}

function notLegacy(layer: string, offset: number): StreamFormatError {
  const reason = 'this is a v2 stream already, which needs no conversion';
  return formatError(StreamErrorCode.FORMAT, reason, { offset, record: `${layer} header` });
}
