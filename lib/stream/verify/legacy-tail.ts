/** Checks of a legacy image's tail: vcpus, shared info, the hypervisor's context, QEMU's state. */

import { HvmParam } from '../../abi/hvm.js';
import { StreamErrorCode } from '../codes.js';
import { LegacyPart, QEMU_MAGIC, QEMU_SIGNATURE_SIZE } from '../legacy/constants.js';
import { decodeMagicPfns } from '../legacy/decode.js';
import type { LegacyHeader, LegacyHeaderEvent, LegacyTailEvent } from '../legacy/events.js';
import { vcpuExtendedHead } from '../libxc/pv.js';
import type { VerifyContext } from './context.js';
import type { FrameSet } from './frame-set.js';
import { checkHvmContext } from './hvm.js';
import { vcpuFrames, type VcpuFrame } from './pv.js';

/** Follows the tails of an image. */
export class LegacyTailChecker {
  readonly #context: VerifyContext;
  /** Frames whose contents have come. */
  readonly #sent: FrameSet;
  #header: LegacyHeader | undefined;
  /** Where the p2m frame list ends. */
  #headerEnd = 0;
  #checkedP2m = false;
  #vcpus = 0;

  constructor(context: VerifyContext, sent: FrameSet) {
    this.#context = context;
    this.#sent = sent;
  }

  begin(event: LegacyHeaderEvent): void {
    this.#header = event.header;
    this.#headerEnd = event.offset + event.length;
  }

  part(event: LegacyTailEvent): void {
    const { part } = event;
    if (event.violation !== undefined) this.#context.findings.thrown(event.violation);
    switch (part) {
      case LegacyPart.UNMAPPED_PFNS:
        this.#vcpus = 0;
        this.#p2m();
        return;
      case LegacyPart.VCPU_BASIC:
        this.#basic(event);
        return;
      case LegacyPart.VCPU_EXTENDED:
        this.#extended(event);
        return;
      case LegacyPart.SHARED_INFO:
        this.#shared(event);
        return;
      case LegacyPart.MAGIC_PFNS:
        this.#magic(event);
        return;
      case LegacyPart.HVM_CONTEXT:
        this.#hvmContext(event);
        return;
      case LegacyPart.QEMU:
        this.#qemu(event);
        return;
      default:
    }
  }

  #warning(event: LegacyTailEvent, at: number, path: string | undefined, message: string): void {
    const place = { offset: event.offset + at, record: event.part, path };
    this.#context.findings.warning(StreamErrorCode.FIELD, place, message);
  }

  /** Receivers map the p2m's frames once all pages are there: their contents must have come. */
  #p2m(): void {
    if (this.#checkedP2m || this.#header?.p2mFrames === undefined) return;
    this.#checkedP2m = true;
    const { p2mFrames, p2mSize, wordSize } = this.#header;
    let missing = 0;
    let first = -1;
    p2mFrames.forEach((pfn, i) => {
      if (pfn >= p2mSize || this.#sent.has(pfn)) return;
      missing++;
      if (first < 0) first = i;
    });
    if (missing === 0) return;
    const place = {
      offset: this.#headerEnd - (p2mFrames.length - first) * wordSize,
      record: LegacyPart.P2M_FRAME_LIST,
      path: `frames[${first}]`,
    };
    const more = missing === 1 ? '' : `, nor that of ${missing - 1} others`;
    const message = `the content of pfn 0x${(p2mFrames[first] as number).toString(16)} was never sent${more}`;
    this.#context.findings.error(StreamErrorCode.MISSING, place, message);
  }

  #basic(event: LegacyTailEvent): void {
    const { findings } = this.#context;
    const { guestWidth, p2mSize = 0 } = this.#header ?? {};
    const { vcpuId = 0, part: record } = event;
    this.#vcpus++;
    if (guestWidth === undefined) return;
    const at = { offset: event.offset, record };
    for (const frame of vcpuFrames(findings, at, guestWidth, vcpuId, event.body)) {
      const message = this.#useless(frame, p2mSize);
      if (message === undefined) continue;
      const { offset, path } = frame;
      const code = frame.pfn < p2mSize ? StreamErrorCode.MISSING : StreamErrorCode.FIELD;
      findings.error(code, { offset, record, path }, `vcpu ${vcpuId}: ${message}`);
    }
  }

  #useless({ pfn }: VcpuFrame, p2mSize: number): string | undefined {
    const hex = `0x${pfn.toString(16)}`;
    if (pfn >= p2mSize) return `pfn ${hex} is above the last one, 0x${(p2mSize - 1).toString(16)}`;
    return this.#sent.has(pfn) ? undefined : `the content of pfn ${hex} was never sent`;
  }

  /** The hypervisor takes the vcpu from the state itself. */
  #extended(event: LegacyTailEvent): void {
    const vcpu = vcpuExtendedHead(event.body)?.vcpu;
    if (vcpu === event.vcpuId) return;
    this.#warning(event, 0, 'vcpu', `is ${vcpu ?? 'not there'}, not ${event.vcpuId ?? 0}`);
  }

  #shared(event: LegacyTailEvent): void {
    if (this.#vcpus > 0) return;
    const place = { offset: event.offset, record: event.part };
    this.#context.findings.error(StreamErrorCode.MISSING, place, 'no vcpu before it');
  }

  #magic(event: LegacyTailEvent): void {
    decodeMagicPfns(event.body).forEach(({ index, value }, i) => {
      if (index !== HvmParam.STORE_PFN || value !== 0n) return;
      this.#warning(event, 8 * i, 'store_pfn', '0: no xenstore ring');
    });
  }

  #hvmContext(event: LegacyTailEvent): void {
    const { offset, part: record, body } = event;
    // An empty one is the reader's affair.
    if (body.length === 0) return;
    checkHvmContext(this.#context.findings, { offset: offset + 4, record, path: 'blob' }, body);
  }

  #qemu(event: LegacyTailEvent): void {
    const { body } = event;
    const magic = String.fromCharCode(...body.subarray(0, QEMU_MAGIC.length));
    if (magic === QEMU_MAGIC) return;
    const message =
      body.length === 0
        ? 'no state: the device model has nothing to go on from'
        : `begins with ${JSON.stringify(magic)}, not with "${QEMU_MAGIC}"`;
    this.#warning(event, QEMU_SIGNATURE_SIZE, 'state', message);
  }
}
