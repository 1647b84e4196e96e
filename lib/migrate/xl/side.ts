/** A host's receiving side with xl beside this library's own toolstack: who builds a guest is decided by what it has. */
import { UsageError, XenMigrationError } from '../../errors.js';
import { runRestore } from '../../restore/restore.js';
import type { XlHeaderEvent } from '../../stream/events.js';
import { recogniseFormat, RECOGNISE_SIZE } from '../../stream/recognise.js';
import { XlMandatoryFlag } from '../../stream/xl/constants.js';
import { XlReader } from '../../stream/xl/reader.js';
import type { Toolstack } from '../../toolstack/toolstack.js';
import { needsXl } from '../../toolstack/xl/needs.js';
import { xlToolstack } from '../../toolstack/xl/toolstack.js';
import type { ByteSource } from '../../transport/types.js';
import { overridden } from '../naming.js';
import { XlBuild, type XlRestoreSettings } from './build.js';
import { XlRestore } from './restore.js';

export interface XlSideSettings extends XlRestoreSettings {
  /** Which guests xl builds. Default `needed`: those that this library's own toolstack cannot build (`needsXl`). */
  readonly builds?: 'needed' | 'all' | undefined;
}

/** What takes the places of `host.toolstack` and `runRestore` in a receiver. The two belong together. */
export interface XlSide {
  /**
   * The inner toolstack, but that `createDomain` has xl begin a restore if the guest needs it, and that xl unpauses,
   * renames and destroys what it has built.
   */
  readonly toolstack: Toolstack;
  /**
   * `runRestore` for either kind of guest. A domain that xl builds is made, like any other, by `createDomain` of
   * `options.toolstack`, which is `toolstack` or something around it. What only libxl and the helper know is left empty
   * in its result: `populated`, and for PV guests `storeGfn` and `consoleGfn`.
   */
  readonly restore: typeof runRestore;
}

/**
 * A side for one receiver or many.
 *
 * `restore` rejects as `runRestore` does, and with XlError if xl failed or is missing. Then xl is ended, and what it has
 * built is destroyed.
 *
 * @param inner The toolstack of a real Xen host; stays its owner's
 */
export function xlSide(inner: Toolstack, settings: XlSideSettings = {}): XlSide {
  /** Domains that xl has built, or is building. */
  const xls = new Set<number>();
  /** Those whose stream is still to come. */
  const builds = new Map<number, XlBuild>();
  const { program, commandMs, builds: which = 'needed', finishMs } = settings;
  const byXl = (config: string): boolean => which === 'all' || needsXl(config);
  const ofXl = xlToolstack(inner, { program, commandMs, isXls: (domid) => xls.has(domid) });

  const toolstack = overridden(ofXl, {
    async createDomain(config, options) {
      if (!byXl(config)) return inner.createDomain(config, options);
      // It is xl's from its first moment on, whatever becomes of it.
      const build = await XlBuild.start(config, everything, settings, options?.signal);
      xls.add(build.domid);
      builds.set(build.domid, build);
      return build.domid;
    },
    async destroy(domid) {
      const build = builds.get(domid);
      builds.delete(domid);
      if (build === undefined) return ofXl.destroy(domid);
      // While it reads its stream, xl is the domain's owner.
      const reason = new XenMigrationError('ERR_XEN_XL', 'the domain is to be destroyed');
      await build.fail(reason);
      const [failure] = reason.cleanupErrors;
      // eslint-disable-next-line @typescript-eslint/only-throw-error -- as it came
      if (failure !== undefined) throw failure;
    },
  });
  /** All of it by xl, for domains that have no number yet. */
  const everything = xlToolstack(inner, { program, commandMs });

  const restore: typeof runRestore = async (control, host, source, options) => {
    const own = options.toolstack ?? toolstack;
    const { format = 'auto', domid } = options;
    const first = await Start.read(source, control.signal, format === 'auto' || format === 'xl');
    const config = options.config ?? first.config;
    if (domid !== undefined || first.reader === undefined || config === undefined || !byXl(config)) {
      return runRestore(control, host, first.again(), { ...options, toolstack: own });
    }
    if (options.wiring !== undefined) throw new UsageError('xl wires the domains that it builds by itself');
    control.enter('setup');
    const made = await own.createDomain(config, { signal: control.signal });
    const build = builds.get(made);
    if (build === undefined) throw new UsageError('the toolstack given for the restore is not that of xl');
    control.domid = made;
    try {
      const { reader } = first;
      const parts = { control, source, options, reader, config: first.config, build, finishMs };
      const result = await new XlRestore(parts).run();
      builds.delete(made);
      if (options.run !== false) await own.unpause(made);
      return result;
    } catch (error) {
      builds.delete(made);
      throw await build.fail(error);
    }
  };
  return { toolstack, restore };
}

