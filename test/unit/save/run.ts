/** Runs a save of a fake guest and takes apart what it wrote. */
import { pageTypeHasData } from '../../../lib/abi/pages.js';
import { JobControl, type JobOptions } from '../../../lib/job.js';
import { runSave } from '../../../lib/save/save.js';
import { SaveSteering } from '../../../lib/save/steering.js';
import type { SaveOptions, SaveResult } from '../../../lib/save/types.js';
import type { StreamEvent } from '../../../lib/stream/events.js';
import { readStream } from '../../../lib/stream/read-stream.js';
import { MemorySource } from '../../../lib/transport/memory.js';
import { DOMID, FakeSink, type FakeWorld } from './fake.js';

export interface Run {
  readonly control: JobControl;
  readonly steering: SaveSteering;
  readonly sink: FakeSink;
  readonly result: Promise<SaveResult>;
}

/** Starts a save into a collecting sink. Bare libxc unless told otherwise. */
export function start(
  world: FakeWorld,
  options: Partial<SaveOptions> = {},
  jobOptions: JobOptions = {},
  beforehand: (control: JobControl) => void = () => undefined,
): Run {
  const all: SaveOptions = { domid: DOMID, format: 'libxc', ...options };
  const control = new JobControl('save', DOMID, jobOptions);
  const steering = new SaveSteering(all);
  const sink = new FakeSink(world);
  beforehand(control);
  const result = control.run(() => runSave(control, world.host, sink, all, steering));
  result.catch(() => undefined);
  return { control, steering, sink, result };
}

/** One PAGE_DATA record. */
export interface PageRecord {
  readonly pfns: number[];
  readonly types: number[];
  readonly contents: Buffer;
}

export interface Parsed {
  /** Names of headers and records in order; PAGE_DATA as `PAGE_DATA <count>`. */
  readonly names: string[];
  readonly records: ReadonlyMap<string, Uint8Array[]>;
  readonly pages: PageRecord[];
  readonly events: StreamEvent[];
}

export async function parse(bytes: Uint8Array): Promise<Parsed> {
  const names: string[] = [];
  const records = new Map<string, Uint8Array[]>();
  const pages: PageRecord[] = [];
  const events: StreamEvent[] = [];
  const source = new MemorySource(bytes);
  let contents: Buffer[] = [];
  for await (const event of readStream(source)) {
    events.push(event);
    switch (event.kind) {
      case 'record':
        names.push(event.name);
        records.set(event.name, [...(records.get(event.name) ?? []), event.body]);
        break;
      case 'page-data':
        names.push(`PAGE_DATA ${event.count}`);
        contents = [];
        pages.push({
          pfns: [...event.pfns.subarray(0, event.count)],
          types: [...event.types.subarray(0, event.count)],
          contents: Buffer.alloc(0),
        });
        break;
      case 'page-bytes':
        contents.push(Buffer.from(event.bytes));
        break;
      case 'page-data-end':
        Object.assign(pages.at(-1)!, { contents: Buffer.concat(contents) });
        break;
      default:
        names.push(event.kind);
    }
  }
  if (source.take(1) !== undefined) throw new Error('bytes after the end of the stream');
  return { names, records, pages, events };
}

/** What a receiver would have in memory: contents by pfn, undefined for entries without data. Later ones win. */
export function received(pages: readonly PageRecord[]): Map<number, Buffer | undefined> {
  const memory = new Map<number, Buffer | undefined>();
  for (const { pfns, types, contents } of pages) {
    let at = 0;
    pfns.forEach((pfn, i) => {
      if (!pageTypeHasData(types[i]!)) {
        memory.set(pfn, undefined);
        return;
      }
      memory.set(pfn, contents.subarray(at, at + 4096));
      at += 4096;
    });
  }
  return memory;
}

/** Runs a save to its end. */
export async function runToEnd(
  world: FakeWorld,
  options: Partial<SaveOptions> = {},
): Promise<{ result: SaveResult; sink: FakeSink } & Parsed> {
  const { result, sink } = start(world, options);
  const value = await result;
  return { result: value, sink, ...(await parse(sink.bytes)) };
}
