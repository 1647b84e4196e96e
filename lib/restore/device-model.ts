/** The device model's records of the libxl stream. */
import { StreamFormatError } from '../errors.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { RecordEvent } from '../stream/events.js';
import { EMULATOR_HEADER_SIZE, LibxlRecord } from '../stream/libxl/constants.js';
import { decodeEmulatorContext, decodeEmulatorXenstoreData } from '../stream/libxl/records.js';
import type { DeviceModelState } from '../toolstack/toolstack.js';

/** Most xenstore data taken: a device model has some dozens of short nodes. */
const XENSTORE_MAX = 1024 * 1024;

const NO_BYTES = new Uint8Array(0);

/** Keeps the last state that came: a checkpointed stream brings one with each checkpoint, and the last one counts. */
export class DeviceModelStash {
  #state: DeviceModelState | undefined;

  get state(): DeviceModelState | undefined {
    return this.#state;
  }

  /** Takes both emulator records. False if it is none of them. Throws StreamFormatError. */
  add(record: RecordEvent): boolean {
    const { xenstore, context } = this.#state ?? { xenstore: NO_BYTES, context: NO_BYTES };
    switch (record.type) {
      case LibxlRecord.EMULATOR_XENSTORE_DATA: {
        if (record.body.length > XENSTORE_MAX) {
          throw new StreamFormatError(
            StreamErrorCode.LIMIT,
            `${record.body.length} bytes, the limit is ${XENSTORE_MAX}`,
            { offset: record.offset + 4, record: record.name, path: 'length' },
          );
        }
        const { emulatorId } = decodeEmulatorXenstoreData(record.body, record);
        this.#state = { emulator: emulatorId, xenstore: record.body.subarray(EMULATOR_HEADER_SIZE), context };
        return true;
      }
      case LibxlRecord.EMULATOR_CONTEXT: {
        const { emulatorId, blob } = decodeEmulatorContext(record.body, record);
        this.#state = { emulator: emulatorId, xenstore, context: blob };
        return true;
      }
      default:
        return false;
    }
  }
}