/** `xlSide(…).restore` of the host's own toolstack: xl builds every guest, with or without need. */
export const restoreByXl: typeof runRestore = (control, host, source, options) =>
  xlSide(options.toolstack ?? host.toolstack, { builds: 'all' }).restore(control, host, source, {
    ...options,
    toolstack: undefined,
  });

/** The beginning of a stream, up to the end of xl's header if there is one. */
class Start {
  /** Has read the header; undefined if the stream is none of xl's, or a legacy one. */
  readonly reader: XlReader | undefined;
  readonly #source: ByteSource;
  readonly #raw: Uint8Array;
  readonly #header: XlHeaderEvent | undefined;

  private constructor(
    source: ByteSource,
    raw: Uint8Array,
    header: XlHeaderEvent | undefined,
    reader: XlReader | undefined,
  ) {
    this.#source = source;
    this.#raw = raw;
    this.#header = header;
    this.reader = reader;
  }

  /** The configuration, if it is in JSON. */
  get config(): string | undefined {
    const header = this.#header?.header;
    if (header === undefined || (header.mandatoryFlags & XlMandatoryFlag.JSON) === 0) return undefined;
    return header.config;
  }

  /** @param maybe Whether the stream may be one of xl */
  static async read(source: ByteSource, signal: AbortSignal, maybe: boolean): Promise<Start> {
    const first = maybe ? await exactly(source, RECOGNISE_SIZE, signal) : new Uint8Array(0);
    if (first.length < RECOGNISE_SIZE || recogniseFormat(first) !== 'xl') {
      return new Start(source, first, undefined, undefined);
    }
    const reader = new XlReader();
    let event = reader.feed(first);
    while (event === undefined) {
      const bytes = await exactly(source, 1, signal, reader.want);
      if (bytes.length === 0) reader.end();
      else event = reader.feed(bytes);
    }
    const header = event as XlHeaderEvent;
    const v2 = (header.header.mandatoryFlags & XlMandatoryFlag.STREAM_V2) !== 0;
    return new Start(source, header.raw, header, v2 ? reader : undefined);
  }

  /** The whole stream, from its beginning. */
  again(): ByteSource {
    return new Repeated(this.#raw, this.#source);
  }
}

/** `least` bytes, up to `most`; fewer at the end of the source. A copy. */
async function exactly(
  source: ByteSource,
  least: number,
  signal: AbortSignal,
  most = least,
): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let length = 0;
  while (length < least) {
    const piece = source.take(most - length);
    if (piece !== undefined) {
      pieces.push(Uint8Array.from(piece));
      length += piece.length;
    } else if (!(await source.wait(most - length, signal))) break;
  }
  return Buffer.concat(pieces);
}

/** A source whose first bytes have been taken already, and are given once more. */
class Repeated implements ByteSource {
  readonly #source: ByteSource;
  #left: Uint8Array;

  constructor(first: Uint8Array, source: ByteSource) {
    this.#left = first;
    this.#source = source;
  }

  get position(): number {
    return this.#source.position - this.#left.length;
  }

  take(max: number): Uint8Array | undefined {
    if (this.#left.length === 0) return this.#source.take(max);
    const bytes = this.#left.subarray(0, max);
    this.#left = this.#left.subarray(bytes.length);
    return bytes;
  }

  async wait(want: number, signal?: AbortSignal): Promise<boolean> {
    return this.#left.length > 0 || this.#source.wait(want, signal);
  }

  close(): Promise<void> {
    return this.#source.close();
  }
}
