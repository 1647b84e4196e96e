/** The inspection without I/O: bytes in, facts out. */

import { StreamFormatError } from '../../errors.js';
import type { DomainHeaderEvent, RecordEvent, StreamEvent, XlHeaderEvent } from '../events.js';
import { DomainType, LibxcRecord, XEN_MAJOR_CONVERTED } from '../libxc/constants.js';
import { DOMAIN_HEADER, IMAGE_HEADER } from '../libxc/headers.js';
import { LibxlRecord } from '../libxl/constants.js';
import { LIBXL_HEADER } from '../libxl/header.js';
import { Scan, type ScanOptions } from '../scan.js';
import { XlMandatoryFlag } from '../xl/constants.js';
import { parseXlConfig, XL_HEADER } from '../xl/header.js';
import { GuestFacts } from './guest.js';
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
  readonly #counts: Record<string, number> = {};
  readonly #checkpoints: number[] = [];
  #checkpointCount = 0;
  #problems = 0;
  #xl: Inspection['xl'];
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
        this.#count('PAGE_DATA');
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
    let about = '';
    let problem = this.#problem(event.violation);
    if (problem === undefined) {
      try {
        about = layer === 'libxc' ? this.#guest.libxc(event) : this.#guest.libxl(event);
      } catch (error) {
        problem = this.#problem(error);
      }
    }
    this.#rows.add(layer, name, event, { type, length: body.length, about, problem });
    if (layer !== 'libxc') return;
    if (type === LibxcRecord.VERIFY) this.#pages.begin('verify');
    else if (type === LibxcRecord.CHECKPOINT) {
      this.#pages.begin('checkpoint');
      this.#checkpointCount++;
      if (this.#checkpoints.length < CHECKPOINTS_MAX) this.#checkpoints.push(event.offset);
    }
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
    const { error } = scan;
    const guest = this.#guest;
    const kind = this.#domain?.guest;
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
