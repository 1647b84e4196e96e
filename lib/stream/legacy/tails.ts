/**
 * The tails of a legacy image, what stands behind the chunks of a checkpoint.
 *
 *     PV                                            HVM
 *     u32, so many words   unmapped pfns            3 × u64       ioreq, bufioreq and store pfn
 *     for each vcpu that is online                  u32, bytes    Xen's state of the guest (HVM context)
 *       2800 or 5168       vcpu_guest_context       21            signature of QEMU's record
 *       128                extended, if "extv"        u32, bytes  its state; or bytes up to the end of the file
 *       16 + n             xsave, if "xcnt"
 *     4096                 shared info
 */

import { PAGE_SIZE } from '../../abi/pages.js';
import { VCPU_CONTEXT } from '../../abi/pv.js';
import { u32, u64 } from '../../bytes/le.js';
import { StreamErrorCode } from '../codes.js';
import { REC_LENGTH_MAX } from '../libxc/constants.js';
import {
  LEGACY_EXTENDED_SIZE,
  LEGACY_XSAVE_HEAD_SIZE,
  LegacyPart,
  QEMU_MAGIC,
  QEMU_SIGNATURE_SIZE,
  QemuSignature,
  type LegacyPartName,
} from './constants.js';
import type { LegacyHeader, LegacyTailEvent } from './events.js';
import type { LegacyParser, Parsing } from './parser.js';

/** What xl's sender says when the image has arrived. */
const HANDOVER = 'domain is yours, you are cleared to unpause\0';

function* tail(
  parser: LegacyParser,
  part: LegacyPartName,
  offset: number,
  body: Uint8Array,
  more: Partial<Pick<LegacyTailEvent, 'vcpuId' | 'count' | 'signature' | 'completes' | 'violation'>> = {},
): Parsing {
  const { completes = false, ...rest } = more;
  if (completes) parser.checkpoints++;
  yield {
    kind: 'event',
    event: { kind: 'legacy-tail', layer: 'legacy', offset, part, body, completes, ...rest },
  };
}

/** Magic pfns, Xen's state and QEMU's. */
export function* parseHvmTail(parser: LegacyParser): Parsing {
  parser.reading = LegacyPart.MAGIC_PFNS;
  let offset = parser.offset;
  yield* tail(parser, LegacyPart.MAGIC_PFNS, offset, (yield* parser.bytes(24)).slice());
  parser.reading = LegacyPart.HVM_CONTEXT;
  offset = parser.offset;
  const length = parser.limit(u32(yield* parser.bytes(4), 0), REC_LENGTH_MAX, 'length', 4);
  const problem =
    length === 0
      ? parser.error(StreamErrorCode.LENGTH, 'no state at all: HVM_CONTEXT may not be empty', 'length', 4)
      : undefined;
  const violation = parser.violation(problem);
  const context = length === 0 ? new Uint8Array(0) : (yield* parser.bytes(length)).slice();
  // Behind it stands QEMU's record, which another checkpoint may follow: only then it has to be read.
  const completes = parser.skipQemu && parser.lastCheckpoint;
  yield* tail(parser, LegacyPart.HVM_CONTEXT, offset, context, {
    completes,
    ...(violation && { violation }),
  });
  if (!completes) yield* parseQemu(parser);
}

