/** The inspection without I/O: bytes in, facts out. */

import { StreamFormatError } from '../../errors.js';
import type { DomainHeaderEvent, RecordEvent, StreamEvent, XlHeaderEvent } from '../events.js';
import { LegacyChunk, LegacyPart } from '../legacy/constants.js';
import type {
  LegacyChunkEvent,
  LegacyHeaderEvent,
  LegacyTailEvent,
  LegacyTmemEvent,
} from '../legacy/events.js';
import { DomainType, LibxcRecord, XEN_MAJOR_CONVERTED } from '../libxc/constants.js';
import { DOMAIN_HEADER, IMAGE_HEADER } from '../libxc/headers.js';
import { LibxlRecord } from '../libxl/constants.js';
import { LIBXL_HEADER } from '../libxl/header.js';
import { Scan, type ScanOptions } from '../scan.js';
import { XEND_HEADER } from '../xend/header.js';
import { XlMandatoryFlag } from '../xl/constants.js';
import { parseXlConfig, XL_HEADER } from '../xl/header.js';
import { GuestFacts } from './guest.js';
import { TmemInspection, type TmemRow } from './legacy-tmem.js';
import { LegacyImageFacts } from './legacy.js';
import { PageStatistics } from './pages.js';
import type { Inspection } from './report.js';
import { RowList } from './rows.js';

export interface InspectorOptions extends ScanOptions {
  /** True: a row for each PAGE_DATA record. Default: those that follow each other are one row. */
  readonly pages?: boolean | undefined;
  /** Most rows of `records`. Default 10 000; with `pages` a million. */
  readonly maxRecords?: number | undefined;
}

const RECORDS_MAX = 10_000;
const RECORDS_MAX_PAGES = 1_000_000;
const CHECKPOINTS_MAX = 10_000;

/**
 * Inspects a stream from its bytes. Nothing in them makes it throw; use as Verifier.
 *
 * Reads page contents once, to find zero pages. Holds a bit or two for each frame of the guest, the header of one
 * record at a time, and a bounded number of rows.
 */
export class Inspector {
  readonly #scan: Scan;
  readonly #rows: RowList;
  readonly #pages = new PageStatistics();
  readonly #guest = new GuestFacts();
  readonly #legacy = new LegacyImageFacts(this.#guest);
  readonly #tmem = new TmemInspection();
  readonly #counts: Record<string, number> = {};
  readonly #checkpoints: number[] = [];
  #checkpointCount = 0;
  #problems = 0;
  #xl: Inspection['xl'];
  #xend: Inspection['xend'];
  #libxl: Inspection['libxl'];
  #image: Inspection['image'];
  #domain: Inspection['domain'];
  #inspection: Inspection | undefined;

