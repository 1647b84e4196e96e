/** `RestoreOps` for x86 HVM and PVH guests. */
import { HvmParam, hvmParamName } from '../abi/hvm.js';
import { StreamFormatError } from '../errors.js';
import { INVALID_FRAME } from '../host/host.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { RecordEvent } from '../stream/events.js';
import { RECORD_HEADER_SIZE } from '../stream/framing.js';
import { LibxcRecord } from '../stream/libxc/constants.js';
import { decodeHvmContext, decodeHvmParams } from '../stream/libxc/hvm.js';
import type { MissingStaticData } from '../toolstack/toolstack.js';
import type { RestoreContext, RestoreOps, RingFrames } from './ops.js';
import { X86StaticData } from './static-data.js';

/** Highest frame of x86: 52 physical address bits. */
const PFN_MAX = 2 ** 40 - 1;

/** Pages of rings whose other ends are gone: they begin empty. */
const CLEARED: readonly number[] = [
  HvmParam.CONSOLE_PFN,
  HvmParam.STORE_PFN,
  HvmParam.IOREQ_PFN,
  HvmParam.BUFIOREQ_PFN,
];

export class X86HvmRestore implements RestoreOps {
  readonly guestType = 'hvm';
  readonly maxPfn = PFN_MAX;
  readonly #context: RestoreContext;
  readonly #staticData: X86StaticData;
  #hvmContext: Uint8Array | undefined;
  #storeGfn = INVALID_FRAME;
  #consoleGfn = INVALID_FRAME;

  constructor(context: RestoreContext) {
    this.#context = context;
    this.#staticData = new X86StaticData(context.domain);
  }

  async setup(): Promise<void> {
    // gfns are pfns, and the headers have been compared with the domain.
  }

  pfnsToGfns(pfns: Float64Array, count: number, gfns: Float64Array): void {
    gfns.set(pfns.subarray(0, count));
  }

  setGfns(): void {
    // The guest's physical map is Xen's.
  }

  setGfnRun(): void {
    // As above.
  }

  setPageTypes(): void {
    // Page tables of an HVM guest hold its own frame numbers: no page is special.
  }

  holdsFrames(): boolean {
    return false;
  }

  collectReferences(): number {
    return 0;
  }

  localisePage(): void {
    // Never called: no page holds frames.
  }

  async processRecord(record: RecordEvent): Promise<boolean> {
    switch (record.type) {
      case LibxcRecord.HVM_CONTEXT:
        // Kept to the end: parameters, which may come after it, decide what a valid context is.
        this.#hvmContext = decodeHvmContext(record.body, record);
        return true;
      case LibxcRecord.HVM_PARAMS:
        await this.#hvmParams(record);
        return true;
      default:
        return this.#staticData.processRecord(record);
    }
  }

  async staticDataComplete(): Promise<MissingStaticData> {
    return this.#staticData.complete();
  }

  async streamComplete(offset: number): Promise<RingFrames> {
    if (this.#hvmContext === undefined) {
      const where = { offset, record: 'HVM_CONTEXT' };
      throw new StreamFormatError(StreamErrorCode.MISSING, 'the stream has none', where);
    }
    const { domain, wiring } = this.#context;
    await domain.setHvmParam(HvmParam.STORE_EVTCHN, BigInt(wiring.storeEvtchn));
    await domain.setHvmParam(HvmParam.CONSOLE_EVTCHN, BigInt(wiring.consoleEvtchn));
    await domain.setHvmContext(this.#hvmContext);
    const rings = { storeGfn: this.#storeGfn, consoleGfn: this.#consoleGfn };
    const { storeDomid, consoleDomid } = wiring;
    await domain.seedGrantTable({ ...rings, storeDomid, consoleDomid });
    return rings;
  }

  async cleanup(): Promise<void> {
    this.#hvmContext = undefined;
  }

  async #hvmParams(record: RecordEvent): Promise<void> {
    const { domain, populator } = this.#context;
    const { entries } = decodeHvmParams(record.body, record);
    for (const [i, { index, value }] of entries.entries()) {
      // Sent by Xen 4.6 to 4.14; a property of the domain's builder that no longer is a parameter.
      if (index === HvmParam.PAE_ENABLED) continue;
      if (CLEARED.includes(index)) {
        if (value > BigInt(PFN_MAX)) {
          throw new StreamFormatError(
            StreamErrorCode.FIELD,
            `${hvmParamName(index)} 0x${value.toString(16)} is no frame`,
            {
              offset: record.offset + RECORD_HEADER_SIZE + 8 + i * 16 + 8,
              record: record.name,
              path: `entries[${i}].value`,
            },
          );
        }
        const gfn = Number(value);
        if (index === HvmParam.CONSOLE_PFN) this.#consoleGfn = gfn;
        if (index === HvmParam.STORE_PFN) this.#storeGfn = gfn;
        // A page that the stream did not bring has nothing to clear.
        if (populator.has(gfn)) await domain.clearPage(gfn);
      }
      await domain.setHvmParam(index, value);
    }
  }
}