/** 21 characters of signature; then u32 length and state, or state up to the end of the file. */
function* parseQemu(parser: LegacyParser): Parsing {
  parser.reading = LegacyPart.QEMU;
  const offset = parser.offset;
  const signature = String.fromCharCode(...(yield* parser.bytes(QEMU_SIGNATURE_SIZE)));
  let body: Uint8Array;
  switch (signature) {
    case QemuSignature.LIBXL:
    case QemuSignature.REMUS: {
      const length = parser.limit(u32(yield* parser.bytes(4), 0), REC_LENGTH_MAX, 'length', 4);
      body = length === 0 ? new Uint8Array(0) : (yield* parser.bytes(length)).slice();
      break;
    }
    case QemuSignature.UNTIL_EOF: {
      parser.lastCheckpoint = true;
      body = withoutHandover(yield* parser.rest());
      const magic = String.fromCharCode(...body.subarray(0, QEMU_MAGIC.length));
      if (magic !== QEMU_MAGIC) {
        const reason =
          body.length < QEMU_MAGIC.length
            ? `QEMU's state ends after ${body.length} bytes`
            : `QEMU's state begins with ${JSON.stringify(magic)}, not with "${QEMU_MAGIC}"`;
        const code = body.length < QEMU_MAGIC.length ? StreamErrorCode.TRUNCATED : StreamErrorCode.ID;
        throw parser.error(code, reason, 'state', body.length);
      }
      break;
    }
    default: {
      const reason = `${JSON.stringify(signature)} is no signature of QEMU's record`;
      throw parser.error(StreamErrorCode.ID, reason, 'signature', QEMU_SIGNATURE_SIZE);
    }
  }
  yield* tail(parser, LegacyPart.QEMU, offset, body, { signature, completes: true });
}

/** Unmapped pfns, the vcpus that are online, shared info. */
export function* parsePvTail(parser: LegacyParser, header: LegacyHeader, online: readonly number[]): Parsing {
  parser.reading = LegacyPart.UNMAPPED_PFNS;
  const offset = parser.offset;
  const count = u32(yield* parser.bytes(4), 0);
  parser.limit(count, header.p2mSize, 'count', 4);
  yield* parser.skip(count * header.wordSize);
  yield* tail(parser, LegacyPart.UNMAPPED_PFNS, offset, new Uint8Array(0), { count });
  for (const vcpuId of online) yield* parseVcpu(parser, vcpuId, header);
  parser.reading = LegacyPart.SHARED_INFO;
  const at = parser.offset;
  const page = (yield* parser.bytes(PAGE_SIZE)).slice();
  yield* tail(parser, LegacyPart.SHARED_INFO, at, page, { completes: true });
}

function* parseVcpu(parser: LegacyParser, vcpuId: number, header: LegacyHeader): Parsing {
  parser.reading = LegacyPart.VCPU_BASIC;
  const basicSize = VCPU_CONTEXT[header.guestWidth as 4 | 8].size;
  let offset = parser.offset;
  yield* tail(parser, LegacyPart.VCPU_BASIC, offset, (yield* parser.bytes(basicSize)).slice(), { vcpuId });
  if (header.extendedContexts) {
    parser.reading = LegacyPart.VCPU_EXTENDED;
    offset = parser.offset;
    const body = (yield* parser.bytes(LEGACY_EXTENDED_SIZE)).slice();
    yield* tail(parser, LegacyPart.VCPU_EXTENDED, offset, body, { vcpuId });
  }
  if (header.xsaveSize === 0) return;
  parser.reading = LegacyPart.VCPU_XSAVE;
  offset = parser.offset;
  // Another size is damage: no writer left an area out that it had announced, since Xen gives all vcpus the host's mask.
  const head = (yield* parser.bytes(LEGACY_XSAVE_HEAD_SIZE)).slice();
  const size = u64(head, 8);
  const announced = header.xsaveSize - LEGACY_XSAVE_HEAD_SIZE;
  if (size !== BigInt(announced)) {
    const reason = `vcpu ${vcpuId} has an xsave area of ${size} bytes, ${announced} were announced`;
    throw parser.error(StreamErrorCode.FIELD, reason, 'size', 8);
  }
  yield* parser.back(head);
  yield* tail(parser, LegacyPart.VCPU_XSAVE, offset, (yield* parser.bytes(header.xsaveSize)).slice(), {
    vcpuId,
  });
}

/** What xl's sender says last may stand at the end of a captured migration. */
function withoutHandover(bytes: Uint8Array): Uint8Array {
  const from = bytes.length - HANDOVER.length;
  if (from < 0) return bytes;
  for (let i = 0; i < HANDOVER.length; i++) {
    if (bytes[from + i] !== HANDOVER.charCodeAt(i)) return bytes;
  }
  return bytes.subarray(0, from);
}