  constructor(options: InspectorOptions = {}) {
    const { pages = false, maxRecords = pages ? RECORDS_MAX_PAGES : RECORDS_MAX } = options;
    this.#rows = new RowList(maxRecords, !pages);
    this.#scan = new Scan(options, (event) => {
      this.#event(event);
    });
  }

  /** Bytes that are of use now: for a source that must not be read beyond the stream. 0 once nothing more is. */
  get want(): number {
    return this.#inspection === undefined ? this.#scan.want : 0;
  }

  /** Takes any number of bytes; those of no use any more are ignored. */
  feed(bytes: Uint8Array): void {
    if (this.#inspection === undefined) this.#scan.feed(bytes);
  }

  /** Says that no bytes follow. Returns what was found; the same each time. */
  end(): Inspection {
    this.#inspection ??= this.#finish();
    return this.#inspection;
  }

  #event(event: StreamEvent): void {
    switch (event.kind) {
      case 'page-bytes':
        this.#pages.contents(event);
        return;
      case 'page-data':
        this.#count(event.layer === 'legacy' ? LegacyPart.PAGE_BATCH : 'PAGE_DATA');
        this.#legacy.batch(event);
        this.#pages.table(event);
        this.#rows.pageData(event, this.#problem(event.violation));
        return;
      case 'page-data-end':
        return;
      case 'record':
        this.#record(event);
        return;
      case 'xl-header':
        this.#xlHeader(event);
        return;
      case 'libxl-header': {
        const { version, options } = event.header;
        this.#libxl = { version, options };
        const about = `version ${version}, options 0x${options.toString(16)}`;
        this.#rows.add('libxl', LIBXL_HEADER, event, { length: event.raw.length, about });
        return;
      }
      case 'image-header': {
        const { version, options } = event.header;
        this.#image = { version, options };
        this.#rows.add('libxc', IMAGE_HEADER, event, {
          length: event.raw.length,
          about: `version ${version}`,
        });
        return;
      }
      case 'domain-header':
        this.#domainHeader(event);
        return;
      case 'xend-header': {
        const { config, raw } = event;
        this.#xend = { configLength: config.length };
        const about = `${config.length} bytes of configuration`;
        this.#rows.add('xend', XEND_HEADER, event, { length: raw.length, about });
        return;
      }
      case 'legacy-header':
        this.#legacyHeader(event);
        return;
      case 'legacy-chunk':
        this.#legacyChunk(event);
        return;
      case 'legacy-tmem':
        this.#legacyTmem(event);
        return;
      case 'legacy-tail':
        this.#legacyTail(event);
        return;
    }
  }

  #xlHeader(event: XlHeaderEvent): void {
    const { mandatoryFlags, optionalFlags, config } = event.header;
    let parsed: Record<string, unknown> = {};
    let problem: string | undefined;
    if (config !== undefined && (mandatoryFlags & XlMandatoryFlag.JSON) !== 0) {
      try {
        parsed = parseXlConfig(config, event);
      } catch (error) {
        problem = this.#problem(error);
      }
    }
    const create = objectOf(parsed['c_info']);
    const build = objectOf(parsed['b_info']);
    const text = (value: unknown): string | undefined => (typeof value === 'string' ? value : undefined);
    const number = (value: unknown): number | undefined => (typeof value === 'number' ? value : undefined);
    this.#xl = {
      mandatoryFlags,
      optionalFlags,
      configLength: config?.length ?? 0,
      name: text(create['name']),
      type: text(create['type']),
      maxVcpus: number(build['max_vcpus']),
      maxMemoryKib: number(build['max_memkb']),
    };
    const about = `flags 0x${mandatoryFlags.toString(16)}, ${config === undefined ? 'no' : `${config.length} characters of`} configuration`;
    this.#rows.add('xl', XL_HEADER, event, { length: event.raw.length, about, problem });
  }

  #domainHeader(event: DomainHeaderEvent): void {
    const { type, pageShift, xenMajor, xenMinor } = event.header;
    const known = { [DomainType.X86_PV]: 'x86 PV', [DomainType.X86_HVM]: 'x86 HVM' } as Record<
      number,
      string
    >;
    const guest = known[type] ?? `unknown (${type})`;
    const converted = xenMajor === XEN_MAJOR_CONVERTED;
    const xenVersion = converted ? undefined : `${xenMajor}.${xenMinor}`;
    this.#domain = { guest, pageShift, xenVersion, converted };
    const about = `${guest}, ${converted ? 'converted from a legacy stream' : `Xen ${xenMajor}.${xenMinor}`}`;
    const problem = this.#problem(event.violation);
    this.#rows.add('libxc', DOMAIN_HEADER, event, { length: event.raw.length, about, problem });
  }

  #record(event: RecordEvent): void {
    const { layer, name, type, body } = event;
    this.#count(layer === 'libxl' && type === LibxlRecord.END ? 'libxl END' : name);
    const told = this.#tell(event.violation, () =>
      layer === 'libxc' ? this.#guest.libxc(event) : this.#guest.libxl(event),
    );
    this.#rows.add(layer, name, event, { type, length: body.length, ...told });
    if (layer !== 'libxc') return;
    if (type === LibxcRecord.VERIFY) this.#pages.begin('verify');
    else if (type === LibxcRecord.CHECKPOINT) this.#checkpoint(event.offset);
  }

  #checkpoint(offset: number): void {
    this.#pages.begin('checkpoint');
    this.#checkpointCount++;
    if (this.#checkpoints.length < CHECKPOINTS_MAX) this.#checkpoints.push(offset);
  }

  #legacyHeader(event: LegacyHeaderEvent): void {
    const about = this.#legacy.header(event);
    const problem = this.#problem(event.violation);
    this.#rows.add('legacy', LegacyPart.HEADER, event, { length: event.length, about, problem });
  }

  #legacyChunk(event: LegacyChunkEvent): void {
    const { id, name, body } = event;
    if (id !== LegacyChunk.END) this.#count(name);
    const told = this.#tell(event.violation, () => this.#legacy.chunk(event));
    this.#rows.add('legacy', name, event, { type: id, length: body.length, ...told });
    if (id === LegacyChunk.ENABLE_VERIFY_MODE) this.#pages.begin('verify');
  }

  #legacyTmem(event: LegacyTmemEvent): void {
    this.#tmemRow(this.#tmem.event(event), event.violation);
  }

  #tmemRow(row: TmemRow | undefined, violation?: StreamFormatError): void {
    if (row === undefined) return;
    const { name, offset, length, about } = row;
    this.#count(name);
    this.#rows.add('legacy', name, { offset }, { length, about, problem: this.#problem(violation) });
  }

  #legacyTail(event: LegacyTailEvent): void {
    const { part, body, completes } = event;
    this.#count(part);
    const told = this.#tell(event.violation, () => this.#legacy.tail(event));
    this.#rows.add('legacy', part, event, { length: body.length, ...told });
    if (!completes) return;
    this.#legacy.endCheckpoint();
    this.#checkpoint(this.#scan.position);
  }

  /** A few words on a record; or, if it cannot be decoded, why a receiver would refuse it. */
  #tell(
    violation: StreamFormatError | undefined,
    about: () => string,
  ): { about: string; problem: string | undefined } {
    const problem = this.#problem(violation);
    if (problem !== undefined) return { about: '', problem };
    try {
      return { about: about(), problem: undefined };
    } catch (error) {
      return { about: '', problem: this.#problem(error) };
    }
  }

  /** A legacy image with one complete checkpoint is a plain one, unless it says otherwise. */
  #plainLegacy(): void {
    const { facts } = this.#legacy;
    if (facts === undefined || this.#checkpointCount !== 1) return;
    if (!facts.lastCheckpoint && (facts.compression !== undefined || !this.#scan.complete)) return;
    this.#checkpointCount = 0;
    this.#checkpoints.length = 0;
  }

  /** Counts what a receiver would refuse. Returns the reason. */
  #problem(error: unknown): string | undefined {
    if (error === undefined) return undefined;
    if (!(error instanceof StreamFormatError)) throw error as Error;
    this.#problems++;
    return error.path === undefined ? error.reason : `${error.path}: ${error.reason}`;
  }

  #count(name: string): void {
    const key = name.startsWith('unknown') ? 'unknown' : name;
    this.#counts[key] = (this.#counts[key] ?? 0) + 1;
  }

  #finish(): Inspection {
    const scan = this.#scan;
    scan.end();
    this.#tmemRow(this.#tmem.endPool());
    this.#plainLegacy();
    const { error } = scan;
    const guest = this.#guest;
    const legacy = this.#legacy.facts;
    const kind = this.#domain?.guest ?? (legacy && (legacy.guest === 'pv' ? 'x86 PV' : 'x86 HVM'));
    return {
      format: scan.format,
      bytes: scan.bytes,
      complete: scan.complete,
      error: error && {
        code: error.code,
        offset: error.offset,
        record: error.record,
        path: error.path,
        message: error.reason,
      },
      problems: this.#problems,
      trailingBytes: scan.trailing,
      xl: this.#xl,
      xend: this.#xend,
      legacy,
      tmem: this.#tmem.facts,
      libxl: this.#libxl,
      image: this.#image,
      domain: this.#domain,
      pv: kind === 'x86 PV' ? guest.pv : undefined,
      hvm: kind === 'x86 HVM' ? guest.hvm : undefined,
      tsc: guest.tsc,
      cpuidLeaves: guest.cpuidLeaves,
      msrs: guest.msrs,
      emulator: guest.emulator,
      pages: this.#pages.counts(),
      iterations: this.#pages.iterations,
      iterationsOmitted: this.#pages.iterationsOmitted,
      checkpoints: this.#checkpoints,
      checkpointCount: this.#checkpointCount,
      counts: this.#counts,
      records: this.#rows.rows,
      recordsOmitted: this.#rows.omitted,
    };
  }
}

function objectOf(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}
