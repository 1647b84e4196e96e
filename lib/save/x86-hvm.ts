/** Saving HVM and PVH guests (xg_sr_save_x86_hvm.c). */
import { SAVED_HVM_PARAMS } from '../abi/hvm.js';
import { GuestError } from '../errors.js';
import { DomainType, LibxcRecord } from '../stream/libxc/constants.js';
import { encodeHvmParams, type HvmParamEntry } from '../stream/libxc/hvm.js';
import { SaveErrorCode } from './codes.js';
import type { SaveContext } from './context.js';
import { Normalised, type SaveOps } from './ops.js';
import { writeCpuPolicy, writeTscInfo } from './x86-common.js';

/** Guest frames are what hypercalls take, and pages go out as they are: most steps have nothing to do. */
export class HvmSaveOps implements SaveOps {
  readonly domainType = DomainType.X86_HVM;
  readonly guestType = 'hvm';
  readonly #context: SaveContext;
  #deviceModelLogDirty = false;

  constructor(context: SaveContext) {
    this.#context = context;
  }

  async setup(): Promise<number> {
    const { control, domain, toolstack, domid } = this.#context;
    const p2mSize = (await domain.maxGpfn()) + 1;
    control.throwIfCancelled();
    // Also for a guest that is saved suspended: QEMU's own writes between here and the end must not be lost. And also
    // if it fails: nobody knows then what the device model made of it.
    this.#deviceModelLogDirty = true;
    await toolstack.setDeviceModelLogDirty(domid, true);
    control.throwIfCancelled();
    return p2mSize;
  }

  staticData(): Promise<void> {
    return writeCpuPolicy(this.#context);
  }

  async startOfStream(): Promise<void> {
    // Nothing precedes the pages.
  }

  async startOfCheckpoint(): Promise<void> {
    // Nothing to do.
  }

  async endOfCheckpoint(): Promise<void> {
    const context = this.#context;
    const { control, domain, out } = context;
    await writeTscInfo(context);

    const hvmContext = await domain.hvmContext();
    control.throwIfCancelled();
    if (hvmContext.length === 0) throw new GuestError(SaveErrorCode.VCPU_STATE, 'the HVM context is empty');
    await out.record(LibxcRecord.HVM_CONTEXT, hvmContext);

    const entries: HvmParamEntry[] = [];
    for (const index of SAVED_HVM_PARAMS) {
      const value = await domain.hvmParam(index);
      control.throwIfCancelled();
      if (value !== 0n) entries.push({ index, value });
    }
    if (entries.length > 0) await out.record(LibxcRecord.HVM_PARAMS, encodeHvmParams({ entries }));
  }

  async checkVmState(): Promise<void> {
    // Nothing of an HVM guest can change that log-dirty does not tell.
  }

  pfnsToGfns(pfns: Float64Array, count: number, gfns: Float64Array): void {
    gfns.set(count === pfns.length ? pfns : pfns.subarray(0, count));
  }

  normalisePage(): Normalised {
    return Normalised.AS_IS;
  }

  async cleanup(): Promise<void> {
    if (!this.#deviceModelLogDirty) return;
    this.#deviceModelLogDirty = false;
    await this.#context.toolstack.setDeviceModelLogDirty(this.#context.domid, false);
  }
}
